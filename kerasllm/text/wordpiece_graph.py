"""`WordPieceTokenizer` as TensorFlow ops, exact to the `tokenizers` library; imports TensorFlow on use."""

import functools
import json
import re
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import tokenizers
from tokenizers import normalizers, pre_tokenizers

if TYPE_CHECKING:
    import tensorflow as tf

_PAGE = 256
_SELF = -1  # in `_CharacterMap.values`: the character itself
_SEPARATOR = "q"  # a character that nothing is done to, and that nothing decomposes to


class WordPieceGraph:
    """The ops and tables of one tokenizer.

    Attributes:
        op: What a `tf.Module` must hold for its SavedModel to contain this.
    """

    def __init__(
        self, tokenizer: tokenizers.Tokenizer, pieces: Mapping[str, int], special: Mapping[str, int], unk: str
    ) -> None:
        """Make the tables.

        Args:
            tokenizer: The Python face.
            pieces: Id by piece, for each of the vocabulary.
            special: Id by special token.
            unk: The special token for unknown words.
        """
        import tensorflow as tf
        import tensorflow_text

        settings = json.loads(tokenizer.to_str())
        normalizer = {name: value for name, value in settings["normalizer"].items() if name != "type"}
        characters = _character_map(**normalizer)
        prefix = settings["model"]["continuing_subword_prefix"]
        self._special = dict(special)
        self._longest_word: int = settings["model"]["max_input_chars_per_word"]
        first, later = _surfaces(tokenizer, pieces, set(special.values()))
        # Pieces without a character would only upset the op.
        used = {piece: i for piece, i in pieces.items() if piece not in ("", prefix)}
        with tf.init_scope(), tf.device("/CPU:0"):
            self.op = tensorflow_text.FastWordpieceTokenizer(
                vocab=list(used),
                suffix_indicator=prefix,
                max_bytes_per_word=4 * self._longest_word,
                token_out_type=tf.int32,
                unknown_token=unk,
                no_pretokenization=True,
            )
            self._ids = tf.constant(list(used.values()), tf.int32)
            self._first, self._later = tf.constant(first), tf.constant(later)
            self._characters = _CharacterMap(*(tf.constant(array) for array in characters))

    def tokenize(self, texts: "tf.Tensor") -> "tf.RaggedTensor":
        """See `Tokenizer.tokenize`."""
        import tensorflow as tf
        import tensorflow_text

        # The split ends a text at NUL; cleaning removes either, and without cleaning either is in no piece.
        texts = tf.strings.regex_replace(texts, r"\x00", "\x01")
        # Longest first: RE2 takes the first alternative that matches.
        pattern = "|".join(re.escape(token) for token in sorted(self._special, key=len, reverse=True))
        parts = tensorflow_text.regex_split(texts, pattern, keep_delim_regex_pattern=pattern)
        flat = parts.flat_values
        special = tf.fill(tf.shape(flat), -1)
        for token, i in self._special.items():
            special = tf.where(flat == token, i, special)
        words = self._words(tf.where(special < 0, flat, ""))
        # A word that is too long becomes one that cannot be made of pieces, for no piece holds NUL.
        fits = tf.strings.length(words.flat_values, unit="UTF8_CHAR") <= self._longest_word
        pieces = self.op.tokenize(tf.where(fits, words.flat_values, "\0"))
        pieces = pieces.with_values(tf.gather(self._ids, pieces.flat_values))
        ids = words.with_values(pieces).merge_dims(1, 2)
        known = tf.cast(special >= 0, tf.int64)
        found = tf.RaggedTensor.from_row_lengths(tf.boolean_mask(special, special >= 0), known)
        return parts.with_values(tf.concat([ids, found], axis=1)).merge_dims(1, 2)

    def _words(self, texts: "tf.Tensor") -> "tf.RaggedTensor":
        """Normalise and split: strings (n,) to strings (n, None)."""
        import tensorflow as tf

        codes = tf.strings.unicode_decode(texts, "UTF-8")
        flat, table = codes.flat_values, self._characters
        entry = tf.gather_nd(table.entries, tf.stack([tf.gather(table.pages, flat // _PAGE), flat % _PAGE], axis=1))
        made = tf.ragged.range(tf.gather(table.starts, entry), tf.gather(table.starts, entry + 1))
        values = tf.gather(table.values, made.flat_values)
        values = tf.where(values == _SELF, tf.repeat(flat, made.row_lengths()), values)
        normal = codes.with_values(made.with_values(values)).merge_dims(1, 2)
        words = tf.strings.split(tf.strings.unicode_encode(normal, "UTF-8"), " ")
        return keep(words, words.flat_values != "")

    def detokenize(self, ids: "tf.RaggedTensor") -> "tf.Tensor":
        """See `Tokenizer.detokenize`."""
        import tensorflow as tf

        ids = keep(ids, (ids.flat_values >= 0) & (ids.flat_values < tf.size(self._first)))
        ids = keep(ids, tf.gather(self._first, ids.flat_values) != "\0")
        places = tf.ragged.range(ids.row_lengths()).flat_values
        flat = ids.flat_values
        texts = tf.where(places == 0, tf.gather(self._first, flat), tf.gather(self._later, flat))
        # Not reduce_join, which pads every row to the longest.
        return tf.strings.unsorted_segment_join(texts, ids.value_rowids(), ids.nrows())


def keep(rows: "tf.RaggedTensor", mask: "tf.Tensor") -> "tf.RaggedTensor":
    """Some values of each row; `tf.ragged.boolean_mask` counts them in a table of rows by the longest row.

    Args:
        rows: (batch, None).
        mask: Which of `rows.values`.

    Returns:
        (batch, None).
    """
    import tensorflow as tf

    places = tf.boolean_mask(rows.value_rowids(), mask)
    return tf.RaggedTensor.from_value_rowids(tf.boolean_mask(rows.values, mask), places, rows.nrows(), validate=False)


class _CharacterMap(NamedTuple):
    """What becomes of each character, words set apart by blanks.

    Code point c has entry `entries[pages[c // 256], c % 256]`, and entry e stands for the code points
    `values[starts[e] : starts[e + 1]]`, in which -1 is c.
    """

    pages: Any
    entries: Any
    starts: Any
    values: Any


@functools.lru_cache(maxsize=4)
def _character_map(**settings: Any) -> _CharacterMap:
    """Ask the library about every character: normaliser, then splitting at blanks and punctuation."""
    normalizer, splitter = normalizers.BertNormalizer(**settings), pre_tokenizers.BertPreTokenizer()
    asked = _asked()
    separated = [code for code in asked if chr(code).lower() != _SEPARATOR]
    text = _SEPARATOR.join(map(chr, separated))
    normal = dict(zip(separated, normalizer.normalize_str(text).split(_SEPARATOR), strict=True))
    normal |= {code: normalizer.normalize_str(chr(code)) for code in set(asked) - set(separated)}

    outputs = sorted(set("".join(normal.values())) - {_SEPARATOR})
    pieces = [piece for piece, _ in splitter.pre_tokenize_str(_SEPARATOR.join(["", *outputs, ""]))]
    alone = {piece for piece in pieces if len(piece) == 1 and piece != _SEPARATOR}
    blanks = set(outputs) - set("".join(pieces))

    index: dict[tuple[int, ...], int] = {(_SELF,): 0}
    table = np.zeros(sys.maxunicode + 1, np.int32)
    for code in asked:
        made: list[int] = []
        for character in normal[code]:
            itself = _SELF if ord(character) == code else ord(character)
            made += [32, itself, 32] if character in alone else [32 if character in blanks else itself]
        table[code] = index.setdefault(tuple(made), len(index))
    for start in range(_ASSIGNED, sys.maxunicode + 1, _PAGE):
        if start not in range(*_TAGS):
            table[start + 1 : start + _PAGE] = np.where(
                np.isin(np.arange(start + 1, start + _PAGE) & 0xFFFF, (0xFFFE, 0xFFFF)),
                table[start + 1 : start + _PAGE],
                table[start],
            )
    entries, pages = np.unique(table.reshape(-1, _PAGE), axis=0, return_inverse=True)
    starts = np.cumsum([0, *map(len, index)], dtype=np.int32)
    values = np.concatenate([np.array(made, np.int32) for made in index])
    return _CharacterMap(pages.reshape(-1).astype(np.int32), entries, starts, values)


_ASSIGNED = 0x40000  # From here on there are only tags, private use and nothing.
_TAGS = 0xE0000, 0xE1000


def _asked() -> list[int]:
    """Code points whose treatment is looked up; of those where nothing is assigned, one in each page stands for it."""
    last = [plane + end for plane in range(_ASSIGNED, sys.maxunicode + 1, 0x10000) for end in (0xFFFE, 0xFFFF)]
    pages = range(_ASSIGNED, sys.maxunicode + 1, _PAGE)
    return sorted({*range(0xD800), *range(0xE000, _ASSIGNED), *range(*_TAGS), *pages, *last})


def _surfaces(
    tokenizer: tokenizers.Tokenizer, pieces: Mapping[str, int], special: set[int]
) -> tuple[list[str], list[str]]:
    """What each id decodes to at the start of a text and later on; NUL, which no token holds, where it vanishes."""
    decode, some = tokenizer.decoder.decode, "a"
    first, later = (["\0"] * (max(pieces.values()) + 1) for _ in range(2))
    for token, i in pieces.items():
        if i not in special:
            first[i], later[i] = decode([token]), decode([some, token]).removeprefix(some)
    return first, later
