"""The decoding loop as pure functions of tensors: compiled for `generate`, traced into a SavedModel."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from keras import ops

from kerasllm.generation.sampling import greedy, penalize_repetition, sample
from kerasllm.models import LanguageModel
from kerasllm.state import POSITION, DecodeState


class Sampling(NamedTuple):
    """How the next token is drawn, see `sampling`: Python numbers or scalar tensors."""

    temperature: Any = 0.0
    top_k: Any = 0
    top_p: Any = 1.0
    repetition_penalty: Any = 1.0
    min_p: Any = 0.0


class Tracing(NamedTuple):
    """What is decided before a loop is traced, so that its graph holds nothing that is not needed.

    Attributes:
        stop_ids: Tokens that end a continuation; the first fills the columns after the end.
        greedy: The most likely token is taken, without looking at `Sampling`.
        penalize: `Sampling.repetition_penalty` counts.
        log_probs: The log probability of every token is noted.
    """

    stop_ids: tuple[int, ...]
    greedy: bool = False
    penalize: bool = False
    log_probs: bool = False


class Decoding(NamedTuple):
    """Where a continuation stands.

    Attributes:
        state: The model's decode state; it has read all tokens but `token`.
        token: int32 `(batch,)`, the newest token.
        done: boolean `(batch,)`, true where a stop token was drawn.
        seen: boolean `(batch, vocabulary_size)`, tokens so far, for the repetition penalty; `(batch, 0)` without one.
        tokens: int32 `(batch, capacity)`, the continuation; columns not yet drawn hold the first stop token.
        log_probs: float32 `(batch, capacity)`, natural logarithm of each token's probability in the model's own
            distribution, before temperature, filters and penalty; `(batch, 0)` where it is not noted.
    """

    state: DecodeState
    token: Any
    done: Any
    seen: Any
    tokens: Any
    log_probs: Any


def prefill(
    model: LanguageModel,
    prompts: Any,
    padding: Any,
    capacity: int,
    tracing: Tracing,
    copies: int = 1,
    source: Sequence[Any] = (),
) -> Decoding:
    """Read prompts.

    Args:
        model: A language model, or an encoder-decoder, whose prompts are the beginnings of targets.
        prompts: int32 `(batch, length)`, padded on the left.
        padding: int32 `(batch,)`, by how much.
        capacity: Most tokens that the continuation may have.
        tracing: What the loop will do.
        copies: Continuations of each prompt, which is read once; their rows follow each other.
        source: Of an encoder-decoder, int32 `(batch, source_length)` and where it is real, boolean of the same shape.

    Returns:
        The start of `batch * copies` continuations.
    """
    batch, length = ops.shape(prompts)[0], ops.shape(prompts)[1]
    state = _begin(model, batch, length + capacity, padding, source)
    if prompts.shape[1] != 1:
        # The last prompt token is read by the first step, which needs its logits.
        _, state = model.encode(prompts[:, :-1], state=state, training=False)
    seen = _seen(prompts, padding, model.config.vocabulary_size) if tracing.penalize else ops.zeros((batch, 0), "bool")
    token = prompts[:, -1]
    if copies > 1:
        state = rows_of(state, lambda value: ops.repeat(value, copies, axis=0))
        token, seen, batch = ops.repeat(token, copies, axis=0), ops.repeat(seen, copies, axis=0), batch * copies
    return Decoding(
        state=state,
        token=token,
        done=ops.zeros((batch,), "bool"),
        seen=seen,
        tokens=ops.full((batch, capacity), tracing.stop_ids[0], "int32"),
        log_probs=ops.zeros((batch, capacity if tracing.log_probs else 0), "float32"),
    )


def _begin(model: Any, batch: Any, length: Any, padding: Any, source: Sequence[Any]) -> DecodeState:
    if source:
        return model.encode_source(*source, length=length, padding=padding, training=False)
    return model.initial_state(batch, length, padding)


def rows_of(state: DecodeState, change: Any) -> DecodeState:
    """A state whose rows are repeated, reordered or picked.

    Args:
        state: A decode state.
        change: Applied to every tensor that has rows: `(batch, ...)` to `(new_batch, ...)`.
    """
    return {name: value if name == POSITION else change(value) for name, value in state.items()}


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


def next_logits(model: LanguageModel, token: Any, state: DecodeState) -> tuple[Any, DecodeState]:
    """One step of a model: float32 `(batch, vocabulary_size)` after `token` `(batch,)`, and the next state."""
    hidden, state = model.encode(token[:, None], state=state, training=False)
    return model.project(hidden)[:, 0], state


def is_stop(token: Any, stop_ids: tuple[int, ...]) -> Any:
    """Where a token is one of `stop_ids`, boolean of the token's shape."""
    found = ops.equal(token, stop_ids[0])
    for stop_id in stop_ids[1:]:
        found = ops.logical_or(found, ops.equal(token, stop_id))
    return found


def decode(
    model: LanguageModel, decoding: Decoding, uniforms: Any, start: Any, stop: Any, sampling: Sampling, tracing: Tracing
) -> Decoding:
    """Draw tokens `start` to `stop - 1` of a continuation, or fewer where every row has ended.

    Args:
        model: A language model.
        decoding: Where the continuation stands; it has `start` tokens.
        uniforms: float32 `(batch, capacity)` in [0, 1): column i draws token i.
        start: int32 `()`.
        stop: int32 `()`, at most `capacity`.
        sampling: How to draw.
        tracing: As given to `prefill`.

    Returns:
        Where the continuation stands then.
    """
    columns = ops.arange(ops.shape(decoding.tokens)[1], dtype="int32")[None, :]

    def unfinished(step: Any, decoding: Decoding) -> Any:
        return ops.logical_and(step < stop, ops.logical_not(ops.all(decoding.done)))

    def draw(step: Any, decoding: Decoding) -> tuple[Any, Decoding]:
        plain, state = next_logits(model, decoding.token, decoding.state)
        logits, seen, log_probs = plain, decoding.seen, decoding.log_probs
        if tracing.penalize:
            logits = penalize_repetition(logits, seen, sampling.repetition_penalty)
        if tracing.greedy:
            token = greedy(logits)
        else:
            column = ops.take(uniforms, step, axis=1)
            filters = (sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p)
            token = sample(logits, column, *filters)
        token = ops.where(decoding.done, tracing.stop_ids[0], token)
        if tracing.penalize:
            seen = ops.logical_or(seen, ops.one_hot(token, model.config.vocabulary_size, dtype="bool"))
        if tracing.log_probs:
            chosen = ops.take_along_axis(plain, token[:, None], axis=-1) - ops.logsumexp(plain, axis=-1, keepdims=True)
            noted = ops.logical_and(columns == step, ops.logical_not(decoding.done)[:, None])
            log_probs = ops.where(noted, chosen, log_probs)
        decoding = Decoding(
            state=state,
            token=token,
            done=ops.logical_or(decoding.done, is_stop(token, tracing.stop_ids)),
            seen=seen,
            tokens=ops.where(columns == step, token[:, None], decoding.tokens),
            log_probs=log_probs,
        )
        return step + 1, decoding

    return ops.while_loop(unfinished, draw, (ops.cast(start, "int32"), decoding))[1]
