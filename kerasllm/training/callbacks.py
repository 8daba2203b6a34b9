"""A callback that watches the loss."""

import math
import sys
from typing import Any

import keras
import numpy as np

from kerasllm.backend import synchronize
from kerasllm.errors import InputError
from kerasllm.training.checkpoint import Checkpoint

_LEAST = 1.0
"""Reference of an explosion at least, in nats: a fine-tuned model may begin with a loss of nearly nothing."""


class StopOnNaN(keras.callbacks.Callback):
    """Stop with an error as soon as the loss is not a finite number, or explodes.

    Args:
        skip: Such batches to leave out first. The optimizer must leave them out, too: compile with
            `keras.optimizers.LossScaleOptimizer` (`TrainingOptions.skip_nonfinite` does).
        explosion: A batch's loss of more than so many times the first batch's (or 1 nat, if that was less) is an
            explosion; `None` lets it be.
        checkpoint: Names the last good checkpoint in the error.

    Attributes:
        skipped: Batches left out so far.
    """

    def __init__(self, *, skip: int = 0, explosion: float | None = 10.0, checkpoint: Checkpoint | None = None) -> None:
        super().__init__()
        self.skip, self.explosion, self.checkpoint = skip, explosion, checkpoint
        self.skipped = 0
        self._first: float | None = None  # loss of the first batch
        self._sums = 0.0, 0.0  # of the loss in this epoch, before the batch
        self._metrics: list[np.ndarray] = []  # after the last good batch
        self._epoch = self._batch = 0

    def get_state(self) -> dict[str, Any]:
        """For checkpoints."""
        state = {"skipped": self.skipped, "first": self._first, "sums": list(self._sums), "batch": self._batch}
        return {**state, "metrics": self._metrics} if self._metrics else state

    def set_state(self, state: dict[str, Any]) -> None:
        """From a checkpoint."""
        self.skipped, self._first, self._batch = state["skipped"], state["first"], state["batch"]
        self._sums = state["sums"][0], state["sums"][1]
        self._metrics = state.get("metrics", [])

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Forget an earlier training.

        Raises:
            InputError: Batches shall be left out, but the optimizer leaves out none.
        """
        self.skipped, self._first = 0, None
        if self.skip and not isinstance(self.model.optimizer, keras.optimizers.LossScaleOptimizer):
            raise InputError(
                f"StopOnNaN(skip={self.skip}): {self.model.optimizer.name} applies gradients that are no numbers; "
                "compile with keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=1.0)"
            )

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Note the epoch, for the message; `fit` has just reset the metrics."""
        self._epoch, self._batch, self._sums, self._metrics = epoch, 0, (0.0, 0.0), []

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Check the loss of the batches since the last look.

        Raises:
            InputError: It is not finite, or explodes.
        """
        self._batch += self.model.steps_per_execution
        synchronize(self.model)
        mean = float((logs or {}).get("loss", 0.0))
        if not math.isfinite(mean):
            self._stop_or_skip("loss", mean, f"batch {self._batch}")
        elif self.explosion is not None:
            self._check_explosion(mean)
        if self.skip and math.isfinite(mean):
            self._metrics = [np.array(keras.ops.convert_to_numpy(v)) for v in self.model.metrics_variables]

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Check the validation loss.

        Raises:
            InputError: It is not finite.
        """
        value = float((logs or {}).get("val_loss", 0.0))
        if not math.isfinite(value):
            raise InputError(self._message("val_loss", f"is {value}", "validation"))

    def _check_explosion(self, mean: float) -> None:
        tracker = self.model.metrics[0] if self.model.metrics else None
        if not isinstance(tracker, keras.metrics.Mean):
            return
        sums = float(tracker.total), float(tracker.count)
        weight = sums[1] - self._sums[1]
        loss = (sums[0] - self._sums[0]) / weight if weight > 0 else mean
        self._sums = sums
        if self._first is None:
            self._first = loss
        limit = (self.explosion or math.inf) * max(self._first, _LEAST)
        if loss > limit:
            what = f"is {loss:.4g}, more than {self.explosion:g} times what it was at first,"
            raise InputError(self._message("loss", what, f"batch {self._batch}"))

    def _stop_or_skip(self, name: str, value: float, place: str) -> None:
        if self.skipped >= self.skip:
            raise InputError(self._message(name, f"is {value}", place))
        self.skipped += 1
        for variable, before in zip(self.model.metrics_variables, self._metrics, strict=False):
            variable.assign(before)
        if not self._metrics:
            self.model.reset_metrics()
        print(
            f"\n{name} is {value} (epoch {self._epoch + 1}, {place}): left out, {self.skipped} of at most {self.skip}",
            file=sys.stderr,
        )

    def _message(self, name: str, what: str, place: str) -> str:
        optimizer = getattr(self.model.optimizer, "inner_optimizer", self.model.optimizer)
        rate = float(keras.ops.convert_to_numpy(optimizer.learning_rate))
        good = self.checkpoint.newest if self.checkpoint else None
        step = self._epoch * (self.params.get("steps") or 0) + self._batch
        return (
            f"{name} {what} at step {step} (epoch {self._epoch + 1}, {place}): "
            f"lower the learning rate (now {rate:.3g}) or clip the gradients (global_clipnorm=1.0)"
            + (f"; the last good checkpoint is {good}" if good else "")
        )
