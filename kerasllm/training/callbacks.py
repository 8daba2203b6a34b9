"""Callbacks that keep the best weights and stop a training that has diverged."""

import math
import os
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

import keras
import safetensors

from kerasllm.errors import InputError
from kerasllm.folder import read_weights, write_weights


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


def _opened(path: Path) -> Any:
    try:
        return safetensors.safe_open(path, framework="numpy")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except safetensors.SafetensorError as error:
        raise InputError(f"{path}: is not a safetensors file ({error}); write it anew") from None
