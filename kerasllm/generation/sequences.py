"""Several continuations of each prompt, with their log probabilities: sampled, or searched by beams."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from kerasllm import backend, stopping
from kerasllm.errors import InputError
from kerasllm.generation.beam import Hypotheses, beam_search
from kerasllm.generation.continuations import (
    Continuations,
    Prompt,
    TextCodec,
    as_list,
    read_prompts,
    read_sources,
    text_of,
)
from kerasllm.generation.decoding import Sampling
from kerasllm.models import LanguageModel

_MOST_PENALTY = 10
"""A length to a power that is far above overflows."""


@dataclasses.dataclass(frozen=True)
class Continuation:
    """One continuation of a prompt.

    Attributes:
        text: The continuation without the prompt, up to a stop token or stop string.
        tokens: Token ids, with the stop token where one was drawn; up to the one that completes a stop string.
        log_probs: Natural logarithm of each token's probability in the model's own distribution, before temperature,
            filters and penalty.
        score: `sum(log_probs) / len(tokens) ** length_penalty`.
    """

    text: str
    tokens: tuple[int, ...]
    log_probs: tuple[float, ...]
    score: float


def generate_sequences(
    model: LanguageModel,
    tokenizer: TextCodec,
    prompts: Prompt | Sequence[Prompt],
    *,
    num_sequences: int = 1,
    num_beams: int = 1,
    length_penalty: float = 1.0,
    max_new_tokens: int = 64,
    stop: str | Sequence[str] = (),
    seed: int = 0,
    jit_compile: bool = False,
    sources: Prompt | Sequence[Prompt] | None = None,
    source_tokenizer: TextCodec | None = None,
    **sampling: Any,
) -> list[list[Continuation]]:
    """Continue each prompt, which is read once, several times, or search its best continuations with beams.

    Args:
        model: A language model.
        tokenizer: Its tokenizer.
        prompts: One text or several, or token ids of texts.
        num_sequences: Continuations of each prompt: drawn, the first as by `generate`; or the best of `num_beams`.
        num_beams: Hypotheses that a search keeps; 1 draws token after token.
        length_penalty: Exponent of the length in `Continuation.score`, from -10 to 10: 0 prefers short continuations, 1
            compares means.
        max_new_tokens: Most tokens in a continuation.
        stop: As in `generate`; a search by beams looks for these strings when it is over.
        seed: Of the uniform numbers.
        jit_compile: See `generate`.
        sources: See `generate`.
        source_tokenizer: See `generate`.
        **sampling: `temperature`, `top_k`, `top_p`, `min_p` and `repetition_penalty` of `generate`; not with beams.

    Returns:
        A list for each prompt; in the order of drawing, or with beams the best first.

    Raises:
        InputError: See `generate`; or `num_sequences` is more than a greedy or beam search can give.
    """
    how, stops = Sampling(**sampling), stopping.strings(stop)
    _check(num_sequences, num_beams, length_penalty, how)
    if not (given := as_list(prompts)[0]):
        return []
    found: Any
    reads: dict[str, Any] = {"sources": sources, "source_tokenizer": source_tokenizer}
    if num_beams > 1:
        found = _search(model, tokenizer, given, max_new_tokens, num_beams, length_penalty, jit_compile, **reads)
        counts = np.minimum(np.sum(found.exist, axis=1), num_sequences)
    else:
        more = {"copies": num_sequences, "log_probs": True, "jit_compile": jit_compile, **reads}
        drawing = Continuations(model, tokenizer, given, max_new_tokens, how, stops, seed, **more)
        drawing.finish()
        found, counts = drawing.decoding, np.full(len(given), num_sequences)
    rows = zip(*(_of_prompts(a, len(given), max_new_tokens) for a in (found.tokens, found.log_probs)), strict=True)
    options: dict[str, Any] = {"tokenizer": tokenizer, "stop": stops, "length_penalty": length_penalty}
    drawn = [_row(t, p, count, **options) for (t, p), count in zip(rows, counts, strict=True)]
    # A stop string may have cut the best.
    return [sorted(row, key=lambda one: -one.score) for row in drawn] if num_beams > 1 else drawn


def _row(tokens: list[Any], log_probs: list[Any], count: int, **options: Any) -> list[Continuation]:
    """The continuations of a prompt: where there are fewer than beams, those that are none come last."""
    return [_continuation(*one, **options) for one in list(zip(tokens, log_probs, strict=True))[:count]]


def _of_prompts(columns: Any, prompts: int, count: int) -> list[list[list[Any]]]:
    """The first `count` columns of every continuation, in a list for each prompt."""
    return np.reshape(columns, (prompts, -1, np.shape(columns)[-1]))[..., :count].tolist()


def _continuation(
    tokens: list[int], log_probs: list[float], tokenizer: TextCodec, stop: Sequence[str], length_penalty: float
) -> Continuation:
    # With the stop token, which was drawn as well.
    count = min(len(stopping.until(tokens, tokenizer.stop_ids)) + 1, len(tokens))
    text, ended = text_of(tokens, tokenizer, stop)
    if ended:
        # What was drawn after it depends on how often one looks.
        count = next(n for n in range(1, count + 1) if text_of(tokens[:n], tokenizer, stop)[1])
    score = float(np.sum(log_probs[:count], dtype="float64")) / count**length_penalty
    return Continuation(text, tuple(tokens[:count]), tuple(log_probs[:count]), score)


def _search(
    model: LanguageModel,
    tokenizer: TextCodec,
    prompts: Sequence[Prompt],
    max_new_tokens: int,
    beams: int,
    length_penalty: float,
    jit_compile: bool,
    sources: Prompt | Sequence[Prompt] | None,
    source_tokenizer: TextCodec | None,
) -> Hypotheses:
    source = read_sources(model, source_tokenizer or tokenizer, sources, len(prompts))
    tokens, padding, capacity = read_prompts(model, tokenizer, prompts, max_new_tokens)
    options: dict[str, Any] = {"beams": beams, "capacity": capacity, "stop_ids": tokenizer.stop_ids}

    def search(
        model: LanguageModel, tokens: Any, padding: Any, stop: Any, length_penalty: Any, *source: Any
    ) -> Hypotheses:
        return beam_search(model, tokens, padding, stop, length_penalty, source=source, **options)

    compiled = backend.compiled(model, search, "beam_search", *options.values(), jit_compile=jit_compile)
    return compiled(tokens, padding, np.int32(max_new_tokens), np.float32(length_penalty), *source)


def _check(num_sequences: int, num_beams: int, length_penalty: float, sampling: Sampling) -> None:
    for name, value in (("num_sequences", num_sequences), ("num_beams", num_beams)):
        if value < 1:
            raise InputError(f"{name} must be at least 1, received {value}")
    if not abs(length_penalty) <= _MOST_PENALTY:
        raise InputError(
            f"length_penalty must be a number from -{_MOST_PENALTY} to {_MOST_PENALTY}, received {length_penalty}"
        )
    if num_beams > 1 and sampling != Sampling():
        raise InputError(f"a search by beams draws nothing: leave temperature, filters and penalty out, not {sampling}")
    if num_beams > 1 and num_sequences > num_beams:
        raise InputError(f"num_sequences {num_sequences} is more than num_beams {num_beams}; raise num_beams")
    if num_beams == 1 and num_sequences > 1 and sampling.temperature == 0:
        raise InputError(
            f"a greedy continuation has no {num_sequences} versions; set temperature above 0, or num_beams above 1"
        )
