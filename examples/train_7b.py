"""Train a LLaMA: the same script plans a 7B model and trains a tiny one of the same shape, here and now.

    .venv/bin/python examples/train_7b.py
    .venv/bin/python examples/train_7b.py --preset llama_7b --precision mixed_bfloat16 --device a100-80 --devices 8

The first trains `llama_tiny` (1.1 million parameters) on the Wikipedia excerpt that is installed with kerasllm, in
about one minute on two CPU cores. The second says what 7B needs, lays out all of its variables without memory, and
refuses to train where they do not fit, with exit code 2. Where they do, it trains: give it `--corpus` and `--steps`.

With the JAX backend `--shard` splits weights, gradients and moments over all devices; four on one CPU, to try it:

    KERAS_BACKEND=jax XLA_FLAGS=--xla_force_host_platform_device_count=4 .venv/bin/python examples/train_7b.py --shard
"""

import argparse
import re
import sys
from pathlib import Path

import keras

import kerasllm
from kerasllm import backend
from kerasllm.convert.memory import available_memory
from kerasllm.data import Corpus, default_corpus, load_corpus, prepare
from kerasllm.models import TransformerLanguageModel, variable_name
from kerasllm.plan import FULLY_SHARDED, Plan, plan_model, read_config


def main() -> None:
    """Plan, lay out, and train where it fits."""
    args = parse_arguments()
    keras.utils.set_random_seed(0)
    if not getattr(read_config(args.preset, args.vocabulary_size), "causal", False):
        raise kerasllm.InputError(f"{args.preset}: is no causal Transformer; choose one, such as llama_7b")
    if args.shard:
        shard()
    print(make_plan(args).summary())
    describe(args)
    if reason := obstacle(args):
        raise kerasllm.InputError(reason)
    train(args)


def make_plan(args: argparse.Namespace, **hardware: object) -> Plan:
    """What this training needs, on the hardware of the command line or another."""
    return plan_model(
        args.preset,
        vocabulary_size=args.vocabulary_size,
        dtype=args.precision,
        batch_size=args.batch_size,
        length=args.sequence_length,
        tokens=args.tokens,
        accumulate=args.accumulate > 1,
        **(hardware or {"device": args.device, "devices": args.devices}),
    )


def describe(args: argparse.Namespace) -> None:
    """Build the model without memory and print its variables; those of one block stand for all blocks."""
    with backend.deferred():
        model = TransformerLanguageModel(read_config(args.preset, args.vocabulary_size), dtype=args.precision)
        model.build()
    print(f"\nvariables of {args.preset} ({model.config.num_layers} blocks like block_0)")
    for variable in model.variables:
        name = variable_name(variable)
        if not re.match(r"block_[1-9]", name):
            print(f"  {name:40}{variable.dtype:>10}  {tuple(variable.shape)}")
    print(f"  {model.count_params():,} parameters in {len(model.variables)} variables\n")


def obstacle(args: argparse.Namespace) -> str | None:
    """Why the training cannot happen on this machine, or nothing."""
    memory, devices = machine(args)
    here = make_plan(args, device="cpu", memory=memory / 1e9, devices=devices)
    ways = [way for way in here.scenarios if way.name == "training"]
    mine = next(way for way in ways if (way.recompute, way.sharded) == (args.recompute, devices > 1))
    if mine.fits:
        return None
    least = min(ways, key=lambda way: way.memory.total)
    return (
        f"{args.preset} needs {mine.memory.total / 1e9:,.1f} GB on each device to train so (at least "
        f"{least.memory.total / 1e9:,.1f} GB: {least.label}), and there are {memory / 1e9:,.1f} GB here; choose a "
        "smaller preset, or one of the ways above on other hardware"
    )


def machine(args: argparse.Namespace) -> tuple[float, int]:
    """Bytes of one device of this machine, and over how many the weights are split."""
    devices = keras.distribution.list_devices() if args.shard else ["cpu:0"]
    if args.memory:
        return args.memory * 1e9, len(devices)
    # The devices of one CPU share its memory.
    return available_memory() / len(devices), len(devices)


def shard() -> None:
    """Split every matrix, and what the optimizer keeps of it, over all devices."""
    if keras.backend.backend() != "jax":
        raise kerasllm.InputError("--shard needs the JAX backend; set KERAS_BACKEND=jax")
    devices = keras.distribution.list_devices()
    layout_map = keras.distribution.LayoutMap(keras.distribution.DeviceMesh((len(devices),), ("batch",), devices))
    for pattern, axes in FULLY_SHARDED:
        layout_map[f".*/{pattern}"] = axes
    keras.distribution.set_distribution(keras.distribution.ModelParallel(layout_map=layout_map, batch_dim_name="batch"))


def train(args: argparse.Namespace) -> None:
    """Text to tokens, `compile`, `fit`, and the loss and perplexity of text that it has not seen."""
    corpus = open_corpus(args)
    config = read_config(args.preset, corpus.tokenizer.vocabulary_size)
    model = TransformerLanguageModel(config, dtype=args.precision)
    model.build()
    if args.recompute:
        for block in model.blocks:
            recompute(block)
    windows = {"batch_size": args.batch_size, "sequence_length": args.sequence_length}
    training = corpus.dataset("train", **windows, seed=0, repeat=True)
    validation = corpus.dataset("validation", **windows)
    if args.shard:  # each device gets as many rows as the others
        validation = validation.unbatch().batch(args.batch_size, drop_remainder=True)
    # Betas, weight decay, clipping and schedule are those of Touvron et al. 2023, section 2.3.
    updates = max(1, args.steps // args.accumulate)
    warm_up = max(1, updates // 20)
    schedule = keras.optimizers.schedules.CosineDecay(
        args.learning_rate / warm_up, updates, alpha=0.1, warmup_target=args.learning_rate, warmup_steps=warm_up
    )
    model.compile(
        keras.optimizers.AdamW(
            schedule,
            weight_decay=0.1,
            beta_2=0.95,
            global_clipnorm=1.0,
            gradient_accumulation_steps=args.accumulate if args.accumulate > 1 else None,
        )
    )
    before = model.evaluate(validation, verbose=0, return_dict=True)
    model.fit(training, steps_per_epoch=args.steps, shuffle=False, verbose=args.verbose)
    after = model.evaluate(validation, verbose=0, return_dict=True)
    for name, scores in (("before", before), ("after", after)):
        print(f"{name:8} loss {scores['loss']:.3f}, perplexity {scores['perplexity']:.1f} for each token of validation")
    print(kerasllm.generate(model, corpus.tokenizer, "The history of", max_new_tokens=32, temperature=0.7, top_p=0.9))


def recompute(block: keras.layers.Layer) -> None:
    """Keep only the input of a block for the backward pass and compute the rest of it a second time."""
    if block.residual_dropout.rate:
        raise kerasllm.InputError("--recompute would draw new dropout masks; choose a preset without dropout")
    forward = block.call

    def call(inputs: object, **arguments: object) -> object:
        return keras.remat(lambda x: forward(x, **arguments))(inputs)

    block.call = call


def open_corpus(args: argparse.Namespace) -> Corpus:
    """Text -> clean articles -> train, validation and test split by title -> tokens on the disk."""
    if (Path(args.corpus) / "manifest.json").exists():
        return load_corpus(args.corpus)
    size = read_config(args.preset, args.vocabulary_size).vocabulary_size
    source = default_corpus() if args.corpus == "default" else args.corpus
    return prepare(source, Path(args.out) / "corpus", vocabulary_size=size, overwrite=True)


def parse_arguments() -> argparse.Namespace:
    """What can be chosen."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="llama_tiny", help="a Transformer of kerasllm.presets, or a JSON file")
    parser.add_argument("--vocabulary-size", type=int, help="instead of the preset's")
    parser.add_argument("--corpus", default="default", help="a dump, a folder, JSON lines, text or a prepared corpus")
    parser.add_argument("--steps", type=int, default=300, help="batches to train on")
    parser.add_argument("--batch-size", type=int, default=16, help="windows in a batch")
    parser.add_argument("--sequence-length", type=int, default=128, help="tokens in a window")
    parser.add_argument("--accumulate", type=int, default=1, help="batches whose gradients make one update")
    parser.add_argument("--recompute", action="store_true", help="compute activations twice instead of keeping them")
    parser.add_argument("--shard", action="store_true", help="split the weights over all devices (JAX)")
    parser.add_argument("--learning-rate", type=float, default=3e-3, help="LLaMA 7B: 3e-4")
    parser.add_argument("--precision", default="float32", choices=["float32", "mixed_bfloat16", "bfloat16"])
    parser.add_argument("--tokens", type=int, help="training budget to plan; 20 for each parameter by default")
    parser.add_argument("--device", help="accelerator to plan for: a100-40, a100-80, h100, t4 or rtx4090")
    parser.add_argument("--devices", type=int, default=1, help="how many of them")
    parser.add_argument("--memory", type=float, help="GB of a device of this machine, instead of its main memory")
    parser.add_argument("--verbose", default=2, type=int, help="as in fit")
    parser.add_argument("--out", default="runs/train-7b")
    return parser.parse_args()


if __name__ == "__main__":
    try:
        main()
    except kerasllm.InputError as error:
        print(f"train_7b: {error}", file=sys.stderr)
        sys.exit(2)
