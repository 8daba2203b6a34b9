"""The Transformer language model."""

from typing import Any

import keras
from keras import ops

from kerasllm.config import TransformerConfig
from kerasllm.layers import (
    LearnedPositionEmbedding,
    SinePositionEncoding,
    TransformerBlock,
    make_norm,
    token_positions,
)
from kerasllm.models.base import LanguageModel
from kerasllm.state import (
    PADDING,
    POSITION,
    SOURCE_PADDING_MASK,
    DecodeState,
    key_cache,
    memory_key,
    memory_value,
    value_cache,
)


@keras.saving.register_keras_serializable(package="kerasllm")
class TransformerLanguageModel(LanguageModel):
    """Embedding, Transformer blocks, projection to the vocabulary.

    Vaswani et al. 2017 (arXiv:1706.03762), Radford et al. 2019 (GPT-2), Devlin et al. 2019 (BERT, arXiv:1810.04805)
    and Touvron et al. 2023 (LLaMA, arXiv:2302.13971) are configurations of it.

    Arguments, call arguments and returns are those of `LanguageModel`; the config is a `TransformerConfig`. Where there
    are segments, there is one call argument more:

    Call arguments:
        segment_ids: Optional int32 `(batch, length)`, the segment of each token; all in segment 0 by default.
    """

    config_class = TransformerConfig
    config: TransformerConfig

    def __init__(
        self, config: TransformerConfig | dict[str, Any], *, embedding: keras.layers.Layer | None = None, **kwargs: Any
    ) -> None:
        super().__init__(config, **kwargs)
        self.max_sequence_length = self.config.max_sequence_length
        self._make_embeddings(embedding)
        dtype = self.dtype_policy
        norm = (self.config.norm, self.config.norm_epsilon, self.config.use_bias, dtype)
        self.embedding_norm = make_norm(*norm, "embedding_norm") if self.config.embedding_norm else None
        self.embedding_dropout = keras.layers.Dropout(self.config.dropout, dtype=dtype, name="embedding_dropout")
        self.blocks = [
            TransformerBlock(
                num_heads=self.config.num_heads,
                intermediate_dim=self.config.intermediate_dim,
                num_key_value_heads=self.config.num_key_value_heads,
                causal=self.config.causal,
                rotary_base=self.config.rotary_base if self.config.positions == "rotary" else None,
                rotary_scaling=self.config.rotary_scaling,
                norm=self.config.norm,
                norm_first=self.config.norm_first,
                norm_epsilon=self.config.norm_epsilon,
                activation=self.config.activation,
                use_bias=self.config.use_bias,
                attention_bias=self.config.attention_bias,
                dropout=self.config.dropout,
                cross_attention=self.reads_source,
                kernel_initializer=self._initializer(),
                dtype=dtype,
                name=f"block_{index}",
            )
            for index in range(self.config.num_layers)
        ]
        # Blocks that normalise last leave nothing to normalise.
        self.final_norm = make_norm(*norm, "final_norm") if self.config.normalizes_last else None
        self.pooler: keras.layers.Layer | None = None
        if self.config.pooler:
            self.pooler = keras.layers.Dense(
                self.config.hidden_dim,
                activation="tanh",
                kernel_initializer=self._initializer(),
                dtype=dtype,
                name="pooler",
            )

    def _make_embeddings(self, embedding: keras.layers.Layer | None) -> None:
        """The layers whose sum `_embed` gives; the first may be another model's."""
        dtype = self.dtype_policy
        self.embedding = embedding or keras.layers.ReversibleEmbedding(
            self.config.vocabulary_size,
            self.config.hidden_dim,
            tie_weights=self.config.tie_embeddings,
            embeddings_initializer=self._initializer(0.1),
            reverse_dtype="float32",
            dtype=dtype,
            name="embedding",
        )
        self.positions: keras.layers.Layer | None = None
        if self.config.positions == "learned":
            self.positions = LearnedPositionEmbedding(
                self.config.max_sequence_length, initializer=self._initializer(), dtype=dtype, name="positions"
            )
        elif self.config.positions == "sine":
            self.positions = SinePositionEncoding(dtype=dtype, name="positions")
        self.segments: keras.layers.Layer | None = None
        if self.config.num_segments:
            self.segments = keras.layers.Embedding(
                self.config.num_segments,
                self.config.hidden_dim,
                embeddings_initializer=self._initializer(),
                dtype=dtype,
                name="segments",
            )

    def _initializer(self, bound: float | None = None) -> keras.initializers.Initializer:
        """Normal with standard deviation 0.02, as in GPT-2; or uniform, up to a bound or as Glorot and Bengio 2010."""
        if self.config.initializer == "normal":
            return keras.initializers.RandomNormal(stddev=0.02)
        return keras.initializers.GlorotUniform() if bound is None else keras.initializers.RandomUniform(-bound, bound)

    def build(self, input_shape: Any = None) -> None:
        """Makes every variable; the shape of the input does not matter."""
        hidden_shape = (None, None, self.config.hidden_dim)
        if not self.embedding.built:
            self.embedding.build((None, None))
        if self.segments is not None:
            self.segments.build((None, None))
        inner = (self.positions, self.embedding_norm, self.embedding_dropout, *self.blocks, self.final_norm)
        for layer in (*inner, self.pooler):
            if layer is not None:
                # A block of an encoder-decoder reads its encoder's hidden states, too.
                more = (hidden_shape,) if self.reads_source and layer in self.blocks else ()
                layer.build(hidden_shape, *more)
        if self.config.output_bias:
            size = (self.config.vocabulary_size,)
            self.output_bias = self.add_weight(
                shape=size, initializer="zeros", dtype="float32", autocast=False, name="output_bias"
            )
        self.built = True

    def encode(
        self,
        tokens: Any,
        padding_mask: Any = None,
        segment_ids: Any = None,
        state: DecodeState | None = None,
        training: Any = None,
    ) -> Any:
        """See `LanguageModel.encode`; `segment_ids` is a call argument of the class.

        Raises:
            ValueError: The tokens are more than `max_sequence_length`, both a mask and a state are given, or segments
                to a model without.
        """
        self._check_mask(padding_mask, state)
        length = ops.shape(tokens)[1]
        if isinstance(length, int) and length > self.config.max_sequence_length:
            raise ValueError(
                f"{length} tokens are more than the model's max_sequence_length {self.config.max_sequence_length}"
            )
        position = 0 if state is None else state[POSITION]
        padding = None if state is None else state.get(PADDING)
        x = self._embed(tokens, segment_ids, token_positions(length, position, padding))
        x = self.embedding_dropout(x, training=training)
        if state is None:
            for block in self.blocks:
                x = block(x, padding_mask=padding_mask, training=training)
            return self._normalize(x)
        following: DecodeState = {**state, POSITION: position + length}
        where = {"position": position, "left_padding": padding, "context_mask": state.get(SOURCE_PADDING_MASK)}
        for index, block in enumerate(self.blocks):
            names = key_cache(index), value_cache(index)
            cache, memory = _pair(state, *names), _pair(state, memory_key(index), memory_value(index))
            x = block(x, cache=cache, context_cache=memory, training=training, **where)
            if cache is not None:
                x, cache = x
                following.update(zip(names, cache, strict=True))
        # Without caches, nothing can follow what was read.
        return self._normalize(x), following if key_cache(0) in state else None

    def _embed(self, tokens: Any, segment_ids: Any, positions: Any) -> Any:
        """The sum of the embeddings of tokens, positions and segments, `(batch, length, hidden_dim)`."""
        if segment_ids is not None and self.segments is None:
            raise ValueError(f"{self.name}: has no segments (num_segments 0); leave segment_ids out")
        x = self.embedding(tokens)
        if self.config.embedding_scale:
            x = x * self.config.hidden_dim**0.5
        if self.positions is not None:
            x = self.positions(x, positions=positions)
        if self.segments is not None:
            x = x + self.segments(ops.zeros_like(tokens) if segment_ids is None else segment_ids)
        return x if self.embedding_norm is None else self.embedding_norm(x)

    def pool(self, hidden: Any) -> Any:
        """BERT's summary of a sequence: a dense layer with tanh over its first token.

        Args:
            hidden: `(batch, length, hidden_dim)`, from `encode`.

        Returns:
            `(batch, hidden_dim)`.

        Raises:
            ValueError: The config has no pooler.
        """
        if self.pooler is None:
            raise ValueError(f"{self.name}: has no pooler; make it with pooler=True")
        return self.pooler(hidden[:, 0])

    def _normalize(self, x: Any) -> Any:
        return x if self.final_norm is None else self.final_norm(x)

    def project(self, hidden: Any) -> Any:
        """See `LanguageModel.project`."""
        logits = self.embedding(hidden, reverse=True)
        return logits + self.output_bias if self.config.output_bias else logits

    def initial_state(self, batch_size: Any, length: Any, padding: Any = None) -> DecodeState:
        """See `LanguageModel.initial_state`.

        Raises:
            ValueError: The model is bidirectional: it cannot go on from a state.
        """
        config = self.config
        if not config.causal:
            raise ValueError(f"{self.name}: a bidirectional model has no decode state; make it causal")
        heads = config.num_key_value_heads or config.num_heads
        shape = (batch_size, heads, length, config.head_dim)
        state: DecodeState = {POSITION: ops.zeros((), "int32")}
        for index in range(config.num_layers):
            state[key_cache(index)] = ops.zeros(shape, self.compute_dtype)
            state[value_cache(index)] = ops.zeros(shape, self.compute_dtype)
        return state if padding is None else {**state, PADDING: padding}


def _pair(state: DecodeState, *names: str) -> Any:
    """The parts of a state with these names, or `None` where it lacks them."""
    return tuple(state[name] for name in names) if names[0] in state else None
