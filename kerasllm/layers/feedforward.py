"""The position-wise feed-forward layer."""

from typing import Any

import keras
from keras import ops

from kerasllm.config import ACTIVATIONS


@keras.saving.register_keras_serializable(package="kerasllm")
class FeedForward(keras.layers.Layer):
    """Two dense layers with a non-linearity between, applied to each position alone.

    `down(activation(up(x)))` (Vaswani et al. 2017, equation 2), or with `"swiglu"`
    `down(silu(gate(x)) * up(x))` (Shazeer 2020, arXiv:2002.05202, equation 6).

    Args:
        intermediate_dim: Width between the two layers.
        activation: `"gelu"`, `"gelu_approximate"` (tanh, as in GPT-2), `"relu"` or `"swiglu"`.
        use_bias: Whether the dense layers have a bias.
        kernel_initializer: Of every kernel.

    Call arguments:
        inputs: `(..., hidden_dim)`.

    Returns:
        Same shape as the inputs.
    """

    def __init__(
        self,
        intermediate_dim: int,
        activation: str = "gelu",
        use_bias: bool = True,
        kernel_initializer: Any = "glorot_uniform",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, received {activation!r}")
        self.intermediate_dim = intermediate_dim
        self.activation = activation
        self.use_bias = use_bias
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.supports_masking = True
        self.up = self._dense(intermediate_dim, "up")
        self.gate = self._dense(intermediate_dim, "gate") if activation == "swiglu" else None

    def _dense(self, units: int, name: str) -> keras.layers.Dense:
        # An initializer instance would hand each kernel the same numbers: clone it.
        initializer = self.kernel_initializer.clone()
        return keras.layers.Dense(
            units, use_bias=self.use_bias, kernel_initializer=initializer, dtype=self.dtype_policy, name=name
        )

    def build(self, input_shape: Any) -> None:
        """Makes the kernels; the width of the output is that of the input."""
        self.up.build(input_shape)
        if self.gate is not None:
            self.gate.build(input_shape)
        self.down = self._dense(input_shape[-1], "down")
        self.down.build((*input_shape[:-1], self.intermediate_dim))

    def call(self, inputs: Any) -> Any:
        """See the class."""
        hidden = self.up(inputs)
        if self.gate is not None:
            return self.down(ops.silu(self.gate(inputs)) * hidden)
        if self.activation == "relu":
            return self.down(ops.relu(hidden))
        return self.down(ops.gelu(hidden, approximate=self.activation == "gelu_approximate"))

    def compute_output_shape(self, input_shape: Any) -> Any:
        """The shape of the inputs."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            **super().get_config(),
            "intermediate_dim": self.intermediate_dim,
            "activation": self.activation,
            "use_bias": self.use_bias,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }
