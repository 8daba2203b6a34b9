"""Choosing the next token: pure functions of logits and of uniforms drawn outside."""

from typing import Any

from keras import ops


def sample(logits: Any, uniforms: Any, temperature: Any, top_k: Any, top_p: Any, min_p: Any = 0.0) -> Any:
    """Draw one token per row by inverting the cumulative distribution at a given uniform number.

    Tokens are ordered by falling probability; `top_k` keeps the first k (Fan et al. 2018, arXiv:1805.04833), then
    `top_p` the shortest head of what is left whose share is at least p (Holtzman et al. 2020, arXiv:1904.09751), then
    `min_p` what is at least p times as likely as the first (Nguyen et al. 2024, arXiv:2407.01082).

    Args:
        logits: float32 `(batch, vocabulary_size)`.
        uniforms: float32 `(batch,)` in [0, 1).
        temperature: float32 `()`; the logits are divided by it. 0 is greedy: the first of the largest logits.
        top_k: int32 `()`; 0 keeps all.
        top_p: float32 `()`; 1 keeps all.
        min_p: float32 `()`; 0 keeps all.

    Returns:
        int32 `(batch,)`.
    """
    return ops.cond(
        ops.convert_to_tensor(temperature) > 0,
        lambda: _invert(logits, uniforms, temperature, top_k, top_p, min_p),
        lambda: greedy(logits),
    )


def greedy(logits: Any) -> Any:
    """The first of the largest logits of each row, int32 `(batch,)`."""
    return ops.cast(ops.argmax(logits, axis=-1), "int32")


def _invert(logits: Any, uniforms: Any, temperature: Any, top_k: Any, top_p: Any, min_p: Any) -> Any:
    size = logits.shape[-1]
    ordered, tokens = ops.top_k(logits, size)
    probabilities = ops.softmax(ordered / temperature)
    ranks = ops.arange(size, dtype="int32")
    in_top_k = ops.logical_or(ops.equal(top_k, 0), ranks < top_k)
    probabilities = probabilities * ops.cast(in_top_k, "float32")
    before = ops.cumsum(probabilities, axis=-1) - probabilities
    total = ops.sum(probabilities, axis=-1, keepdims=True)
    # The most likely token always stays, whatever top_p.
    in_top_p = ops.logical_or(before < top_p * total, ranks[None, :] == 0)
    in_min_p = probabilities >= min_p * probabilities[:, :1]
    probabilities = probabilities * ops.cast(ops.logical_and(in_top_p, in_min_p), "float32")
    cumulative = ops.cumsum(probabilities, axis=-1)
    threshold = uniforms[:, None] * cumulative[:, -1:]
    choice = ops.sum(ops.cast(cumulative <= threshold, "int32"), axis=-1, keepdims=True)
    # Rounding may carry the threshold past the last token that has a share.
    last = ops.sum(ops.cast(probabilities > 0, "int32"), axis=-1, keepdims=True) - 1
    return ops.cast(ops.take_along_axis(tokens, ops.minimum(choice, last), axis=-1)[:, 0], "int32")


def penalize_repetition(logits: Any, seen: Any, penalty: Any) -> Any:
    """Make tokens that were seen less likely (Keskar et al. 2019, arXiv:1909.05858, section 4.1).

    Args:
        logits: float32 `(batch, vocabulary_size)`.
        seen: boolean `(batch, vocabulary_size)`, true for tokens of the prompt and the continuation.
        penalty: float32 `()`; 1 changes nothing. Positive logits are divided by it, negative ones multiplied.

    Returns:
        float32 `(batch, vocabulary_size)`.
    """
    return ops.where(seen, ops.where(logits > 0, logits / penalty, logits * penalty), logits)
