"""Stacked recurrent layers with locked dropout, and attention over what such a stack has read."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from kerasllm import backend
from kerasllm.config import ALIGNMENTS, CELLS

# Far below every score yet finite, so that a row that sees nothing averages instead of making NaN.
_HIDDEN = -1e9
_LAYERS = {"lstm": keras.layers.LSTM, "gru": keras.layers.GRU, "rnn": keras.layers.SimpleRNN}


@keras.saving.register_keras_serializable(package="kerasllm")
class LSTMStack(keras.layers.Layer):
    """Recurrent layers on top of each other, all outputs returned.

    `"lstm"` is Hochreiter and Schmidhuber 1997, `"gru"` Cho et al. 2014 (arXiv:1406.1078) and `"rnn"` the network of
    Elman 1990, "Finding structure in time": `h_t = tanh(W x_t + U h_(t-1) + b)`. Each layer is Keras' own.

    Dropout is *locked* (variational): a feature dropped at one time step is dropped at all of them
    (Gal and Ghahramani 2016, arXiv:1512.05287; Merity et al. 2017, arXiv:1708.02182).

    Args:
        units: Width of each layer, first to last; with `bidirectional`, of each direction.
        dropout: Share of features dropped in training after each layer.
        cell: `"lstm"`, `"gru"` or `"rnn"`.
        bidirectional: Whether a second layer reads from the end, and the outputs of both stand side by side (Schuster
            and Paliwal 1997, "Bidirectional recurrent neural networks").

    Call arguments:
        inputs: `(batch, length, features)`.
        initial_state: Optional tuples, one per layer: `(h, c)` of an LSTM, `(h,)` of other cells, each
            `(batch, width)`, where the width of two directions is that of both; zeros by default.
        padding_mask: Optional boolean `(batch, length)`: where it is false the state stays as it was.

    Returns:
        `(batch, length, width)`; with `initial_state` also the final tuples.

    Attributes:
        use_cudnn: Whether training without a mask may use cuDNN. Masked and stepwise calls never do: cuDNN refuses
            prompts padded on the left, and a graph with a cuDNN operation runs on no other device.
        parts: Names of the tensors of a layer's state: `("h", "c")` or `("h",)`.
        widths: Width of each layer's output, first to last.

    Raises:
        ValueError: There is no layer, or no such cell.
    """

    def __init__(
        self,
        units: Sequence[int],
        dropout: float = 0.0,
        cell: str = "lstm",
        bidirectional: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not units:
            raise ValueError(f"units must name the width of at least one layer, received {units!r}")
        if cell not in CELLS:
            raise ValueError(f"cell must be one of {', '.join(CELLS)}, received {cell!r}")
        self.units = tuple(units)
        self.dropout = dropout
        self.cell = cell
        self.bidirectional = bidirectional
        self.parts = ("h", "c") if cell == "lstm" else ("h",)
        self.widths = tuple(2 * width if bidirectional else width for width in self.units)
        self.use_cudnn = True
        self.supports_masking = True
        self.lstms = [self._layer(width, f"{cell}_{index}") for index, width in enumerate(self.units)]
        self.backward_lstms = [
            self._layer(width, f"backward_{cell}_{index}", go_backwards=True)
            for index, width in enumerate(self.units if bidirectional else ())
        ]
        # Keras calls dropping a feature at every step "spatial" dropout.
        self.locked_dropout = keras.layers.SpatialDropout1D(dropout, dtype=self.dtype_policy, name="locked_dropout")

    def _layer(self, width: int, name: str, **options: Any) -> keras.layers.Layer:
        options |= {"return_sequences": True, "return_state": True, "dtype": self.dtype_policy}
        return _LAYERS[self.cell](width, name=name, **options)

    def build(self, input_shape: Any) -> None:
        """Makes the kernels of every layer."""
        for index, width in enumerate(self.widths):
            for layer in self._directions(index):
                layer.build(input_shape)
            input_shape = (*input_shape[:-1], width)

    def _directions(self, index: int) -> list[Any]:
        return [self.lstms[index], *self.backward_lstms[index : index + 1]]

    def call(
        self,
        inputs: Any,
        initial_state: Any = None,
        padding_mask: Any = None,
        training: bool | None = None,
    ) -> Any:
        """See the class."""
        final_state = []
        use_cudnn = self.use_cudnn and initial_state is None and padding_mask is None
        x = inputs
        for index in range(len(self.units)):
            start = None if initial_state is None else initial_state[index]
            x, final = self._read(index, x, start, padding_mask, use_cudnn, training)
            x = self.locked_dropout(x, training=training)
            final_state.append(final)
        return x if initial_state is None else (x, final_state)

    def _read(
        self, index: int, x: Any, start: Any, padding_mask: Any, use_cudnn: bool, training: bool | None
    ) -> tuple[Any, tuple[Any, ...]]:
        """Outputs of a layer, in both directions where there are two, and its final state."""
        layers = self._directions(index)
        count = len(layers)
        # The state of both directions stands side by side, as their outputs do.
        parts = [[None] * count] if start is None else [ops.split(part, count, axis=-1) for part in start]
        outputs, finals = [], []
        for layer, *begin in zip(layers, *parts, strict=True):
            if self.cell != "rnn":
                layer.use_cudnn = "auto" if use_cudnn else False
            initial_state = None if start is None else begin
            output, *final = layer(x, initial_state=initial_state, mask=padding_mask, training=training)
            # A layer that reads from the end gives its outputs in the order in which it made them.
            outputs.append(ops.flip(output, axis=1) if layer.go_backwards else output)
            finals.append(final)
        if count == 1:
            return outputs[0], tuple(finals[0])
        joined = (ops.concatenate(pair, axis=-1) for pair in zip(*finals, strict=True))
        return ops.concatenate(outputs, axis=-1), tuple(joined)

    def zero_state(self, batch_size: Any) -> list[tuple[Any, ...]]:
        """The state before the first token: tuples of zeros `(batch_size, width)`, one per layer."""
        return [tuple(ops.zeros((batch_size, width), self.compute_dtype) for _ in self.parts) for width in self.widths]

    def compute_output_shape(self, input_shape: Any) -> Any:
        """`(batch, length, widths[-1])`."""
        return (*input_shape[:-1], self.widths[-1])

    def compute_output_spec(self, *args: Any, **kwargs: Any) -> Any:
        """Traces `call`, which knows of the outputs that are returned on demand."""
        return keras.Operation.compute_output_spec(self, *args, **kwargs)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            **super().get_config(),
            "units": list(self.units),
            "dropout": self.dropout,
            "cell": self.cell,
            "bidirectional": self.bidirectional,
        }


@keras.saving.register_keras_serializable(package="kerasllm")
class GlobalAttention(keras.layers.Layer):
    """One head of attention from the outputs of a recurrent decoder to those of its encoder.

    Luong et al. 2015, arXiv:1508.04025: weights `a_t = softmax(score(h_t, m_s))` over source places s (equation 7),
    `c_t = sum_s a_t(s) m_s`, and the output `tanh(W_c [c_t; h_t])` (equation 5). `"general"` scores are
    `h_t W_a m_s` (their section 3.1); `"additive"` ones are `v tanh(W_q h_t + W_a m_s)`, as Bahdanau et al. 2015
    (arXiv:1409.0473, section A.1.2) align, and as Luong et al. call `concat`. The softmax is computed in float32.

    Args:
        alignment: `"general"` or `"additive"`.

    Call arguments:
        inputs: Outputs of the decoder, `(batch, length, width)`.
        context: Outputs of the encoder, `(batch, context_length, context_width)`.
        context_cache: In place of `context`, what `cache_context` made of it.
        context_mask: Optional boolean `(batch, context_length)`, true where the context is real.
        return_attention_scores: Whether to return the weights too.

    Returns:
        `(batch, length, width)`; with `return_attention_scores` also float32 `(batch, length, context_length)`.

    Raises:
        ValueError: There is no such alignment.
    """

    def __init__(self, alignment: str = "general", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if alignment not in ALIGNMENTS:
            raise ValueError(f"alignment must be one of {', '.join(ALIGNMENTS)}, received {alignment!r}")
        self.alignment = alignment
        self.supports_masking = True

    def build(self, inputs_shape: Any, context_shape: Any) -> None:
        """Makes the kernels for keys and output, and for queries where they have any."""
        width, context_width = inputs_shape[-1], context_shape[-1]
        self.key = self._dense(width, "key", context_shape)
        if self.alignment == "additive":
            self.query = self._dense(width, "query", inputs_shape)
            self.score = self._dense(1, "score", inputs_shape)
        self.output_projection = self._dense(width, "output", (*inputs_shape[:-1], width + context_width))

    def _dense(self, units: int, name: str, input_shape: Any) -> keras.layers.Dense:
        dense = keras.layers.Dense(units, use_bias=False, dtype=self.dtype_policy, name=name)
        dense.build(input_shape)
        return dense

    def call(
        self,
        inputs: Any,
        context: Any = None,
        context_cache: Any = None,
        context_mask: Any = None,
        return_attention_scores: bool = False,
    ) -> Any:
        """See the class."""
        key, value = context_cache or self.cache_context(context)
        if self.alignment == "general":
            scores = backend.matmul_transposed(inputs, key)
        else:
            hidden = ops.tanh(self.query(inputs)[:, :, None] + key[:, None])
            scores = ops.squeeze(self.score(hidden), axis=-1)
        scores = ops.cast(scores, "float32")
        if context_mask is not None:
            scores = ops.where(context_mask[:, None], scores, _HIDDEN)
        weights = ops.softmax(scores)
        read = ops.matmul(ops.cast(weights, self.compute_dtype), value)
        outputs = ops.tanh(self.output_projection(ops.concatenate([read, inputs], axis=-1)))
        return (outputs, weights) if return_attention_scores else outputs

    def cache_context(self, context: Any) -> tuple[Any, Any]:
        """Keys and values of a context that several calls shall read.

        Args:
            context: `(batch, context_length, context_width)`.

        Returns:
            `(batch, context_length, width)` and `(batch, context_length, context_width)`.
        """
        return self.key(context), context

    def compute_output_shape(self, inputs_shape: Any, *_: Any, **__: Any) -> Any:
        """The shape of the inputs."""
        return inputs_shape

    def compute_output_spec(self, *args: Any, **kwargs: Any) -> Any:
        """Traces `call`, which knows of the outputs that are returned on demand."""
        return keras.Operation.compute_output_spec(self, *args, **kwargs)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "alignment": self.alignment}
