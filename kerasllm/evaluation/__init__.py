"""How good a model is, measured on the model or on an exported artefact, beside baselines that need no training."""

from typing import Any

_NAMES = {
    "CONTEXT": "scores",
    "Evaluation": "scores",
    "KerasModel": "runners",
    "NGramModel": "baselines",
    "STRIDE": "scores",
    "bits_per_byte": "baselines",
    "compression_bits_per_byte": "baselines",
    "evaluate": "scores",
    "open_model": "runners",
    "verify": "verify",
}

__all__ = list(_NAMES)


def __getattr__(name: str) -> Any:
    import importlib

    if name in _NAMES:
        return getattr(importlib.import_module(f"kerasllm.evaluation.{_NAMES[name]}"), name)
    raise AttributeError(f"module 'kerasllm.evaluation' has no attribute {name!r}")
