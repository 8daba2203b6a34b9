"""Running an exported SavedModel: TensorFlow alone, as a server would; neither Keras nor the model's Python code."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kerasllm.errors import InputError
from kerasllm.files import read_json
from kerasllm.text import load_tokenizer
from kerasllm.text.tokenizer import valid_unicode


class ServedModel:
    """A SavedModel that `export_saved_model` wrote.

    Args:
        path: The folder with `saved_model.pb`.

    Raises:
        InputError: It is missing, broken or not a language model of this library.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        import tensorflow as tf
        import tensorflow_text  # noqa: F401 (registers the ops of SentencePiece)

        self.path = Path(path)
        try:
            # The object must live as long as its functions.
            self._loaded = tf.saved_model.load(str(path))
        except (OSError, ValueError, tf.errors.OpError) as error:
            raise InputError(
                f"{path}: does not load as a SavedModel ({str(error).splitlines()[0]}); export it anew"
            ) from None
        self._signatures = self._loaded.signatures
        if "score_tokens" not in self._signatures:
            raise InputError(f"{path}: has no signature 'score_tokens'; it was not exported by kerasllm")
        extra = self.path / "assets.extra"
        self.tokenizer = load_tokenizer(extra)
        content = read_json(extra / "config.json")
        config = content.get("config") if isinstance(content, dict) else None
        if not isinstance(config, dict) or "vocabulary_size" not in config:
            raise InputError(f"{extra / 'config.json'}: is no model's description; export it anew")
        if self.tokenizer.vocabulary_size != config["vocabulary_size"]:
            raise InputError(
                f"{path}: the model has {config['vocabulary_size']} tokens but its tokenizer "
                f"{self.tokenizer.vocabulary_size}; export it anew"
            )
        self.context_length: int | None = config.get("max_sequence_length")

    def generate(
        self,
        prompts: str | Sequence[str],
        *,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> Any:
        """Continue prompts; the uniform numbers are TensorFlow's own.

        The options are those of `kerasllm.generate`, but for `min_p`, `repetition_penalty`, `stop` and `jit_compile`,
        which the file lacks.

        Returns:
            The continuation without the prompt: a string for one prompt, a list for several.

        Raises:
            InputError: A prompt does not fit the context, or an option is out of range.
        """
        rows = [prompts] if isinstance(prompts, str) else list(prompts)
        text = self._generate(rows, max_new_tokens, temperature, top_k, top_p, seed)["text"].numpy()
        texts = [value.decode() for value in text]
        return texts[0] if isinstance(prompts, str) else texts

    def tokens(self, prompts: Sequence[str], max_new_tokens: int) -> np.ndarray:
        """Greedy continuations as int32 `(batch, max_new_tokens)`; after an end token there are only end tokens."""
        return self._generate(list(prompts), max_new_tokens, 0.0, 0, 1.0, 0)["tokens"].numpy()

    def logits(self, tokens: Sequence[int]) -> np.ndarray:
        """Logits after every token of a text: float32 `(length, vocabulary_size)`."""
        return self._call("logits", tokens=np.array([tokens], "int32"))["logits"].numpy()[0]

    def score_tokens(self, tokens: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Log probability of targets and most likely tokens, as `kerasllm.generation.score_windows`."""
        outputs = self._call("score_tokens", tokens=tokens.astype("int32"), targets=targets.astype("int32"))
        return outputs["log_probs"].numpy(), outputs["top_1"].numpy()

    def score(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """`log_probability`, `token_count` and `byte_count` of each text, `(batch,)` each."""
        return {name: value.numpy() for name, value in self._call("score", text=_strings(texts)).items()}

    def _generate(self, rows: list[str], count: int, temperature: float, top_k: int, top_p: float, seed: int) -> Any:
        for name, value in (("max_new_tokens", count), ("top_k", top_k), ("seed", seed)):
            if not 0 <= value < 2**31:
                raise InputError(f"{name} must be at least 0 and at most {2**31 - 1}, received {value}")
        return self._call(
            "generate",
            text=_strings(rows),
            max_new_tokens=np.int32(count),
            temperature=np.float32(temperature),
            top_k=np.int32(top_k),
            top_p=np.float32(top_p),
            seed=np.int32(seed),
        )

    def _call(self, signature: str, **inputs: Any) -> Any:
        import tensorflow as tf

        try:
            return self._signatures[signature](**{name: tf.constant(value) for name, value in inputs.items()})
        except tf.errors.InvalidArgumentError as error:
            # The graph's own message is the first of those that an assertion carries.
            found = re.search(r"assertion failed: \[([^\]]*)\]", error.message)
            message = found[1] if found else error.message.splitlines()[0]
            shorter = "shorten the prompt or lower max_new_tokens" if signature == "generate" else "give fewer tokens"
            raise InputError(f"{message.strip()}{f'; {shorter}' if 'context' in message else ''}") from None


def _strings(texts: Sequence[str]) -> np.ndarray:
    return np.array([valid_unicode(text) for text in texts], object)
