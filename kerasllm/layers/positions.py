"""Position layers: sinusoidal, learned and rotary. Angles are always computed in float32."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import keras
from keras import ops

from kerasllm.config import RotaryScaling


def _default_positions(inputs: Any) -> Any:
    """0, 1, ... along the second last axis of `inputs`, shape `(length,)` int32."""
    return ops.arange(ops.shape(inputs)[-2], dtype="int32")


@keras.saving.register_keras_serializable(package="kerasllm")
class SinePositionEncoding(keras.layers.Layer):
    """Adds sine and cosine waves of the position to a sequence of vectors.

    `PE(p, 2i) = sin(p / w^(2i/d))` and `PE(p, 2i+1) = cos(p / w^(2i/d))` with `w = max_wavelength`
    (Vaswani et al. 2017, arXiv:1706.03762, section 3.5).

    Args:
        max_wavelength: Base of the geometric progression of wavelengths.

    Call arguments:
        inputs: `(batch, length, hidden_dim)`.
        positions: Optional int32 `(length,)` or `(batch, length)`; 0, 1, ... by default.

    Returns:
        `inputs` plus the encoding, same shape and dtype.
    """

    def __init__(self, max_wavelength: float = 10_000.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not max_wavelength > 1:
            raise ValueError(f"max_wavelength must be greater than 1, received {max_wavelength}")
        self.max_wavelength = float(max_wavelength)
        self.supports_masking = True

    def call(self, inputs: Any, positions: Any = None) -> Any:
        """See the class."""
        positions = _default_positions(inputs) if positions is None else positions
        dim = inputs.shape[-1]
        pair = ops.cast(ops.arange(dim) // 2 * 2, "float32")
        rates = ops.power(1.0 / self.max_wavelength, pair / dim)
        angles = ops.expand_dims(ops.cast(positions, "float32"), -1) * rates
        is_odd = ops.cast(ops.arange(dim) % 2, "float32")
        encoding = ops.sin(angles) * (1.0 - is_odd) + ops.cos(angles) * is_odd
        return inputs + ops.cast(encoding, inputs.dtype)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """The shape of the inputs."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "max_wavelength": self.max_wavelength}


@keras.saving.register_keras_serializable(package="kerasllm")
class LearnedPositionEmbedding(keras.layers.Layer):
    """Adds a trained vector for each position (Radford et al. 2019, GPT-2; Devlin et al. 2019, BERT).

    Args:
        max_sequence_length: Number of positions that have a vector.
        initializer: Of the table.

    Call arguments:
        inputs: `(batch, length, hidden_dim)` with `length <= max_sequence_length`.
        positions: Optional int32 `(length,)` or `(batch, length)`; 0, 1, ... by default.

    Returns:
        `inputs` plus the position vectors, same shape and dtype.

    Raises:
        ValueError: The inputs are longer than `max_sequence_length`.
    """

    def __init__(self, max_sequence_length: int, initializer: Any = "uniform", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if max_sequence_length < 1:
            raise ValueError(f"max_sequence_length must be positive, received {max_sequence_length}")
        self.max_sequence_length = max_sequence_length
        self.initializer = keras.initializers.get(initializer)
        self.supports_masking = True

    def build(self, input_shape: Any) -> None:
        """Makes the table `(max_sequence_length, hidden_dim)`."""
        self.embeddings = self.add_weight(
            shape=(self.max_sequence_length, input_shape[-1]), initializer=self.initializer, name="embeddings"
        )

    def call(self, inputs: Any, positions: Any = None) -> Any:
        """See the class."""
        length = inputs.shape[-2]
        if length is not None and length > self.max_sequence_length:
            raise ValueError(
                f"{self.name}: the inputs have {length} positions, more than max_sequence_length "
                f"{self.max_sequence_length}; shorten them"
            )
        positions = _default_positions(inputs) if positions is None else positions
        return inputs + ops.cast(ops.take(self.embeddings, positions, axis=0), inputs.dtype)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """The shape of the inputs."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            **super().get_config(),
            "max_sequence_length": self.max_sequence_length,
            "initializer": keras.initializers.serialize(self.initializer),
        }


@keras.saving.register_keras_serializable(package="kerasllm")
class RotaryEmbedding(keras.layers.Layer):
    """Rotates queries and keys by an angle that grows with the position.

    Feature `i` and feature `i + head_dim / 2` form a plane, turned by `position * base^(-2i / head_dim)`, so that a
    query-key product depends on their distance only (Su et al. 2021, arXiv:2104.09864, equation 34, in the
    half-split layout that published LLaMA checkpoints use).

    Args:
        base: Base of the geometric progression of wavelengths.
        scaling: How long wavelengths are stretched, a `RotaryScaling` or its fields; `None` where they are not.

    Call arguments:
        inputs: `(batch, heads, length, head_dim)` with an even `head_dim`.
        positions: Optional int32 `(length,)` or `(batch, length)`; 0, 1, ... by default.

    Returns:
        The rotated inputs, same shape and dtype.

    Raises:
        ValueError: `base` is not greater than 1, or `head_dim` is odd.
    """

    def __init__(
        self, base: float = 10_000.0, scaling: RotaryScaling | Mapping[str, Any] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        if not base > 1:
            raise ValueError(f"base must be greater than 1, received {base}")
        self.base = float(base)
        self.scaling = RotaryScaling(**scaling) if isinstance(scaling, Mapping) else scaling
        self.supports_masking = True

    def build(self, input_shape: Any) -> None:
        """Checks the head size; there are no weights."""
        if input_shape[-1] % 2:
            raise ValueError(f"{self.name}: rotary positions need an even head_dim, received {input_shape[-1]}")

    def call(self, inputs: Any, positions: Any = None) -> Any:
        """See the class."""
        positions = _default_positions(inputs) if positions is None else positions
        half = inputs.shape[-1] // 2
        angles = ops.expand_dims(ops.cast(positions, "float32"), -1) * self._rates(half)
        if len(angles.shape) == 3:  # one row of positions for each example: the same for every head
            angles = ops.expand_dims(angles, 1)
        cos, sin = ops.cos(angles), ops.sin(angles)
        wide = ops.cast(inputs, "float32")
        first, second = wide[..., :half], wide[..., half:]
        rotated = ops.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
        return ops.cast(rotated, inputs.dtype)

    def _rates(self, count: int) -> Any:
        """Radians per position of each plane, float32 `(count,)`."""
        rates = ops.power(self.base, -ops.arange(count, dtype="float32") / count)
        if self.scaling is None:
            return rates
        scaling = self.scaling
        # How often a wave fits into the original context decides: 1 keeps a rate, 0 divides it by the factor.
        turns = rates * (scaling.original_length / (2 * math.pi))
        low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
        kept = ops.clip((turns - low) / (high - low), 0.0, 1.0)
        return rates * (kept + (1.0 - kept) / scaling.factor)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """The shape of the inputs."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        scaling = None if self.scaling is None else dataclasses.asdict(self.scaling)
        return {**super().get_config(), "base": self.base, "scaling": scaling}
