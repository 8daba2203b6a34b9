"""Cutting documents into windows to score."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np


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
