"""Word pieces of BERT (Devlin et al., arXiv:1810.04805; greedy longest match first, Song et al., arXiv:2012.15524)."""

import functools
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from kerasllm.errors import InputError
from kerasllm.text.pairs import longest_first, room_for_text
from kerasllm.text.tokenizer import Tokenizer, valid_unicode
from kerasllm.text.wordpiece_graph import WordPieceGraph, keep
from kerasllm.text.wordpiece_json import LARGEST, SPECIALS, read_tokenizer_json

if TYPE_CHECKING:
    import tensorflow as tf

_VOCABULARY = "vocab.txt"
_PREFIX = "##"
# What Unicode calls white space; Python adds four control characters.
_BLANKS = "".join(c for c in map(chr, range(0x3001)) if c.isspace() and not "\x1c" <= c <= "\x1f")
_LONGEST_TOKEN = 256  # bytes; what the op of TensorFlow Text takes


class WordPieceTokenizer(Tokenizer):
    """Pieces of words as BERT has them: `play ##ing`; blanks, and what cleaning and lower-casing remove, are lost.

    Both faces give the ids of the `tokenizers` library, and with it of transformers' BertTokenizerFast. The graph face
    takes what happens to each character (cleaning, accents, case, punctuation) from a table that is made with that
    library, and pieces from the op of TensorFlow Text: a program that loads a SavedModel with this tokenizer needs
    `import tensorflow_text`. One thing the table cannot do is to reorder several combining marks on one letter; it
    changes ids only if a vocabulary has pieces with spacing marks of two combining classes.

    Special tokens in a text, such as `[MASK]`, are read as such; an unknown word, and one of more than 100 characters,
    is `[UNK]`. Decoding leaves all special tokens out.

    Attributes:
        tokens: The vocabulary; the place of a token is its id, and an empty string stands where there is none.
        special_tokens: The token for each of "unk", "sep", "pad", "cls" and "mask".
        pad_id: Fills rows of a batch.
        cls_id: `[CLS]`, the same as `bos_id`.
        sep_id: `[SEP]`, the same as `eos_id`.
        mask_id: `[MASK]`.
    """

    file_names = (_VOCABULARY,)
    lossless = False

    def __init__(
        self,
        tokens: Sequence[str],
        *,
        lowercase: bool = True,
        strip_accents: bool | None = None,
        chinese_characters: bool = True,
        clean_text: bool = True,
        max_word_length: int = 100,
        special_tokens: Mapping[str, str] | None = None,
        extra_special_tokens: Sequence[str] = (),
        vocabulary_size: int | None = None,
    ) -> None:
        """Use a vocabulary.

        Args:
            tokens: The token of each id; pieces inside of words start with `##`. Of equal tokens the last counts.
            lowercase: Lower-case the text.
            strip_accents: Remove accents. None does it where `lowercase` does.
            chinese_characters: Make each Chinese character a word.
            clean_text: Remove control characters.
            max_word_length: A longer word, in characters, is unknown.
            special_tokens: Others than BERT's for any of "unk", "sep", "pad", "cls" and "mask".
            extra_special_tokens: More tokens that are taken from a text as they stand there.
            vocabulary_size: Number of ids, if a model has more than there are tokens.

        Raises:
            InputError: A special token is not in the vocabulary, or a token or setting is impossible.
        """
        self.tokens = list(tokens)
        self.special_tokens = {**SPECIALS, **(special_tokens or {})}
        self._options: dict[str, Any] = {
            "lowercase": lowercase,
            "strip_accents": strip_accents,
            "chinese_characters": chinese_characters,
            "clean_text": clean_text,
            "max_word_length": max_word_length,
        }
        self._extra = list(extra_special_tokens)
        self._ids = {token: i for i, token in enumerate(self.tokens)}
        self._check(vocabulary_size)
        self.vocabulary_size = len(self.tokens) if vocabulary_size is None else vocabulary_size
        named = {name: self._ids[token] for name, token in self.special_tokens.items()}
        self.unk_id: int = named["unk"]
        self.pad_id, self.mask_id = named["pad"], named["mask"]
        self.cls_id = self.bos_id = named["cls"]
        self.sep_id = self.eos_id = named["sep"]
        self._tokenizer = self._build()

    def _check(self, vocabulary_size: int | None) -> None:
        if set(self.special_tokens) != set(SPECIALS):
            raise InputError(f"special_tokens: give tokens for {', '.join(SPECIALS)} only")
        for name, value in self._options.items():
            allowed = isinstance(value, bool) or (name == "strip_accents" and value is None)
            if not (allowed if name != "max_word_length" else type(value) is int and 0 < value < 2**16):
                raise InputError(f"{name}: {value!r:.50} is not possible for a word-piece tokenizer")
        for token in self.tokens:
            if not isinstance(token, str) or valid_unicode(token) != token or {"\n", "\0"} & set(token):
                raise InputError(f"vocabulary: {token!r:.50} is no token; give strings without line breaks and NUL")
            if len(token.encode()) > _LONGEST_TOKEN:
                raise InputError(f"vocabulary: {token[:20]!r}... has more than {_LONGEST_TOKEN} bytes; remove it")
        for token in [*self.special_tokens.values(), *self._extra]:
            if not isinstance(token, str) or token not in self._ids:
                raise InputError(f"vocabulary: lacks the special token {token!r:.50}; add it, or name the one it has")
        if vocabulary_size is not None and (type(vocabulary_size) is not int or vocabulary_size < len(self.tokens)):
            raise InputError(f"vocabulary_size: {vocabulary_size!r:.50} is less than the {len(self.tokens)} tokens")
        if len(self.tokens) >= LARGEST:
            raise InputError(f"vocabulary: {len(self.tokens)} tokens are too many; give less than {LARGEST}")

    def _build(self) -> tokenizers.Tokenizer:
        options, unk = self._options, self.special_tokens["unk"]
        model = models.WordPiece(self._ids, unk_token=unk, max_input_chars_per_word=options["max_word_length"])
        tokenizer = tokenizers.Tokenizer(model)
        tokenizer.normalizer = _normalizer(**{name: options[name] for name in options if name != "max_word_length"})
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece(prefix=_PREFIX)
        sep, cls = ((self.special_tokens[name], self._ids[self.special_tokens[name]]) for name in ("sep", "cls"))
        tokenizer.post_processor = processors.BertProcessing(sep, cls)
        tokenizer.add_special_tokens([tokenizers.AddedToken(t, normalized=False) for t in self._special()])
        return tokenizer

    def _special(self) -> list[str]:
        """All special tokens by id."""
        return sorted({*self.special_tokens.values(), *self._extra}, key=lambda token: self._ids[token])

    @classmethod
    def from_vocabulary(cls, content: bytes, **settings: Any) -> Self:
        """Read a `vocab.txt`: a token a line.

        Args:
            content: The file.
            settings: See the class.

        Returns:
            The tokenizer.

        Raises:
            InputError: It is not UTF-8, or not the vocabulary of a BERT.
        """
        try:
            text = content.decode()
        except UnicodeDecodeError as error:
            raise InputError(f"vocabulary: byte {error.start} is not UTF-8; give a vocab.txt") from None
        # Like the library, which takes blanks off the end: in BERT's Chinese vocabulary two lines lose a U+2028.
        lines = [line.rstrip(_BLANKS) for line in text.split("\n")]
        return cls(lines[:-1] if not lines[-1] else lines, **settings)

    @classmethod
    def from_tokenizer_json(cls, content: Mapping[str, Any], **settings: Any) -> Self:
        """Take over the `tokenizer.json` of the `tokenizers` library.

        Args:
            content: The parsed file.
            settings: See the class; they win over the file.

        Returns:
            The tokenizer.

        Raises:
            InputError: It is not BERT's kind of tokenizer; the message says what differs.
        """
        tokens, found = read_tokenizer_json(content)
        found["special_tokens"] |= settings.pop("special_tokens", None) or {}
        named = {**SPECIALS, **found["special_tokens"]}.values()
        found["extra_special_tokens"] = [token for token in found["extra_special_tokens"] if token not in named]
        return cls(tokens, **{**found, **settings})

    def encode(self, text: str) -> list[int]:
        """See `Tokenizer.encode`; special tokens in the text become their ids."""
        return self._tokenizer.encode(valid_unicode(text), add_special_tokens=False).ids

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """`encode`, and where in the text each token stands.

        Args:
            text: Any string.

        Returns:
            The ids, and for each the characters `text[start:end]` it was made of.
        """
        encoding = self._tokenizer.encode(valid_unicode(text), add_special_tokens=False)
        return encoding.ids, encoding.offsets

    def join_pair(
        self, first: Sequence[int], second: Sequence[int] | None = None, max_length: int | None = None
    ) -> tuple[list[int], list[int]]:
        """One or two texts as BERT reads them: `[CLS] first [SEP] second [SEP]`.

        What does not fit is cut off at the end, from the longer text first, as the `tokenizers` library does.

        Args:
            first: Ids of `encode`.
            second: The same.
            max_length: Of the result, the special tokens included; None for any.

        Returns:
            The ids and their segments (0 up to the first `[SEP]`, then 1), equally many.

        Raises:
            InputError: `max_length` leaves no room for the special tokens.
        """
        first, second = list(first), None if second is None else list(second)
        if max_length is not None:
            room = room_for_text(max_length, second is not None)
            kept = longest_first(len(first), len(second or ()), room, np)
            first, second = first[: int(kept[0])], None if second is None else second[: int(kept[1])]
        ids = [self.cls_id, *first, self.sep_id]
        segments = [0] * len(ids)
        if second is not None:
            ids += [*second, self.sep_id]
            segments += [1] * (len(second) + 1)
        return ids, segments

    def encode_pair(
        self, first: str, second: str | None = None, max_length: int | None = None
    ) -> tuple[list[int], list[int]]:
        """`join_pair` of texts.

        Args:
            first: Any string.
            second: Any string.
            max_length: See `join_pair`.

        Returns:
            The ids and their segments.
        """
        return self.join_pair(self.encode(first), None if second is None else self.encode(second), max_length)

    def encode_batch(
        self,
        first: Sequence[str],
        second: Sequence[str] | None = None,
        *,
        max_length: int | None = None,
        pad_to_max_length: bool = False,
    ) -> dict[str, np.ndarray]:
        """`encode_pair` of many, padded on the right with `pad_id` to the longest.

        Args:
            first: Texts.
            second: As many texts.
            max_length: See `join_pair`.
            pad_to_max_length: Pad to `max_length` instead.

        Returns:
            "tokens" and "segment_ids", int32 (batch, length), and "padding_mask", bool, true at tokens.
        """
        seconds = [None] * len(first) if second is None else second
        if len(seconds) != len(first):
            raise InputError(f"second: {len(seconds)} texts for the {len(first)} of first; give as many")
        rows = [self.encode_pair(a, b, max_length) for a, b in zip(first, seconds, strict=True)]
        length = max((len(ids) for ids, _ in rows), default=0)
        length = _fixed_length(max_length) if pad_to_max_length else length
        tokens = np.full((len(rows), length), self.pad_id, np.int32)
        segment_ids, padding_mask = np.zeros_like(tokens), np.zeros(tokens.shape, bool)
        for row, (ids, segments) in enumerate(rows):
            tokens[row, : len(ids)], segment_ids[row, : len(ids)], padding_mask[row, : len(ids)] = ids, segments, True
        return {"tokens": tokens, "segment_ids": segment_ids, "padding_mask": padding_mask}

    def decode(self, ids: Sequence[int]) -> str:
        """See `Tokenizer.decode`; special tokens vanish, and punctuation moves to the word before it."""
        return self._tokenizer.decode([int(i) for i in ids if 0 <= i < len(self.tokens)], skip_special_tokens=True)

    def tokenize(self, texts: "tf.Tensor") -> "tf.RaggedTensor":
        """See `Tokenizer.tokenize`."""
        import tensorflow as tf

        with tf.device("/CPU:0"):
            return self._graph.tokenize(texts)

    def tokenize_pair(
        self,
        first: "tf.Tensor",
        second: "tf.Tensor | None" = None,
        *,
        max_length: int | None = None,
        pad_to_max_length: bool = False,
    ) -> "dict[str, tf.Tensor]":
        """`encode_batch` as TensorFlow ops, for `tf.data` and SavedModels.

        Args:
            first: UTF-8 strings, (batch,).
            second: The same.
            max_length: See `join_pair`.
            pad_to_max_length: Pad to `max_length`, which then is a static dimension.

        Returns:
            "tokens" and "segment_ids", int32 (batch, length), and "padding_mask", bool, true at tokens.
        """
        import tensorflow as tf

        length = _fixed_length(max_length) if pad_to_max_length else None
        with tf.device("/CPU:0"):
            texts = [self.tokenize(text) for text in (first, second) if text is not None]
            if max_length is not None:
                room = tf.constant(room_for_text(max_length, second is not None), tf.int64)
                lengths = [text.row_lengths() for text in texts]
                other = lengths[1] if second is not None else tf.zeros_like(lengths[0])
                kept = longest_first(lengths[0], other, room, tf)
                texts = [_head(text, limit) for text, limit in zip(texts, kept, strict=False)]

            def column(i: int) -> "tf.Tensor":
                return tf.fill([texts[0].nrows(), 1], tf.constant(i, tf.int32))

            parts = [column(self.cls_id), texts[0], column(self.sep_id)]
            parts += [texts[1], column(self.sep_id)] if second is not None else []
            tokens = tf.concat(parts, axis=1)
            places = tokens.with_values(tf.ragged.range(tokens.row_lengths()).flat_values)
            segments = tf.cast(places >= tf.expand_dims(texts[0].row_lengths() + 2, 1), tf.int32)
            return {
                "tokens": tokens.to_tensor(self.pad_id, shape=(None, length)),
                "segment_ids": segments.to_tensor(0, shape=(None, length)),
                "padding_mask": tf.ones_like(tokens, tf.bool).to_tensor(False, shape=(None, length)),
            }

    def detokenize(self, ids: "tf.RaggedTensor") -> "tf.Tensor":
        """See `Tokenizer.detokenize`."""
        import tensorflow as tf

        with tf.device("/CPU:0"):
            return self._graph.detokenize(ids)

    def trackables(self) -> list[Any]:
        """See `Tokenizer.trackables`."""
        return [self._graph.op]

    def to_huggingface(self) -> dict[str, bytes]:
        """Files, by name, from which `transformers.AutoTokenizer` makes the same tokenizer."""
        named = {f"{name}_token": token for name, token in self.special_tokens.items()}
        config = {
            "tokenizer_class": "BertTokenizer",
            "do_lower_case": self._options["lowercase"],
            "strip_accents": self._options["strip_accents"],
            "tokenize_chinese_chars": self._options["chinese_characters"],
            **named,
            **({"additional_special_tokens": self._extra} if self._extra else {}),
        }
        return {
            _VOCABULARY: self._files()[_VOCABULARY],
            "tokenizer.json": self._tokenizer.to_str(pretty=True).encode(),
            "tokenizer_config.json": json.dumps(config, ensure_ascii=False, indent=2).encode(),
        }

    @functools.cached_property
    def _graph(self) -> WordPieceGraph:
        special = {token: self._ids[token] for token in self._special()}
        return WordPieceGraph(self._tokenizer, self._ids, special, self.special_tokens["unk"])

    def _settings(self) -> dict[str, Any]:
        settings = {**self._options, "special_tokens": self.special_tokens, "extra_special_tokens": self._extra}
        return {**settings, "vocabulary_size": self.vocabulary_size}

    def _files(self) -> dict[str, bytes]:
        return {_VOCABULARY: "".join(f"{token}\n" for token in self.tokens).encode()}

    @classmethod
    def _restore(cls, settings: dict[str, Any], files: dict[str, bytes]) -> Self:
        return cls(files[_VOCABULARY].decode().split("\n")[:-1], **settings)


def _fixed_length(max_length: int | None) -> int:
    if max_length is None:
        raise InputError("pad_to_max_length: needs max_length")
    return max_length


def _head(rows: "tf.RaggedTensor", most: "tf.Tensor") -> "tf.RaggedTensor":
    """The first `most[row]` values of each row."""
    import tensorflow as tf

    lengths = rows.row_lengths()
    return keep(rows, tf.ragged.range(lengths).flat_values < tf.repeat(most, lengths))


def _normalizer(lowercase: bool, strip_accents: bool | None, chinese_characters: bool, clean_text: bool) -> Any:
    return normalizers.BertNormalizer(
        clean_text=clean_text,
        handle_chinese_chars=chinese_characters,
        strip_accents=strip_accents,
        lowercase=lowercase,
    )
