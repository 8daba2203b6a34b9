"""What `model.fit` needs for language models and Keras lacks: callbacks, and curves of what happened."""

import importlib
from typing import TYPE_CHECKING, Any

_NAMES = {
    "AveragedWeights": "averages",
    "Checkpoint": "checkpoint",
    "StopOnNaN": "callbacks",
    "TensorBoard": "tensorboard",
    "TrainingOptions": "options",
    "WarmUp": "options",
    "make_deterministic": "fit",
    "make_model": "job",
    "plot_curves": "curves",
    "train": "fit",
    "train_to_folder": "job",
}

__all__ = [*_NAMES]

if TYPE_CHECKING:
    # What the lazy index hides from type checkers.
    from kerasllm.training.averages import AveragedWeights as AveragedWeights
    from kerasllm.training.callbacks import StopOnNaN as StopOnNaN
    from kerasllm.training.checkpoint import Checkpoint as Checkpoint
    from kerasllm.training.curves import plot_curves as plot_curves
    from kerasllm.training.fit import make_deterministic as make_deterministic
    from kerasllm.training.fit import train as train
    from kerasllm.training.job import make_model as make_model
    from kerasllm.training.job import train_to_folder as train_to_folder
    from kerasllm.training.options import TrainingOptions as TrainingOptions
    from kerasllm.training.options import WarmUp as WarmUp
    from kerasllm.training.tensorboard import TensorBoard as TensorBoard


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(importlib.import_module(f"{__name__}.{_NAMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
