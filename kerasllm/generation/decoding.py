"""The decoding loop as pure functions of tensors: compiled for `generate`, traced into a SavedModel."""

from typing import Any, NamedTuple

from keras import ops

from kerasllm.generation.sampling import penalize_repetition, sample
from kerasllm.models import LanguageModel
from kerasllm.state import DecodeState


class Sampling(NamedTuple):
    """How the next token is drawn, see `sampling`: Python numbers or scalar tensors."""

    temperature: Any = 0.0
    top_k: Any = 0
    top_p: Any = 1.0
    repetition_penalty: Any = 1.0


class Decoding(NamedTuple):
    """Where a continuation stands.

    Attributes:
        state: The model's decode state; it has read all tokens but `token`.
        token: int32 `(batch,)`, the newest token.
        done: boolean `(batch,)`, true where the end token was drawn.
        seen: boolean `(batch, vocabulary_size)`, tokens so far, for the repetition penalty.
        tokens: int32 `(batch, capacity)`, the continuation; columns not yet drawn hold the end token.
    """

    state: DecodeState
    token: Any
    done: Any
    seen: Any
    tokens: Any


def prefill(model: LanguageModel, prompts: Any, padding: Any, capacity: int, eos_id: int) -> Decoding:
    """Read prompts.

    Args:
        model: A language model.
        prompts: int32 `(batch, length)`, padded on the left.
        padding: int32 `(batch,)`, by how much.
        capacity: Most tokens that the continuation may have.
        eos_id: The token that ends a continuation.

    Returns:
        The start of a continuation.
    """
    batch, length = ops.shape(prompts)[0], ops.shape(prompts)[1]
    state = model.initial_state(batch, length + capacity, padding)
    if prompts.shape[1] != 1:
        # The last prompt token is read by the first step, which needs its logits.
        _, state = model.encode(prompts[:, :-1], state=state, training=False)
    return Decoding(
        state=state,
        token=prompts[:, -1],
        done=ops.zeros((batch,), "bool"),
        seen=_seen(prompts, padding, model.config.vocabulary_size),
        tokens=ops.full((batch, capacity), eos_id, "int32"),
    )


def _seen(prompts: Any, padding: Any, vocabulary_size: int) -> Any:
    """Which tokens stand in each row, without a one-hot vector for each of them; boolean `(batch, vocabulary_size)`."""
    batch, length = ops.shape(prompts)[0], ops.shape(prompts)[1]
    slots = ops.arange(length, dtype="int32")[None, :]
    # Empty slots write to a column of their own, which is cut off.
    columns = ops.where(slots >= padding[:, None], prompts, vocabulary_size)
    rows = ops.arange(batch, dtype="int32")[:, None] + ops.zeros_like(slots)
    places = ops.reshape(ops.stack([rows, columns], axis=-1), (-1, 2))
    counts = ops.zeros((batch, vocabulary_size + 1), "float32")
    return ops.scatter_update(counts, places, ops.ones((batch * length,), "float32"))[:, :-1] > 0


def decode(
    model: LanguageModel, decoding: Decoding, uniforms: Any, start: Any, stop: Any, sampling: Sampling, eos_id: int
) -> Decoding:
    """Draw tokens `start` to `stop - 1` of a continuation, or fewer where every row has ended.

    Args:
        model: A language model.
        decoding: Where the continuation stands; it has `start` tokens.
        uniforms: float32 `(batch, capacity)` in [0, 1): column i draws token i.
        start: int32 `()`.
        stop: int32 `()`, at most `capacity`.
        sampling: How to draw.
        eos_id: The token that ends a continuation.

    Returns:
        Where the continuation stands then.
    """

    def unfinished(step: Any, decoding: Decoding) -> Any:
        return ops.logical_and(step < stop, ops.logical_not(ops.all(decoding.done)))

    def draw(step: Any, decoding: Decoding) -> tuple[Any, Decoding]:
        hidden, state = model.encode(decoding.token[:, None], state=decoding.state, training=False)
        logits = model.project(hidden)[:, 0]
        logits = penalize_repetition(logits, decoding.seen, sampling.repetition_penalty)
        column = ops.take(uniforms, step, axis=1)
        token = sample(logits, column, sampling.temperature, sampling.top_k, sampling.top_p)
        token = ops.where(decoding.done, eos_id, token)
        drawn = ops.one_hot(token, model.config.vocabulary_size, dtype="bool")
        at_step = ops.arange(ops.shape(decoding.tokens)[1], dtype="int32")[None, :] == step
        decoding = Decoding(
            state=state,
            token=token,
            done=ops.logical_or(decoding.done, token == eos_id),
            seen=ops.logical_or(decoding.seen, drawn),
            tokens=ops.where(at_step, token[:, None], decoding.tokens),
        )
        return step + 1, decoding

    return ops.while_loop(unfinished, draw, (ops.cast(start, "int32"), decoding))[1]
