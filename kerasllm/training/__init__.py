"""What `model.fit` needs for language models and Keras lacks: callbacks, and curves of what happened."""

import importlib
from typing import Any

_NAMES = {
    "BestWeights": "callbacks",
    "StopOnNaN": "callbacks",
    "TensorBoard": "tensorboard",
    "TrainingOptions": "fit",
    "make_model": "job",
    "plot_curves": "curves",
    "train": "fit",
    "train_to_folder": "job",
}

__all__ = [*_NAMES]


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(importlib.import_module(f"{__name__}.{_NAMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
