"""SavedModel: strings in, strings out, on a server that needs neither Keras nor kerasllm."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from kerasllm.errors import InputError
from kerasllm.export.endpoints import TextEndpoints
from kerasllm.export.seq2seq import TranslationEndpoints
from kerasllm.files import atomic_folder, write_json
from kerasllm.folder import SAVED_MODEL_EXTRA, description
from kerasllm.layers import LSTMStack
from kerasllm.models import EncoderDecoder, LanguageModel, merged
from kerasllm.text import Tokenizer


def export_saved_model(
    model: LanguageModel,
    tokenizer: Tokenizer,
    path: str | os.PathLike[str],
    *,
    max_new_tokens: int = 64,
    context: int | None = None,
    stride: int | None = None,
    overwrite: bool = False,
    source_tokenizer: Tokenizer | None = None,
    num_beams: int = 4,
) -> Path:
    """Write a model and its tokenizer as a SavedModel that runs on CPU and GPU.

    Signatures: `serving_default` (text -> text, greedy), `generate` (text, max_new_tokens, temperature, top_k, top_p,
    seed -> text, tokens), `score` (text -> log_probability, token_count, byte_count), `tokenize`, `detokenize`,
    `logits` and `score_tokens`. Of an encoder-decoder, `serving_default` and `generate` write the target of a source,
    as does `search` by beams (text, max_new_tokens, length_penalty -> text, score); `score` (source, target ->
    log_probability, token_count) and `logits` (source, target) take pairs; `tokenize` and `detokenize` are of targets.

    A process that loads it must `import tensorflow_text` first where a tokenizer is a `SentencePieceTokenizer`.
    `kerasllm.load(path)` makes the Keras model from it again.

    Args:
        model: A built language model, causal; adapters are merged.
        tokenizer: Its tokenizer.
        path: Folder to write, such as `saved_models/my-model/1` (TensorFlow Serving wants the number).
        max_new_tokens: Most tokens that `serving_default` adds to a prompt.
        context: Inputs in a window of `score`; 256 or the model's own context, whichever is less.
        stride: Tokens between the starts of two windows; half of `context`.
        overwrite: Replace what is there.
        source_tokenizer: Of an encoder-decoder's sources, `tokenizer` by default; a copy lies in
            `assets.extra/source_tokenizer`.
        num_beams: Hypotheses that an encoder-decoder's `search` keeps.

    Returns:
        The path.

    Raises:
        InputError: The folder exists, model and tokenizer do not fit, or context and stride do not.
    """
    check_pair(model, tokenizer, source_tokenizer)
    model = merged(model)
    make: Any = _translation if isinstance(model, EncoderDecoder) else _continuation
    endpoints = make(model, tokenizer, source_tokenizer or tokenizer, max_new_tokens, context, stride, num_beams)
    with atomic_folder(path, overwrite=overwrite) as folder, without_cudnn(model):
        tf.saved_model.save(endpoints, str(folder), signatures=endpoints.signatures())
        extra = folder / SAVED_MODEL_EXTRA
        tokenizer.save(extra)
        if source_tokenizer is not None:
            source_tokenizer.save(extra / "source_tokenizer")
        write_json(extra / "config.json", description(model))
    return Path(path)


def _continuation(
    model: LanguageModel,
    tokenizer: Tokenizer,
    _: Tokenizer,
    max_new_tokens: int,
    context: int | None,
    stride: int | None,
    *__: int,
) -> TextEndpoints:
    limit = model.max_sequence_length
    context = min(256, limit or 256) if context is None else context
    stride = max(1, context // 2) if stride is None else stride
    if not 1 <= stride <= context <= (limit or context):
        raise InputError(
            f"context {context} must be at least the stride, {stride}, which must be positive, "
            f"and at most the model's context, {limit or 'which has no limit'}"
        )
    return TextEndpoints(model, tokenizer, max_new_tokens=max_new_tokens, context=context, stride=stride)


def _translation(
    model: EncoderDecoder,
    tokenizer: Tokenizer,
    source_tokenizer: Tokenizer,
    max_new_tokens: int,
    context: int | None,
    stride: int | None,
    num_beams: int,
) -> TranslationEndpoints:
    if context is not None or stride is not None:
        raise InputError("an encoder-decoder scores whole targets; leave context and stride out")
    if num_beams < 1:
        raise InputError(f"num_beams must be at least 1, received {num_beams}")
    return TranslationEndpoints(model, tokenizer, source_tokenizer, max_new_tokens=max_new_tokens, num_beams=num_beams)


def check_pair(model: LanguageModel, tokenizer: Tokenizer | None, source_tokenizer: Tokenizer | None = None) -> None:
    """Refuse tokenizers that do not belong to the model, and a model that cannot continue text.

    Raises:
        InputError: Their vocabulary sizes differ, the model is bidirectional, or Keras does not run on TensorFlow.
    """
    if keras.backend.backend() != "tensorflow":
        raise InputError(
            f"Keras runs on {keras.backend.backend()}, and only TensorFlow can write this file; save the model, then "
            "export it with KERAS_BACKEND=tensorflow"
        )
    if not getattr(model.config, "causal", True):
        raise InputError("a bidirectional model cannot continue text; export a causal one")
    if not model.built:
        model.build()
    if tokenizer is not None and tokenizer.vocabulary_size != model.config.vocabulary_size:
        raise InputError(
            f"the tokenizer has {tokenizer.vocabulary_size} tokens but the model {model.config.vocabulary_size}; "
            "export with the tokenizer the model was trained with"
        )
    if not isinstance(model, EncoderDecoder):
        if source_tokenizer is not None:
            raise InputError("the model reads no sources; leave source_tokenizer out")
        return
    other = source_tokenizer or tokenizer
    if other is not None and other.vocabulary_size != model.source_vocabulary_size:
        raise InputError(
            f"the tokenizer of sources has {other.vocabulary_size} tokens but the model "
            f"{model.source_vocabulary_size}; give the source_tokenizer the model was trained with"
        )


@contextlib.contextmanager
def without_cudnn(model: LanguageModel) -> Iterator[None]:
    """Trace LSTMs without cuDNN: with a GPU its operation would go into the graph, and no CPU could load it."""
    stacks = [layer for layer in model.layers if isinstance(layer, LSTMStack)]
    before = [stack.use_cudnn for stack in stacks]
    for stack in stacks:
        stack.use_cudnn = False
    try:
        yield
    finally:
        for stack, value in zip(stacks, before, strict=True):
            stack.use_cudnn = value
