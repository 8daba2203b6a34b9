"""Running an exported TFLite file without TensorFlow: numpy, LiteRT and the tokenizer's own library, nothing else."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kerasllm import stopping
from kerasllm.errors import InputError
from kerasllm.text import load_tokenizer


class EdgeModel:
    """A language model in a TFLite file that `export_tflite` wrote, with its tokenizer beside it.

    Args:
        path: The `.tflite` file.
        num_threads: CPU threads.

    Attributes:
        context_length: Most tokens that the model can see; None where there is no limit.
        score_lengths: Chunks in which the file can score a text, longest first.

    Raises:
        InputError: The file or its tokenizer is missing or broken, or is not a language model of this library.
    """

    def __init__(self, path: str | os.PathLike[str], num_threads: int = 2) -> None:
        from ai_edge_litert.interpreter import Interpreter

        self.path = Path(path)
        if not self.path.is_file():
            raise InputError(f"{path}: no such file")
        try:
            # Memory-mapped: a bad file is refused by its header before anything is allocated.
            self._interpreter = Interpreter(str(path), num_threads=num_threads)
            names = self._interpreter.get_signature_list()
        except (RuntimeError, ValueError) as error:
            raise InputError(f"{path}: is not a TFLite file ({str(error).splitlines()[0]}); export it anew") from None
        if "decode" not in names:
            raise InputError(f"{path}: has no signature 'decode'; export it with `kerasllm export --format tflite`")
        self._runners = {name: self._interpreter.get_signature_runner(name) for name in names}
        try:
            self._prefill_lengths, self.score_lengths = _lengths(names, "prefill_"), _lengths(names, "score_")
            self._describe()
        except (KeyError, ValueError, IndexError) as error:
            raise InputError(
                f"{path}: is no language model that kerasllm exported ({error}); "
                "export it with `kerasllm export --format tflite`"
            ) from None
        self.tokenizer = load_tokenizer(self.path.parent)
        if self.tokenizer.vocabulary_size != self.vocabulary_size:
            raise InputError(
                f"{path}: has {self.vocabulary_size} tokens but the tokenizer beside it has "
                f"{self.tokenizer.vocabulary_size}; copy both from the same export"
            )

    def _describe(self) -> None:
        """Read from `decode` what the file takes and gives."""
        details = self._runners["decode"].get_input_details()
        self._placed = "input_pos" in details
        self._state_shapes = {
            name: tuple(detail["shape"]) for name, detail in details.items() if name not in ("tokens", "input_pos")
        }
        outputs = self._runners["decode"].get_output_details()
        for name in ("logits", *self._state_shapes):
            if name not in outputs:
                raise ValueError(f"'decode' does not return {name!r}")
        if tuple(details["tokens"]["shape"]) != (1, 1) or len(outputs["logits"]["shape"]) != 3:
            raise ValueError("'decode' does not turn one token into logits")
        caches = [shape[2] for name, shape in self._state_shapes.items() if name.startswith("kv_cache")]
        self.context_length: int | None = int(min(caches)) if caches else None
        self.vocabulary_size = int(outputs["logits"]["shape"][-1])

    def generate(self, prompts: str | Sequence[int] | Sequence[Any], **options: Any) -> Any:
        """Continue prompts, one after the other.

        Args:
            prompts: One text or several; the token ids of a text will do for a text.
            **options: Those of `kerasllm.generate`, but for `repetition_penalty` and `jit_compile`.

        Returns:
            The continuation without the prompt: a string for one prompt, a list for several.

        Raises:
            InputError: A prompt does not fit the context, or an option is out of range.
        """
        alone = isinstance(prompts, str) or (len(prompts) > 0 and isinstance(prompts[0], (int, np.integer)))
        rows = [prompts] if alone else prompts
        texts = ["".join(self.stream(prompt, row=row, **options)) for row, prompt in enumerate(rows)]
        return texts[0] if alone else texts

    def stream(
        self,
        prompt: str | Sequence[int],
        *,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        stop: str | Sequence[str] = (),
        seed: int = 0,
        row: int = 0,
    ) -> Iterator[str]:
        """Continue one prompt, yielding text as it comes; the pieces joined are what `generate` returns.

        A character whose bytes are incomplete is held back, as is text that may become a stop string.

        Args:
            prompt: The text to continue, or its token ids.
            max_new_tokens: Most tokens in the continuation.
            temperature: 0 is greedy.
            top_k: Keep the k most likely tokens; 0 keeps all.
            top_p: Keep the most likely tokens with this share; 1 keeps all.
            min_p: Keep tokens at least p times as likely as the most likely one; 0 keeps all.
            stop: Strings before which the continuation ends.
            seed: Of the uniform numbers.
            row: Number of the prompt in a batch: the numbers are those of the stream `(seed, row)`.

        Yields:
            Pieces of the continuation.

        Raises:
            InputError: The prompt does not fit the context, or an option is out of range.
        """
        filters: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
        _check_options(max_new_tokens, seed, **filters)
        ids = self.tokenizer.prompt_ids(prompt) if isinstance(prompt, str) else list(prompt)
        self._check_prompt(ids, max_new_tokens)
        uniforms = np.random.default_rng([seed, row]).random(max_new_tokens, "float32")
        stops, drawn, emitted, ended, text = stopping.strings(stop), [], 0, False, ""
        for token in self.tokens(ids, uniforms, **filters):
            drawn.append(token)
            text, ended = stopping.cut(self.tokenizer.decode(drawn), stops)
            ready = len(text) if ended else stopping.settled(text, stops)
            if ready > emitted:
                yield text[emitted:ready]
                emitted = ready
            if ended:
                return
        if len(text) > emitted:
            yield text[emitted:]

    def tokens(
        self,
        prompt: Sequence[int],
        uniforms: np.ndarray,
        *,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
    ) -> Iterator[int]:
        """Draw token after token until a stop token.

        Args:
            prompt: Token ids, at least one.
            uniforms: float32 `(count,)` in [0, 1), one for each token to draw.
            temperature: 0 is greedy.
            top_k: 0 keeps all.
            top_p: 1 keeps all.
            min_p: 0 keeps all.

        Yields:
            Token ids, without the stop token.

        Raises:
            InputError: Prompt and new tokens do not fit the context, or a token is not the model's.
        """
        self._check_prompt(prompt, len(uniforms))
        state = self._read(prompt[:-1])
        token, place = prompt[-1], len(prompt) - 1
        for step, uniform in enumerate(uniforms):
            state = self._run("decode", [token], place + step, state)
            token = sample(state.pop("logits")[0, 0], float(uniform), temperature, top_k, top_p, min_p)
            if token in self.tokenizer.stop_ids:
                return
            yield token

    def _check_prompt(self, prompt: Sequence[int], count: int) -> None:
        if not len(prompt) or not 0 <= min(prompt) <= max(prompt) < self.vocabulary_size:
            raise InputError(f"the prompt needs token ids from 0 to {self.vocabulary_size - 1}, received {prompt[:8]}")
        if self.context_length is not None and len(prompt) + count > self.context_length:
            raise InputError(
                f"the prompt's {len(prompt)} tokens and {count} new ones do not fit the context of "
                f"{self.context_length}; shorten the prompt or lower max_new_tokens"
            )

    def logits(self, tokens: Sequence[int]) -> np.ndarray:
        """Logits after every token of a text, read one by one: float32 `(length, vocabulary_size)`."""
        state, rows = self._zero_state(), []
        for place, token in enumerate(tokens):
            state = self._run("decode", [token], place, state)
            rows.append(state.pop("logits")[0, 0])
        return np.stack(rows)

    def score_tokens(self, tokens: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Log probability of targets and most likely tokens, as `kerasllm.generation.score_windows`.

        Args:
            tokens: int32 `(batch, length)`; the length is a multiple of the shortest chunk the file can score.
            targets: int32 `(batch, length)`.

        Returns:
            float32 and int32 arrays `(batch, length)`.

        Raises:
            InputError: The length does not fit the file's chunks or context.
        """
        length = tokens.shape[1]
        chunks = [n for n in self.score_lengths if length and length % n == 0]
        if not chunks or length > (self.context_length or length):
            multiples = " or ".join(map(str, self.score_lengths)) or "no length"
            limit = f" up to {self.context_length}" if self.context_length else ""
            raise InputError(
                f"{self.path}: scores texts in multiples of {multiples} tokens{limit}, not {length}; "
                "choose another --context"
            )
        chunk, log_probs, top_1 = chunks[0], np.zeros(tokens.shape, "float32"), np.zeros(tokens.shape, "int32")
        for row in range(len(tokens)):
            state = self._zero_state()
            for start in range(0, length, chunk):
                part = slice(start, start + chunk)
                wanted = {"targets": targets[row : row + 1, part].astype("int32")}
                state = self._run(f"score_{chunk}", tokens[row, part], start, {**state, **wanted})
                log_probs[row, part], top_1[row, part] = state.pop("log_probs")[0], state.pop("top_1")[0]
        return log_probs, top_1

    def _read(self, tokens: Sequence[int]) -> dict[str, np.ndarray]:
        """State after reading tokens, in the largest chunks that fit exactly: an LSTM must never see padding."""
        state, place = self._zero_state(), 0
        while place < len(tokens):
            size = next((n for n in self._prefill_lengths if n <= len(tokens) - place), 1)
            state = self._run(f"prefill_{size}" if size > 1 else "decode", tokens[place : place + size], place, state)
            state.pop("logits", None)
            place += size
        return state

    def _zero_state(self) -> dict[str, np.ndarray]:
        return {name: np.zeros(shape, "float32") for name, shape in self._state_shapes.items()}

    def _run(self, signature: str, tokens: Any, place: int, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        row = np.array([tokens], "int32")
        if self._placed:
            inputs = {**inputs, "input_pos": np.arange(place, place + row.shape[1], dtype="int32")}
        return self._runners[signature](tokens=row, **inputs)


def sample(
    logits: np.ndarray,
    uniform: float,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
) -> int:
    """`kerasllm.generation.sample` for one row, in numpy: the same uniform number draws the same token.

    Args:
        logits: float32 `(vocabulary_size,)`.
        uniform: In [0, 1).
        temperature: 0 is greedy.
        top_k: 0 keeps all.
        top_p: 1 keeps all.
        min_p: 0 keeps all.

    Returns:
        A token id.
    """
    if temperature <= 0:
        return int(logits.argmax())
    tokens = np.argsort(-logits, kind="stable")
    scaled = logits[tokens] / np.float32(temperature)
    probabilities = np.exp(scaled - scaled[0])
    probabilities /= probabilities.sum()
    if top_k:
        probabilities[top_k:] = 0
    before = probabilities.cumsum() - probabilities
    probabilities[1:][before[1:] >= np.float32(top_p) * probabilities.sum()] = 0
    probabilities[probabilities < np.float32(min_p) * probabilities[0]] = 0
    cumulative = probabilities.cumsum()
    choice = int((cumulative <= np.float32(uniform) * cumulative[-1]).sum())
    return int(tokens[min(choice, int((probabilities > 0).sum()) - 1)])


def _check_options(max_new_tokens: int, seed: int, temperature: float, top_k: int, top_p: float, min_p: float) -> None:
    problems = {
        f"max_new_tokens must be at least 1, received {max_new_tokens}": max_new_tokens < 1,
        f"temperature must be 0 (greedy) or more, received {temperature}": not temperature >= 0,
        f"top_k must be 0 (all) or more, received {top_k}": top_k < 0,
        f"top_p must be more than 0 and at most 1, received {top_p}": not 0 < top_p <= 1,
        f"min_p must be at least 0 (all) and at most 1, received {min_p}": not 0 <= min_p <= 1,
        f"seed must be 0 or more, received {seed}": seed < 0,
    }
    for problem, present in problems.items():
        if present:
            raise InputError(problem)


def _lengths(names: Any, prefix: str) -> list[int]:
    """The n of signatures `<prefix><n>`, longest first."""
    return sorted((int(name.removeprefix(prefix)) for name in names if name.startswith(prefix)), reverse=True)
