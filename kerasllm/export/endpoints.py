"""The functions that cross the boundary: what a server or a phone can call, as TensorFlow functions of a model."""

from typing import Any

import tensorflow as tf

from kerasllm.generation import Sampling, Tracing, decode, prefill
from kerasllm.models import LanguageModel, variable_name
from kerasllm.state import POSITION, carried
from kerasllm.text import Tokenizer

_SCORED_AT_ONCE = 16
"""Windows in one batch of `score`."""


def _text() -> tf.TensorSpec:
    return tf.TensorSpec((None,), tf.string, name="text")


def _tokens(name: str) -> tf.TensorSpec:
    return tf.TensorSpec((None, None), tf.int32, name=name)


def _lengths() -> tf.TensorSpec:
    return tf.TensorSpec((None,), tf.int32, name="lengths")


def _scalar(dtype: tf.DType, name: str) -> tf.TensorSpec:
    return tf.TensorSpec((), dtype, name=name)


class Endpoints(tf.Module):
    """What models of both kinds can do with strings: write, by `_read` of a text, and turn text into tokens and back.

    Args:
        model: A built model.
        tokenizer: Its tokenizer.
        max_new_tokens: Most tokens that `serving_default` adds.
    """

    def __init__(self, model: LanguageModel, tokenizer: Tokenizer, *, max_new_tokens: int) -> None:
        super().__init__(name="kerasllm")
        # A tf.Module does not see the variables of a Keras 3 model: name them, or the SavedModel is empty.
        self.weights = {variable_name(v): v.value for v in model.weights}
        self._other_variables = [v.value for v in model.variables]
        self._tokenizer_parts = tokenizer.trackables()
        # Attributes whose names tf.Module would track are not wanted for these: keep them out of its sight.
        self._python = _Untracked(model, tokenizer)
        self._max_new_tokens = max_new_tokens

    def _read(self, text: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tuple[tf.Tensor, ...]]:
        """Prompts, padded on the left, by how much, and the source of `prefill`."""
        raise RuntimeError(f"{type(self).__name__} must implement _read")

    @tf.function(input_signature=[_text()])
    def continue_text(self, text: tf.Tensor) -> dict[str, tf.Tensor]:
        """Greedy continuation: `text` (batch,) to `text` (batch,)."""
        # A call of the other signature, here and below, so that the file holds each graph once.
        return {"text": self.generate(text, *(tf.constant(v) for v in (self._max_new_tokens, 0.0, 0, 1.0, 0)))["text"]}

    @tf.function(
        input_signature=[
            _text(),
            _scalar(tf.int32, "max_new_tokens"),
            _scalar(tf.float32, "temperature"),
            _scalar(tf.int32, "top_k"),
            _scalar(tf.float32, "top_p"),
            _scalar(tf.int32, "seed"),
        ]
    )
    def generate(
        self,
        text: tf.Tensor,
        max_new_tokens: tf.Tensor,
        temperature: tf.Tensor,
        top_k: tf.Tensor,
        top_p: tf.Tensor,
        seed: tf.Tensor,
    ) -> dict[str, tf.Tensor]:
        """Sampled continuation: `text` (batch,) to `text` (batch,) and `tokens` (batch, max_new_tokens).

        Temperature 0 is greedy, top_k 0 and top_p 1 keep all. Tokens after an end token are end tokens.
        """
        sampling = Sampling(temperature, top_k, top_p)
        return self._generate(text, max_new_tokens, sampling, seed)

    @tf.function(input_signature=[_text()])
    def tokenize(self, text: tf.Tensor) -> dict[str, tf.Tensor]:
        """`tokens` (batch, longest), filled up with zeros, and `lengths` (batch,)."""
        ids = self._python.tokenizer.tokenize(text)
        return {"tokens": ids.to_tensor(0), "lengths": tf.cast(ids.row_lengths(), tf.int32)}

    @tf.function(input_signature=[_tokens("tokens"), _lengths()])
    def detokenize(self, tokens: tf.Tensor, lengths: tf.Tensor) -> dict[str, tf.Tensor]:
        """`text` (batch,) of `tokens` (batch, longest) and `lengths` (batch,)."""
        return {"text": self._python.tokenizer.detokenize(tf.RaggedTensor.from_tensor(tokens, lengths))}

    def _generate(self, text: tf.Tensor, max_new_tokens: tf.Tensor, sampling: Sampling, seed: tf.Tensor) -> Any:
        model, tokenizer = self._python.model, self._python.tokenizer
        prompts, padding, source = self._read(text)
        longest = tf.shape(prompts)[1] - tf.reduce_min(padding)
        top_p_range = "top_p must be more than 0 and at most 1"
        checks = [
            tf.debugging.assert_positive(max_new_tokens, "max_new_tokens must be at least 1"),
            tf.debugging.assert_non_negative(sampling.temperature, "temperature must be 0 (greedy) or more"),
            tf.debugging.assert_non_negative(sampling.top_k, "top_k must be 0 (all) or more"),
            tf.debugging.assert_positive(sampling.top_p, top_p_range),
            tf.debugging.assert_less_equal(sampling.top_p, 1.0, top_p_range),
        ]
        if model.max_sequence_length is not None:
            checks.append(
                tf.debugging.assert_less_equal(
                    longest + max_new_tokens,
                    model.max_sequence_length,
                    f"prompt and new tokens do not fit the context of {model.max_sequence_length} tokens",
                )
            )
        with tf.control_dependencies([check for check in checks if check is not None]):
            # The model must not run before the checks: a position behind the context would fail with its own message.
            prompts = tf.identity(prompts)
            uniforms = tf.random.stateless_uniform((tf.shape(prompts)[0], max_new_tokens), seed=tf.stack([seed, 0]))
        tracing = Tracing(tokenizer.stop_ids)
        decoding = prefill(model, prompts, padding, max_new_tokens, tracing, source=source)
        decoding = decode(model, decoding, uniforms, 0, max_new_tokens, sampling, tracing)
        # The end token vanishes in detokenizing, and after it there are no others.
        text = tokenizer.detokenize(tf.RaggedTensor.from_tensor(decoding.tokens))
        return {"text": text, "tokens": decoding.tokens}

    def _documents(self, text: tf.Tensor) -> tf.RaggedTensor:
        tokenizer = self._python.tokenizer
        ids = tokenizer.tokenize(text)
        return tf.concat([self._column(ids, tokenizer.bos_id), ids, self._column(ids, tokenizer.eos_id)], axis=1)

    @staticmethod
    def _column(ids: tf.RaggedTensor, token: int) -> tf.RaggedTensor:
        return tf.RaggedTensor.from_tensor(tf.fill((ids.nrows(), 1), tf.constant(token, tf.int32)))


class TextEndpoints(Endpoints):
    """A language model and its tokenizer as functions of strings, for a SavedModel.

    Args:
        model: A built language model.
        tokenizer: Its tokenizer.
        max_new_tokens: Most tokens that `serving_default` adds.
        context: Inputs in a window of `score`.
        stride: Tokens between the starts of two windows of `score`.
    """

    def __init__(
        self, model: LanguageModel, tokenizer: Tokenizer, *, max_new_tokens: int, context: int, stride: int
    ) -> None:
        super().__init__(model, tokenizer, max_new_tokens=max_new_tokens)
        self._context, self._stride = context, stride

    def signatures(self) -> dict[str, Any]:
        """Signature name to function, for `tf.saved_model.save`."""
        return {
            "serving_default": self.continue_text,
            "generate": self.generate,
            "score": self.score,
            "score_tokens": self.score_tokens,
            "logits": self.logits,
            "tokenize": self.tokenize,
            "detokenize": self.detokenize,
        }

    @tf.function(input_signature=[_text()])
    def score(self, text: tf.Tensor) -> dict[str, tf.Tensor]:
        """Total natural log probability (with the end token), token count and byte count of each `text` (batch,)."""
        documents = self._documents(text)
        with tf.device("/CPU:0"):
            byte_count = tf.strings.length(text, unit="BYTE")
        return {
            "log_probability": tf.map_fn(self._score_document, documents, fn_output_signature=tf.float32),
            "token_count": tf.cast(documents.row_lengths(), tf.int32) - 1,
            "byte_count": byte_count,
        }

    @tf.function(input_signature=[_tokens("tokens"), _tokens("targets")])
    def score_tokens(self, tokens: tf.Tensor, targets: tf.Tensor) -> dict[str, tf.Tensor]:
        """`log_probs` of targets and most likely tokens `top_1`, each (batch, length)."""
        return score_outputs(self.logits(tokens)["logits"], targets)

    @tf.function(input_signature=[_tokens("tokens")])
    def logits(self, tokens: tf.Tensor) -> dict[str, tf.Tensor]:
        """float32 `logits` (batch, length, vocabulary_size) of int32 `tokens` (batch, length)."""
        model = self._python.model
        if model.max_sequence_length is not None:
            message = f"the tokens do not fit the context of {model.max_sequence_length} tokens"
            check = tf.debugging.assert_less_equal(tf.shape(tokens)[1], model.max_sequence_length, message)
            with tf.control_dependencies([check] if check is not None else []):
                tokens = tf.identity(tokens)
        return {"logits": model(tokens, training=False)}

    def _read(self, text: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tuple[tf.Tensor, ...]]:
        """The texts are the prompts."""
        return *left_padded(self._python.tokenizer.tokenize_prompts(text)), ()

    def _score_document(self, document: tf.Tensor) -> tf.Tensor:
        """Log probability of all tokens of a document but the first, in the windows of `evaluation.windows`."""
        context, stride = self._context, self._stride
        targets = tf.shape(document)[0] - 1
        count = 1 + (tf.maximum(targets - context, 0) + stride - 1) // stride
        index = tf.range(count)[:, None] * stride + tf.range(context)[None, :]
        # What the window before has counted, and what lies behind the end, does not count.
        counted = tf.where(tf.range(count) > 0, (tf.range(count) - 1) * stride + context, 0)
        counts = tf.logical_and(index >= counted[:, None], index < targets)
        padded = tf.pad(document, [[0, context + stride]])
        total = tf.constant(0.0, tf.float64)
        for start in tf.range(0, count, _SCORED_AT_ONCE):
            rows = slice(start, start + _SCORED_AT_ONCE)
            inputs, wanted = tf.gather(padded, index[rows]), tf.gather(padded, index[rows] + 1)
            scores = score_outputs(self.logits(inputs)["logits"], wanted)["log_probs"]
            total += tf.reduce_sum(tf.cast(tf.where(counts[rows], scores, 0.0), tf.float64))
        return tf.cast(total, tf.float32)


class _Untracked:
    """Holds Python objects that tf.Module must not search for variables."""

    def __init__(self, model: Any, tokenizer: Tokenizer) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.source_tokenizer = tokenizer


def score_outputs(logits: tf.Tensor, targets: tf.Tensor) -> dict[str, tf.Tensor]:
    """Log probabilities of targets and most likely tokens.

    `tf.argmax` rather than `keras.ops.argmax`, which TFLite cannot express.

    Args:
        logits: float32 `(batch, length, vocabulary_size)`.
        targets: int32 `(batch, length)`.

    Returns:
        `log_probs` float32 and `top_1` int32, each `(batch, length)`.
    """
    chosen = tf.gather(logits, targets, batch_dims=2)
    return {
        "log_probs": chosen - tf.reduce_logsumexp(logits, axis=-1),
        "top_1": tf.argmax(logits, axis=-1, output_type=tf.int32),
    }


def left_padded(prompts: tf.RaggedTensor) -> tuple[tf.Tensor, tf.Tensor]:
    """A ragged batch as `(batch, longest)` with the empty slots on the left, and how many each row has.

    Args:
        prompts: int32 `(batch, None)`.
    """
    lengths = tf.cast(prompts.row_lengths(), tf.int32)
    # At least two columns, so that prefill always has something to read.
    width = tf.maximum(tf.reduce_max(lengths), 2)
    padding = width - lengths
    column = tf.maximum(tf.range(width)[None, :] - padding[:, None], 0)
    return tf.gather(prompts.to_tensor(0), column, batch_dims=1), padding


def edge_functions(
    model: LanguageModel, context_length: int, prefill_lengths: tuple[int, ...], score_lengths: tuple[int, ...]
) -> dict[str, Any]:
    """The signatures of a TFLite file, all for a batch of one: `prefill_<n>`, `decode` and `score_<n>`.

    Names, shapes and meaning of a Transformer's inputs and outputs are those that the LiteRT-LM engine looks for:
    `tokens` int32 (1, n), `input_pos` int32 (n,), the caches of `kerasllm.state` in and out, `logits` float32
    (1, 1, vocabulary). An LSTM has no `input_pos`: its state knows no place.

    Args:
        model: A built language model.
        context_length: Slots of the KV caches, in tokens.
        prefill_lengths: Chunk lengths in which a prompt can be read.
        score_lengths: Chunk lengths in which a text can be scored.

    Returns:
        Signature name to concrete function.
    """
    spec = {
        name: tf.TensorSpec(value.shape, tf.float32, name=name)
        for name, value in carried(model.initial_state(1, context_length)).items()
    }
    placed = model.max_sequence_length is not None

    def encode(inputs: dict[str, tf.Tensor]) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        state = {name: tf.cast(inputs[name], model.compute_dtype) for name in spec}
        state[POSITION] = inputs["input_pos"][0] if placed else tf.constant(0)
        hidden, state = model.encode(inputs["tokens"], state=state, training=False)
        # A no-op for finite numbers. Without it the converter multiplies the last norm's scale into the table that
        # projects, and stores the table once more for the lookup of tokens.
        hidden = tf.maximum(hidden, hidden.dtype.min)
        return hidden, {name: tf.cast(value, tf.float32) for name, value in carried(state).items()}

    def prefill_tokens(**inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        return encode(inputs)[1]

    def decode_token(**inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        hidden, state = encode(inputs)
        return {"logits": model.project(hidden), **state}

    def score_chunk(**inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        hidden, state = encode(inputs)
        return {**score_outputs(model.project(hidden), inputs["targets"]), **state}

    def concrete(function: Any, length: int, *more: str) -> Any:
        inputs = {name: tf.TensorSpec((1, length), tf.int32, name=name) for name in ("tokens", *more)}
        if placed:
            inputs["input_pos"] = tf.TensorSpec((length,), tf.int32, name="input_pos")
        return tf.function(function).get_concrete_function(**inputs, **spec)

    functions = {f"prefill_{n}": concrete(prefill_tokens, n) for n in prefill_lengths}
    functions["decode"] = concrete(decode_token, 1)
    functions.update({f"score_{n}": concrete(score_chunk, n, "targets") for n in score_lengths})
    return functions
