"""Does an exported artefact say what the Keras model says?

Asked in a fresh process that has only the artefact's runtime.

The parent writes what Keras answers (`write_reference`), then runs this module as a child for each artefact (`verify`).
"""

import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kerasllm.errors import InputError
from kerasllm.evaluation.scores import CONTEXT, STRIDE, Evaluation, evaluate
from kerasllm.files import write_json

if TYPE_CHECKING:
    from kerasllm.models import LanguageModel
    from kerasllm.text import Tokenizer

PROMPTS = ("The history of", "In mathematics, a", "He was born in 1925 and", "我爱北京天安门", "a")
"""Five prompts, one of them Chinese and one of a single token."""

NEW_TOKENS = 64
LOGITS_TOLERANCE = 1e-4

_HEAVY = ("tensorflow", "tensorflow_text", "keras", "ai_edge_litert")
# A SavedModel must run without these; Keras itself TensorFlow imports on its own account.
_MODEL_CODE = ("kerasllm.layers", "kerasllm.models", "kerasllm.generation")


def write_reference(
    model: "LanguageModel",
    tokenizer: "Tokenizer",
    documents: Sequence[np.ndarray],
    texts: Sequence[str],
    folder: str | os.PathLike[str],
    *,
    prompts: Sequence[str] = PROMPTS,
    context: int = CONTEXT,
    stride: int = STRIDE,
) -> Evaluation:
    """Write what the Keras model answers, for artefacts to be compared with.

    Args:
        model: The model that was exported.
        tokenizer: Its tokenizer.
        documents: Held-out documents as token ids.
        texts: The same as text.
        folder: Where to write `reference.npz` and `reference.json`.
        prompts: To be continued greedily.
        context: Inputs in a window.
        stride: Tokens between the starts of two windows.

    Returns:
        The Keras model's own evaluation.
    """
    from kerasllm.evaluation.runners import KerasModel
    from kerasllm.generation import generate_tokens

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    evaluation, top_1 = evaluate(
        KerasModel(model, tokenizer), documents, texts, context=context, stride=stride, lossless=tokenizer.lossless
    )
    probe = np.asarray(documents[0][:NEW_TOKENS], "int32")
    np.savez(
        folder / "reference.npz",
        probe=probe,
        logits=np.array(model(probe[None], training=False))[0],
        greedy=generate_tokens(model, tokenizer, prompts, max_new_tokens=NEW_TOKENS),
        top_1=top_1,
        tokens=np.concatenate(documents).astype("int32"),
        lengths=np.array([len(document) for document in documents]),
    )
    content = {"prompts": prompts, "texts": texts, "context": context, "stride": stride, "lossless": tokenizer.lossless}
    write_json(folder / "reference.json", content)
    return evaluation


def verify(artefact: str | os.PathLike[str], reference: str | os.PathLike[str]) -> dict[str, Any]:
    """Compare an artefact with the Keras model, in a fresh process.

    Args:
        artefact: A SavedModel folder or a `.tflite` file.
        reference: What `write_reference` wrote.

    Returns:
        `max_logit_difference`, `greedy_equal` (prompts whose 64 tokens are all the same), `prompts`,
        `top_1_agreement`, `evaluation` (from the artefact), `seconds`, `imported` (heavy modules in the process).

    Raises:
        InputError: The artefact does not run alone.
    """
    command = [sys.executable, "-m", "kerasllm.evaluation.verify", str(artefact), str(reference)]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "3"}
    child = subprocess.run(command, capture_output=True, text=True, env=environment)
    if child.returncode:
        last = (child.stderr.strip().splitlines() or ["no message"])[-1]
        raise InputError(f"{artefact}: does not run in a process of its own ({last}); export it anew")
    return json.loads(child.stdout.strip().splitlines()[-1])


def problems(result: dict[str, Any], tolerance: float = LOGITS_TOLERANCE) -> list[str]:
    """What keeps a float32 artefact from being the same model; empty when nothing does.

    Args:
        result: What `verify` returned.
        tolerance: Largest allowed difference of a logit.
    """
    found = []
    if not result["max_logit_difference"] <= tolerance:
        found.append(f"logits differ by {result['max_logit_difference']:.2g}")
    if result["greedy_equal"] != result["prompts"]:
        found.append(f"{result['prompts'] - result['greedy_equal']} of {result['prompts']} greedy continuations differ")
    if not result["top_1_agreement"] >= 0.999:
        found.append(f"most likely tokens agree at only {result['top_1_agreement']:.2%} of places")
    return found


def _compare(artefact: Path, reference: Path) -> dict[str, Any]:
    import time

    started = time.perf_counter()
    arrays = np.load(reference / "reference.npz")
    settings = json.loads((reference / "reference.json").read_text(encoding="utf-8"))
    runner, greedy = _run(artefact, settings["prompts"])
    documents = np.split(arrays["tokens"], np.cumsum(arrays["lengths"])[:-1])
    options = {name: settings[name] for name in ("context", "stride", "lossless")}
    evaluation, top_1 = evaluate(runner, documents, settings["texts"], **options)
    difference = float(np.abs(runner.logits(arrays["probe"]) - arrays["logits"]).max())
    _check_imports(artefact)
    return {
        "max_logit_difference": difference if math.isfinite(difference) else 1e9,
        "greedy_equal": int((greedy == arrays["greedy"]).all(axis=1).sum()),
        "prompts": len(settings["prompts"]),
        "top_1_agreement": float((top_1 == arrays["top_1"]).mean()),
        "evaluation": evaluation.to_dict(),
        "imported": [name for name in _HEAVY if name in sys.modules],
        "seconds": time.perf_counter() - started,
    }


def _run(artefact: Path, prompts: Sequence[str]) -> tuple[Any, np.ndarray]:
    """The artefact's runner, and greedy continuations of the prompts as `generate_tokens` gives them."""
    if artefact.is_dir():
        from kerasllm.serving import ServedModel

        served = ServedModel(artefact)
        return served, served.tokens(prompts, NEW_TOKENS)
    from kerasllm.edge import EdgeModel

    edge = EdgeModel(artefact)
    tokenizer = edge.tokenizer
    greedy = np.full((len(prompts), NEW_TOKENS), tokenizer.eos_id, "int32")
    for row, prompt in zip(greedy, prompts, strict=True):
        drawn = list(edge.tokens(tokenizer.prompt_ids(prompt), np.zeros(NEW_TOKENS, "float32")))
        row[: len(drawn)] = drawn
    return edge, greedy


def _check_imports(artefact: Path) -> None:
    """The process must not have touched what the artefact promises to do without."""
    without = _MODEL_CODE if artefact.is_dir() else ("tensorflow", "keras", *_MODEL_CODE)
    for name in without:
        if name in sys.modules:
            raise RuntimeError(f"running {artefact.name} has imported {name}")


if __name__ == "__main__":
    print(json.dumps(_compare(Path(sys.argv[1]), Path(sys.argv[2]))))
