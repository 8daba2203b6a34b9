"""SavedModel: strings in, strings out, on a server that needs neither Keras nor kerasllm."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import keras
import tensorflow as tf

from kerasllm.errors import InputError
from kerasllm.export.endpoints import TextEndpoints
from kerasllm.files import atomic_folder, write_json
from kerasllm.folder import SAVED_MODEL_EXTRA, description
from kerasllm.layers import LSTMStack
from kerasllm.models import LanguageModel, merged
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
) -> Path:
    """Write a model and its tokenizer as a SavedModel that runs on CPU and GPU.

    Signatures: `serving_default` (text -> text, greedy), `generate` (text, max_new_tokens, temperature, top_k, top_p,
    seed -> text, tokens), `score` (text -> log_probability, token_count, byte_count), `tokenize`, `detokenize`,
    `logits` and `score_tokens`. A process that loads it must `import tensorflow_text` first where the tokenizer is a
    `SentencePieceTokenizer`. `kerasllm.load(path)` makes the Keras model from it again.

    Args:
        model: A built language model, causal; adapters are merged.
        tokenizer: Its tokenizer.
        path: Folder to write, such as `saved_models/my-model/1` (TensorFlow Serving wants the number).
        max_new_tokens: Most tokens that `serving_default` adds to a prompt.
        context: Inputs in a window of `score`; 256 or the model's own context, whichever is less.
        stride: Tokens between the starts of two windows; half of `context`.
        overwrite: Replace what is there.

    Returns:
        The path.

    Raises:
        InputError: The folder exists, model and tokenizer do not fit, or context and stride do not.
    """
    check_pair(model, tokenizer)
    model = merged(model)
    limit = model.max_sequence_length
    context = min(256, limit or 256) if context is None else context
    stride = max(1, context // 2) if stride is None else stride
    if not 1 <= stride <= context <= (limit or context):
        raise InputError(
            f"context {context} must be at least the stride, {stride}, which must be positive, "
            f"and at most the model's context, {limit or 'which has no limit'}"
        )
    with atomic_folder(path, overwrite=overwrite) as folder, without_cudnn(model):
        endpoints = TextEndpoints(model, tokenizer, max_new_tokens=max_new_tokens, context=context, stride=stride)
        tf.saved_model.save(endpoints, str(folder), signatures=endpoints.signatures())
        extra = folder / SAVED_MODEL_EXTRA
        tokenizer.save(extra)
        write_json(extra / "config.json", description(model))
    return Path(path)


def check_pair(model: LanguageModel, tokenizer: Tokenizer | None) -> None:
    """Refuse a tokenizer that does not belong to the model, and a model that cannot continue text.

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
