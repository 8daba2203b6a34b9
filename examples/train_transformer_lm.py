"""Train a causal Transformer on a Wikipedia dump, evaluate it, let it write, export it and load what was exported.

    .venv/bin/python examples/train_transformer_lm.py --epochs 2 --out runs/transformer-example

About three minutes on two CPU cores. The default corpus is the English Wikipedia excerpt that is installed with
kerasllm; `--corpus` takes anything `kerasllm prepare` reads (a dump, a wikiextractor folder, JSON lines, text), or a
folder that it has made. Everything goes to `--out`; what an earlier run left there is replaced, unless `--resume` goes
on with it.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import keras

import kerasllm
from kerasllm.data import Corpus, default_corpus, load_corpus, prepare
from kerasllm.edge import EdgeModel
from kerasllm.evaluation import KerasModel, evaluate
from kerasllm.models import TransformerLanguageModel
from kerasllm.training import Checkpoint, StopOnNaN, TensorBoard


def main() -> None:
    """From text to a model on a phone."""
    args = parse_arguments()
    out = Path(args.out)
    keras.utils.set_random_seed(0)

    corpus = open_corpus(args.corpus, out / "corpus", args.vocabulary_size)
    tokenizer = corpus.tokenizer

    # Rotary positions, RMS norm, SwiGLU and tied embeddings are the defaults; see kerasllm.TransformerConfig.
    config = kerasllm.TransformerConfig(
        vocabulary_size=tokenizer.vocabulary_size,
        num_layers=args.num_layers,
        num_heads=args.num_heads,
        num_key_value_heads=args.num_key_value_heads,
        hidden_dim=args.hidden_dim,
        intermediate_dim=3 * args.hidden_dim,
        max_sequence_length=args.max_sequence_length,
        dropout=0.1,
    )
    model = TransformerLanguageModel(config, dtype=args.precision)
    model.build()
    model.summary()

    # Loss and metric default to cross-entropy and perplexity; any Keras optimizer will do.
    model.compile(optimizer=keras.optimizers.AdamW(args.learning_rate, global_clipnorm=1.0))
    prompt = "The history of"
    fit(model, corpus, args, out, lambda: {prompt: kerasllm.generate(model, tokenizer, prompt, max_new_tokens=48)})

    # Every token of the test articles exactly once, each seen with at least `context - stride` tokens before it.
    texts = [article.text for article in corpus.articles("test")]
    scores, _ = evaluate(KerasModel(model, tokenizer), corpus.documents("test"), texts, lossless=tokenizer.lossless)
    print(scores.summary())
    print(prompt + kerasllm.generate(model, tokenizer, prompt, temperature=0.7, top_p=0.9, seed=1))

    # Strings in and out for a server; a file without TensorFlow for a phone, its tokenizer beside it.
    saved_model = kerasllm.export_saved_model(model, tokenizer, out / "1", overwrite=True)
    tflite = kerasllm.export_tflite(model, out / "model.tflite", tokenizer, overwrite=True)

    # Both again, as somebody else would: the Keras model out of the SavedModel, the file without TensorFlow.
    again = kerasllm.generate(*kerasllm.load(saved_model), prompt, max_new_tokens=16)
    print("SavedModel:", repr(again))
    print("TFLite:    ", repr(EdgeModel(tflite).generate(prompt, max_new_tokens=16)))
    print(f"Written to {out}; curves: tensorboard --logdir {out / 'logs'}")


def fit(
    model: TransformerLanguageModel,
    corpus: Corpus,
    args: argparse.Namespace,
    out: Path,
    sample: Callable[[], dict[str, str]],
) -> None:
    """`model.fit`, which goes on after a crash, Ctrl-C or kill -9 if the same command is given with --resume."""
    # Batches of (inputs, targets), each int32 (batch, length): full windows, no padding.
    windows = {"batch_size": args.batch_size, "sequence_length": args.sequence_length}
    same = {"data": corpus.identity, **windows}  # what must not change when the training goes on
    start = {"resume": args.resume, "overwrite": not args.resume}
    # All of the training's state goes to the disk now and then; the data are a function of seed and step.
    with Checkpoint(out / "checkpoints", **start, tokenizer=corpus.tokenizer, identity=same) as checkpoint:
        if checkpoint.finished:
            checkpoint.restore_weights(model)
            return
        stop_early = keras.callbacks.EarlyStopping("val_loss", mode="min", patience=1)
        watching = [StopOnNaN(checkpoint=checkpoint), stop_early, TensorBoard(out / "logs", sample=sample)]
        model.fit(
            corpus.dataset("train", **windows, seed=0, repeat=True, start=checkpoint.step),
            validation_data=corpus.dataset("validation", **windows),
            steps_per_epoch=len(corpus.dataset("train", **windows, seed=0)),
            epochs=args.epochs,
            initial_epoch=checkpoint.epoch,
            shuffle=False,  # the windows are
            callbacks=checkpoint.together_with(watching),
        )


def open_corpus(source: str, out: Path, vocabulary_size: int) -> Corpus:
    """Text -> clean articles -> train, validation and test split by title -> tokens on the disk."""
    if (Path(source) / "manifest.json").exists():
        return load_corpus(source)
    options = {"vocabulary_size": vocabulary_size, "validation": 0.05, "test": 0.1, "overwrite": True}
    return prepare(default_corpus() if source == "default" else source, out, **options)


def parse_arguments() -> argparse.Namespace:
    """What can be chosen."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", default="default", help="a dump, a folder, JSON lines, text or a prepared corpus")
    parser.add_argument("--vocabulary-size", type=int, default=2048)
    parser.add_argument("--num-layers", type=int, default=3)
    parser.add_argument("--num-heads", type=int, default=4)
    parser.add_argument("--num-key-value-heads", type=int, help="fewer than heads is grouped-query attention")
    parser.add_argument("--hidden-dim", type=int, default=128)
    parser.add_argument("--max-sequence-length", type=int, default=512, help="longest context in tokens")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=16, help="windows in a step")
    parser.add_argument("--sequence-length", type=int, default=128, help="tokens in a window")
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--precision", default="float32", choices=["float32", "mixed_bfloat16", "mixed_float16"])
    parser.add_argument("--resume", action="store_true", help="go on where an interrupted run stopped")
    parser.add_argument("--out", default="runs/transformer-example")
    return parser.parse_args()


if __name__ == "__main__":
    main()
