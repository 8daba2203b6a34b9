"""From messages to token ids, so that no message can spell a control token."""

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kerasllm.chat.templates import checked, render_conversations
from kerasllm.errors import InputError
from kerasllm.text.tokenizer import valid_unicode

if TYPE_CHECKING:
    from kerasllm.text import Tokenizer

PLAIN_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message.role | capitalize }}: {{ message.content | trim }}"
    "{{ '\\n' }}{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)
"""For models that bring no template: a line for each message."""

_BOS, _EOS = "<s>", "</s>"
_MARKUP = re.compile(r"<[^<>\s]{1,64}>")
_PRIVATE = (*range(0xE000, 0xF900), *range(0xF0000, 0xFFFFE), *range(0x100000, 0x10FFFE))


class ChatPrompts:
    """Token ids of conversations.

    Whatever a message holds, its text is text: where it spells a control token (`<|im_end|>`), a private character is
    put into that spelling before the template is rendered, and behind it the rendered text is cut there, so that the
    tokenizer is given both halves one after the other. All other text is encoded in one piece, as the reference does.

    Attributes:
        template: The template in use.
        plain: Whether it is `PLAIN_TEMPLATE`, the model having none.
        stop: Strings that end an answer, beside the tokenizer's stop tokens.
    """

    def __init__(self, tokenizer: "Tokenizer", template: str | None = None) -> None:
        """Use a template.

        Args:
            tokenizer: The model's tokenizer.
            template: Jinja; the tokenizer's `chat_template` or else `PLAIN_TEMPLATE` where `None`.
        """
        self._tokenizer = tokenizer
        template = tokenizer.chat_template if template is None else template
        self.plain = template is None
        self.template = PLAIN_TEMPLATE if template is None else template
        self.stop = ("\nUser:",) if self.plain else ()
        self._read_specials()

    def _read_specials(self) -> None:
        """Which strings mean a token: those that `encode` knows itself, and those that are ours to replace."""
        tokenizer: Any = self._tokenizer
        known = getattr(tokenizer, "special_tokens", None)
        self._replaced: dict[str, int] = {}
        if isinstance(known, list):
            self._bos, self._eos = (tokenizer.tokens[i] for i in (tokenizer.bos_id, tokenizer.eos_id))
            # A token that is no special one may be plain text, such as a run of blanks; what the template uses counts.
            used = [token for token in tokenizer.user_tokens if token.strip() and token in self.template]
            self._parsed = [token for token in (*known, *used) if len(token) > 1]
            return
        self._bos, self._eos = _BOS, _EOS
        self._replaced = {_BOS: tokenizer.bos_id, _EOS: tokenizer.eos_id}
        found = dict.fromkeys(_MARKUP.findall(self.template))
        self._parsed = [text for text in found if text not in self._replaced and self._is_token(text)]

    def _is_token(self, text: str) -> bool:
        ids = self._tokenizer.encode(text)
        return bool(ids) and self._tokenizer.decode(ids[-1:]).strip() == text

    def render(
        self, conversations: Sequence[Sequence[Mapping[str, str]]], *, add_generation_prompt: bool = True
    ) -> list[str]:
        """The texts of conversations.

        Args:
            conversations: Lists of messages, each with `role` and `content`.
            add_generation_prompt: End with what stands before an answer.

        Returns:
            A text for each.

        Raises:
            InputError: See `kerasllm.chat.render`.
        """
        bos = self._bos if self._tokenizer.add_bos or not self.plain else ""
        variables = {"add_generation_prompt": add_generation_prompt, "bos_token": bos, "eos_token": self._eos}
        return render_conversations(self.template, conversations, variables, trusted=self.plain)

    def ids(
        self, conversations: Sequence[Sequence[Mapping[str, str]]], *, add_generation_prompt: bool = True
    ) -> Iterable[list[int]]:
        """Token ids of conversations, computed one after the other as they are asked for.

        Args:
            conversations: See `render`.
            add_generation_prompt: See `render`.

        Returns:
            The ids of each, without any that the template does not write.

        Raises:
            InputError: See `render`, or the template writes nothing.
        """
        conversations = [checked(messages) for messages in conversations]
        mark = self._mark(conversations)
        names = [*self._parsed, *self._replaced]
        guarded = [
            [{**message, "content": _guarded(message["content"], names, mark)} for message in messages]
            for messages in conversations
        ]
        texts = self.render(guarded, add_generation_prompt=add_generation_prompt)
        return (self._encode(text, mark) for text in texts)

    def _mark(self, conversations: Sequence[Sequence[Mapping[str, str]]]) -> str:
        """A character that occurs nowhere."""
        used = set(self.template).union(*(m["content"] for messages in conversations for m in messages))
        for code in _PRIVATE:
            if chr(code) not in used:
                return chr(code)
        raise InputError("message: holds every private character of Unicode; leave one out")

    def _encode(self, text: str, mark: str) -> list[int]:
        ids: list[int] = []
        pattern = "|".join(map(re.escape, self._replaced))
        for segment in re.split(f"({pattern})", text) if pattern else [text]:
            if segment in self._replaced:
                ids.append(self._replaced[segment])
                continue
            for piece in _pieces(segment, self._parsed, mark):
                ids += self._tokenizer.encode(piece)
        if not ids:
            raise InputError("chat template: writes nothing; use another one")
        return ids


def _guarded(content: str, names: Sequence[str], mark: str) -> str:
    """A message with a mark within every spelling of a control token, and where a template's text may complete one."""
    content = valid_unicode(content)
    cuts = {start + 1 for start, _ in _spans(content, names)}
    core = content.strip()
    start = len(content) - len(content.lstrip())
    # Within the blanks, or a template could not trim them.
    if any(core.startswith(name[n:]) for name in names for n in range(1, len(name))):
        cuts.add(start)
    if any(core.endswith(name[:n]) for name in names for n in range(1, len(name))):
        cuts.add(start + len(core))
    return mark.join(_split(content, cuts))


def _pieces(text: str, names: Sequence[str], mark: str) -> list[str]:
    """A rendered text without marks, cut at those that stand within the spelling of a control token."""
    parts = text.split(mark)
    text, marks = "".join(parts), list(itertools.accumulate(map(len, parts[:-1])))
    if not marks:
        return [text]
    spans = _spans(text, names)
    return _split(text, {at for at in marks if any(start < at < end for start, end in spans)})


def _spans(text: str, names: Sequence[str]) -> list[tuple[int, int]]:
    """Begin and end of every occurrence of names, overlapping ones too."""
    return [
        (match.start(), match.start() + len(name))
        for name in names
        if name in text
        for match in re.finditer(f"(?={re.escape(name)})", text)
    ]


def _split(text: str, cuts: Iterable[int]) -> list[str]:
    places = [0, *sorted(cuts), len(text)]
    return [text[begin:end] for begin, end in zip(places, places[1:], strict=False)]
