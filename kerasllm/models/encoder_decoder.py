"""Models that write a target given a source: the protocol of `LanguageModel` for the target, and a source to read."""

from collections.abc import Mapping
from typing import Any

import keras
from keras import ops

from kerasllm.config import LSTMEncoderDecoderConfig, TransformerSeq2SeqConfig
from kerasllm.layers import GlobalAttention, LSTMStack, token_positions
from kerasllm.models.base import LanguageModel
from kerasllm.models.lstm import LSTMLanguageModel
from kerasllm.models.transformer import TransformerLanguageModel
from kerasllm.state import (
    PADDING,
    POSITION,
    SOURCE_PADDING_MASK,
    DecodeState,
    lstm_cell,
    lstm_output,
    memory_key,
    memory_value,
)


class EncoderDecoder(LanguageModel):
    """Base class: a language model of targets that reads a source first.

    `encode_source` gives a decode state; from there `encode`, `project` and every loop of `kerasllm.generation` are
    those of a language model. In `fit` the inputs are source and target up to its last token, the labels are the target
    from its second token on (teacher forcing), and `sample_weight` is 0 where a label is padding:

        source, target = ...  # int32, both begin with the start token and end with the end token, padded on the right
        inputs = {"source": source, "target": target[:, :-1], "source_padding_mask": source != padding}
        model.fit(inputs, target[:, 1:], sample_weight=target[:, 1:] != padding)

    Call arguments:
        inputs: A dictionary of `source` `(batch, source_length)` and `target` `(batch, length)`, both int32, and
            optionally `source_padding_mask`, boolean of the source's shape, true where it is real; or a tuple of these.
            With `state` the tokens of the target alone.
        state: Optional decode state, of `encode_source`.
        training: Whether dropout is on.

    Returns:
        float32 logits `(batch, length, vocabulary_size)`; with `state` also the next state.
    """

    reads_source = True

    @property
    def source_vocabulary_size(self) -> int:
        """Number of token ids of sources."""
        return self.config.source_vocabulary_size or self.config.vocabulary_size

    def encode_source(
        self,
        source: Any,
        source_padding_mask: Any = None,
        length: Any = None,
        padding: Any = None,
        training: Any = None,
    ) -> DecodeState:
        """Read sources.

        Args:
            source: int32 `(batch, source_length)`.
            source_padding_mask: Optional boolean `(batch, source_length)`, true where a token is real.
            length: Tokens of the target, prompt and continuation, that the state must hold; `None` for a state that
                reads one whole target at once.
            padding: Optional int32 `(batch,)`, empty slots on the left of each target.
            training: Whether dropout is on.

        Returns:
            A decode state, see `kerasllm.state`.
        """
        raise RuntimeError(f"{type(self).__name__} must implement encode_source")

    def initial_state(self, batch_size: Any, length: Any = None, padding: Any = None) -> DecodeState:
        """Refused: the state of an encoder-decoder comes from `encode_source`.

        Raises:
            ValueError: Always.
        """
        raise ValueError(f"{self.name}: a target begins with the state that encode_source gives")

    def _check_state(self, state: DecodeState | None) -> None:
        if state is None:
            raise ValueError(
                f"{self.name}: a target needs the state that encode_source gives; give it a length to read in pieces"
            )

    def call(
        self,
        inputs: Any,
        padding_mask: Any = None,
        segment_ids: Any = None,
        state: DecodeState | None = None,
        training: Any = None,
    ) -> Any:
        """See the class."""
        others = {"padding_mask": padding_mask, "segment_ids": segment_ids, "training": training}
        if state is not None:
            return super().call(inputs, state=state, **others)
        source, target, mask = self._unpacked(inputs)
        state = self.encode_source(source, mask, training=training)
        return self.project(self.encode(target, state=state, **others)[0])

    def _unpacked(self, inputs: Any) -> tuple[Any, Any, Any]:
        """Source, target and mask."""
        names = ("source", "target", SOURCE_PADDING_MASK)
        given = dict(inputs) if isinstance(inputs, Mapping) else None
        if given is None and isinstance(inputs, list | tuple):
            given = dict(zip(names, inputs, strict=False)) if len(inputs) <= len(names) else {}
        if given is None or not {"source", "target"} <= given.keys() <= set(names):
            raise ValueError(f"{self.name}: needs source and target, as a dictionary or as a tuple, or a state")
        return given["source"], given["target"], given.get(SOURCE_PADDING_MASK)

    def attention_scores(self, inputs: Any) -> list[Any]:
        """What each target token looked at in the source, to draw.

        Args:
            inputs: Source and target, as in a call.

        Returns:
            Weights of each layer of cross-attention, first to last, each float32
            `(batch, num_heads, length, source_length)`; an LSTM has one, with one head, or none.
        """
        raise RuntimeError(f"{type(self).__name__} must implement attention_scores")

    def compute_output_shape(self, input_shape: Any) -> Any:
        """`(batch, length, vocabulary_size)`, length being the target's."""
        return (*self._unpacked(input_shape)[1], self.config.vocabulary_size)

    def compute_output_spec(self, inputs: Any, *_: Any, **__: Any) -> keras.KerasTensor:
        """float32 `(batch, length, vocabulary_size)`, length being the target's."""
        return keras.KerasTensor((*self._unpacked(inputs)[1].shape, self.config.vocabulary_size), "float32")


@keras.saving.register_keras_serializable(package="kerasllm")
class TransformerSeq2Seq(EncoderDecoder, TransformerLanguageModel):
    """The encoder-decoder Transformer of Vaswani et al. 2017 (arXiv:1706.03762, section 3).

    A `TransformerLanguageModel` whose blocks also attend to what a bidirectional one, `encoder`, makes of the source;
    with one vocabulary both have one embedding. Arguments, call arguments and returns are those of `EncoderDecoder`;
    the config is a `TransformerSeq2SeqConfig`.
    """

    config_class = TransformerSeq2SeqConfig
    config: TransformerSeq2SeqConfig

    def __init__(self, config: TransformerSeq2SeqConfig | dict[str, Any], **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        shared = None if self.config.source_vocabulary_size else self.embedding
        self.encoder = TransformerLanguageModel(
            self.config.encoder, embedding=shared, dtype=self.dtype_policy, name="encoder"
        )

    def build(self, input_shape: Any = None) -> None:
        """Makes every variable; the shape of the input does not matter."""
        super().build(input_shape)
        self.encoder.build()

    def encode_source(
        self,
        source: Any,
        source_padding_mask: Any = None,
        length: Any = None,
        padding: Any = None,
        training: Any = None,
    ) -> DecodeState:
        """See `EncoderDecoder.encode_source`."""
        memory = self.encoder.encode(source, padding_mask=source_padding_mask, training=training)
        state: DecodeState = {POSITION: ops.zeros((), "int32")}
        if length is not None:
            state = TransformerLanguageModel.initial_state(self, ops.shape(source)[0], length)
        for index, block in enumerate(self.blocks):
            state[memory_key(index)], state[memory_value(index)] = block.cache_context(memory)
        return _with_masks(state, source_padding_mask, padding)

    def encode(
        self,
        tokens: Any,
        padding_mask: Any = None,
        segment_ids: Any = None,
        state: DecodeState | None = None,
        training: Any = None,
    ) -> Any:
        """See `LanguageModel.encode`; the state is one of `encode_source`.

        Raises:
            ValueError: There is no state; or as of `TransformerLanguageModel.encode`.
        """
        self._check_state(state)
        return super().encode(tokens, padding_mask, segment_ids, state, training)

    def attention_scores(self, inputs: Any) -> list[Any]:
        """See `EncoderDecoder.attention_scores`."""
        source, target, mask = self._unpacked(inputs)
        memory = self.encoder.encode(source, padding_mask=mask, training=False)
        x = self._embed(target, None, token_positions(ops.shape(target)[1], 0, None))
        scores = []
        for block in self.blocks:
            x, _, weights = block(x, context=memory, context_mask=mask, return_attention_scores=True, training=False)
            scores.append(weights)
        return scores


@keras.saving.register_keras_serializable(package="kerasllm")
class LSTMEncoderDecoder(EncoderDecoder, LSTMLanguageModel):
    """An LSTM that begins with the final state of another (Sutskever et al. 2014, arXiv:1409.3215), with attention.

    Attention stands behind the decoder's last layer: `layers.GlobalAttention` (Luong et al. 2015, arXiv:1508.04025,
    equations 5 to 7), without input feeding. Arguments, call arguments and returns are those of `EncoderDecoder`; the
    config is an `LSTMEncoderDecoderConfig`.
    """

    config_class = LSTMEncoderDecoderConfig
    config: LSTMEncoderDecoderConfig

    def __init__(self, config: LSTMEncoderDecoderConfig | dict[str, Any], **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        config, dtype = self.config, self.dtype_policy
        self.source_embedding = self.embedding
        if config.source_vocabulary_size:
            self.source_embedding = keras.layers.Embedding(
                config.source_vocabulary_size, config.embedding_dim, dtype=dtype, name="source_embedding"
            )
            self.source_embedding.supports_masking = True
        ways = 2 if config.bidirectional_encoder else 1
        self.encoder = LSTMStack(
            [width // ways for width in config.layer_dims],
            dropout=config.dropout,
            cell=config.cell,
            bidirectional=config.bidirectional_encoder,
            dtype=dtype,
            name="encoder",
        )
        self.attention: GlobalAttention | None = None
        if config.attention is not None:
            self.attention = GlobalAttention(config.attention, dtype=dtype, name="attention")

    def build(self, input_shape: Any = None) -> None:
        """Makes every variable; the shape of the input does not matter."""
        super().build(input_shape)
        if not self.source_embedding.built:
            self.source_embedding.build((None, None))
        self.encoder.build((None, None, self.config.embedding_dim))
        hidden_shape = (None, None, self.config.output_dim)
        if self.attention is not None:
            self.attention.build(hidden_shape, hidden_shape)

    def encode_source(
        self,
        source: Any,
        source_padding_mask: Any = None,
        length: Any = None,
        padding: Any = None,
        training: Any = None,
    ) -> DecodeState:
        """See `EncoderDecoder.encode_source`; the state has the same size for any `length`."""
        x = self.embedding_dropout(self.source_embedding(source), training=training)
        start = self.encoder.zero_state(ops.shape(source)[0])
        x, finals = self.encoder(x, initial_state=start, padding_mask=source_padding_mask, training=training)
        state: DecodeState = {POSITION: ops.zeros((), "int32")}
        for index, final in enumerate(finals):
            state |= {name(index): part for name, part in zip((lstm_output, lstm_cell), final, strict=False)}
        if self.attention is None:
            return _with_masks(state, None, padding)
        state[memory_key(0)], state[memory_value(0)] = self.attention.cache_context(x)
        return _with_masks(state, source_padding_mask, padding)

    def encode(
        self,
        tokens: Any,
        padding_mask: Any = None,
        segment_ids: Any = None,
        state: DecodeState | None = None,
        training: Any = None,
    ) -> Any:
        """See `LanguageModel.encode`; the state is one of `encode_source`.

        Raises:
            ValueError: There is no state, or segments are given.
        """
        self._check_state(state)
        hidden, state = super().encode(tokens, padding_mask, segment_ids, state, training)
        if self.attention is None:
            return hidden, state
        memory = state[memory_key(0)], state[memory_value(0)]
        return self.attention(hidden, context_cache=memory, context_mask=state.get(SOURCE_PADDING_MASK)), state

    def attention_scores(self, inputs: Any) -> list[Any]:
        """See `EncoderDecoder.attention_scores`."""
        if self.attention is None:
            return []
        source, target, mask = self._unpacked(inputs)
        state = self.encode_source(source, mask, training=False)
        hidden, _ = super().encode(target, state=state, training=False)
        memory = state[memory_key(0)], state[memory_value(0)]
        options = {"context_cache": memory, "context_mask": state.get(SOURCE_PADDING_MASK)}
        return [self.attention(hidden, **options, return_attention_scores=True)[1][:, None]]


def _with_masks(state: DecodeState, source_padding_mask: Any, padding: Any) -> DecodeState:
    """The state with what it is to say of padding, where there is any."""
    if source_padding_mask is not None:
        state[SOURCE_PADDING_MASK] = ops.cast(source_padding_mask, "bool")
    return state if padding is None else {**state, PADDING: padding}


SEQ2SEQ: dict[str, type[EncoderDecoder]] = {model.__name__: model for model in (LSTMEncoderDecoder, TransformerSeq2Seq)}
"""The closed list of encoder-decoders that a model folder may name."""
