"""Callbacks that keep the best weights and stop a training that has diverged."""

import math
import os
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

import keras
import numpy as np
import safetensors
import safetensors.numpy

from kerasllm.errors import InputError
from kerasllm.files import atomic_file


class BestWeights(keras.callbacks.Callback):
    """Keep the weights of the epoch with the lowest validation loss in a file, and give them back at the end.

    The file is written whenever an epoch is the best so far, in one step: at any moment it is complete. It is a
    safetensors file whose tensors are named by variable path (without the model's own name). Stop early with
    `keras.callbacks.EarlyStopping`.

    Keras calls no callback when `fit` is interrupted, so wrap `fit` to be told what is left after Ctrl-C:

        with BestWeights("runs/lstm/best.safetensors") as best:
            model.fit(training, validation_data=validation, callbacks=[best])

    When `fit` fails or is interrupted inside the block, the best weights go back into the model, the place of the file
    is printed (standard error), and the exception goes on.

    Args:
        path: The file; one from an earlier run is replaced when the first epoch ends.
        monitor: Name in the logs of the figure to minimise.
        restore: Put the best weights back into the model when training ends.
        resume: Start from the figure recorded in an existing file, so that only a better epoch replaces it.

    Attributes:
        best: The lowest figure so far, or infinity.
        best_epoch: Its epoch, counted from 1, or None.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        monitor: str = "val_loss",
        *,
        restore: bool = True,
        resume: bool = False,
    ) -> None:
        super().__init__()
        self.path = Path(path)
        self.monitor = monitor
        self.restore = restore
        self.resume = resume
        self.best = math.inf
        self.best_epoch: int | None = None

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Forget an earlier training, or take up its record."""
        self.best, self.best_epoch = math.inf, None
        if self.resume and self.path.exists():
            self.best, self.best_epoch = self._record()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Write the weights if this epoch is the best.

        Raises:
            InputError: The logs have no such figure.
        """
        logs = logs or {}
        if self.monitor not in logs:
            raise InputError(
                f"{self.monitor}: not among what this training measures ({', '.join(logs)}); "
                "pass validation_data to fit, or BestWeights(monitor=...) one of these names"
            )
        value = float(logs[self.monitor])
        if value < self.best:  # never true for NaN
            write_weights(self.model, self.path, {self.monitor: repr(value), "epoch": str(epoch + 1)})
            self.best, self.best_epoch = value, epoch + 1

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Put the best weights back."""
        if self.restore and self.best_epoch is not None:
            read_weights(self.model, self.path)

    def __enter__(self) -> "BestWeights":
        """Watch the block for interruptions."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """After an interruption: restore, and say what is left."""
        if kind is None:
            return
        if self.best_epoch is None:
            print("Training stopped before an epoch was complete: no weights were written.", file=sys.stderr)
            return
        self.on_train_end()
        print(
            f"Training stopped. The best weights ({self.monitor} {self.best:.4f}, epoch {self.best_epoch}) are in "
            f"{self.path}",
            file=sys.stderr,
        )

    def _record(self) -> tuple[float, int]:
        with _opened(self.path) as file:
            metadata = file.metadata() or {}
        if self.monitor not in metadata:
            raise InputError(f"{self.path}: records no {self.monitor}; pass another path or resume=False")
        return float(metadata[self.monitor]), int(metadata["epoch"])


class StopOnNaN(keras.callbacks.Callback):
    """Stop with an error as soon as the loss is not a finite number; what was saved before stays as it is."""

    def __init__(self) -> None:
        super().__init__()
        self._epoch = 0

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Note the epoch, for the message."""
        self._epoch = epoch

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Check the training loss.

        Raises:
            InputError: It is not finite.
        """
        self._check("loss", (logs or {}).get("loss", 0.0), f"batch {batch + 1}")

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Check the validation loss.

        Raises:
            InputError: It is not finite.
        """
        self._check("val_loss", (logs or {}).get("val_loss", 0.0), "validation")

    def _check(self, name: str, value: Any, place: str) -> None:
        if math.isfinite(float(value)):
            return
        optimizer = self.model.optimizer
        rate = float(keras.ops.convert_to_numpy(optimizer.learning_rate))
        raise InputError(
            f"{name} is {float(value)} at step {int(optimizer.iterations)} (epoch {self._epoch + 1}, {place}): "
            f"lower the learning rate (now {rate:.3g}) or clip the gradients (global_clipnorm=1.0)"
        )


def write_weights(model: keras.Model, path: str | os.PathLike[str], metadata: dict[str, str] | None = None) -> None:
    """Write a model's weights as one safetensors file, atomically.

    Args:
        model: A built model; its variable paths must differ from each other.
        path: The file; replaced if it exists.
        metadata: What to record in the file's header.

    Raises:
        InputError: Two variables have the same path.
    """
    tensors: dict[str, np.ndarray] = {}
    for weight in model.weights:
        name = _name(weight, model)
        if name in tensors:
            raise InputError(f"{path}: the model has two variables with path {name}; name its layers differently")
        tensors[name] = np.asarray(keras.ops.convert_to_numpy(weight), order="C")
    content = safetensors.numpy.save(tensors, metadata)
    with atomic_file(path) as file:
        file.write(content)


def read_weights(model: keras.Model, path: str | os.PathLike[str]) -> None:
    """Set a model's weights from a file of `write_weights`; all of them or, if one does not fit, none.

    Args:
        model: A built model.
        path: The file.

    Raises:
        InputError: The file is missing or broken, or its names or shapes are not those of the model.
    """
    with _opened(Path(path)) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
    weights = {_name(weight, model): weight for weight in model.weights}
    if different := sorted(weights.keys() ^ tensors.keys()):
        raise InputError(f"{path}: variable {different[0]} is not in both file and model; use the model that wrote it")
    for name, weight in weights.items():
        if tuple(weight.shape) != tensors[name].shape:
            raise InputError(
                f"{path}: {name} has shape {tensors[name].shape}, the model's {tuple(weight.shape)}; use its own config"
            )
    for name, weight in weights.items():
        weight.assign(tensors[name])


def _name(weight: keras.Variable, model: keras.Model) -> str:
    """Path without the model's name, which Keras makes up anew for each model of a process."""
    return weight.path.removeprefix(f"{model.name}/")


def _opened(path: Path) -> Any:
    try:
        return safetensors.safe_open(path, framework="numpy")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except safetensors.SafetensorError as error:
        raise InputError(f"{path}: is not a safetensors file ({error}); write it anew") from None
