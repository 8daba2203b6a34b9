"""The LSTM language model."""

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
from keras import ops

from kerasllm.config import LSTMConfig
from kerasllm.errors import InputError
from kerasllm.layers import LSTMStack
from kerasllm.models.base import LanguageModel
from kerasllm.state import PADDING, POSITION, DecodeState, lstm_cell, lstm_output


@keras.saving.register_keras_serializable(package="kerasllm")
class LSTMLanguageModel(LanguageModel):
    """Embedding, LSTM layers with locked dropout, projection to the vocabulary (Zaremba et al. 2014, arXiv:1409.2329).

    Arguments, call arguments and returns are those of `LanguageModel`; the config is an `LSTMConfig`.

    `fit` and `evaluate` start each window from zeros, unless `carry_state` was called.
    """

    config_class = LSTMConfig
    config: LSTMConfig

    def __init__(self, config: LSTMConfig | dict[str, Any], **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        dtype = self.dtype_policy
        if self.config.tie_embeddings:
            self.embedding = keras.layers.ReversibleEmbedding(
                self.config.vocabulary_size,
                self.config.embedding_dim,
                reverse_dtype="float32",
                dtype=dtype,
                name="embedding",
            )
        else:
            self.embedding = keras.layers.Embedding(
                self.config.vocabulary_size, self.config.embedding_dim, dtype=dtype, name="embedding"
            )
        self.embedding.supports_masking = True  # a masked LSTM hands on a mask, which a projection does not need
        self.embedding_dropout = keras.layers.SpatialDropout1D(
            self.config.dropout, dtype=dtype, name="embedding_dropout"
        )
        self.lstm = LSTMStack(
            self.config.layer_dims,
            dropout=self.config.dropout,
            cell=self.config.cell,
            bidirectional=self.config.bidirectional,
            dtype=dtype,
            name="lstm",
        )
        self.projects = True  # task heads have no use for a projection to the vocabulary
        if not self.config.tie_embeddings:
            self.head = keras.layers.Dense(self.config.vocabulary_size, use_bias=False, dtype="float32", name="head")
        self._carried: dict[str, list[Any]] = {}
        self._carrying: str | None = None

    def build(self, input_shape: Any = None) -> None:
        """Makes every variable; the shape of the input does not matter."""
        self.embedding.build((None, None))
        self.embedding_dropout.build((None, None, self.config.embedding_dim))
        self.lstm.build((None, None, self.config.embedding_dim))
        if self.projects:
            self._build_projection()
        self.built = True

    def _build_projection(self) -> None:
        if not self.config.tie_embeddings:
            self.head.build((None, None, self.config.output_dim))
        self.output_bias = self.add_weight(
            shape=(self.config.vocabulary_size,),
            initializer="zeros",
            dtype="float32",
            autocast=False,
            name="output_bias",
        )

    def encode(
        self,
        tokens: Any,
        padding_mask: Any = None,
        segment_ids: Any = None,
        state: DecodeState | None = None,
        training: Any = None,
    ) -> Any:
        """See `LanguageModel.encode`."""
        if segment_ids is not None:
            raise ValueError(f"{self.name}: an LSTM has no segments; leave segment_ids out")
        self._check_mask(padding_mask, state)
        x = self.embedding_dropout(self.embedding(tokens), training=training)
        if state is None and self._carrying in self._carried:
            return self._continue(x, self._carried[self._carrying], padding_mask, training)
        if state is None:
            return self.lstm(x, padding_mask=padding_mask, training=training)
        length = ops.shape(tokens)[1]
        if PADDING in state:
            slots = state[POSITION] + ops.arange(length, dtype="int32")
            padding_mask = slots[None, :] >= state[PADDING][:, None]
        layers, names = range(self.config.num_layers), _PARTS[: len(self.lstm.parts)]
        pairs = [tuple(state[name(i)] for name in names) for i in layers]
        x, pairs = self.lstm(x, initial_state=pairs, padding_mask=padding_mask, training=training)
        state = {**state, POSITION: state[POSITION] + length, **_named(pairs)}
        return x, state

    def project(self, hidden: Any) -> Any:
        """See `LanguageModel.project`."""
        logits = self.embedding(hidden, reverse=True) if self.config.tie_embeddings else self.head(hidden)
        return logits + self.output_bias

    def initial_state(self, batch_size: Any, length: Any = None, padding: Any = None) -> DecodeState:
        """See `LanguageModel.initial_state`; an LSTM's state has the same size for any `length`.

        Raises:
            ValueError: The model is bidirectional: it cannot go on from a state.
        """
        if not self.config.causal:
            raise ValueError(
                f"{self.name}: a bidirectional model has no decode state; make it with bidirectional False"
            )
        state = {POSITION: ops.zeros((), "int32"), **_named(self.lstm.zero_state(batch_size))}
        return state if padding is None else {**state, PADDING: padding}

    def carry_state(self, batch_size: int | None) -> None:
        """Let row r of each batch of `fit` continue row r of the batch before (truncated backpropagation through time).

        The data must be made for it: `Corpus.dataset(columns=True)`. Training and evaluation carry states of their own;
        that of evaluation starts from zeros whenever metrics are reset. Gradients end where a batch begins
        (Mikolov et al. 2010, "Recurrent neural network based language model"; Zaremba et al. 2014, section 4.1).

        Args:
            batch_size: Rows of every batch; `None` ends the carrying.

        Raises:
            InputError: The model is bidirectional, or an encoder-decoder.
        """
        if batch_size is not None and (self.reads_source or not self.config.causal):
            raise InputError(f"{self.name}: only a language model of one direction carries its state; leave it out")
        if not self.built:
            self.build()
        self.train_function = self.test_function = None  # traced with or without a state
        self._tracker.unlock()  # as Keras does in `enable_lora`: variables that come after build
        for pair in (pair for pairs in self._carried.values() for pair in pairs):
            for variable in pair:
                self._untrack_variable(variable)
        self._carried = {}
        if batch_size is not None:
            zeros: dict[str, Any] = {"trainable": False, "dtype": self.compute_dtype, "autocast": False}
            self._carried = {
                purpose: [
                    [
                        self.add_weight((batch_size, width), "zeros", name=f"{purpose}_{part}_{index}", **zeros)
                        for part in self.lstm.parts
                    ]
                    for index, width in enumerate(self.config.layer_dims)
                ]
                for purpose in ("train", "test")
            }
        self._tracker.lock()

    @property
    def weights(self) -> list[Any]:
        """Every variable of the model itself: what is carried from batch to batch belongs to a training."""
        carried = {id(v) for pairs in self._carried.values() for pair in pairs for v in pair}
        return [weight for weight in super().weights if id(weight) not in carried]

    def reset_metrics(self) -> None:
        """Resets metrics and the state that evaluation carries."""
        super().reset_metrics()
        for variable in (v for pair in self._carried.get("test", ()) for v in pair):
            variable.assign(ops.zeros(variable.shape, variable.dtype))

    def train_step(self, *args: Any, **kwargs: Any) -> Any:
        """One step of `fit`, with the carried state where there is one."""
        with self._carry("train"):
            return super().train_step(*args, **kwargs)

    def test_step(self, *args: Any, **kwargs: Any) -> Any:
        """One step of `evaluate`, with the carried state where there is one."""
        with self._carry("test"):
            return super().test_step(*args, **kwargs)

    @contextlib.contextmanager
    def _carry(self, purpose: str) -> Iterator[None]:
        self._carrying = purpose
        try:
            yield
        finally:
            self._carrying = None

    def _continue(self, x: Any, pairs: list[Any], padding_mask: Any, training: Any) -> Any:
        rows = pairs[0][0].shape[0]
        if padding_mask is not None or x.shape[0] not in (None, rows):
            raise InputError(
                f"{self.name}: carries the state of {rows} unpadded rows, received {x.shape[0]}; make the dataset with "
                f"columns=True and batch_size={rows}, or call carry_state(None)"
            )
        x, final = self.lstm(x, initial_state=pairs, training=training)
        for pair, values in zip(pairs, final, strict=True):
            for variable, value in zip(pair, values, strict=True):
                finite = ops.all(ops.isfinite(value))  # or a step that is left out would spoil those after it
                variable.assign(ops.where(finite, ops.stop_gradient(value), ops.convert_to_tensor(variable)))
        return x


_PARTS = (lstm_output, lstm_cell)


def _named(pairs: Any) -> DecodeState:
    """Decode state entries of `(h, c)` pairs; other cells have no c."""
    return {name(index): part for index, pair in enumerate(pairs) for name, part in zip(_PARTS, pair, strict=False)}
