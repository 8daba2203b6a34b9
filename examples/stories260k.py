"""One story by one small model in three runtimes: Keras, SavedModel and TFLite print the same, token for token.

    KERASLLM_DATA=... .venv/bin/python examples/stories260k.py
    .venv/bin/python examples/stories260k.py --model stories260K.bin --prompt "Tim had a"

The model is stories260K of llama2.c: a LLaMA of 260,032 parameters. Its tokenizer, tok512.bin, lies beside it. Half a
minute on two CPU cores.
"""

import argparse
import os
import sys
from pathlib import Path

import kerasllm
from kerasllm.edge import EdgeModel
from kerasllm.serving import ServedModel


def main() -> int:
    """Load, tell, export, tell again, compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = Path(os.environ.get("KERASLLM_DATA", ".")) / "checkpoints" / "stories260K.bin"
    parser.add_argument("--model", default=default, help="a llama2.c file, or what kerasllm.load takes")
    parser.add_argument("--prompt", default="", help="how the story begins")
    parser.add_argument("--max-new-tokens", type=int, default=120)
    parser.add_argument("--out", default="runs/stories260k", help="folder for the exported files")
    args = parser.parse_args()

    model, tokenizer = kerasllm.load(args.model)
    print(f"{model.count_params():,} parameters, {tokenizer.vocabulary_size} tokens")

    # Strings in and out for a server; a file without TensorFlow for a phone, its tokenizer beside it.
    saved_model = kerasllm.export_saved_model(model, tokenizer, Path(args.out) / "1", overwrite=True)
    tflite = kerasllm.export_tflite(model, Path(args.out) / "model.tflite", tokenizer, overwrite=True)

    options = {"max_new_tokens": args.max_new_tokens}
    stories = {
        "Keras": kerasllm.generate(model, tokenizer, args.prompt, **options),
        "SavedModel": ServedModel(saved_model).generate(args.prompt, **options),
        "TFLite": EdgeModel(tflite).generate(args.prompt, **options),
    }
    for runtime, story in stories.items():
        print(f"\n{runtime}: {args.prompt}{story}")
    alike = len(set(stories.values())) == 1
    print("\nall three are the same" if alike else "\nthey differ: please report this")
    return 0 if alike else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except kerasllm.InputError as error:
        print(f"stories260k: {error}", file=sys.stderr)
        sys.exit(2)
