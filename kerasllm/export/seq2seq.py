"""What crosses the boundary of an encoder-decoder: texts in and other texts out, and the two steps of a phone."""

from typing import Any

import tensorflow as tf

from kerasllm.export.endpoints import Endpoints, left_padded
from kerasllm.generation import beam_search
from kerasllm.models import EncoderDecoder
from kerasllm.state import POSITION, SOURCE_PADDING_MASK, DecodeState, carried, constant
from kerasllm.text import Tokenizer

_TEXT = tf.TensorSpec((None,), tf.string, name="text")
_TOKENS = tf.TensorSpec((None, None), tf.int32)


class TranslationEndpoints(Endpoints):
    """An encoder-decoder and its tokenizers as functions of strings, for a SavedModel.

    Args:
        model: A built encoder-decoder.
        tokenizer: Its tokenizer.
        source_tokenizer: That of sources.
        max_new_tokens: Most tokens that `serving_default` writes.
        num_beams: Hypotheses that `search` keeps.
    """

    def __init__(
        self,
        model: EncoderDecoder,
        tokenizer: Tokenizer,
        source_tokenizer: Tokenizer,
        *,
        max_new_tokens: int,
        num_beams: int,
    ) -> None:
        super().__init__(model, tokenizer, max_new_tokens=max_new_tokens)
        self._python.source_tokenizer = source_tokenizer
        self._source_parts = source_tokenizer.trackables()
        self._num_beams = num_beams

    def signatures(self) -> dict[str, Any]:
        """Signature name to function, for `tf.saved_model.save`."""
        return {
            "serving_default": self.continue_text,
            "generate": self.generate,
            "search": self.search,
            "score": self.score_pairs,
            "logits": self.pair_logits,
            "tokenize": self.tokenize,
            "detokenize": self.detokenize,
        }

    @tf.function(
        input_signature=[
            _TEXT,
            tf.TensorSpec((), tf.int32, name="max_new_tokens"),
            tf.TensorSpec((), tf.float32, name="length_penalty"),
        ]
    )
    def search(self, text: tf.Tensor, max_new_tokens: tf.Tensor, length_penalty: tf.Tensor) -> dict[str, tf.Tensor]:
        """Best target of a search by beams: `text` (batch,) to `text` (batch,) and its `score` (batch,)."""
        model, tokenizer = self._python.model, self._python.tokenizer
        prompts, padding, source = self._read(text)
        check = tf.debugging.assert_positive(max_new_tokens, "max_new_tokens must be at least 1")
        with tf.control_dependencies([check] if check is not None else []):
            prompts = tf.identity(prompts)
        options: dict[str, Any] = {"beams": self._num_beams, "capacity": max_new_tokens, "source": source}
        options["stop_ids"] = tokenizer.stop_ids
        found = beam_search(model, prompts, padding, max_new_tokens, length_penalty, **options)
        best = tf.RaggedTensor.from_tensor(found.tokens[:, 0])
        return {"text": tokenizer.detokenize(best), "score": found.scores[:, 0]}

    @tf.function(
        input_signature=[
            tf.TensorSpec((None,), tf.string, name="source"),
            tf.TensorSpec((None,), tf.string, name="target"),
        ]
    )
    def score_pairs(self, source: tf.Tensor, target: tf.Tensor) -> dict[str, tf.Tensor]:
        """Natural `log_probability` of each target (with the end token), and its `token_count`, (batch,) each."""
        model = self._python.model
        documents = self._documents(target)
        tokens = documents.to_tensor(0)
        inputs, wanted = tokens[:, :-1], tokens[:, 1:]
        count = tf.cast(documents.row_lengths(), tf.int32) - 1
        sources, mask = self._source(source)
        logits = model((sources, inputs, mask), training=False)
        chosen = tf.gather(logits, wanted, batch_dims=2) - tf.reduce_logsumexp(logits, axis=-1)
        real = tf.sequence_mask(count, tf.shape(wanted)[1])
        return {"log_probability": tf.reduce_sum(tf.where(real, chosen, 0.0), axis=1), "token_count": count}

    @tf.function(input_signature=[_TOKENS, _TOKENS])
    def pair_logits(self, source: tf.Tensor, target: tf.Tensor) -> dict[str, tf.Tensor]:
        """float32 `logits` (batch, length, vocabulary_size) of int32 `source` and `target` (batch, length)."""
        return {"logits": self._python.model((source, target), training=False)}

    def _source(self, text: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Tokens of sources as `generation.source_ids` gives them, padded on the right, and where they are real."""
        tokenizer, limit = self._python.source_tokenizer, self._python.model.max_sequence_length
        ids = tokenizer.tokenize_prompts(text)
        ids = tf.concat([ids, self._column(ids, tokenizer.eos_id)], axis=1)
        lengths = tf.cast(ids.row_lengths(), tf.int32)
        tokens = ids.to_tensor(0)
        if limit is not None:
            message = f"a source does not fit the context of {limit} tokens"
            check = tf.debugging.assert_less_equal(tf.shape(tokens)[1], limit, message)
            with tf.control_dependencies([check] if check is not None else []):
                tokens = tf.identity(tokens)
        return tokens, tf.sequence_mask(lengths, tf.shape(tokens)[1])

    def _read(self, text: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tuple[tf.Tensor, ...]]:
        """The empty prompt for each source, and the sources."""
        prompts = self._python.tokenizer.tokenize_prompts(tf.fill(tf.shape(text), ""))
        return *left_padded(prompts), self._source(text)


def edge_functions(model: EncoderDecoder, context_length: int, source_length: int) -> dict[str, Any]:
    """The signatures of a TFLite file, for a batch of one: `encode` and `decode`.

    `encode` takes `source` int32 (1, source_length), padded on the right, and `source_padding_mask` bool of the same
    shape, and gives the state. `decode` takes `tokens` int32 (1, 1), a Transformer's `input_pos` int32 (1,), what
    `encode` gave, and the mask; it gives `logits` float32 (1, 1, vocabulary) and what of the state has changed.

    Args:
        model: A built encoder-decoder.
        context_length: Slots of the KV caches, in tokens.
        source_length: Tokens in a source.

    Returns:
        Signature name to concrete function.
    """
    dtype = model.compute_dtype

    def encode_source(source: tf.Tensor, source_padding_mask: tf.Tensor) -> dict[str, tf.Tensor]:
        state = model.encode_source(source, source_padding_mask, length=context_length, training=False)
        return _float32({k: v for k, v in state.items() if k != SOURCE_PADDING_MASK})

    encode = tf.function(encode_source).get_concrete_function(
        source=tf.TensorSpec((1, source_length), tf.int32, name="source"),
        source_padding_mask=tf.TensorSpec((1, source_length), tf.bool, name=SOURCE_PADDING_MASK),
    )
    inputs = {name: tf.TensorSpec(v.shape, v.dtype, name=name) for name, v in encode.structured_outputs.items()}
    if any(constant(name) for name in inputs):  # there is attention
        inputs[SOURCE_PADDING_MASK] = tf.TensorSpec((1, source_length), tf.bool, name=SOURCE_PADDING_MASK)
    placed = model.max_sequence_length is not None

    def decode_token(**given: tf.Tensor) -> dict[str, tf.Tensor]:
        state: DecodeState = {name: given[name] for name in inputs}
        state = {name: v if v.dtype == tf.bool else tf.cast(v, dtype) for name, v in state.items()}
        state[POSITION] = given["input_pos"][0] if placed else tf.constant(0)
        hidden, state = model.encode(given["tokens"], state=state, training=False)
        # As in `endpoints.edge_functions`: keeps the last norm's scale out of the table that projects.
        hidden = tf.maximum(hidden, hidden.dtype.min)
        changed = {name: value for name, value in state.items() if not constant(name)}
        return {"logits": model.project(hidden), **_float32(changed)}

    more = {"input_pos": tf.TensorSpec((1,), tf.int32, name="input_pos")} if placed else {}
    tokens = tf.TensorSpec((1, 1), tf.int32, name="tokens")
    return {
        "encode": encode,
        "decode": tf.function(decode_token).get_concrete_function(tokens=tokens, **more, **inputs),
    }


def _float32(state: DecodeState) -> dict[str, tf.Tensor]:
    return {name: tf.cast(value, tf.float32) for name, value in carried(state).items()}


def embeddings(model: EncoderDecoder) -> list[Any]:
    """The layers that look tokens up, each once.

    Args:
        model: An encoder-decoder.
    """
    source = getattr(model, "source_embedding", None) or model.encoder.embedding
    return [model.embedding] if source is model.embedding else [model.embedding, source]
