"""Whole words from a fixed vocabulary: short sequences, readable ids, and `<unk>` for everything else."""

import collections
import functools
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from kerasllm.errors import InputError
from kerasllm.text.tokenizer import Tokenizer, valid_unicode

if TYPE_CHECKING:
    import tensorflow as tf


class WordSplit(NamedTuple):
    """Insides of character classes, for Python's `re` and TensorFlow's RE2: how a text is cut into words.

    Attributes:
        blanks: What separates words and vanishes.
        single: Each of these is a word.
        chinese: A run of these is cut by somebody else.
    """

    blanks: str
    single: str
    chinese: str


_SPECIALS = ["<unk>", "<s>", "</s>"]
_VOCABULARY = "vocabulary.json"
# Training forgets the rarest words when it holds more than this many different ones, so that memory stays bounded.
_MOST_COUNTED = 2_000_000

# Insides of character classes, in the common subset of Python's `re` and TensorFlow's RE2. The ranges are spelt out
# because the two know different Unicode versions. `_BLANKS` is what `str.split()` splits at, except the newline.
_BLANKS = "\t\x0b\x0c\r\x1c-\x1f \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
_HAN = "\u4e00-\u9fff"
OTHER_ASIAN = (
    "\u2e80-\u2fff\u3001-\u312f\u3190-\u31ff\u3400-\u4dbf\uf900-\ufaff\ufe30-\ufe4f\uff01-\uff65\uffe0-\uffee"
    "\U00020000-\U0003fffd"
)
_ASIAN = _HAN + OTHER_ASIAN
_MARKS = (
    r"!-/:-@\[-\^`{-~" + "\xa1-\xa9\xab-\xb4\xb6-\xb9\xbb-\xbf\xd7\xf7\u2010-\u2027\u2030-\u205e\u2190-\u2bff"
    "\U0001f000-\U0001faff"
)
_SINGLE = {"word": "\n" + _MARKS + _ASIAN, "whitespace": "\n"}
CHINESE_SPLIT = WordSplit(_BLANKS, "\n" + _MARKS + OTHER_ASIAN, _HAN)
"""That of "word", but Chinese characters stay together until somebody finds the words among them."""
# Marks that stand without a blank before them, and without one after them.
_CLOSING = set(".,;:!?%)]}…'’”-–—/")
_OPENING = set("([{'’“-–—/$#@")


class WordTokenizer(Tokenizer):
    """A fixed list of words; ids 0, 1 and 2 are `<unk>`, bos and eos.

    With `split="word"` every punctuation mark, every Chinese or Japanese character and every newline is a word, and so
    is what stands between those and blanks. With `split="whitespace"` only blanks separate, and a newline is a word:
    that is how text that is tokenized already (WikiText-2) is read, where a word `<unk>` means what it says.
    """

    bos_id = 1
    eos_id = 2
    unk_id = 0
    lossless = False
    file_names = (_VOCABULARY,)

    def __init__(self, words: Sequence[str], *, split: str = "word") -> None:
        """Use a list of words.

        Args:
            words: The vocabulary after the three special ids, without repetition.
            split: "word" or "whitespace".

        Raises:
            InputError: A word repeats, or `split` is unknown.
        """
        if split not in _SINGLE:
            raise InputError(f"split: {split!r} is neither 'word' nor 'whitespace'")
        self.split = split
        self.words = [*_SPECIALS, *words]
        if not all(isinstance(word, str) for word in words) or len(set(self.words)) != len(self.words):
            raise InputError("the words of a vocabulary must be different strings, and none of them special")
        self.vocabulary_size = len(self.words)
        # The text "</s>" must not end a document: only <unk> can be written.
        self._ids = {word: i for i, word in enumerate(self.words) if i not in (self.bos_id, self.eos_id)}
        self._pattern = re.compile(f"[{_SINGLE[split]}]|[^{_BLANKS}{_SINGLE[split]}]+")
        self._tight_left, self._tight_right = zip(*(_tight(word, split) for word in self.words), strict=True)

    @classmethod
    def train(cls, texts: Iterable[str], vocabulary_size: int, *, split: str = "word") -> Self:
        """Take the most frequent words; ties go by code point.

        Args:
            texts: Read once.
            vocabulary_size: Number of ids, the three special ones included.
            split: "word" or "whitespace".

        Returns:
            The tokenizer.

        Raises:
            InputError: The texts have fewer different words; the message says how many.
        """
        splitter = cls([], split=split)
        return cls(most_frequent(map(splitter._split, texts), vocabulary_size), split=split)

    def encode(self, text: str) -> list[int]:
        """See `Tokenizer.encode`."""
        return self.word_ids(self._split(text))

    def word_ids(self, words: Iterable[str]) -> list[int]:
        """Ids of words that are split already."""
        return [self._ids.get(word, self.unk_id) for word in words]

    def decode(self, ids: Sequence[int]) -> str:
        """See `Tokenizer.decode`; an unknown word shows as `<unk>`."""
        pieces, before = [], None
        for i in ids:
            if not 0 <= i < self.vocabulary_size or i in (self.bos_id, self.eos_id):
                continue
            if before is not None and not (self._tight_right[before] or self._tight_left[i]):
                pieces.append(" ")
            pieces.append(self.words[i])
            before = i
        return "".join(pieces)

    def out_of_vocabulary_rate(self, texts: Iterable[str]) -> float:
        """Part of the words that the vocabulary lacks, 0 to 1 (0 for no words); read once."""
        return unknown_rate(self, texts)

    def tokenize(self, texts: "tf.Tensor") -> "tf.RaggedTensor":
        """See `Tokenizer.tokenize`."""
        import tensorflow as tf

        with tf.device("/CPU:0"):
            texts = tf.strings.regex_replace(texts, f"[{_BLANKS}]", " ")
            texts = tf.strings.regex_replace(texts, f"([{_SINGLE[self.split]}])", r" \1 ")
            words = tf.strings.split(texts, " ")
            words = tf.ragged.boolean_mask(words, words != "")
            return self.lookup(words)

    def lookup(self, words: "tf.RaggedTensor") -> "tf.RaggedTensor":
        """`word_ids` as TensorFlow ops: strings (batch, None) to int32 (batch, None)."""
        return words.with_flat_values(self._table.lookup(words.flat_values))

    def detokenize(self, ids: "tf.RaggedTensor") -> "tf.Tensor":
        """See `Tokenizer.detokenize`."""
        import tensorflow as tf

        with tf.device("/CPU:0"):
            known = (ids >= 0) & (ids < self.vocabulary_size) & (ids != self.bos_id) & (ids != self.eos_id)
            ids = tf.ragged.boolean_mask(ids, known)
            flat, rows = ids.flat_values, ids.value_rowids()
            before, row_before = (tf.concat([values[:1], values[:-1]], axis=0) for values in (flat, rows))
            # The very first word counts as following itself, and each first word of a row as tight.
            first = (rows != row_before) | (tf.range(tf.size(rows)) == 0)
            tight = first | tf.gather(self._tight_right, before) | tf.gather(self._tight_left, flat)
            words = tf.gather(tf.constant(self.words), flat)
            return tf.strings.reduce_join(ids.with_flat_values(tf.where(tight, words, " " + words)), axis=-1)

    def trackables(self) -> list[Any]:
        """See `Tokenizer.trackables`."""
        return [self._table]

    @functools.cached_property
    def _table(self) -> Any:
        import tensorflow as tf

        with tf.init_scope(), tf.device("/CPU:0"):
            content = tf.lookup.KeyValueTensorInitializer(
                list(self._ids), list(self._ids.values()), key_dtype=tf.string, value_dtype=tf.int32
            )
            return tf.lookup.StaticHashTable(content, default_value=self.unk_id)

    def _split(self, text: str) -> Iterator[str]:
        return (match[0] for match in self._pattern.finditer(valid_unicode(text)))

    def _settings(self) -> dict[str, Any]:
        return {"split": self.split}

    def _files(self) -> dict[str, bytes]:
        words = self.words[len(_SPECIALS) :]
        return {_VOCABULARY: json.dumps(words, ensure_ascii=False, indent=0).encode()}

    @classmethod
    def _restore(cls, settings: dict[str, Any], files: dict[str, bytes]) -> Self:
        words = json.loads(files[_VOCABULARY])
        if not isinstance(words, list):
            raise InputError(f"{_VOCABULARY} must be a list of words")
        return cls(words, **settings)


def _tight(word: str, split: str) -> tuple[bool, bool]:
    """Whether `word` stands without a blank before it, and without one after it."""
    if split == "whitespace":
        return word == "\n", word == "\n"
    alone = word == "\n" or re.fullmatch(f"[{_ASIAN}]+", word) is not None
    return alone or word in _CLOSING, alone or word in _OPENING


def most_frequent(texts: Iterable[Iterable[str]], vocabulary_size: int) -> list[str]:
    """The most frequent words; ties go by code point.

    Args:
        texts: The words of each text; read once.
        vocabulary_size: Number of ids, the three special ones included.

    Returns:
        The words of a vocabulary, without the special ones.

    Raises:
        InputError: The texts have fewer different words; the message says how many.
    """
    counts = collections.Counter[str]()
    for words in texts:
        counts.update(words)
        if len(counts) > _MOST_COUNTED:
            counts = collections.Counter(dict(counts.most_common(_MOST_COUNTED // 2)))
    for special in _SPECIALS:
        counts.pop(special, None)
    largest = len(counts) + len(_SPECIALS)
    if not len(_SPECIALS) < vocabulary_size <= largest:
        raise InputError(
            f"vocabulary_size: {vocabulary_size} is not possible with this text; "
            f"it has {len(counts)} different words, so give {len(_SPECIALS) + 1} to {largest}"
        )
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    return ranked[: vocabulary_size - len(_SPECIALS)]


def unknown_rate(tokenizer: Tokenizer, texts: Iterable[str]) -> float:
    """Part of the tokens that are `<unk>`, 0 to 1 (0 for no tokens).

    Args:
        tokenizer: Has an `unk_id`.
        texts: Read once.
    """
    unknown = total = 0
    for text in texts:
        ids = tokenizer.encode(text)
        unknown += sum(i == tokenizer.unk_id for i in ids)
        total += len(ids)
    return unknown / total if total else 0.0


def count_words(text: str) -> int:
    """Number of words in a text, for word-level perplexity.

    Args:
        text: Any string.

    Returns:
        What blanks separate counts as one word, but every Chinese or Japanese character is a word of its own.
    """
    return len(re.findall(f"[{_ASIAN}]|[^\\s{_ASIAN}]+", text))
