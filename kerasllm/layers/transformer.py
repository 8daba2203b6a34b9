"""The one Transformer block.

```
     norm_first (GPT-2, LLaMA)              norm after (Vaswani et al. 2017)

  x --+-> norm -> attention -+-> x       x --+-> attention -+-> norm -> x
      |______________________|               |______________|
  x --+-> norm -> cross -----+-> x       x --+-> cross -----+-> norm -> x      (cross_attention=True only)
      |______________________|               |______________|
  x --+-> norm -> feed-forw. +-> x       x --+-> feed-forw. +-> norm -> x
      |______________________|               |______________|
```
"""

from typing import Any

import keras

from kerasllm.config import NORMS
from kerasllm.layers.attention import MultiHeadAttention
from kerasllm.layers.feedforward import FeedForward


def make_norm(kind: str, epsilon: float, use_bias: bool, dtype: Any, name: str) -> keras.layers.Layer:
    """A Keras normalization layer of the kind `"layer_norm"` or `"rms_norm"`; statistics are in float32.

    Args:
        kind: One of `config.NORMS`.
        epsilon: Added to the variance.
        use_bias: Whether layer norm has an offset (RMS norm never has).
        dtype: Dtype policy.
        name: Layer name.
    """
    if kind == "rms_norm":
        return keras.layers.RMSNormalization(epsilon=epsilon, dtype=dtype, name=name)
    return keras.layers.LayerNormalization(epsilon=epsilon, center=use_bias, dtype=dtype, name=name)


@keras.saving.register_keras_serializable(package="kerasllm")
class TransformerBlock(keras.layers.Layer):
    """Attention and feed-forward with residuals and norms; encoder, decoder and cross-attending decoder alike.

    A mask that Keras carries with a tensor (`Embedding(mask_zero=True)`) is passed on and not read: give
    `padding_mask`.

    Args:
        num_heads: Query heads.
        intermediate_dim: Width inside the feed-forward layer.
        num_key_value_heads: Key-value heads; `num_heads` by default.
        causal: Whether a position sees only itself and earlier ones.
        rotary_base: Base of rotary positions; `None` for no rotation.
        rotary_scaling: How rotary wavelengths are stretched, see `RotaryEmbedding`.
        norm: `"layer_norm"` or `"rms_norm"`.
        norm_first: Whether to normalise before each sublayer rather than after it.
        norm_epsilon: Added to the variance.
        activation: As in `FeedForward`.
        use_bias: Whether projections and layer norms have a bias.
        attention_bias: Whether the projections of attention have one; `use_bias` by default.
        dropout: Share of each sublayer's output and of attention weights dropped in training.
        cross_attention: Whether a second attention reads `context`.
        kernel_initializer: Of every kernel.

    Call arguments:
        inputs: `(batch, length, hidden_dim)`.
        padding_mask: Optional boolean `(batch, length)`, true where a token is real.
        context: What cross-attention reads: `(batch, context_length, context_dim)`.
        context_cache: In place of `context`, the keys and values that `cache_context` made of it.
        context_mask: Optional boolean `(batch, context_length)`, true where the context is real.
        cache: Optional pair of self-attention tensors, see `MultiHeadAttention`; needs `causal`.
        position: Slot of the first input in the cache.
        left_padding: Optional int32 `(batch,)`, empty slots at the start of each row.
        return_attention_scores: Whether to return the weights of self-attention too, and those of cross-attention.

    Returns:
        `(batch, length, hidden_dim)`; then the weights of each attention and the new cache, where asked for.

    Raises:
        ValueError: An argument is out of range, `context` is given without `cross_attention` or lacks with it, or a
            cache is given without `causal`.
    """

    def __init__(
        self,
        num_heads: int,
        intermediate_dim: int,
        num_key_value_heads: int | None = None,
        causal: bool = False,
        rotary_base: float | None = None,
        rotary_scaling: Any = None,
        norm: str = "layer_norm",
        norm_first: bool = True,
        norm_epsilon: float = 1e-5,
        activation: str = "gelu",
        use_bias: bool = True,
        attention_bias: bool | None = None,
        dropout: float = 0.0,
        cross_attention: bool = False,
        kernel_initializer: Any = "glorot_uniform",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if norm not in NORMS:
            raise ValueError(f"norm must be one of {', '.join(NORMS)}, received {norm!r}")
        if not norm_epsilon > 0:
            raise ValueError(f"norm_epsilon must be positive, received {norm_epsilon}")
        # What get_config gives back; Keras wraps a dictionary attribute, a tuple of pairs it leaves alone.
        self._arguments = (
            ("num_heads", num_heads),
            ("intermediate_dim", intermediate_dim),
            ("num_key_value_heads", num_key_value_heads),
            ("causal", causal),
            ("rotary_base", rotary_base),
            ("norm", norm),
            ("norm_first", norm_first),
            ("norm_epsilon", norm_epsilon),
            ("activation", activation),
            ("use_bias", use_bias),
            ("attention_bias", attention_bias),
            ("dropout", dropout),
            ("cross_attention", cross_attention),
        )
        self.norm_first = norm_first
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.supports_masking = True
        shared = {"kernel_initializer": self.kernel_initializer, "dtype": self.dtype_policy}
        heads = {"num_heads": num_heads, "num_key_value_heads": num_key_value_heads, "dropout": dropout, **shared}
        heads["use_bias"] = use_bias if attention_bias is None else attention_bias
        rotary = {"rotary_base": rotary_base, "rotary_scaling": rotary_scaling}
        self.attention = MultiHeadAttention(causal=causal, name="attention", **rotary, **heads)
        self.cross_attention: Any = MultiHeadAttention(name="cross_attention", **heads) if cross_attention else None
        self.feedforward = FeedForward(
            intermediate_dim, activation=activation, use_bias=use_bias, name="feedforward", **shared
        )
        norms = {"kind": norm, "epsilon": norm_epsilon, "use_bias": use_bias, "dtype": self.dtype_policy}
        self.attention_norm = make_norm(name="attention_norm", **norms)
        self.cross_attention_norm: Any = make_norm(name="cross_attention_norm", **norms) if cross_attention else None
        self.feedforward_norm = make_norm(name="feedforward_norm", **norms)
        self.residual_dropout = keras.layers.Dropout(dropout, dtype=self.dtype_policy, name="residual_dropout")

    def build(self, inputs_shape: Any, context_shape: Any = None) -> None:
        """Makes the variables of every sublayer."""
        self.attention.build(inputs_shape)
        self.attention_norm.build(inputs_shape)
        if self.cross_attention is not None:
            self.cross_attention.build(inputs_shape, context_shape)
            self.cross_attention_norm.build(inputs_shape)
        self.feedforward.build(inputs_shape)
        self.feedforward_norm.build(inputs_shape)

    def call(
        self,
        inputs: Any,
        padding_mask: Any = None,
        context: Any = None,
        context_cache: Any = None,
        context_mask: Any = None,
        cache: Any = None,
        position: Any = 0,
        left_padding: Any = None,
        return_attention_scores: bool = False,
        training: bool | None = None,
    ) -> Any:
        """See the class."""
        if (context is not None or context_cache is not None) != (self.cross_attention is not None):
            raise ValueError(f"{self.name}: pass context to a block with cross_attention=True, and to no other")
        extras: list[Any] = []

        def attend(x: Any) -> Any:
            outputs = self.attention(
                x,
                key_mask=padding_mask,
                cache=cache,
                position=position,
                left_padding=left_padding,
                return_attention_scores=return_attention_scores,
                training=training,
            )
            return _first(outputs, extras)

        def cross(x: Any) -> Any:
            outputs = self.cross_attention(
                x,
                context=context,
                context_cache=context_cache,
                key_mask=context_mask,
                return_attention_scores=return_attention_scores,
                training=training,
            )
            weights: list[Any] = []
            x = _first(outputs, weights)
            extras[1:1] = weights  # behind the weights of self-attention, before the cache
            return x

        x = self._residual(inputs, attend, self.attention_norm, training)
        if self.cross_attention is not None:
            x = self._residual(x, cross, self.cross_attention_norm, training)
        x = self._residual(x, self.feedforward, self.feedforward_norm, training)
        return (x, *extras) if extras else x

    def cache_context(self, context: Any) -> tuple[Any, Any]:
        """Keys and values that cross-attention reads, see `MultiHeadAttention.cache_context`.

        Args:
            context: `(batch, context_length, context_dim)`.
        """
        return self.cross_attention.cache_context(context)

    def _residual(self, x: Any, sublayer: Any, norm: keras.layers.Layer, training: bool | None) -> Any:
        if self.norm_first:
            return x + self.residual_dropout(sublayer(norm(x)), training=training)
        return norm(x + self.residual_dropout(sublayer(x), training=training))

    def compute_output_shape(self, inputs_shape: Any, **_: Any) -> Any:
        """The shape of the inputs."""
        return inputs_shape

    def compute_output_spec(self, *args: Any, **kwargs: Any) -> Any:
        """Traces `call`, which knows of the outputs that are returned on demand."""
        return keras.Operation.compute_output_spec(self, *args, **kwargs)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            **super().get_config(),
            **dict(self._arguments),
            "rotary_scaling": self.attention.get_config()["rotary_scaling"],
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }


def _first(outputs: Any, others: list[Any]) -> Any:
    """The first of several outputs, or the only one; the others go into the list."""
    if not isinstance(outputs, tuple):
        return outputs
    others.extend(outputs[1:])
    return outputs[0]
