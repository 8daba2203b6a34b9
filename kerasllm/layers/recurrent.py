"""Stacked LSTM layers with locked dropout."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="kerasllm")
class LSTMStack(keras.layers.Layer):
    """LSTM layers on top of each other (Hochreiter and Schmidhuber 1997), all outputs returned.

    Dropout is *locked* (variational): a feature dropped at one time step is dropped at all of them
    (Gal and Ghahramani 2016, arXiv:1512.05287; Merity et al. 2017, arXiv:1708.02182). Each layer is Keras' own `LSTM`.

    Args:
        units: Width of each layer, first to last.
        dropout: Share of features dropped in training after each layer.

    Call arguments:
        inputs: `(batch, length, features)`.
        initial_state: Optional pairs `(h, c)`, one per layer, each `(batch, units)`; zeros by default.
        padding_mask: Optional boolean `(batch, length)`: where it is false the state stays as it was.

    Returns:
        `(batch, length, units[-1])`; with `initial_state` also the final pairs.

    Attributes:
        use_cudnn: Whether training without a mask may use cuDNN. Masked and stepwise calls never do: cuDNN refuses
            prompts padded on the left, and a graph with a cuDNN operation runs on no other device.

    Raises:
        ValueError: There is no layer.
    """

    def __init__(self, units: Sequence[int], dropout: float = 0.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not units:
            raise ValueError(f"units must name the width of at least one layer, received {units!r}")
        self.units = tuple(units)
        self.dropout = dropout
        self.use_cudnn = True
        self.supports_masking = True
        self.lstms = [
            keras.layers.LSTM(
                width, return_sequences=True, return_state=True, dtype=self.dtype_policy, name=f"lstm_{index}"
            )
            for index, width in enumerate(self.units)
        ]
        # Keras calls dropping a feature at every step "spatial" dropout.
        self.locked_dropout = keras.layers.SpatialDropout1D(dropout, dtype=self.dtype_policy, name="locked_dropout")

    def build(self, input_shape: Any) -> None:
        """Makes the kernels of every layer."""
        for lstm, width in zip(self.lstms, self.units, strict=True):
            lstm.build(input_shape)
            input_shape = (*input_shape[:-1], width)

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
        for index, lstm in enumerate(self.lstms):
            lstm.use_cudnn = "auto" if use_cudnn else False
            start = None if initial_state is None else list(initial_state[index])
            x, h, c = lstm(x, initial_state=start, mask=padding_mask, training=training)
            x = self.locked_dropout(x, training=training)
            final_state.append((h, c))
        return x if initial_state is None else (x, final_state)

    def zero_state(self, batch_size: Any) -> list[tuple[Any, Any]]:
        """The state before the first token: pairs `(h, c)` of zeros `(batch_size, units)`, one per layer."""
        return [tuple(ops.zeros((batch_size, width), self.compute_dtype) for _ in range(2)) for width in self.units]

    def compute_output_shape(self, input_shape: Any) -> Any:
        """`(batch, length, units[-1])`."""
        return (*input_shape[:-1], self.units[-1])

    def compute_output_spec(self, *args: Any, **kwargs: Any) -> Any:
        """Traces `call`, which knows of the outputs that are returned on demand."""
        return keras.Operation.compute_output_spec(self, *args, **kwargs)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "units": list(self.units), "dropout": self.dropout}
