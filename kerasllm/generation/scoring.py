"""Log probabilities of given text, window by window."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from keras import ops

from kerasllm import backend
from kerasllm.models import LanguageModel


class Window(NamedTuple):
    """A stretch of a document to score.

    Attributes:
        tokens: int32 `(context,)` inputs, filled up on the right with zeros.
        targets: int32 `(context,)`, the token after each input.
        first: Index of the first target that counts: the ones before were scored by the window before.
        last: Index after the last target that counts.
    """

    tokens: np.ndarray
    targets: np.ndarray
    first: int
    last: int


def windows(document: np.ndarray, context: int, stride: int) -> Iterator[Window]:
    """Cut a document so that every token but the first is a target that counts exactly once.

    Each window sees `context` inputs; the next begins `stride` further on and counts only targets not yet counted, so
    that each but the first ones has at least `context - stride` tokens before it.

    Args:
        document: Token ids `(length,)`, beginning with the start token.
        context: Inputs in a window.
        stride: Tokens between the starts of two windows; at most `context`.

    Yields:
        Windows in order.
    """
    counted = 0
    for start in range(0, max(len(document) - 1, 1), stride):
        piece = document[start : start + context + 1]
        size = len(piece) - 1
        if start + size <= counted:
            return
        tokens, targets = np.zeros((2, context), "int32")
        tokens[:size], targets[:size] = piece[:-1], piece[1:]
        yield Window(tokens, targets, counted - start, size)
        counted = start + size


def score_tokens(model: LanguageModel, tokens: Any, targets: Any) -> tuple[Any, Any]:
    """Log probability of each target after its inputs; a pure function of tensors.

    Args:
        model: A language model.
        tokens: int32 `(batch, length)`.
        targets: int32 `(batch, length)`.

    Returns:
        float32 `(batch, length)` natural log probabilities, and int32 `(batch, length)` most likely tokens.
    """
    logits = model(tokens, training=False)
    log_probs = ops.take_along_axis(logits, targets[..., None], axis=-1)[..., 0] - ops.logsumexp(logits, axis=-1)
    return log_probs, ops.cast(ops.argmax(logits, axis=-1), "int32")


def score_windows(model: LanguageModel, tokens: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`score_tokens`, compiled, numpy in and out."""
    function = backend.compiled(model, score_tokens, "score_tokens")
    log_probs, top_1 = function(tokens, targets)
    return np.array(log_probs), np.array(top_1)
