"""Beam search as a pure function of tensors, for any model with a decode state."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from keras import ops

from kerasllm.generation.decoding import Decoding, Tracing, is_stop, next_logits, prefill
from kerasllm.models import LanguageModel
from kerasllm.state import POSITION, DecodeState, constant

_NEVER = -1e30
"""Below every score, yet finite: of hypotheses that are none."""


class Hypotheses(NamedTuple):
    """Continuations of each prompt, best first.

    Attributes:
        tokens: int32 `(batch, beams, capacity)`; after the end there are only first stop tokens.
        log_probs: float32 `(batch, beams, capacity)`, of each token; 0 after the end.
        scores: float32 `(batch, beams)`; `exist` tells which of them count.
    """

    tokens: Any
    log_probs: Any
    scores: Any

    @property
    def exist(self) -> Any:
        """Where there is a hypothesis, boolean `(batch, beams)`: there may be fewer than beams."""
        return self.scores > _NEVER / 1e6

    def pick(self, index: Any) -> "Hypotheses":
        """The hypotheses of int32 `index` `(batch, n)`, in its order."""
        wide = index[..., None]
        return Hypotheses(
            ops.take_along_axis(self.tokens, wide, axis=1),
            ops.take_along_axis(self.log_probs, wide, axis=1),
            ops.take_along_axis(self.scores, index, axis=1),
        )

    def extend(self, token: Any, log_prob: Any, step: Any) -> "Hypotheses":
        """Write token and log probability, `(batch, n)` each, into column `step`; the score becomes their sum."""
        here = ops.arange(ops.shape(self.tokens)[2], dtype="int32") == step
        tokens = ops.where(here, token[..., None], self.tokens)
        return Hypotheses(tokens, ops.where(here, log_prob[..., None], self.log_probs), self.scores + log_prob)


class _Search(NamedTuple):
    """`running` are scored by their sum, `finished` by sum / length ** length_penalty."""

    state: DecodeState
    token: Any
    running: Hypotheses
    finished: Hypotheses
    done: Any


def beam_search(
    model: LanguageModel,
    prompts: Any,
    padding: Any,
    stop: Any,
    length_penalty: Any,
    *,
    beams: int,
    capacity: int,
    stop_ids: tuple[int, ...],
    source: Sequence[Any] = (),
) -> Hypotheses:
    """Search the continuations with the highest `sum of log probabilities / length ** length_penalty`.

    The length counts the stop token. A prompt is done when it has `beams` finished hypotheses and the best running one
    would not be better if it ended now: the rule of `transformers` with `early_stopping=False`, to which this is
    equal. (Wu et al. 2016, arXiv:1609.08144, section 7, divide by `((5 + length) / 6) ** alpha` instead.)

    Args:
        model: A language model or an encoder-decoder.
        prompts: int32 `(batch, length)`, padded on the left.
        padding: int32 `(batch,)`, by how much.
        stop: int32 `()`, most tokens of a continuation, at most `capacity`.
        length_penalty: float32 `()`; 0 prefers short continuations, 1 compares means.
        beams: Hypotheses that are kept for each prompt.
        capacity: Columns of the result.
        stop_ids: Tokens that end a continuation.
        source: As of `prefill`.

    Returns:
        The finished hypotheses, best first, and behind them what does not `exist`.
    """
    start = prefill(model, prompts, padding, capacity, Tracing(stop_ids, greedy=True), beams, source)
    search = _start(start, beams)

    def unfinished(step: Any, search: _Search) -> Any:
        return ops.logical_and(step < stop, ops.logical_not(ops.all(search.done)))

    def step_on(step: Any, search: _Search) -> tuple[Any, _Search]:
        return step + 1, _step(model, search, step, step + 1 >= stop, length_penalty, stop_ids)

    return ops.while_loop(unfinished, step_on, (ops.zeros((), "int32"), search))[1].finished


def _start(start: Decoding, beams: int) -> _Search:
    rows, capacity = ops.shape(start.tokens)
    batch = rows // beams
    running = Hypotheses(
        ops.reshape(start.tokens, (batch, beams, capacity)),
        ops.zeros((batch, beams, capacity), "float32"),
        # All beams of a prompt are alike at first: only one may be continued.
        ops.tile(ops.where(ops.arange(beams) == 0, 0.0, _NEVER)[None, :], (batch, 1)),
    )
    finished = running._replace(scores=ops.full((batch, beams), _NEVER, "float32"))
    return _Search(start.state, start.token, running, finished, ops.zeros((batch,), "bool"))


def _step(
    model: LanguageModel, search: _Search, step: Any, last: Any, length_penalty: Any, stop_ids: tuple[int, ...]
) -> _Search:
    """Draw token number `step` of every running hypothesis."""
    batch, beams = ops.shape(search.running.scores)[0], search.running.scores.shape[1]
    length = ops.power(ops.cast(step + 1, "float32"), length_penalty)
    state, candidates, token, beam = _candidates(model, search, step, beams, len(stop_ids))
    ended = is_stop(token, stop_ids)
    # Only what is among the best `beams` may finish; at the last step all of it does.
    ranked = ops.logical_and(ops.arange(token.shape[1])[None, :] < beams, candidates.exist)
    finishes = ops.logical_and(ops.logical_or(ended, last), ranked)
    finishes = ops.logical_and(finishes, ops.logical_not(search.done)[:, None])
    scored = candidates._replace(scores=ops.where(finishes, candidates.scores / length, _NEVER))
    finished = _best(_joined(search.finished, scored), beams)[0]
    alive = candidates._replace(scores=ops.where(ended, _NEVER, candidates.scores))
    running, kept = _best(alive, beams)
    rows = ops.take_along_axis(beam, kept, axis=1) + beams * ops.arange(batch, dtype="int32")[:, None]
    rows = ops.reshape(rows, (-1,))
    full = ops.all(finished.exist, axis=1)
    no_better = running.scores[:, 0] / length <= ops.min(finished.scores, axis=1)
    return _Search(
        state=_moved(state, rows),
        token=ops.reshape(ops.take_along_axis(token, kept, axis=1), (-1,)),
        running=running,
        finished=finished,
        done=ops.logical_or(search.done, ops.logical_and(full, no_better)),
    )


def _moved(state: DecodeState, rows: Any) -> DecodeState:
    """The state with rows in another order, among those of one prompt: they have padding and source in common."""
    return {
        name: value if name == POSITION or constant(name) else ops.take(value, rows, axis=0)
        for name, value in state.items()
    }


def _candidates(
    model: LanguageModel, search: _Search, step: Any, beams: int, stops: int
) -> tuple[DecodeState, Hypotheses, Any, Any]:
    """The best `(1 + stops) * beams` ways to go on, best first: enough for `beams` of them not to end.

    Returns:
        The next state of all running rows, the candidates with their sums, and their newest token and beam,
        `(batch, (1 + stops) * beams)` each, or fewer where a small vocabulary has no more.
    """
    logits, state = next_logits(model, search.token, search.state)
    size = logits.shape[-1]
    log_probs = ops.reshape(ops.log_softmax(logits), (-1, beams, size))
    sums = ops.reshape(search.running.scores[..., None] + log_probs, (-1, beams * size))
    _, index = ops.top_k(sums, min((1 + stops) * beams, beams * size))
    index = ops.cast(index, "int32")
    beam, token = index // size, index % size
    log_prob = ops.take_along_axis(ops.reshape(log_probs, (-1, beams * size)), index, axis=1)
    return state, search.running.pick(beam).extend(token, log_prob, step), token, beam


def _joined(first: Hypotheses, second: Hypotheses) -> Hypotheses:
    return Hypotheses(*(ops.concatenate(pair, axis=1) for pair in zip(first, second, strict=True)))


def _best(hypotheses: Hypotheses, count: int) -> tuple[Hypotheses, Any]:
    """The `count` hypotheses with the highest scores, best first, and where they stood."""
    index = ops.cast(ops.top_k(hypotheses.scores, count)[1], "int32")
    return hypotheses.pick(index), index
