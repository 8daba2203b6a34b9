"""Text generation: prompts in, continuations out, whole or streamed."""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol, overload

import numpy as np

from kerasllm import backend
from kerasllm.errors import InputError
from kerasllm.generation.decoding import Decoding, Sampling, decode, prefill
from kerasllm.models import LanguageModel

_CHECK_EVERY = 16
"""Tokens between two looks for a stop string."""


class TextCodec(Protocol):
    """What generation needs of a tokenizer (`kerasllm.text.Tokenizer`)."""

    eos_id: int
    vocabulary_size: int

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Every token that generation stops at, `eos_id` first."""

    def prompt_ids(self, text: str) -> list[int]:
        """Token ids of a text that is to be continued."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids."""


@overload
def generate(  # type: ignore[overload-overlap]  # a string is a sequence of strings, too
    model: LanguageModel,
    tokenizer: TextCodec,
    prompts: str,
    *,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    repetition_penalty: float = 1.0,
    stop: str | Sequence[str] = (),
    seed: int = 0,
) -> str: ...


@overload
def generate(
    model: LanguageModel,
    tokenizer: TextCodec,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    repetition_penalty: float = 1.0,
    stop: str | Sequence[str] = (),
    seed: int = 0,
) -> list[str]: ...


def generate(
    model: LanguageModel,
    tokenizer: TextCodec,
    prompts: str | Sequence[str],
    *,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    repetition_penalty: float = 1.0,
    stop: str | Sequence[str] = (),
    seed: int = 0,
) -> str | list[str]:
    """Continue prompts.

    A batch gives what each prompt alone would give (with sampling, row r draws from the stream `(seed, r)`).
    Prompt lengths and token counts are rounded up to powers of two inside, so that few shapes are ever compiled.

    Args:
        model: A language model.
        tokenizer: Its tokenizer.
        prompts: One text or several.
        max_new_tokens: Most tokens in a continuation.
        temperature: 0 is greedy; 1 samples from the model's distribution.
        top_k: Keep only the k most likely tokens; 0 keeps all.
        top_p: Keep the most likely tokens whose share is at least p; 1 keeps all.
        repetition_penalty: Above 1 makes tokens that were seen less likely.
        stop: A continuation ends before the one of these strings that is complete first (and at the end-of-text token).
        seed: Of the uniform numbers.

    Returns:
        The continuation without the prompt: a string for one prompt, a list for several.

    Raises:
        InputError: A prompt does not fit the context, an option is out of range, or the tokenizer is another model's.
    """
    if isinstance(prompts, str):
        return generate(
            model,
            tokenizer,
            [prompts],
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            repetition_penalty=repetition_penalty,
            stop=stop,
            seed=seed,
        )[0]
    sampling = Sampling(temperature, top_k, top_p, repetition_penalty)
    continuations = _Continuations(model, tokenizer, list(prompts), max_new_tokens, sampling, _strings(stop), seed)
    step = _CHECK_EVERY if continuations.stop else max_new_tokens
    while not continuations.finished:
        continuations.advance(step)
    return [text for text, _ in continuations.texts()]


def generate_tokens(
    model: LanguageModel, tokenizer: TextCodec, prompts: Sequence[str], *, max_new_tokens: int = 64
) -> np.ndarray:
    """Greedy continuations as token ids, for comparing one runtime with another.

    Args:
        model: A language model.
        tokenizer: Its tokenizer.
        prompts: Texts.
        max_new_tokens: Tokens in a continuation.

    Returns:
        int32 `(batch, max_new_tokens)`; after an end token there are only end tokens.

    Raises:
        InputError: See `generate`.
    """
    continuations = _Continuations(model, tokenizer, list(prompts), max_new_tokens, Sampling(), [], 0)
    continuations.advance(max_new_tokens)
    return np.array(continuations.decoding.tokens)[:, :max_new_tokens]


def stream(model: LanguageModel, tokenizer: TextCodec, prompt: str, *, chunk: int = 1, **options: Any) -> Iterator[str]:
    """Continue one prompt, yielding text as it comes.

    The pieces joined are what `generate` returns; a character whose bytes are incomplete is held back, as is text that
    may become a stop string.

    Args:
        model: A language model.
        tokenizer: Its tokenizer.
        prompt: The text to continue.
        chunk: Tokens drawn between two pieces.
        **options: Those of `generate`.

    Yields:
        Pieces of the continuation.

    Raises:
        InputError: See `generate`.
    """
    stop = options.pop("stop", ())
    max_new_tokens = options.pop("max_new_tokens", 64)
    seed = options.pop("seed", 0)
    stops = _strings(stop)
    if chunk < 1:
        raise InputError(f"chunk must be at least 1, received {chunk}")
    continuations = _Continuations(model, tokenizer, [prompt], max_new_tokens, Sampling(**options), stops, seed)
    emitted = 0
    while not continuations.finished:
        continuations.advance(chunk)
        text, ended = continuations.texts()[0]
        ready = len(text) if ended or continuations.finished else len(text) - _held_back(text, stops)
        if ready > emitted:
            yield text[emitted:ready]
            emitted = ready


class _Continuations:
    """Prompts being continued: what `generate` and `stream` share."""

    def __init__(
        self,
        model: LanguageModel,
        tokenizer: TextCodec,
        prompts: list[str],
        max_new_tokens: int,
        sampling: Sampling,
        stop: list[str],
        seed: int,
    ) -> None:
        _check(model, tokenizer, max_new_tokens, sampling, seed)
        self.tokenizer, self.stop = tokenizer, stop
        self.drawn, self.max_new_tokens = 0, max_new_tokens
        rows = [tokenizer.prompt_ids(prompt) for prompt in prompts]
        _check_lengths(model, rows, max_new_tokens)
        capacity = _bucket(max_new_tokens)
        tokens, padding = left_pad(rows, tokenizer.eos_id, model.max_sequence_length)
        streams = [np.random.default_rng([seed, row]).random(max_new_tokens, "float32") for row in range(len(rows))]
        self.uniforms = np.zeros((len(rows), capacity), "float32")
        self.uniforms[:, :max_new_tokens] = np.reshape(streams, (len(rows), max_new_tokens))
        self.sampling = Sampling(
            np.float32(sampling.temperature),
            np.int32(sampling.top_k),
            np.float32(sampling.top_p),
            np.float32(sampling.repetition_penalty),
        )
        eos_id = tokenizer.eos_id

        def start(model: LanguageModel, tokens: Any, padding: Any) -> Decoding:
            return prefill(model, tokens, padding, capacity, eos_id)

        def step(model: LanguageModel, now: Decoding, uniforms: Any, begin: Any, end: Any, how: Sampling) -> Decoding:
            return decode(model, now, uniforms, begin, end, how, eos_id)

        self._step = backend.compiled(model, step, "decode", eos_id)
        self.decoding: Decoding = backend.compiled(model, start, "prefill", capacity, eos_id)(tokens, padding)

    def advance(self, count: int) -> None:
        """Draw up to `count` more tokens in every row."""
        stop = min(self.drawn + count, self.max_new_tokens)
        self.decoding = self._step(self.decoding, self.uniforms, np.int32(self.drawn), np.int32(stop), self.sampling)
        self.drawn = stop

    @property
    def finished(self) -> bool:
        """Whether no row can grow."""
        if self.drawn >= self.max_new_tokens or bool(np.all(self.decoding.done)):
            return True
        return bool(self.stop) and self.drawn > 0 and all(ended for _, ended in self.texts())

    def texts(self) -> list[tuple[str, bool]]:
        """Each row's text, cut at a stop string, and whether it was cut."""
        tokens = np.array(self.decoding.tokens)[:, : self.drawn]
        return [_cut(self.tokenizer.decode(_until(row, self.tokenizer.eos_id)), self.stop) for row in tokens]


def left_pad(rows: Sequence[Sequence[int]], fill: int, max_length: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Prompts as one array, padded on the left to a power of two.

    Args:
        rows: Token ids of each prompt.
        fill: Token in the empty slots (it is never seen by the model).
        max_length: Bound on the padded length; no row is longer.

    Returns:
        int32 `(batch, length)` and int32 `(batch,)`, the number of empty slots.
    """
    length = _bucket(max((len(row) for row in rows), default=1))
    if max_length is not None:
        length = min(length, max_length)
    padding = np.array([length - len(row) for row in rows], "int32")
    tokens = np.full((len(rows), length), fill, "int32")
    for target, row, empty in zip(tokens, rows, padding, strict=True):
        target[empty:] = row
    return tokens, padding


def _bucket(count: int) -> int:
    """`count` rounded up to a power of two, at least 16: few shapes to compile."""
    return max(16, 1 << (count - 1).bit_length())


def _check(model: LanguageModel, tokenizer: TextCodec, max_new_tokens: int, sampling: Sampling, seed: int) -> None:
    if tokenizer.vocabulary_size != model.config.vocabulary_size:
        raise InputError(
            f"the tokenizer has {tokenizer.vocabulary_size} tokens but the model {model.config.vocabulary_size}; "
            "use the tokenizer the model was trained with"
        )
    if not getattr(model.config, "causal", True):
        raise InputError("a bidirectional model cannot continue text; use one with causal true")
    problems = {
        "max_new_tokens must be at least 1 and at most 2147483647": not 1 <= max_new_tokens < 2**31,
        "temperature must be 0 (greedy) or more": not sampling.temperature >= 0,
        "top_k must be 0 (all) or more, and at most 2147483647": not 0 <= sampling.top_k < 2**31,
        "top_p must be more than 0 and at most 1": not 0 < sampling.top_p <= 1,
        "repetition_penalty must be more than 0": not sampling.repetition_penalty > 0,
        "seed must be 0 or more": seed < 0,
    }
    received = {"max_new_tokens": max_new_tokens, "seed": seed}
    for problem, present in problems.items():
        if present:
            raise InputError(f"{problem}, received {received.get(problem.split()[0], sampling)}")


def _check_lengths(model: LanguageModel, rows: list[list[int]], max_new_tokens: int) -> None:
    context = model.max_sequence_length
    for index, row in enumerate(rows):
        if context is not None and len(row) + max_new_tokens > context:
            raise InputError(
                f"prompt {index + 1}: {len(row)} tokens and {max_new_tokens} new ones do not fit the model's context "
                f"of {context}; shorten the prompt or lower max_new_tokens"
            )


def _strings(stop: str | Sequence[str]) -> list[str]:
    return [s for s in ([stop] if isinstance(stop, str) else stop) if s]


def _until(row: np.ndarray, eos_id: int) -> list[int]:
    ends = np.flatnonzero(row == eos_id)
    return row[: ends[0]].tolist() if len(ends) else row.tolist()


def _cut(text: str, stop: list[str]) -> tuple[str, bool]:
    # The stop string that is complete first ends the text: so it does not matter how often one looks.
    found = [(text.find(s) + len(s), text.find(s)) for s in stop if s in text]
    return (text[: min(found)[1]], True) if found else (text, False)


def _held_back(text: str, stop: list[str]) -> int:
    """Characters at the end of `text` that later tokens may still change or that may begin a stop string."""
    settled = text.rstrip("\ufffd")
    begun = [n for s in stop for n in range(1, len(s)) if settled.endswith(s[:n])]
    return len(text) - len(settled) + max(begun, default=0)
