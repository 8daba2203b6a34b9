"""Text generation: prompts in, continuations out, whole or streamed."""

from collections.abc import Iterator, Sequence
from typing import Any, overload

import numpy as np

from kerasllm import stopping
from kerasllm.errors import InputError
from kerasllm.generation.continuations import Continuations, Prompt, TextCodec, as_list
from kerasllm.generation.decoding import Sampling
from kerasllm.models import LanguageModel


@overload
def generate(  # type: ignore[overload-overlap]  # a string is a sequence of strings, too
    model: LanguageModel,
    tokenizer: TextCodec,
    prompts: str | Sequence[int],
    *,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    stop: str | Sequence[str] = (),
    seed: int = 0,
    jit_compile: bool = False,
    sources: Prompt | Sequence[Prompt] | None = None,
    source_tokenizer: TextCodec | None = None,
) -> str: ...


@overload
def generate(
    model: LanguageModel,
    tokenizer: TextCodec,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    stop: str | Sequence[str] = (),
    seed: int = 0,
    jit_compile: bool = False,
    sources: Prompt | Sequence[Prompt] | None = None,
    source_tokenizer: TextCodec | None = None,
) -> list[str]: ...


def generate(
    model: LanguageModel,
    tokenizer: TextCodec,
    prompts: Prompt | Sequence[Prompt],
    *,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    stop: str | Sequence[str] = (),
    seed: int = 0,
    jit_compile: bool = False,
    sources: Prompt | Sequence[Prompt] | None = None,
    source_tokenizer: TextCodec | None = None,
) -> str | list[str]:
    """Continue prompts.

    A batch gives what each prompt alone would give (with sampling, row r draws from the stream `(seed, r)`).
    Prompt lengths and token counts are rounded up to powers of two inside, so that few shapes are ever compiled.

    Args:
        model: A language model.
        tokenizer: Its tokenizer.
        prompts: One text or several. The token ids of a text will do for a text.
        max_new_tokens: Most tokens in a continuation.
        temperature: 0 is greedy; 1 samples from the model's distribution.
        top_k: Keep only the k most likely tokens; 0 keeps all.
        top_p: Keep the most likely tokens whose share is at least p; 1 keeps all.
        min_p: Keep tokens that are at least p times as likely as the most likely one; 0 keeps all.
        repetition_penalty: Above 1 makes tokens that were seen less likely.
        stop: A continuation ends before the one of these strings that is complete first (and at the tokenizer's stop
            tokens).
        seed: Of the uniform numbers.
        jit_compile: Compile the loop with XLA. On a CPU a model of 100 million parameters is about twice as fast then,
            but compiling it takes ten seconds for each shape. (On JAX everything is compiled.)
        sources: Of an encoder-decoder, what it reads first, one for each prompt, which begins the target; see
            `translate`.
        source_tokenizer: Of sources; `tokenizer` by default.

    Returns:
        The continuation without the prompt: a string for one prompt, a list for several.

    Raises:
        InputError: A prompt does not fit the context, an option is out of range, or the tokenizer is another model's.
    """
    sampling = Sampling(temperature, top_k, top_p, repetition_penalty, min_p)
    rows, alone = as_list(prompts)
    stops = stopping.strings(stop)
    more: dict[str, Any] = {"jit_compile": jit_compile, "sources": sources, "source_tokenizer": source_tokenizer}
    continuations = Continuations(model, tokenizer, rows, max_new_tokens, sampling, stops, seed, **more)
    continuations.finish()
    texts = [text for text, _ in continuations.texts()]
    return texts[0] if alone else texts


def generate_tokens(
    model: LanguageModel, tokenizer: TextCodec, prompts: Sequence[Prompt], *, max_new_tokens: int = 64
) -> np.ndarray:
    """Greedy continuations as token ids, for comparing one runtime with another.

    Args:
        model: A language model.
        tokenizer: Its tokenizer.
        prompts: Texts, or token ids of texts.
        max_new_tokens: Tokens in a continuation.

    Returns:
        int32 `(batch, max_new_tokens)`; after a stop token there are only end tokens.

    Raises:
        InputError: See `generate`.
    """
    continuations = Continuations(model, tokenizer, prompts, max_new_tokens, Sampling())
    continuations.advance(max_new_tokens)
    return np.array(continuations.decoding.tokens)[:, :max_new_tokens]


def stream(
    model: LanguageModel, tokenizer: TextCodec, prompt: Prompt, *, chunk: int = 1, **options: Any
) -> Iterator[str]:
    """Continue one prompt, yielding text as it comes.

    The pieces joined are what `generate` returns; a character whose bytes are incomplete is held back, as is text that
    may become a stop string.

    Args:
        model: A language model.
        tokenizer: Its tokenizer.
        prompt: The text to continue, or its token ids.
        chunk: Tokens drawn between two pieces.
        **options: Those of `generate`.

    Yields:
        Pieces of the continuation.

    Raises:
        InputError: See `generate`.
    """
    stops = stopping.strings(options.pop("stop", ()))
    max_new_tokens, seed = options.pop("max_new_tokens", 64), options.pop("seed", 0)
    more = {name: options.pop(name, None) for name in ("jit_compile", "sources", "source_tokenizer")}
    if chunk < 1:
        raise InputError(f"chunk must be at least 1, received {chunk}")
    continuations = Continuations(model, tokenizer, [prompt], max_new_tokens, Sampling(**options), stops, seed, **more)
    emitted = 0
    while not continuations.finished:
        continuations.advance(chunk)
        text, ended = continuations.texts()[0]
        ready = len(text) if ended or continuations.finished else stopping.settled(text, stops)
        if ready > emitted:
            yield text[emitted:ready]
            emitted = ready
