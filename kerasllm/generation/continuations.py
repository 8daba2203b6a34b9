"""Prompts being continued: what `generate`, `stream` and `generate_sequences` share."""

from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np

from kerasllm import backend, stopping
from kerasllm.errors import InputError
from kerasllm.generation.decoding import Decoding, Sampling, Tracing, decode, prefill
from kerasllm.models import EncoderDecoder, LanguageModel

CHECK_EVERY = 16
"""Tokens between two looks for a stop string."""

Prompt: TypeAlias = str | Sequence[int]
"""A text, or the token ids of one with whatever they begin with."""


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


class Continuations:
    """Prompts being continued.

    Args:
        model: A language model.
        tokenizer: Its tokenizer.
        prompts: Texts or token ids.
        max_new_tokens: Most tokens in a continuation.
        sampling: How to draw.
        stop: Strings that end a continuation.
        seed: Of the uniform numbers.
        copies: Continuations of each prompt.
        log_probs: Whether to note the log probability of every token.
        jit_compile: Whether to compile with XLA where that is a choice.
        sources: What an encoder-decoder reads first, one for each prompt.
        source_tokenizer: Of sources; `tokenizer` by default.

    Raises:
        InputError: A prompt does not fit the context, an option is out of range, or the tokenizer is another model's.
    """

    def __init__(
        self,
        model: LanguageModel,
        tokenizer: TextCodec,
        prompts: Sequence[Prompt],
        max_new_tokens: int,
        sampling: Sampling,
        stop: Sequence[str] = (),
        seed: int = 0,
        *,
        copies: int = 1,
        log_probs: bool = False,
        jit_compile: bool | None = False,
        sources: Prompt | Sequence[Prompt] | None = None,
        source_tokenizer: TextCodec | None = None,
    ) -> None:
        check_options(sampling, seed)
        source = read_sources(model, source_tokenizer or tokenizer, sources, len(prompts))
        tokens, padding, capacity = read_prompts(model, tokenizer, prompts, max_new_tokens)
        self.tokenizer, self.stop = tokenizer, list(stop)
        self.drawn, self.max_new_tokens = 0, max_new_tokens
        self.uniforms = np.zeros((len(tokens) * copies, capacity), "float32")
        for index, uniforms in enumerate(self.uniforms):
            stream = _stream(seed, *divmod(index, copies))
            uniforms[:max_new_tokens] = stream.random(max_new_tokens, "float32")
        self.sampling = Sampling(*(np.int32(v) if isinstance(v, int) else np.float32(v) for v in _plain(sampling)))
        tracing = Tracing(
            stop_ids=tokenizer.stop_ids,
            greedy=sampling.temperature == 0,
            penalize=sampling.repetition_penalty != 1,
            log_probs=log_probs,
        )

        def start(model: LanguageModel, tokens: Any, padding: Any, *source: Any) -> Decoding:
            return prefill(model, tokens, padding, capacity, tracing, copies, source)

        def step(model: LanguageModel, now: Decoding, uniforms: Any, begin: Any, end: Any, how: Sampling) -> Decoding:
            return decode(model, now, uniforms, begin, end, how, tracing)

        self._step = backend.compiled(model, step, "decode", tracing, jit_compile=bool(jit_compile))
        # Reading a prompt is a few large matmuls, which XLA does not make faster on a CPU.
        read = backend.compiled(model, start, "prefill", capacity, tracing, copies)
        self.decoding: Decoding = read(tokens, padding, *source)

    def advance(self, count: int) -> None:
        """Draw up to `count` more tokens in every row."""
        stop = min(self.drawn + count, self.max_new_tokens)
        self.decoding = self._step(self.decoding, self.uniforms, np.int32(self.drawn), np.int32(stop), self.sampling)
        self.drawn = stop

    def finish(self) -> None:
        """Draw until no row can grow."""
        while not self.finished:
            self.advance(CHECK_EVERY if self.stop else self.max_new_tokens)

    @property
    def finished(self) -> bool:
        """Whether no row can grow."""
        if self.drawn >= self.max_new_tokens or bool(np.all(self.decoding.done)):
            return True
        return bool(self.stop) and self.drawn > 0 and all(ended for _, ended in self.texts())

    def texts(self) -> list[tuple[str, bool]]:
        """Each row's text, cut at a stop string, and whether it was cut."""
        tokens = np.array(self.decoding.tokens)[:, : self.drawn]
        return [text_of(row.tolist(), self.tokenizer, self.stop) for row in tokens]


def as_list(prompts: Prompt | Sequence[Prompt]) -> tuple[list[Prompt], bool]:
    """Prompts as a list, and whether it was one alone (a text, or the token ids of one)."""
    if isinstance(prompts, str):
        return [prompts], True
    rows: list[Any] = list(prompts)
    if rows and all(isinstance(row, (int, np.integer)) for row in rows):
        return [[int(row) for row in rows]], True
    return rows, False


def text_of(tokens: Sequence[int], tokenizer: TextCodec, stop: Sequence[str]) -> tuple[str, bool]:
    """Text of a continuation up to its stop token or stop string, and whether it was the string that ended it."""
    return stopping.cut(tokenizer.decode(stopping.until(tokens, tokenizer.stop_ids)), stop)


def read_prompts(
    model: LanguageModel, tokenizer: TextCodec, prompts: Sequence[Prompt], max_new_tokens: int
) -> tuple[np.ndarray, np.ndarray, int]:
    """Prompts as arrays of few different shapes.

    Args:
        model: A language model.
        tokenizer: Its tokenizer.
        prompts: Texts or token ids.
        max_new_tokens: Tokens that shall fit behind them.

    Returns:
        Tokens int32 `(batch, length)`, padded on the left; empty slots int32 `(batch,)`; columns for new tokens.

    Raises:
        InputError: A prompt does not fit the context, is empty or has ids that the model lacks, or the tokenizer is
            another model's.
    """
    vocabulary_size = model.config.vocabulary_size
    if tokenizer.vocabulary_size != vocabulary_size:
        raise InputError(
            f"the tokenizer has {tokenizer.vocabulary_size} tokens but the model {vocabulary_size}; "
            "use the tokenizer the model was trained with"
        )
    if not getattr(model.config, "causal", True):
        raise InputError("a bidirectional model cannot continue text; use one with causal true")
    if not 1 <= max_new_tokens < 2**31:
        raise InputError(f"max_new_tokens must be at least 1 and at most 2147483647, received {max_new_tokens}")
    rows = [tokenizer.prompt_ids(p) if isinstance(p, str) else list(p) for p in prompts]
    context = model.max_sequence_length
    for index, row in enumerate(rows):
        if not row or not 0 <= min(row) <= max(row) < vocabulary_size:
            raise InputError(f"prompt {index + 1}: needs token ids from 0 to {vocabulary_size - 1}, received {row[:8]}")
        if context is not None and len(row) + max_new_tokens > context:
            raise InputError(
                f"prompt {index + 1}: {len(row)} tokens and {max_new_tokens} new ones do not fit the model's context "
                f"of {context}; shorten the prompt or lower max_new_tokens"
            )
    return *left_pad(rows, tokenizer.eos_id, context), bucket(max_new_tokens)


def source_ids(tokenizer: TextCodec, text: str) -> list[int]:
    """Token ids of a text as a source: as a prompt begins, and the end token, with which documents end in training.

    Args:
        tokenizer: The tokenizer of sources.
        text: The source.
    """
    return [*tokenizer.prompt_ids(text), tokenizer.eos_id]


def read_sources(
    model: LanguageModel, tokenizer: TextCodec, sources: Prompt | Sequence[Prompt] | None, count: int
) -> tuple[np.ndarray, ...]:
    """Sources as arrays of few different shapes.

    Args:
        model: A language model.
        tokenizer: That of sources.
        sources: Texts or token ids, one for each prompt, or one alone; `None` of a model that reads no source.
        count: Number of prompts.

    Returns:
        Tokens int32 `(batch, source_length)`, padded on the right, and where they are real, boolean of the same shape;
        nothing where the model reads no source.

    Raises:
        InputError: The model reads sources and there are none, or the other way round; a source does not fit the
            context, is empty or has ids that the model lacks; or the tokenizer is another model's.
    """
    if not isinstance(model, EncoderDecoder):
        if sources is not None:
            raise InputError("the model reads no sources; give prompts alone, or an encoder-decoder")
        return ()
    given = None if sources is None else as_list(sources)[0]
    if given is None or len(given) != count:
        number = "none" if given is None else len(given)
        raise InputError(f"an encoder-decoder needs a source for each of {count} prompts, received {number}")
    size, context = model.source_vocabulary_size, model.max_sequence_length
    if tokenizer.vocabulary_size != size:
        raise InputError(
            f"the tokenizer of sources has {tokenizer.vocabulary_size} tokens but the model {size}; "
            "use the one the model was trained with"
        )
    rows = [source_ids(tokenizer, source) if isinstance(source, str) else list(source) for source in given]
    for index, row in enumerate(rows):
        if not row or not 0 <= min(row) <= max(row) < size:
            raise InputError(f"source {index + 1}: needs token ids from 0 to {size - 1}, received {row[:8]}")
        if context is not None and len(row) > context:
            raise InputError(
                f"source {index + 1}: {len(row)} tokens do not fit the model's context of {context}; shorten the source"
            )
    # A row that is reversed, padded on the left and reversed again is padded on the right.
    tokens, padding = left_pad([row[::-1] for row in rows], tokenizer.eos_id, context)
    return tokens[:, ::-1].copy(), np.arange(tokens.shape[1]) < (tokens.shape[1] - padding)[:, None]


def left_pad(rows: Sequence[Sequence[int]], fill: int, max_length: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Prompts as one array, padded on the left to a power of two.

    Args:
        rows: Token ids of each prompt.
        fill: Token in the empty slots (it is never seen by the model).
        max_length: Bound on the padded length; no row is longer.

    Returns:
        int32 `(batch, length)` and int32 `(batch,)`, the number of empty slots.
    """
    length = bucket(max((len(row) for row in rows), default=1))
    if max_length is not None:
        length = min(length, max_length)
    padding = np.array([length - len(row) for row in rows], "int32")
    tokens = np.full((len(rows), length), fill, "int32")
    for target, row, empty in zip(tokens, rows, padding, strict=True):
        target[empty:] = row
    return tokens, padding


def bucket(count: int) -> int:
    """`count` rounded up to a power of two, at least 16: few shapes to compile."""
    return max(16, 1 << (count - 1).bit_length())


def check_options(sampling: Sampling, seed: int) -> None:
    """Refuse numbers with which nothing can be drawn.

    Raises:
        InputError: One is out of range.
    """
    problems = {
        "temperature must be 0 (greedy) or more": not sampling.temperature >= 0,
        "top_k must be 0 (all) or more, and at most 2147483647": not 0 <= sampling.top_k < 2**31,
        "top_p must be more than 0 and at most 1": not 0 < sampling.top_p <= 1,
        "min_p must be at least 0 (all) and at most 1": not 0 <= sampling.min_p <= 1,
        "repetition_penalty must be more than 0": not sampling.repetition_penalty > 0,
        "seed must be 0 or more": seed < 0,
    }
    for problem, present in problems.items():
        if present:
            raise InputError(f"{problem}, received {seed if problem.startswith('seed') else sampling}")


def _stream(seed: int, row: int, copy: int) -> np.random.Generator:
    # The first continuation of a prompt is the one that a single continuation would be.
    return np.random.default_rng([seed, row] if copy == 0 else [seed, row, copy])


def _plain(sampling: Sampling) -> list[Any]:
    """The numbers as int (top_k) or float, whatever they were given as."""
    return [int(v) if name == "top_k" else float(v) for name, v in sampling._asdict().items()]
