"""Byte-level byte-pair encoding of GPT-2, SmolLM2 and Llama 3.

Sennrich et al., arXiv:1508.07909; on bytes: Radford et al., Language Models are Unsupervised Multitask Learners, 2019.
"""

import functools
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import tokenizers
from tokenizers import processors

from kerasllm.errors import InputError
from kerasllm.text.bpe_files import (
    ENDS,
    LARGEST,
    PRE_TOKENIZERS,
    Parts,
    byte_alphabet,
    library_tokenizer,
    read_files,
    read_gguf,
    read_tokenizer_json,
    token_bytes,
)
from kerasllm.text.tokenizer import Tokenizer, valid_unicode

if TYPE_CHECKING:
    import tensorflow as tf

_VOCABULARY, _MERGES = "vocabulary.json", "merges.txt"
_USUAL_BEGINNINGS = ("<|begin_of_text|>", "<|endoftext|>")
_USUAL_ENDS = ("<|end_of_text|>", "<|endoftext|>")
_NEEDED = {9, 10, *range(0x20, 0x7F), *range(0x80, 0xC0), *range(0xC2, 0xF1)}
_VALID = {*range(0x80), *range(0x80, 0xC0), *range(0xC2, 0xF5)}  # bytes that UTF-8 has


class BytePairTokenizer(Tokenizer):
    """Words as bytes, which are merged pair by pair, the pair that is first in a list first.

    Both faces give the ids of the `tokenizers` library, and with it of transformers. The graph face needs TensorFlow
    alone (no `import tensorflow_text`), and takes what is a letter, a digit or a blank from a table that is made with
    that library, so that no two versions of Unicode meet.

    Special tokens in a text, such as `<|im_start|>`, are read as such, and decoding leaves them out; with that
    exception (a text that spells them), `lossless` is true. A vocabulary may lack single bytes (that of SmolLM2 has no
    token for six control characters and two bytes of unassigned planes): they vanish, as in the library, and `lossless`
    is false.

    Attributes:
        tokens: The vocabulary; the place of a token is its id. An empty string is an id without a token.
        merges: Two tokens a string, a blank between them.
        special_tokens: Tokens that are found in a text and vanish in decoding.
        user_tokens: Tokens that are found in a text and stay in decoding.
        pre_tokenizer: How a text is split into words: "gpt-2", "smollm" or "llama-bpe".
    """

    file_names = (_VOCABULARY, _MERGES)
    unk_id = None

    def __init__(
        self,
        tokens: Sequence[str],
        merges: Sequence[str],
        *,
        pre_tokenizer: str = "gpt-2",
        special_tokens: Sequence[str] = (),
        user_tokens: Sequence[str] = (),
        bos_token: str | None = None,
        eos_token: str | None = None,
        add_bos: bool = False,
        stop_ids: Sequence[int] = (),
        chat_template: str | None = None,
        ignore_merges: bool = False,
        vocabulary_size: int | None = None,
    ) -> None:
        """Use a vocabulary.

        Args:
            tokens: The token of each id, in the alphabet of `byte_alphabet`.
            merges: Two tokens a string, a blank between them, the most important one first.
            pre_tokenizer: "gpt-2", "smollm" (single digits) or "llama-bpe".
            special_tokens: Tokens that are found in a text and vanish in decoding.
            user_tokens: Tokens that are found in a text and stay in decoding.
            bos_token: A token, which becomes special. None is `<|begin_of_text|>`, `<|endoftext|>` or `eos_token`.
            eos_token: A token, which becomes special. None is `<|end_of_text|>` or `<|endoftext|>`.
            add_bos: Whether a prompt starts with bos.
            stop_ids: More tokens that generation stops at, beside those special ones that are known to end a text.
            chat_template: Jinja template.
            ignore_merges: Whether a word that is a token needs no merges (Llama 3).
            vocabulary_size: Number of ids, if a model has more than there are tokens.

        Raises:
            InputError: The vocabulary lacks bytes or what a merge makes, or a token or setting is impossible.
        """
        self.tokens, self.merges = list(tokens), list(merges)
        self.pre_tokenizer, self.add_bos, self.chat_template = pre_tokenizer, add_bos, chat_template
        self._ignore_merges, self._stop_ids = ignore_merges, list(stop_ids)
        self.vocabulary_size = len(self.tokens) if vocabulary_size is None else vocabulary_size
        self._ids = _index(self.tokens)
        _check_merges(self.merges, self._ids)
        self._check_settings()
        known = [*special_tokens, *user_tokens]
        eos_token = eos_token or next((token for token in _USUAL_ENDS if token in known), None)
        bos_token = bos_token or next((token for token in _USUAL_BEGINNINGS if token in known), eos_token)
        named = [token for token in (bos_token, eos_token) if token is not None]
        if len(named) < 2:
            raise InputError("eos_token: the vocabulary has none of the usual ones; name it")
        for token in [*known, *named]:
            if not isinstance(token, str) or token not in self._ids:
                raise InputError(f"vocabulary: lacks the token {token!r:.50}; add it, or name one that it has")
        self.special_tokens = sorted({*special_tokens, *named}, key=self._ids.__getitem__)
        self.user_tokens = sorted({*user_tokens} - {*self.special_tokens}, key=self._ids.__getitem__)
        self.bos_id, self.eos_id = (self._ids[token] for token in named)
        self._stop_ids = [i for i in dict.fromkeys(self._stop_ids) if i not in self._ends]
        self.lossless = all(byte_alphabet()[byte] in self._ids for byte in _VALID)
        hidden = set(self.special_tokens)
        self._bytes = [b"" if token in hidden else token_bytes(token) for token in self.tokens]
        self._tokenizer = self._build()

    def _check_settings(self) -> None:
        for name, value in (("add_bos", self.add_bos), ("ignore_merges", self._ignore_merges)):
            if not isinstance(value, bool):
                raise InputError(f"{name}: {value!r:.50} must be true or false")
        if self.pre_tokenizer not in PRE_TOKENIZERS:
            raise InputError(f"pre_tokenizer: {self.pre_tokenizer!r:.50} is none of {', '.join(PRE_TOKENIZERS)}")
        if self.chat_template is not None and not isinstance(self.chat_template, str):
            raise InputError(f"chat_template: {self.chat_template!r:.50} must be a string")
        size = self.vocabulary_size
        if type(size) is not int or not len(self.tokens) <= size <= LARGEST:
            raise InputError(
                f"vocabulary_size: {size!r:.50} must be a number from {len(self.tokens)} (the tokens) to {LARGEST}"
            )
        for i in self._stop_ids:
            if type(i) is not int or not 0 <= i < size:
                raise InputError(f"stop_ids: {i!r:.50} is not one of the {size} ids")

    def _build(self) -> tokenizers.Tokenizer:
        return library_tokenizer(
            self.tokens, self.merges, self.special_tokens, self.user_tokens, self.pre_tokenizer, self._ignore_merges
        )

    @classmethod
    def from_files(
        cls, vocabulary: bytes, merges: bytes, *, added_tokens: Mapping[str, int] | None = None, **settings: Any
    ) -> Self:
        """Read `vocab.json` and `merges.txt`, GPT-2's own files.

        Args:
            vocabulary: `vocab.json`; known tokens that end a text are special in it.
            merges: `merges.txt`.
            added_tokens: Ids of special tokens that may be missing from the vocabulary (`added_tokens.json`).
            settings: See the class.

        Returns:
            The tokenizer.

        Raises:
            InputError: A file is broken, or see the class.
        """
        return cls._of(read_files(vocabulary, merges, added_tokens or {}), settings)

    @classmethod
    def from_tokenizer_json(cls, content: Mapping[str, Any], **settings: Any) -> Self:
        """Take over the `tokenizer.json` of the `tokenizers` library.

        Args:
            content: The parsed file.
            settings: See the class; they win over the file. `tokenizer_config.json` knows `bos_token`, `eos_token`
                and `chat_template`.

        Returns:
            The tokenizer.

        Raises:
            InputError: It is not this kind of tokenizer; the message says what differs.
        """
        return cls._of(read_tokenizer_json(content), settings)

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any], **settings: Any) -> Self:
        """Take over the tokenizer in the metadata of a GGUF file.

        Args:
            metadata: Values by key, of which those that start with `tokenizer.` count.
            settings: See the class; they win over the file.

        Returns:
            The tokenizer.

        Raises:
            InputError: It is not this kind of tokenizer, or a part is missing or impossible.
        """
        return cls._of(read_gguf(metadata), settings)

    @classmethod
    def _of(cls, parts: Parts, settings: Mapping[str, Any]) -> Self:
        # A setting that is None says nothing, or it would hide what a file knows.
        given = {name: value for name, value in settings.items() if value is not None}
        return cls(parts.tokens, parts.merges, **{**parts.settings, **given})

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """See `Tokenizer.stop_ids`; special tokens that are known to end a text or a turn are among them."""
        return (*self._ends, *self._stop_ids)

    @functools.cached_property
    def _ends(self) -> tuple[int, ...]:
        """The end token, and the special ones that are known to end a text or a turn.

        `_stop_ids` has none of them, although a file may name all: the fingerprint says where a tokenizer stops.
        """
        known = [self._ids[token] for token in ENDS if token in self.special_tokens]
        return tuple(dict.fromkeys([self.eos_id, *known]))

    def encode(self, text: str) -> list[int]:
        """See `Tokenizer.encode`; special tokens in the text become their ids."""
        return self._tokenizer.encode(valid_unicode(text), add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """See `Tokenizer.decode`; special tokens vanish."""
        count = len(self._bytes)
        return b"".join([self._bytes[i] for i in ids if 0 <= i < count]).decode(errors="replace")

    def tokenize(self, texts: "tf.Tensor") -> "tf.RaggedTensor":
        """See `Tokenizer.tokenize`."""
        import tensorflow as tf

        with tf.device("/CPU:0"):
            return self._graph.tokenize(texts)

    def detokenize(self, ids: "tf.RaggedTensor") -> "tf.Tensor":
        """See `Tokenizer.detokenize`."""
        import tensorflow as tf

        with tf.device("/CPU:0"):
            return self._graph.detokenize(ids)

    def trackables(self) -> list[Any]:
        """See `Tokenizer.trackables`."""
        return self._graph.tables

    def to_huggingface(self) -> dict[str, bytes]:
        """Files, by name, from which `transformers.AutoTokenizer` makes the same tokenizer."""
        bos, eos = self.tokens[self.bos_id], self.tokens[self.eos_id]
        tokenizer = self._build()
        if self.add_bos:
            tokenizer.post_processor = processors.TemplateProcessing(
                single=[bos, "$A"], pair=[bos, "$A", bos, "$B:1"], special_tokens=[(bos, self.bos_id)]
            )
        config: dict[str, Any] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": bos,
            "eos_token": eos,
            "clean_up_tokenization_spaces": False,
            **({} if self.chat_template is None else {"chat_template": self.chat_template}),
        }
        files = {"tokenizer_config.json": config}
        if len(self.stop_ids) > 1:  # or else config.json says it
            files["generation_config.json"] = {"bos_token_id": self.bos_id, "eos_token_id": list(self.stop_ids)}
        written = {name: json.dumps(value, ensure_ascii=False, indent=2).encode() for name, value in files.items()}
        return {"tokenizer.json": tokenizer.to_str(pretty=True).encode(), **written}

    @functools.cached_property
    def _graph(self) -> Any:
        from kerasllm.text.bpe_graph import BytePairGraph

        return BytePairGraph(self)

    def _settings(self) -> dict[str, Any]:
        return {
            "pre_tokenizer": self.pre_tokenizer,
            "special_tokens": self.special_tokens,
            "user_tokens": self.user_tokens,
            "bos_token": self.tokens[self.bos_id],
            "eos_token": self.tokens[self.eos_id],
            "add_bos": self.add_bos,
            "stop_ids": self._stop_ids,
            "chat_template": self.chat_template,
            "ignore_merges": self._ignore_merges,
            "vocabulary_size": self.vocabulary_size,
        }

    def _files(self) -> dict[str, bytes]:
        vocabulary = json.dumps(self.tokens, ensure_ascii=False, indent=0)
        return {_VOCABULARY: vocabulary.encode(), _MERGES: "".join(f"{merge}\n" for merge in self.merges).encode()}

    @classmethod
    def _restore(cls, settings: dict[str, Any], files: dict[str, bytes]) -> Self:
        tokens = json.loads(files[_VOCABULARY])
        if not isinstance(tokens, list):
            raise InputError(f"{_VOCABULARY}: is no list of tokens")
        return cls(tokens, files[_MERGES].decode().split("\n")[:-1], **settings)


def _index(tokens: Sequence[str]) -> dict[str, int]:
    """Id by token."""
    if len(tokens) > LARGEST:
        raise InputError(f"vocabulary: {len(tokens)} tokens are too many; give at most {LARGEST}")
    ids: dict[str, int] = {}
    for i, token in enumerate(tokens):
        if not isinstance(token, str) or valid_unicode(token) != token:
            raise InputError(f"vocabulary: {token!r:.50}, token {i}, is no text; get the tokenizer anew")
        if token and ids.setdefault(token, i) != i:
            raise InputError(f"vocabulary: {token!r:.50} is token {ids[token]} and {i}; get the tokenizer anew")
    if missing := [byte for byte in sorted(_NEEDED) if byte_alphabet()[byte] not in ids]:
        raise InputError(
            f"vocabulary: lacks the token for byte {missing[0]} and {len(missing) - 1} more; give a byte-level one"
        )
    return ids


def _check_merges(merges: Sequence[str], ids: Mapping[str, int]) -> None:
    """Refuse a merge of, or into, what is no token."""
    alphabet = set(byte_alphabet())
    for number, merge in enumerate(merges):
        pair = merge.split(" ") if isinstance(merge, str) else ()
        if len(pair) != 2 or not all(pair):
            raise InputError(f"merges: {merge!r:.50}, number {number}, is no pair of tokens; get the tokenizer anew")
        made = "".join(pair)
        for token in (*pair, made):
            if token not in ids:
                raise InputError(f"merges: {merge!r:.50}, number {number}, needs {token!r:.50}, which is no token")
        if not alphabet.issuperset(made):
            raise InputError(f"merges: {merge!r:.50}, number {number}, has characters that stand for no byte")
    if len(set(merges)) != len(merges):
        raise InputError("merges: one occurs twice; get the tokenizer anew")
