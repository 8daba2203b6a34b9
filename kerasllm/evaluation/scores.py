"""Perplexity and bits per byte of a model, or of an exported artefact, on held-out documents."""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np

from kerasllm.errors import InputError
from kerasllm.evaluation.windows import Window, windows
from kerasllm.text.tokenizer import valid_unicode
from kerasllm.text.words import count_words

CONTEXT = 256
STRIDE = 128
_BATCH = 16


class Scorer(Protocol):
    """What can be evaluated: `KerasModel` of this room, `kerasllm.serving.ServedModel`, `kerasllm.edge.EdgeModel`.

    Two attributes are read where there are any: `context_length`, the most tokens it can see, or None; and
    `score_lengths`, where it scores only windows whose length is a multiple of one of these.
    """

    def score_tokens(self, tokens: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Log probabilities float32 and most likely tokens int32, each `(batch, length)` as the arguments."""


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """How well a model predicts held-out documents.

    Attributes:
        nll: Total negative log-likelihood in nats, end tokens included.
        tokens: Number of predicted tokens: every token of every document, and its end token.
        words: Number of words in the texts; a CJK character is one.
        bytes: Number of UTF-8 bytes of the texts.
        documents: Number of documents.
        context: Most tokens a prediction could see.
        stride: Tokens between the starts of two windows: all but the first predictions of a document see at least
            `context - stride` tokens.
        lossless: Whether the tokenizer loses nothing; where it does, there are no bits per byte.
    """

    nll: float
    tokens: int
    words: int
    bytes: int
    documents: int
    context: int
    stride: int
    lossless: bool = True

    @property
    def token_perplexity(self) -> float:
        """exp(total NLL / tokens)."""
        return _exp(self.nll / self.tokens)

    @property
    def word_perplexity(self) -> float:
        """exp(total NLL / words): comparable between tokenizers."""
        return _exp(self.nll / max(1, self.words))

    @property
    def bits_per_byte(self) -> float | None:
        """Total NLL in bits over UTF-8 bytes: comparable between tokenizers and with compressors."""
        return self.nll / math.log(2) / max(1, self.bytes) if self.lossless else None

    def summary(self) -> str:
        """The figures as text for people."""
        bits = "none (the tokenizer loses text)" if self.bits_per_byte is None else f"{self.bits_per_byte:.4f}"
        return (
            f"bits per byte     {bits}\n"
            f"token perplexity  {self.token_perplexity:,.2f}\n"
            f"word perplexity   {self.word_perplexity:,.2f}\n"
            f"on {self.documents:,} documents, {self.tokens:,} tokens, {self.words:,} words, {self.bytes:,} bytes; "
            f"context {self.context}, stride {self.stride}"
        )

    def to_dict(self) -> dict[str, Any]:
        """All figures, as JSON values."""
        return {
            **dataclasses.asdict(self),
            "token_perplexity": self.token_perplexity,
            "word_perplexity": self.word_perplexity,
            "bits_per_byte": self.bits_per_byte,
        }


def evaluate(
    scorer: Scorer,
    documents: Iterable[np.ndarray],
    texts: Iterable[str],
    *,
    context: int | None = None,
    stride: int | None = None,
    lossless: bool = True,
) -> tuple[Evaluation, np.ndarray]:
    """Score documents window by window, every token exactly once.

    Args:
        scorer: A model or an artefact.
        documents: Token ids of each text, `bos tokens eos`.
        texts: The texts, for counting words and bytes.
        context: Inputs in a window; 256, or as many as the scorer can see if that is less, by default.
        stride: Tokens between the starts of two windows, at most `context`; half of it by default.
        lossless: Whether the tokenizer loses nothing.

    Returns:
        The figures, and the most likely token at every predicted place: int32 `(tokens,)`, to compare two scorers.

    Raises:
        InputError: There is nothing to score, a score is not a number, context or stride do not fit, or the texts are
            not as many as the documents.
    """
    context, stride = _window(scorer, context, stride)
    count = 0

    def counted() -> Iterable[np.ndarray]:
        nonlocal count
        for document in documents:
            count += 1
            yield document

    nll, top_1 = 0.0, [np.zeros(0, "int32")]
    pieces = (window for document in counted() for window in windows(document, context, stride))
    for batch in _batches(pieces):
        log_probs, best = _score(scorer, batch)
        for row, window in enumerate(batch):
            part = slice(window.first, window.last)
            nll -= float(log_probs[row, part].sum(dtype="float64"))
            top_1.append(best[row, part])
    predicted = np.concatenate(top_1)
    if not len(predicted):
        raise InputError("there is no document with a token to evaluate; choose another split or corpus")
    if not math.isfinite(nll):
        raise InputError("the model's scores are not numbers; its weights are damaged or its training diverged")
    words = size = texts_read = 0
    for text in texts:
        words += count_words(text)
        size += len(valid_unicode(text).encode())
        texts_read += 1
    if texts_read != count:
        raise InputError(f"{count} documents but {texts_read} texts; give the text of each document")
    return Evaluation(nll, len(predicted), words, size, count, context, stride, lossless), predicted


def _window(scorer: Scorer, context: int | None, stride: int | None) -> tuple[int, int]:
    """Context and stride, by default or as asked for."""
    limit = getattr(scorer, "context_length", None)
    context = default_context(scorer) if context is None else context
    stride = max(1, context // 2) if stride is None else stride
    if context > (limit or context):
        raise InputError(f"context {context} is more than the model's context of {limit}; lower it")
    if not 1 <= stride <= context:
        raise InputError(f"stride {stride} must be at least 1 and at most the context, {context}")
    return context, stride


def default_context(scorer: Scorer) -> int:
    """Inputs in a window where nobody asks for a number: 256, or the most that the scorer can score at once.

    Args:
        scorer: A model or an artefact.
    """
    longest = min(CONTEXT, getattr(scorer, "context_length", None) or CONTEXT)
    lengths = getattr(scorer, "score_lengths", None) or (1,)
    return max(longest // length * length for length in lengths) or min(lengths)


def _score(scorer: Scorer, batch: Sequence[Window]) -> tuple[np.ndarray, np.ndarray]:
    """Scores of a batch, always of the same shape so that one compiled function serves all."""
    tokens, targets = (np.zeros((_BATCH, len(batch[0].tokens)), "int32") for _ in range(2))
    for row, window in enumerate(batch):
        tokens[row], targets[row] = window.tokens, window.targets
    return scorer.score_tokens(tokens, targets)


def _batches(pieces: Iterable[Window]) -> Iterable[list[Window]]:
    iterator = iter(pieces)
    while batch := list(itertools.islice(iterator, _BATCH)):
        yield batch


def _exp(value: float) -> float:
    return math.exp(min(value, 700.0))
