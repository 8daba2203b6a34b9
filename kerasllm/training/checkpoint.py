"""The callback that writes checkpoints, and goes on from one in the middle of an epoch."""

import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import filelock
import keras
import numpy as np

from kerasllm.errors import InputError
from kerasllm.files import clear_remains, remove_folder
from kerasllm.folder import assign_weights
from kerasllm.models import LanguageModel
from kerasllm.text import Tokenizer
from kerasllm.training import checkpoint_files as files
from kerasllm.training.identity import check_same, described
from kerasllm.training.signals import StopRequest
from kerasllm.training.state import Snapshot, from_json, put, put_metrics, take, to_json

_SHARE = 0.02
"""Of the time, at most, that saving takes where the interval is chosen by time."""
_SHORTEST = 30.0
"""Seconds between two such checkpoints at least."""


class _EpochIsComplete:
    """Truthy, so that Keras leaves the loop over batches; told apart from a callback that ends the training."""


_EPOCH_IS_COMPLETE = _EpochIsComplete()


class Checkpoint(keras.callbacks.Callback):
    """Write all of a training's state now and then, and go on from it bit for bit.

    A checkpoint holds weights, optimizer, metrics, random generators, carried LSTM states, the state of other callbacks
    and the position in the data, as a model folder (`kerasllm.load` takes it). It gets its name when it is complete.

        checkpoint = Checkpoint("runs/mine/checkpoints", resume=True, tokenizer=corpus.tokenizer)
        data = corpus.dataset("train", ..., seed=0, repeat=True, start=checkpoint.step)
        callbacks = checkpoint.together_with([StopOnNaN(), keras.callbacks.EarlyStopping(patience=3)])
        with checkpoint:
            model.fit(data, steps_per_epoch=500, epochs=9, initial_epoch=checkpoint.epoch, callbacks=callbacks)

    The data must be a function of seed and step, as `Corpus.dataset` is, and `fit` be told `steps_per_epoch`. Where a
    training was interrupted within an epoch, `fit` runs the rest of that epoch first; its metrics are those of the
    whole epoch. One object serves one training. Bitwise equal results need `kerasllm.training.make_deterministic`.

    Ctrl-C and SIGTERM are obeyed after the step that is running: a checkpoint is written, then KeyboardInterrupt or
    SystemExit(143) leaves `fit`.

    Args:
        folder: Of the checkpoints; locked while this training runs.
        resume: Go on from the newest checkpoint that is whole, if there is one.
        overwrite: Remove the checkpoints of an earlier training, if there are some.
        every: Steps between two checkpoints; `None` chooses by time: at least 30 seconds apart, and so seldom that
            saving takes at most 2 % of the time. Besides, there is one after every epoch that is the best so far.
        keep: Newest checkpoints to keep; the best is kept besides.
        monitor: Figure of an epoch, to be minimised, that says which is the best.
        restore_best: Put the weights of the best epoch into the model when `fit` ends, if there was a validation.
        tokenizer: Makes each checkpoint a model folder; the model must be one of this library.
        identity: JSON that must not differ when the training goes on: data, options. Model, dtype and optimizer are
            compared in any case.

    Attributes:
        step: Batches trained on: where the data go on.
        epoch: Epoch that `fit` begins with, from 0: its `initial_epoch`.
        finished: Whether the training is complete: there is nothing to go on with.

    Raises:
        InputError: The folder holds checkpoints but neither `resume` nor `overwrite` is true, another training runs in
            it, no checkpoint is whole, or `identity` differs.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        resume: bool = False,
        overwrite: bool = False,
        every: int | None = None,
        keep: int = 2,
        monitor: str = "val_loss",
        restore_best: bool = True,
        tokenizer: Tokenizer | None = None,
        identity: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if keep < 1 or (every is not None and every < 1):
            raise InputError(f"keep {keep}, every {every}: must be at least 1")
        self.folder = Path(folder)
        self.every, self.keep, self.monitor, self.restore_best = every, keep, monitor, restore_best
        self.tokenizer = tokenizer
        self.identity = to_json(identity or {})
        self.callbacks: Sequence[keras.callbacks.Callback] = ()
        self.step = self.epoch = 0
        self.finished, self.best = False, dict[str, float]()  # `step` and `value` of the best epoch
        self._lock, self._request = filelock.FileLock(self.folder / ".lock"), StopRequest()
        self._source: Path | None = None  # the checkpoint to go on from, until that is done
        self._history: dict[str, list[float]] = {}
        self._done = self._steps = 0  # steps of this epoch that are done; steps of an epoch
        self._training = False
        self._metrics: list[np.ndarray] | None = None  # of the epoch, while validation uses the same variables
        self._saved, self._saved_step, self._cost = time.monotonic(), 0, 0.0
        self._claim()
        try:
            self._open(resume, overwrite)
        except BaseException:
            self._lock.release()
            raise

    @property
    def newest(self) -> Path | None:
        """The newest checkpoint."""
        return next(reversed(files.checkpoints(self.folder)), None)

    def together_with(self, callbacks: Sequence[keras.callbacks.Callback]) -> list[keras.callbacks.Callback]:
        """The callbacks for `fit`, this one last; checkpoints hold the state of all of them.

        Those of Keras are known; one of your own that remembers something needs `get_state()`, which gives a dictionary
        of JSON or lists of arrays, and `set_state(state)`.

        Args:
            callbacks: In the same order in each run.
        """
        self.callbacks = tuple(callbacks)
        return [*callbacks, self]

    def restore_weights(self, model: keras.Model) -> None:
        """Put the weights of the best epoch, or the newest where no validation chose one, into a model.

        Raises:
            InputError: There is no checkpoint, or it is damaged or of another model.
        """
        path = self.best_path if self.best else self.newest
        if path is None:
            raise InputError(f"{self.folder}: there is no checkpoint; train first")
        snapshot = files.read(path, arrays=False)
        if isinstance(model, LanguageModel) and not model.built:
            model.build()
        check_same(path, "model", snapshot.content["model"], described(model), "optimizer")
        assign_weights(model, snapshot.weights, path)

    @property
    def best_path(self) -> Path:
        """The checkpoint of the best epoch, in `best`."""
        return self.folder / f"step-{int(self.best['step']):08}"

    @property
    def history(self) -> dict[str, list[float]]:
        """What `fit` logged, a value for each epoch, those before an interruption included."""
        return self._history

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Listen to signals.

        Raises:
            InputError: `fit` was not told `steps_per_epoch`, the training is complete, or this object has served one.
        """
        steps, together = self.params.get("steps"), self.model.steps_per_execution
        if not steps:
            raise InputError("Checkpoint: the length of an epoch is unknown; pass steps_per_epoch to fit")
        if steps % together:
            raise InputError(f"steps_per_epoch {steps} is no multiple of steps_per_execution {together}; choose one")
        if self.finished:
            raise InputError(
                f"{self.folder}: this training is complete (Checkpoint.finished); to train on, begin in another folder"
            )
        if self.step and self._source is None:
            raise InputError(f"{self.folder}: this Checkpoint has served; make a new one with resume=True to go on")
        self._claim()
        self._steps, self._done = self.params["steps"], 0
        self._training = True
        self._saved = time.monotonic()
        self._request.install()

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Put the state back, now that `fit` and the other callbacks have reset theirs."""
        self._done = 0
        if self._source is not None:
            self._restore(self._source, epoch)
        self.epoch = epoch

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Count; save if it is time or a signal came."""
        if self._done >= self._steps:  # it was interrupted in its validation, and this step was left out
            self.model.stop_training = _EPOCH_IS_COMPLETE
            return
        self.step += self.model.steps_per_execution
        self._done += self.model.steps_per_execution
        if self._request.signal is not None:
            self._leave()
        if self._done < self._steps:
            if self._due():
                self.save()
        elif not self.model.stop_training:
            # Keras counts this epoch's steps from 0, even where it began in the middle.
            self.model.stop_training = _EPOCH_IS_COMPLETE

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Keep the epoch's metrics, for validation uses the same variables."""
        if self._training:
            self._metrics = [np.array(keras.ops.convert_to_numpy(v)) for v in self.model.metrics_variables]

    def on_test_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """End validation if a signal came."""
        if self._training and self._request.signal is not None:
            self.model.stop_evaluating = True

    def on_test_end(self, logs: dict[str, Any] | None = None) -> None:
        """Validation is over: leave if a signal came, as if it had not begun."""
        if self._training and self._request.signal is not None:
            self._leave()
        self._metrics = None

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Note the epoch if it is the best, and save if it is, or if it is time."""
        if self.model.stop_training is _EPOCH_IS_COMPLETE:
            self.model.stop_training = False
        for name, value in (logs or {}).items():
            self._history.setdefault(name, []).append(float(value))
        value = float((logs or {}).get(self.monitor, np.nan))
        best = value < self.best.get("value", np.inf)  # never true for NaN
        if best:
            self.best = {"step": self.step, "value": value}
        self.epoch, self._done = epoch + 1, 0
        self.finished = bool(self.model.stop_training) or self.epoch >= self.params["epochs"]
        stopping = self._request.signal is not None
        if best or self.finished or stopping or self._due():
            self.save()
        if stopping:
            self._request.obey()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Put the best weights into the model."""
        if self.restore_best and self.best:
            self.restore_weights(self.model)
        self.model.history.history = {name: list(values) for name, values in self._history.items()}
        self.close()

    def save(self) -> Path:
        """Write a checkpoint now, between two steps.

        Returns:
            The checkpoint.

        Raises:
            InputError: The disk is full or fails, or a weight is not finite; earlier checkpoints stay as they are.
        """
        started = time.monotonic()
        model = self.model if isinstance(self.model, LanguageModel) else None
        try:
            path = files.write(self.folder, self.step, self._snapshot(), model, self.tokenizer)
            kept = {path, *files.checkpoints(self.folder)[-self.keep :], *([self.best_path] if self.best else [])}
            for old in files.checkpoints(self.folder):
                if old not in kept:
                    remove_folder(old)
        except OSError as error:
            raise InputError(
                f"{self.folder}: no checkpoint could be written at step {self.step} ({error.strerror}); "
                f"{self._advice()}, after you have freed some space"
            ) from None
        self._saved, self._saved_step = time.monotonic(), self.step
        self._cost = self._saved - started
        return path

    def close(self) -> None:
        """Let others use the folder, and signals act as before."""
        self._training = False
        self._request.uninstall()
        self._lock.release()

    def __enter__(self) -> "Checkpoint":
        """Watch a block."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Say what is left after an interruption."""
        self.close()
        if kind is not None and issubclass(kind, KeyboardInterrupt | SystemExit):
            print(f"Training stopped at step {self.step}; {self._advice()}.", file=sys.stderr)

    def _claim(self) -> None:
        """Lock the folder, once: a lock ends with its process, however that ends."""
        if self._lock.is_locked:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(timeout=0)
        except filelock.Timeout:
            raise InputError(
                f"{self.folder}: another training is running here; wait for its end or choose another folder"
            ) from None
        clear_remains(self.folder, files.PATTERN)

    def _open(self, resume: bool, overwrite: bool) -> None:
        """Take up what is in the folder."""
        if overwrite and not resume:
            for path in files.checkpoints(self.folder):
                remove_folder(path)
        if not resume:
            if self.newest is not None:
                raise InputError(
                    f"{self.folder}: holds checkpoints of an earlier training; pass resume=True (--resume) to go on "
                    "with it, overwrite=True (--overwrite) to lose it, or choose another folder"
                )
            return
        found = files.newest(self.folder)
        if found is None:
            return
        self._source, plain, damaged = found
        check_same(self._source, "", plain["identity"], self.identity)
        for path, why in damaged.items():
            files.put_aside(path, why)
        if damaged:
            print(f"Going on from {self._source.name}", file=sys.stderr)
        self.step, self.epoch, self.finished = plain["step"], plain["epoch"], plain["finished"]
        self.best, self._history = from_json(plain["best"]), from_json(plain["history"])
        self._saved_step = self.step
        self._check_best()

    def _check_best(self) -> None:
        """Forget a best epoch whose checkpoint is not whole, and say so: a later one will be the best."""
        try:
            if self.best:
                files.content(self.best_path)
        except (InputError, OSError) as error:
            print(f"{error}. The best epoch from now on is kept instead", file=sys.stderr)
            self.best = {}

    def _restore(self, path: Path, epoch: int) -> None:
        self._source = None
        if epoch != self.epoch:
            raise InputError(
                f"{path}: goes on in epoch {self.epoch}, not {epoch}; pass initial_epoch=checkpoint.epoch and "
                "start=checkpoint.step"
            )
        if not self.model.built:
            if not isinstance(self.model, LanguageModel):
                raise InputError(f"{path}: {self.model.name} has no weights yet to put these in; build it before fit")
            self.model.build()
        snapshot = files.read(path)
        check_same(path, "model", snapshot.content["model"], described(self.model))
        if snapshot.content["steps_per_epoch"] != self._steps:
            raise InputError(
                f"{path}: an epoch had {snapshot.content['steps_per_epoch']} steps, not {self._steps}; "
                "pass the same steps_per_epoch"
            )
        put(self.model, self.callbacks, snapshot, str(path))
        self._done = self.step - epoch * self._steps
        if self._done:
            put_metrics(self.model, snapshot, str(path), skip=self._done >= self._steps)
        else:  # it was written at the end of an epoch: begin the next as `fit` did
            for callback in self.callbacks:
                callback.on_epoch_begin(epoch)
        self.model.history.epoch = list(range(epoch))

    def _snapshot(self) -> Snapshot:
        snapshot = take(self.model, self.callbacks)
        if self._metrics is not None:
            snapshot.arrays |= {f"metric/{index:04}": array for index, array in enumerate(self._metrics)}
        snapshot.content |= {
            "epoch": self.epoch,
            "steps_per_epoch": self._steps,
            "finished": self.finished,
            "best": to_json(self.best),
            "history": to_json(self._history),
            "identity": self.identity,
            "model": described(self.model),
        }
        return snapshot

    def _due(self) -> bool:
        if self.every is not None:
            return self.step // self.every > self._saved_step // self.every
        return time.monotonic() - self._saved > max(_SHORTEST, self._cost / _SHARE)

    def _leave(self) -> None:
        """Save and end as the signal asks for.

        Other backends than TensorFlow draw the next batch before a step could be left out: at the end of an epoch they
        cannot begin with its validation, and go on from the checkpoint before.
        """
        possible = self._done < self._steps or keras.backend.backend() == "tensorflow"
        if possible and (self.newest is None or files.step_of(self.newest) != self.step):
            self.save()
        self._request.obey()

    def _advice(self) -> str:
        if self.newest is None:
            return "there is no checkpoint yet"
        return f"{self.newest} is complete: go on with resume=True (--resume)"
