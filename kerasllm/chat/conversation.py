"""A conversation with any runner that takes token ids."""

import inspect
from collections.abc import Generator, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from kerasllm import stopping
from kerasllm.chat.prompts import ChatPrompts
from kerasllm.errors import InputError
from kerasllm.text.tokenizer import valid_unicode

if TYPE_CHECKING:
    from kerasllm.text import Tokenizer

_NEW_TOKENS = 256
_BATCH = 8  # shorter and shorter histories that are rendered together


class Chat:
    """A conversation: what was said, and the next answer.

    Each answer is drawn from the whole history, which is read anew: no cache is kept from turn to turn. What no longer
    fits the context is forgotten in whole turns, the oldest first; the system message stays.

        chat = Chat(*kerasllm.load("smollm2-135m-instruct"), system="Answer briefly.")
        for piece in chat.stream("What is the capital of France?"):
            print(piece, end="", flush=True)

    Attributes:
        prompts: How messages become token ids.
        max_new_tokens: Most tokens in an answer.
        context_length: Most tokens that the model can see; None where there is no limit.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: "Tokenizer | None" = None,
        *,
        system: str | None = None,
        template: str | None = None,
        max_new_tokens: int | None = None,
        seed: int = 0,
        stop: str | Sequence[str] = (),
        **options: Any,
    ) -> None:
        """Begin a conversation.

        Args:
            model: A language model of Keras, a `kerasllm.edge.EdgeModel` or a `kerasllm.evaluation.KerasModel`.
            tokenizer: The model's; the one that the model carries where `None`.
            system: The system message; the template's own, if it has one, where `None`.
            template: Jinja; the tokenizer's `chat_template`, or else a plain one, where `None`.
            max_new_tokens: Most tokens in an answer, for which room is kept in the context; 256, or half the context
                if that is less, where `None`.
            seed: Of the uniform numbers; turn n (from 0) draws from `seed + n`.
            stop: Strings before which an answer ends, beside the template's and the tokenizer's stop tokens.
            **options: Those of `kerasllm.stream` or `EdgeModel.stream`, such as `temperature`, `top_k`, `top_p` and
                `min_p`.

        Raises:
            InputError: The model cannot continue token ids, it has no such option, the template is broken or refuses
                the system message, or nothing fits the context.
        """
        if tokenizer is None:
            tokenizer, model = getattr(model, "tokenizer", None), getattr(model, "model", model)
        if tokenizer is None:
            raise InputError("a Keras model carries no tokenizer; give it as the second argument")
        self.context_length: int | None = _context_length(model)
        _check_options(model, options)
        self._model, self._tokenizer, self._seed, self._options = model, tokenizer, seed, options
        self.prompts = ChatPrompts(tokenizer, template)
        self._stop = [*stopping.strings(stop), *self.prompts.stop]
        half = _NEW_TOKENS if self.context_length is None else max(1, min(_NEW_TOKENS, self.context_length // 2))
        self.max_new_tokens = half if max_new_tokens is None else max_new_tokens
        if self.max_new_tokens < 1:
            raise InputError(f"max_new_tokens must be at least 1, received {self.max_new_tokens}")
        if self.context_length is not None and self.max_new_tokens >= self.context_length:
            raise InputError(
                f"{self.max_new_tokens} new tokens leave no room for a message in the context of "
                f"{self.context_length}; lower max_new_tokens"
            )
        self._turns: list[tuple[str, str]] = []
        self._count = 0
        self._system: str | None = None
        self.set_system(system)

    @property
    def messages(self) -> list[dict[str, str]]:
        """What the model has before it: the system message and the turns that are not forgotten."""
        return _messages(self._system, self._turns)

    def set_system(self, text: str | None) -> None:
        """Change the system message from the next answer on.

        Args:
            text: The message; None for the template's own.

        Raises:
            InputError: The template refuses it, or it does not fit the context. The message stays what it was.
        """
        text = None if text is None else valid_unicode(text)
        self._fitting(text, [], "a")
        self._system = text

    def reset(self) -> None:
        """Forget all turns."""
        self._turns, self._count = [], 0

    def reply(self, text: str) -> str:
        """Say something and wait for the answer.

        Args:
            text: What the user says.

        Returns:
            The answer.

        Raises:
            InputError: See `stream`.
        """
        return "".join(self.stream(text))

    def stream(self, text: str) -> Generator[str, None, None]:
        """Say something and get the answer as it comes; what was said is kept even if one stops listening.

        Args:
            text: What the user says.

        Returns:
            Pieces of the answer.

        Raises:
            InputError: The message does not fit the context beside `max_new_tokens`, or an option is out of range. It
                is as if nothing had been said.
        """
        text = valid_unicode(text)
        self._turns, ids = self._fitting(self._system, self._turns, text)
        return self._answer(text, ids)

    def _answer(self, text: str, ids: list[int]) -> Generator[str, None, None]:
        options = {"max_new_tokens": self.max_new_tokens, "seed": self._seed + self._count, "stop": self._stop}
        said, complete = "", False
        try:
            for piece in _stream(self._model, self._tokenizer, ids, {**self._options, **options}):
                # The plain template ends before the blank that separates an answer from its name.
                piece = piece.lstrip() if self.prompts.plain and not said else piece
                said += piece
                if piece:
                    yield piece
            complete = True
        finally:
            if said or complete:
                self._turns.append((text, said))
                self._count += 1

    def _fitting(
        self, system: str | None, turns: list[tuple[str, str]], text: str
    ) -> tuple[list[tuple[str, str]], list[int]]:
        """As many of the latest turns as fit, and the token ids of them and the message."""
        message = {"role": "user", "content": text}
        room = None if self.context_length is None else self.context_length - self.max_new_tokens
        count, start, size = 0, 0, 1  # most often all of them fit
        while start <= len(turns):
            histories = [turns[place:] for place in range(start, min(start + size, len(turns) + 1))]
            conversations = [[*_messages(system, history), message] for history in histories]
            for history, ids in zip(histories, self.prompts.ids(conversations), strict=True):
                if room is None or len(ids) <= room:
                    return history, ids
                count = len(ids)
            start, size = start + len(histories), _BATCH
        what = "the message" if system is None else "system message and message"
        raise InputError(
            f"{what}: {count} tokens with the template's do not fit the context of {self.context_length}, which has "
            f"room for {room} beside {self.max_new_tokens} new ones; shorten it or lower max_new_tokens"
        )


def _messages(system: str | None, turns: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
    first = [] if system is None else [{"role": "system", "content": system}]
    said = [
        {"role": role, "content": text}
        for turn in turns
        for role, text in zip(("user", "assistant"), turn, strict=True)
    ]
    return [*first, *said]


def _context_length(model: Any) -> int | None:
    """The context of a runner that can continue token ids."""
    if hasattr(model, "max_sequence_length"):
        if not getattr(model.config, "causal", True):
            raise InputError("a bidirectional model cannot continue text; use one with causal true")
        return model.max_sequence_length
    if hasattr(model, "stream"):
        return model.context_length
    path = getattr(model, "path", type(model).__name__)
    raise InputError(
        f"{path}: takes texts, not token ids, which chat needs; use kerasllm.load(path), a .tflite file or a checkpoint"
    )


def _check_options(model: Any, options: dict[str, Any]) -> None:
    """Refuse options that the runner does not have, now and not at the first answer."""
    if hasattr(model, "max_sequence_length"):
        from kerasllm.generation import generate, stream

        # `stream` hands its options on to what `generate` spells out.
        known = [*_parameters(generate), *(one for one in _parameters(stream) if one.kind is one.KEYWORD_ONLY)]
    else:
        known = _parameters(model.stream)
    names = [one.name for one in known if one.kind is one.KEYWORD_ONLY]
    free = any(one.kind is one.VAR_KEYWORD for one in known)
    if not free and (unknown := sorted(options.keys() - {*names})):
        raise InputError(f"{unknown[0]}: is no option of a chat with this model; known are {', '.join(names)}")


def _parameters(function: Any) -> list[inspect.Parameter]:
    return list(inspect.signature(function).parameters.values())


def _stream(model: Any, tokenizer: Any, ids: list[int], options: dict[str, Any]) -> Iterator[str]:
    if not hasattr(model, "max_sequence_length"):
        return model.stream(ids, **options)
    from kerasllm.generation import stream

    return stream(model, tokenizer, ids, **options)
