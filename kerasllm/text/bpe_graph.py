r"""`BytePairTokenizer` as TensorFlow ops, exact to the `tokenizers` library; imports TensorFlow on use.

RE2, the regular expressions of TensorFlow, has neither the library's Unicode tables nor its look-ahead `\s+(?!\S)`. So
each character becomes a letter for its kind, by a table that the library was asked for, and RE2 splits the text of
these letters. A bar before the last blank of a run stands for the look-ahead: the first blanks end there.

A word that is a token is looked up; the rest are merged in rounds, all words at once, in each of them the pair that is
first in the list of merges.
"""

import functools
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import tokenizers
from tokenizers import Regex, pre_tokenizers

from kerasllm.text.bpe_files import byte_alphabet, token_bytes

if TYPE_CHECKING:
    import tensorflow as tf

    from kerasllm.text.bpe import BytePairTokenizer

_PAGE = 256
_NEVER = 2**31 - 1  # the rank of two tokens that no merge joins
_LENGTHS = (16, 128, 2**31 - 1)  # words up to so many bytes take their rounds together

# Kinds of characters: letters of contractions are themselves, others "a", numbers "0" (alone) or "1" (in runs), blanks
# " ", "\t" (all others), "\r" and "\n", the apostrophe itself, and the rest ".". The bar is the mark.
_MARK, _END = "|", ";"
_CONTRACTION = "strevmldSTREVMLD"
_OF_GPT2 = r"'(?:s|t|re|ve|m|ll|d)|\|? ?[A-Za-z]+|\|? ?1+|0|\|? ?['.]+|[ \t\r\n]+|\|[ \t\r\n]"
_OF_LLAMA3 = (
    r"'(?i:s|t|re|ve|m|ll|d)|\|?[^|\r\n1A-Za-z]?[A-Za-z]+|1{1,3}|\|? ?['.]+[\r\n|]*|[ \t\r\n|]*[\r\n]+"
    r"|[ \t\r\n]+|\|[ \t\r\n]"
)
_WORDS = {"gpt-2": _OF_GPT2, "smollm": _OF_GPT2, "llama-bpe": _OF_LLAMA3}
_ASSIGNED = 0x40000  # from here on there are tags, private use and nothing: no letter, number or blank
_LAST_BLANK = r"([ \t\r\n])([^ \t\r\n0])"  # a number that stands alone was split off before: nothing follows


class BytePairGraph:
    """The ops and tables of one tokenizer.

    Attributes:
        tables: What a `tf.Module` must hold for its SavedModel to contain this.
    """

    def __init__(self, tokenizer: "BytePairTokenizer") -> None:
        """Make the tables.

        Args:
            tokenizer: The Python face.
        """
        import tensorflow as tf

        ids = {token: i for i, token in enumerate(tokenizer.tokens) if token}
        found = [*tokenizer.special_tokens, *tokenizer.user_tokens]
        # Longest first: RE2 takes the first alternative that matches, the library the longest.
        self._special = "|".join(re.escape(token) for token in sorted(found, key=len, reverse=True))
        self._words = _WORDS[tokenizer.pre_tokenizer]
        ranks, products, self._ordered = _ranks(tokenizer.merges, ids)
        settings = json.loads(tokenizer._tokenizer.to_str())
        whole = _whole_words(tokenizer._tokenizer, ids, settings["model"]["ignore_merges"])
        pages, kinds = _kinds(tokenizer.pre_tokenizer == "smollm")
        self._size = len(tokenizer.tokens)
        with tf.init_scope(), tf.device("/CPU:0"):
            self._pages, self._kinds = tf.constant(pages), tf.constant(kinds)
            self._byte_ids = tf.constant([ids.get(character, -1) for character in byte_alphabet()], tf.int32)
            self._bytes = tf.constant(tokenizer._bytes, tf.string)
            self._products = tf.constant(products, tf.int32)
            self._whole = _table({token_bytes(token): i for token, i in whole.items()}, tf.string, -1)
            # A table must not be empty, and -1 is no pair.
            pairs = {-1: _NEVER, **{left * self._size + right: rank for (left, right), rank in ranks.items()}}
            self._ranks = _table(pairs, tf.int64, _NEVER)
            self._found = _table({token.encode(): ids[token] for token in found}, tf.string, -1)
        self.tables = [self._whole, self._ranks, self._found]

    def tokenize(self, texts: "tf.Tensor") -> "tf.RaggedTensor":
        """See `Tokenizer.tokenize`."""
        import tensorflow as tf

        texts = tf.strings.unicode_transcode(texts, "UTF-8", "UTF-8", errors="replace")
        # No valid text has the byte FF; between two of them is a special token.
        marked = tf.strings.regex_replace(texts, f"({self._special})", b"\xff\\1\xff")
        parts = tf.strings.split(marked, b"\xff")
        places = tf.ragged.range(parts.row_lengths()).flat_values
        is_special = places % 2 == 1
        ids = self._tokenize_plain(tf.where(is_special, "", parts.flat_values))
        special = tf.expand_dims(self._found.lookup(parts.flat_values), 1)
        special = tf.ragged.boolean_mask(special, tf.expand_dims(is_special, 1))
        return parts.with_values(tf.concat([ids, special], axis=1)).merge_dims(1, 2)

    def detokenize(self, ids: "tf.RaggedTensor") -> "tf.Tensor":
        """See `Tokenizer.detokenize`."""
        import tensorflow as tf

        ids = tf.ragged.boolean_mask(ids, (ids >= 0) & (ids < self._size))
        joined = tf.strings.reduce_join(ids.with_flat_values(tf.gather(self._bytes, ids.flat_values)), axis=-1)
        return tf.strings.unicode_transcode(joined, "UTF-8", "UTF-8", errors="replace")

    def _tokenize_plain(self, texts: "tf.Tensor") -> "tf.RaggedTensor":
        """Texts without special tokens, (n,), to ids, (n, None)."""
        import tensorflow as tf

        words, owners = self._split(texts)
        distinct, places = tf.unique(words, tf.int64)
        whole = self._whole.lookup(distinct)
        missing = tf.where(whole < 0)[:, 0]
        merged = self._merge_words(tf.gather(distinct, missing))
        # The ids of distinct words: first those of one token, then the others.
        count = tf.size(distinct, tf.int64)
        starts = tf.tensor_scatter_nd_update(
            tf.range(count), missing[:, None], count + tf.cast(merged.row_starts(), tf.int64)
        )
        lengths = tf.tensor_scatter_nd_update(
            tf.ones_like(starts), missing[:, None], tf.cast(merged.row_lengths(), tf.int64)
        )
        starts, lengths = tf.gather(starts, places), tf.gather(lengths, places)
        values = tf.concat([whole, merged.flat_values], axis=0)
        ids = tf.gather(values, tf.ragged.range(starts, starts + lengths).flat_values)
        per_text = tf.math.unsorted_segment_sum(lengths, owners, tf.size(texts, tf.int64))
        return tf.RaggedTensor.from_row_lengths(ids, per_text, validate=False)

    def _split(self, texts: "tf.Tensor") -> "tuple[tf.Tensor, tf.Tensor]":
        """The words of all texts, (m,), and for each the number of its text, (m,)."""
        import tensorflow as tf

        codes = tf.strings.unicode_decode(texts, "UTF-8")
        flat = codes.flat_values
        kinds = tf.gather_nd(self._kinds, tf.stack([tf.gather(self._pages, flat // _PAGE), flat % _PAGE], axis=1))
        kinds = tf.strings.unicode_encode(codes.with_values(tf.cast(kinds, tf.int32)), "UTF-8")
        kinds = tf.strings.regex_replace(kinds, _LAST_BLANK, rf"{_MARK}\1\2")
        kinds = tf.strings.regex_replace(kinds, self._words, rf"\0{_END}")
        letters = tf.io.decode_raw(tf.strings.reduce_join(kinds), tf.uint8)
        letters = tf.boolean_mask(letters, letters != ord(_MARK))
        ends = tf.where(letters == ord(_END))[:, 0]
        ends -= tf.range(tf.size(ends, tf.int64))  # in characters: without the end marks before
        splits = tf.concat([tf.zeros(1, tf.int64), ends], axis=0)
        words = tf.strings.unicode_encode(tf.RaggedTensor.from_row_splits(flat, splits, validate=False), "UTF-8")
        return words, tf.gather(codes.value_rowids(), splits[:-1])

    def _merge_words(self, words: "tf.Tensor") -> "tf.RaggedTensor":
        """Words, (n,), to ids, int32 (n, None)."""
        import tensorflow as tf

        length = tf.strings.length(words)
        results, origins, least = [], [], 0
        for most in _LENGTHS:
            chosen = tf.where((length > least) & (length <= most))[:, 0]
            results.append(self._merge_bytes(tf.gather(words, chosen)))
            origins.append(chosen)
            least = most
        order = tf.argsort(tf.concat(origins, axis=0))
        return tf.gather(tf.concat(results, axis=0), order)

    def _merge_bytes(self, words: "tf.Tensor") -> "tf.RaggedTensor":
        """`_merge_words` of words of similar length."""
        import tensorflow as tf

        count = tf.size(words)
        codes = tf.io.decode_raw(tf.strings.reduce_join(words), tf.uint8)
        ids = tf.gather(self._byte_ids, tf.cast(codes, tf.int32))
        owners = tf.repeat(tf.range(count), tf.strings.length(words))
        known = ids >= 0
        ids, owners = tf.boolean_mask(ids, known), tf.boolean_mask(owners, known)
        ranks = self._rank(ids, owners, tf.range(tf.size(ids)))
        shapes = (tf.TensorShape([None]),) * 3
        ids, owners, _ = tf.while_loop(
            lambda ids, owners, ranks: tf.reduce_any(ranks != _NEVER), self._round, (ids, owners, ranks), shapes
        )
        return tf.RaggedTensor.from_value_rowids(
            ids, tf.cast(owners, tf.int64), tf.cast(count, tf.int64), validate=False
        )

    def _rank(self, ids: "tf.Tensor", owners: "tf.Tensor", places: "tf.Tensor") -> "tf.Tensor":
        """Ranks of the pairs that begin at `places`, (n,)."""
        import tensorflow as tf

        after = tf.minimum(places + 1, tf.size(ids) - 1)
        left, right = (tf.cast(tf.gather(ids, at), tf.int64) for at in (places, after))
        same = (after > places) & (tf.gather(owners, places) == tf.gather(owners, after))
        return tf.where(same, self._ranks.lookup(left * self._size + right), _NEVER)

    def _round(self, ids: "tf.Tensor", owners: "tf.Tensor", ranks: "tf.Tensor") -> "tuple[tf.Tensor, ...]":
        """In every word merge the pair of the lowest rank, wherever it occurs, from the left.

        Args:
            ids: Of all words, (n,).
            owners: The word of each id, (n,), ascending.
            ranks: Of the pair that begins at each id, (n,).

        Returns:
            The same, shorter.
        """
        import tensorflow as tf

        best = tf.gather(tf.math.segment_min(ranks, owners), owners)
        chosen = (ranks == best) & (ranks != _NEVER)
        places = tf.range(tf.size(ids))
        if self._ordered:
            # Of three equal tokens the first two are merged: of pairs that overlap every second one.
            begins = chosen & ~tf.concat([[False], chosen[:-1]], axis=0)
            first = tf.gather(
                tf.concat([[0], tf.boolean_mask(places, begins)], 0), tf.cumsum(tf.cast(begins, tf.int32))
            )
            chosen &= (places - first) % 2 == 0
        else:
            # What a merge makes may come before it in the list: one at a time.
            leftmost = tf.math.segment_min(tf.where(chosen, places, _NEVER), owners)
            chosen &= places == tf.gather(leftmost, owners)
        ids = tf.where(chosen, tf.gather(self._products, tf.where(chosen, ranks, 0)), ids)
        kept = ~tf.concat([[False], chosen[:-1]], axis=0)
        ids, owners, ranks, chosen = (tf.boolean_mask(values, kept) for values in (ids, owners, ranks, chosen))
        stale = tf.where(chosen | tf.concat([chosen[1:], [False]], axis=0))
        fresh = self._rank(ids, owners, tf.cast(stale[:, 0], tf.int32))
        return ids, owners, tf.tensor_scatter_nd_update(ranks, stale, fresh)


def _table(content: Mapping[Any, int], key_dtype: Any, default: int) -> Any:
    import tensorflow as tf

    keys, values = tf.constant(list(content), key_dtype), tf.constant(list(content.values()), tf.int32)
    return tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(keys, values), default)


def _ranks(merges: Sequence[str], ids: Mapping[str, int]) -> tuple[dict[tuple[int, int], int], list[int], bool]:
    """Rank by pair of ids, what each rank makes, and whether no merge makes what an earlier one (or itself) uses."""
    ranks: dict[tuple[int, int], int] = {}
    products: list[int] = []
    used: set[str] = set()
    ordered = True
    for rank, merge in enumerate(merges):
        left, _, right = merge.partition(" ")
        ranks[ids[left], ids[right]] = rank
        products.append(ids[left + right])
        used.update((left, right))
        ordered &= left + right not in used
    return ranks, products or [0], ordered


def _whole_words(library: tokenizers.Tokenizer, ids: Mapping[str, int], ignore_merges: bool) -> dict[str, int]:
    """Tokens whose bytes, as a word, are that one token."""
    alphabet = set(byte_alphabet())
    usual = {token: i for token, i in ids.items() if alphabet.issuperset(token)}
    if ignore_merges:
        return usual
    encode: Callable[[str], list[Any]] = library.model.tokenize
    return {token: i for token, i in usual.items() if [piece.id for piece in encode(token)] == [i]}


@functools.lru_cache(maxsize=2)
def _kinds(single_digits: bool) -> tuple[np.ndarray, np.ndarray]:
    """The kind of code point c is `kinds[pages[c // 256], c % 256]`."""
    text = "".join(map(chr, [*range(0xD800), *range(0xE000, _ASSIGNED)]))
    table = np.full(sys.maxunicode + 1, ord("."), np.uint8)
    for pattern, kind in ((r"\P{L}+", "a"), (r"\P{N}+", "1"), (r"\S+", "\t")):
        for run, _ in pre_tokenizers.Split(Regex(pattern), "removed").pre_tokenize_str(text):
            table[[*map(ord, run)]] = ord(kind)
    if single_digits:
        # Runs take turns, and the first character is none.
        for run, _ in pre_tokenizers.Digits(individual_digits=False).pre_tokenize_str(text)[1::2]:
            table[[*map(ord, run)]] = ord("0")
    for character in f" \r\n'{_CONTRACTION}":
        table[ord(character)] = ord(character)
    table[ord("ſ")] = ord("S")  # which it is, where case does not matter
    kinds, pages = np.unique(table.reshape(-1, _PAGE), axis=0, return_inverse=True)
    return pages.reshape(-1).astype(np.int32), kinds
