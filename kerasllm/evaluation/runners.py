"""Anything that can continue and score text, opened by path: Keras models, SavedModels and TFLite files alike."""

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from kerasllm.errors import InputError
from kerasllm.folder import find

if TYPE_CHECKING:
    from kerasllm.models import LanguageModel
    from kerasllm.text import Tokenizer


class Runner(Protocol):
    """What `KerasModel`, `kerasllm.serving.ServedModel` and `kerasllm.edge.EdgeModel` have in common."""

    tokenizer: Any
    context_length: int | None
    """Most tokens that the model can see; None where there is no limit."""

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
        """Continue prompts: `max_new_tokens`, `temperature`, `top_k`, `top_p`, `seed`."""

    def score_tokens(self, tokens: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Log probabilities and most likely tokens."""


class KerasModel:
    """A Keras model and its tokenizer as a `Runner`.

    Args:
        model: A language model.
        tokenizer: Its tokenizer.
    """

    def __init__(self, model: "LanguageModel", tokenizer: "Tokenizer") -> None:
        self.model, self.tokenizer = model, tokenizer
        self.context_length = model.max_sequence_length

    def generate(self, prompts: str | Sequence[str], **options: Any) -> Any:
        """`kerasllm.generate`."""
        from kerasllm.generation import generate

        return generate(self.model, self.tokenizer, prompts, **options)

    def stream(self, prompt: str | Sequence[int], **options: Any) -> Iterator[str]:
        """`kerasllm.stream`."""
        from kerasllm.generation import stream

        return stream(self.model, self.tokenizer, prompt, **options)

    def generate_sequences(self, prompts: Sequence[Any], **options: Any) -> Any:
        """`kerasllm.generation.generate_sequences`."""
        from kerasllm.generation import generate_sequences

        return generate_sequences(self.model, self.tokenizer, prompts, **options)

    def score_tokens(self, tokens: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """`kerasllm.generation.score_windows`.

        Raises:
            InputError: The model sees what it is to predict.
        """
        from kerasllm.generation import score_windows

        if not getattr(self.model.config, "causal", True):
            raise InputError(
                "a bidirectional model has no perplexity: it sees what it is to predict; give a causal one"
            )
        return score_windows(self.model, tokens, targets)


def open_model(path_or_name: str | os.PathLike[str]) -> Runner:
    """Open what `kerasllm.load` takes, or a `.tflite` file.

    Args:
        path_or_name: A path, or the name of a published model, which runs as its SavedModel.

    Raises:
        InputError: There is no such thing, or it is damaged.
    """
    path = find(path_or_name)
    if path.suffix == ".tflite" and path.is_file():
        from kerasllm.edge import EdgeModel

        return EdgeModel(path)
    for folder in (path, path / "1"):
        if (folder / "saved_model.pb").is_file():
            from kerasllm.serving import ServedModel

            return ServedModel(folder)
    from kerasllm.folder import load

    return KerasModel(*load(path))


def documents(texts: Iterable[str], tokenizer: Any) -> Iterator[np.ndarray]:
    """Token ids of each text as `bos tokens eos`, int32.

    Args:
        texts: The texts.
        tokenizer: The tokenizer of the model that is to score them.
    """
    for text in texts:
        yield np.array([tokenizer.bos_id, *tokenizer.encode(text), tokenizer.eos_id], "int32")
