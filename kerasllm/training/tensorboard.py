"""TensorBoard for language models.

Keras' own callback writes no graph (its train function is not a `tf.function` any more) and, per step, the mean since
the start of the epoch; so this one writes with `tf.summary` directly.
"""

import math
import os
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf
from tensorboard.compat.proto import event_pb2

from kerasllm.backend import synchronize
from kerasllm.metrics import Perplexity

_MARKDOWN = str.maketrans(
    {**{mark: f"\\{mark}" for mark in "\\`*_{}[]()#+-.!|~"}, "&": "&amp;", "<": "&lt;", ">": "&gt;"}
)


class TensorBoard(keras.callbacks.Callback):
    """Log a training of a language model for TensorBoard.

    There are two runs, `train` and `validation`, in sub-folders. Their charts have the same names, so that TensorBoard
    draws the validation curve beside the training curve:

    * `steps/loss` and `steps/perplexity`, by optimizer step. Training: the exact mean over the steps since the last
      entry. Validation: after every epoch.
    * `steps/learning_rate` (also of a schedule; the rate of the next step) and `steps/tokens_per_second` (of training
      alone: neither validation nor the first step, which compiles, is in it).
    * `epochs/<name>` of everything `fit` logs, by number of complete epochs.
    * Text: `samples`, once an epoch. Graphs: the model's forward pass.

    Perplexity and tokens per second come from the model's `kerasllm.metrics.Perplexity` metric; without one they are
    left out.

    Args:
        log_dir: Folder for both runs: `tensorboard --logdir <log_dir>`.
        update_freq: Steps between entries; one entry costs 1 to 2 ms of CPU time.
        sample: Called without arguments at the end of each epoch; returns continuations by prompt.
        write_graph: Write the graph (TensorFlow backend only).
        inputs: `tf.TensorSpec` (or a structure of them) for the graph. Default: the inputs of a functional model,
            otherwise int32 tokens (batch, length).
    """

    def __init__(
        self,
        log_dir: str | os.PathLike[str],
        *,
        update_freq: int = 10,
        sample: Callable[[], Mapping[str, str]] | None = None,
        write_graph: bool = True,
        inputs: Any = None,
    ) -> None:
        super().__init__()
        self.log_dir = Path(log_dir)
        self.update_freq = update_freq
        self.sample = sample
        self.write_graph = write_graph
        self.inputs = inputs
        self._writers: dict[str, Any] = {}
        self._window = _Window()
        self._batches = 0
        self._compiled = False

    def get_state(self) -> dict[str, Any]:
        """For checkpoints: what the next entry starts from."""
        window = self._window
        return {"since": self._batches - window.batches, "loss": list(window.loss), "nll": list(window.nll)}

    def set_state(self, state: dict[str, Any]) -> None:
        """From a checkpoint."""
        self._window = _Window(-state["since"])
        self._window.loss, self._window.nll = tuple(state["loss"]), tuple(state["nll"])

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Forget an earlier training."""
        self._compiled = False

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Start counting: Keras has just reset the metrics."""
        self._window, self._batches = _Window(), 0

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Begin to write, now that a checkpoint has put its state back."""
        if not self._writers:
            self._writer("train")
            if self.write_graph and keras.backend.backend() == "tensorflow":
                self._write_graph()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Write what the steps since the last entry did."""
        first, self._compiled = not self._compiled, True
        self._batches = batch + 1
        if not first and (batch + 1 - self._window.batches) < self.update_freq:
            return
        synchronize(self.model)
        now = _Window.of(self.model, batch + 1)
        scalars = now.since(self._window)
        if first:
            scalars.pop("tokens_per_second", None)
        scalars["learning_rate"] = _learning_rate(self.model)
        self._window = now
        self._write_scalars("train", "steps", scalars, self._step())

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Write the epoch's figures and the samples."""
        logs = {name: float(value) for name, value in (logs or {}).items()}
        training = {name: value for name, value in logs.items() if not name.startswith("val_")}
        validation = {name.removeprefix("val_"): value for name, value in logs.items() if name.startswith("val_")}
        self._write_scalars("train", "epochs", training, epoch + 1)
        self._write_scalars("validation", "epochs", validation, epoch + 1)
        by_step = {name: value for name, value in validation.items() if name in ("loss", "perplexity")}
        self._write_scalars("validation", "steps", by_step, self._step())
        if self.sample is not None:
            with self._writer("train").as_default():
                tf.summary.text("samples", _markdown(self.sample()), step=epoch + 1)
        for writer in self._writers.values():
            writer.flush()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Close the event files."""
        for writer in self._writers.values():
            writer.close()
        self._writers = {}

    def _writer(self, run: str) -> Any:
        if run not in self._writers:
            # 10 s instead of 2 min: a page that is open keeps up, and an interrupted run is complete but for 10 s
            writer = tf.summary.create_file_writer(str(self.log_dir / run), flush_millis=10_000)
            # Entries of steps that an interrupted training had done, and that are done again, vanish from the charts.
            start = event_pb2.Event(step=self._step() + 1, wall_time=time.time())
            start.session_log.status = event_pb2.SessionLog.START
            tf.raw_ops.ImportEvent(writer=writer._resource, event=start.SerializeToString())
            self._writers[run] = writer
        return self._writers[run]

    def _write_scalars(self, run: str, group: str, scalars: Mapping[str, float], step: int) -> None:
        if not scalars:
            return
        with self._writer(run).as_default():
            for name, value in scalars.items():
                tf.summary.scalar(f"{group}/{name}", value, step=step)

    def _write_graph(self) -> None:
        forward = tf.function(lambda tensors: self.model(tensors, training=False))
        try:
            graph = forward.get_concrete_function(self._input_specs()).graph
        except (TypeError, ValueError, KeyError) as error:
            warnings.warn(f"TensorBoard: no graph, pass inputs=tf.TensorSpec(...) of the model's inputs ({error})")
            return
        with self._writer("train").as_default():
            tf.summary.graph(graph.as_graph_def())

    def _input_specs(self) -> Any:
        if self.inputs is not None:
            return self.inputs
        if not (known := getattr(self.model, "inputs", None)):  # a subclassed model does not know its inputs
            return tf.TensorSpec((None, None), tf.int32)
        structure = known[0] if len(known) == 1 else self.model.input
        return keras.tree.map_structure(lambda tensor: tf.TensorSpec(tensor.shape, tensor.dtype), structure)

    def _step(self) -> int:
        # Keras' own count of batches, of which several make an update where gradients are accumulated
        optimizer = getattr(self.model.optimizer, "inner_optimizer", self.model.optimizer)
        return int(optimizer.variables[0])


class _Window:
    """The sums of an epoch up to a batch: the difference of two of them is exact, whatever the means are."""

    def __init__(self, batches: int = 0) -> None:
        self.batches = batches
        self.loss = 0.0, 0.0  # sum and count of the losses
        self.nll = 0.0, 0.0  # sum and count of the tokens' negative log-likelihoods
        self.time = time.perf_counter()

    @classmethod
    def of(cls, model: keras.Model, batches: int) -> "_Window":
        """Read the model's metrics."""
        window = cls(batches)
        # those given to compile() stand inside one compound metric
        for metric in (inner for outer in model.metrics for inner in (outer, *getattr(outer, "metrics", ()))):
            if isinstance(metric, Perplexity):
                window.nll = metric.totals()
            elif metric.name == "loss":
                window.loss = float(metric.total), float(metric.count)
        return window

    def since(self, earlier: "_Window") -> dict[str, float]:
        """Figures of the batches between two windows."""
        scalars = {}
        if count := self.loss[1] - earlier.loss[1]:
            scalars["loss"] = (self.loss[0] - earlier.loss[0]) / count
        if tokens := self.nll[1] - earlier.nll[1]:
            scalars["perplexity"] = math.exp(min((self.nll[0] - earlier.nll[0]) / tokens, 700.0))
            scalars["tokens_per_second"] = tokens / (self.time - earlier.time)
        return scalars


def _learning_rate(model: keras.Model) -> float:
    return float(keras.ops.convert_to_numpy(getattr(model.optimizer, "inner_optimizer", model.optimizer).learning_rate))


def _markdown(samples: Mapping[str, str]) -> str:
    """Samples as Markdown: the prompt bold, the continuation after it, as written (no markup inside is obeyed)."""

    def literal(text: str) -> str:
        return text.translate(_MARKDOWN).replace("\n", "  \n")

    return "\n\n---\n\n".join(f"**{literal(prompt)}**{literal(text)}" for prompt, text in samples.items())
