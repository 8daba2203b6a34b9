"""Multi-head and grouped-query attention, self or cross, with or without a cache."""

from typing import Any

import keras
from keras import ops

from kerasllm import backend
from kerasllm.layers.masks import attention_mask
from kerasllm.layers.positions import RotaryEmbedding

# Far below every score yet finite, so that a row that sees nothing (padding) averages instead of making NaN.
_HIDDEN = -1e9


@keras.saving.register_keras_serializable(package="kerasllm")
class MultiHeadAttention(keras.layers.Layer):
    """Scaled dot-product attention in several heads: `softmax(Q K^T / sqrt(d_k)) V` each.

    Vaswani et al. 2017, arXiv:1706.03762, equation 1 and section 3.2.2. With fewer key-value heads than query heads
    it is grouped-query attention (Ainslie et al. 2023, arXiv:2305.13245). The softmax is computed in float32.

    A mask that Keras carries with a tensor (`Embedding(mask_zero=True)`) is passed on and not read: give `key_mask`.

    Args:
        num_heads: Query heads.
        num_key_value_heads: Key-value heads; divides `num_heads`, which is the default.
        causal: Whether a position sees only itself and earlier ones.
        rotary_base: Base of rotary positions; `None` for no rotation.
        rotary_scaling: How rotary wavelengths are stretched, see `RotaryEmbedding`.
        use_bias: Whether the four projections have a bias.
        dropout: Share of attention weights dropped in training.
        kernel_initializer: Of every kernel.

    Call arguments:
        inputs: Queries come from here: `(batch, length, hidden_dim)`; `num_heads` divides `hidden_dim`.
        context: Keys and values come from here: `(batch, context_length, context_dim)`; `inputs` by default.
        context_cache: In place of `context`, the keys and values that `cache_context` made of it.
        key_mask: Optional boolean `(batch, context_length)`, true where a key is real.
        cache: Optional pair of tensors `(batch, num_key_value_heads, cache_length, head_dim)`: the new keys and
            values are written at `position`, and all slots up to there are attended to. Needs `causal`.
        position: Slot of the first input in the cache, an integer or `()` int32.
        left_padding: Optional int32 `(batch,)`, empty slots at the start of each row; rotary positions count from
            there.
        return_attention_scores: Whether to return the weights too.

    Returns:
        `(batch, length, hidden_dim)`; with `return_attention_scores` also float32
        `(batch, num_heads, length, key_length)`; with `cache` also the new cache, last.

    Raises:
        ValueError: A head count is not positive, the head counts do not divide, or a cache is given without `causal`.
    """

    def __init__(
        self,
        num_heads: int,
        num_key_value_heads: int | None = None,
        causal: bool = False,
        rotary_base: float | None = None,
        rotary_scaling: Any = None,
        use_bias: bool = True,
        dropout: float = 0.0,
        kernel_initializer: Any = "glorot_uniform",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.num_key_value_heads = num_heads if num_key_value_heads is None else num_key_value_heads
        for name in ("num_heads", "num_key_value_heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, received {getattr(self, name)}")
        if num_heads % self.num_key_value_heads:
            raise ValueError(f"num_key_value_heads must divide num_heads {num_heads}, received {num_key_value_heads}")
        self.causal = causal
        self.rotary_base = rotary_base
        self.use_bias = use_bias
        self.dropout = dropout
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.supports_masking = True
        self.rotary = (
            None
            if rotary_base is None
            else RotaryEmbedding(rotary_base, rotary_scaling, dtype=self.dtype_policy, name="rotary")
        )
        self.attention_dropout = keras.layers.Dropout(dropout, dtype=self.dtype_policy, name="attention_dropout")

    def build(self, inputs_shape: Any, context_shape: Any = None) -> None:
        """Makes the kernels of query, key, value and output."""
        hidden_dim = inputs_shape[-1]
        if hidden_dim % self.num_heads:
            raise ValueError(
                f"{self.name}: num_heads {self.num_heads} must divide the width of the input, {hidden_dim}"
            )
        self.head_dim = hidden_dim // self.num_heads
        key_value_dim = self.num_key_value_heads * self.head_dim
        context_shape = context_shape or inputs_shape
        self.query = self._dense(hidden_dim, "query", inputs_shape)
        self.key = self._dense(key_value_dim, "key", context_shape)
        self.value = self._dense(key_value_dim, "value", context_shape)
        self.output_projection = self._dense(hidden_dim, "output", inputs_shape)
        if self.rotary is not None:
            self.rotary.build((None, self.num_heads, None, self.head_dim))

    def _dense(self, units: int, name: str, input_shape: Any) -> keras.layers.Dense:
        dense = keras.layers.Dense(
            units,
            use_bias=self.use_bias,
            kernel_initializer=self.kernel_initializer.clone(),
            dtype=self.dtype_policy,
            name=name,
        )
        dense.build(input_shape)
        return dense

    def call(
        self,
        inputs: Any,
        context: Any = None,
        context_cache: Any = None,
        key_mask: Any = None,
        cache: Any = None,
        position: Any = 0,
        left_padding: Any = None,
        return_attention_scores: bool = False,
        training: bool | None = None,
    ) -> Any:
        """See the class."""
        if cache is not None and not self.causal:
            raise ValueError(f"{self.name}: a cache needs causal=True, or empty slots would be attended to")
        query = self._split_heads(self.query(inputs), self.num_heads)
        key, value = context_cache or self.cache_context(inputs if context is None else context)
        if self.rotary is not None:
            query = self.rotary(query, _positions(query, position, left_padding))
            key = self.rotary(key, _positions(key, position, left_padding))
        if cache is not None:
            cache = tuple(backend.write_cache(old, new, position) for old, new in zip(cache, (key, value), strict=True))
            key, value = cache
        visible = attention_mask(
            ops.shape(query)[2],
            ops.shape(key)[2],
            causal=self.causal,
            position=position,
            left_padding=left_padding,
            key_mask=key_mask,
        )
        heads, weights = self._attend(query, key, value, visible, training)
        outputs = [self.output_projection(self._join_heads(heads))]
        if return_attention_scores:
            outputs.append(weights)
        if cache is not None:
            outputs.append(cache)
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def cache_context(self, context: Any) -> tuple[Any, Any]:
        """Keys, not yet rotated, and values of a context that several calls shall read.

        Args:
            context: `(batch, context_length, context_dim)`.

        Returns:
            Two tensors `(batch, num_key_value_heads, context_length, head_dim)`.
        """
        return tuple(self._split_heads(dense(context), self.num_key_value_heads) for dense in (self.key, self.value))

    def _attend(self, query: Any, key: Any, value: Any, visible: Any, training: bool | None) -> tuple[Any, Any]:
        """Attention of each head; query heads that share a key-value head are folded into its rows."""
        batch, length = ops.shape(query)[0], ops.shape(query)[2]
        key_length = ops.shape(key)[2]
        group = self.num_heads // self.num_key_value_heads
        query = query * self.head_dim**-0.5
        if group > 1:
            query = ops.reshape(query, (batch, self.num_key_value_heads, group * length, self.head_dim))
        scores = ops.cast(backend.matmul_transposed(query, key), "float32")
        if group > 1:
            scores = ops.reshape(scores, (batch, self.num_heads, length, key_length))
        if visible is not None:
            # Chosen and not added: TensorFlow on a CPU fuses matmul, scaling and an addition into one operation that
            # makes a whole forward pass about sixty times slower.
            scores = ops.where(visible, scores, _HIDDEN)
        weights = ops.softmax(scores)
        dropped = ops.cast(self.attention_dropout(weights, training=training), self.compute_dtype)
        if group > 1:
            dropped = ops.reshape(dropped, (batch, self.num_key_value_heads, group * length, key_length))
        heads = ops.matmul(dropped, value)
        if group > 1:
            heads = ops.reshape(heads, (batch, self.num_heads, length, self.head_dim))
        return heads, weights

    def _split_heads(self, x: Any, heads: int) -> Any:
        batch, length = ops.shape(x)[0], ops.shape(x)[1]
        return ops.transpose(ops.reshape(x, (batch, length, heads, self.head_dim)), (0, 2, 1, 3))

    def _join_heads(self, x: Any) -> Any:
        batch, length = ops.shape(x)[0], ops.shape(x)[2]
        return ops.reshape(ops.transpose(x, (0, 2, 1, 3)), (batch, length, self.num_heads * self.head_dim))

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
            "num_heads": self.num_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "causal": self.causal,
            "rotary_base": self.rotary_base,
            "rotary_scaling": None if self.rotary is None else self.rotary.get_config()["scaling"],
            "use_bias": self.use_bias,
            "dropout": self.dropout,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }


def token_positions(length: Any, position: Any, left_padding: Any) -> Any:
    """Positions of tokens in their text, counted from the first real one.

    Args:
        length: Number of tokens.
        position: Slot of the first token, an integer or `()` int32.
        left_padding: Optional int32 `(batch,)`, empty slots at the start of each row.

    Returns:
        int32 `(length,)`, or `(batch, length)` with `left_padding`; 0 in empty slots.
    """
    slots = position + ops.arange(length, dtype="int32")
    if left_padding is None:
        return slots
    return ops.maximum(slots[None, :] - left_padding[:, None], 0)


def _positions(heads: Any, position: Any, left_padding: Any) -> Any:
    return token_positions(ops.shape(heads)[2], position, left_padding)
