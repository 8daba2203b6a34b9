"""How good a model is, measured on the model or on an exported artefact, beside baselines that need no training."""

from typing import TYPE_CHECKING, Any

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
}

__all__ = list(_NAMES)

if TYPE_CHECKING:
    # What the lazy index hides from type checkers.
    from kerasllm.evaluation.baselines import NGramModel as NGramModel
    from kerasllm.evaluation.baselines import bits_per_byte as bits_per_byte
    from kerasllm.evaluation.baselines import compression_bits_per_byte as compression_bits_per_byte
    from kerasllm.evaluation.runners import KerasModel as KerasModel
    from kerasllm.evaluation.runners import open_model as open_model
    from kerasllm.evaluation.scores import CONTEXT as CONTEXT
    from kerasllm.evaluation.scores import STRIDE as STRIDE
    from kerasllm.evaluation.scores import Evaluation as Evaluation
    from kerasllm.evaluation.scores import evaluate as evaluate


def __getattr__(name: str) -> Any:
    import importlib

    if name in _NAMES:
        return getattr(importlib.import_module(f"kerasllm.evaluation.{_NAMES[name]}"), name)
    raise AttributeError(f"module 'kerasllm.evaluation' has no attribute {name!r}")
