"""What the logits of task heads say: spans and labels."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from keras import ops

from kerasllm.errors import InputError
from kerasllm.models.heads import Head


def best_spans(logits: Any, allowed: Any = None, *, max_length: int = 30) -> list[tuple[int, int, float]]:
    """The most likely span of each row, as SQuAD's reference code of BERT chooses it: start + end is greatest.

    Args:
        logits: `(batch, 2, length)`, of a `SpanExtractor`.
        allowed: Optional boolean `(batch, length)`, true at tokens that may be in an answer (those of the text, not of
            the question).
        max_length: Most tokens in a span.

    Returns:
        First token, last token and score of each row; `(0, 0, ...)`, the `[CLS]` token, where nothing is allowed.

    Raises:
        InputError: `max_length` is not positive.
    """
    if max_length < 1:
        raise InputError(f"max_length must be positive, received {max_length}")
    values = np.asarray(ops.convert_to_numpy(logits), "float64")
    length = values.shape[-1]
    slots = np.arange(length)
    distance = slots[None, :] - slots[:, None]
    spans = []
    for row in range(len(values)):
        may = np.ones(length, bool) if allowed is None else np.asarray(allowed)[row].astype(bool)
        possible = (distance >= 0) & (distance < max_length) & may[:, None] & may[None, :]
        scores = values[row, 0][:, None] + values[row, 1][None, :]
        if not possible.any():
            spans.append((0, 0, float(scores[0, 0])))
            continue
        start, end = np.unravel_index(np.where(possible, scores, -np.inf).argmax(), scores.shape)
        spans.append((int(start), int(end), float(scores[start, end])))
    return spans


def predicted_labels(model: Head, logits: Any) -> Sequence[Any]:
    """The likeliest class of each text or token.

    Args:
        model: A classifier.
        logits: `(batch, num_classes)` or `(batch, length, num_classes)`.

    Returns:
        Nested lists of labels, or of numbers where the model has no labels.
    """
    classes = ops.convert_to_numpy(ops.argmax(logits, axis=-1))
    labels = model.config.labels
    return classes.tolist() if labels is None else np.array(labels, object)[classes].tolist()
