"""Chinese words as the dictionary of jieba has them, from a fixed vocabulary, and `<unk>` for everything else."""

import functools
import hashlib
import importlib.util
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import sentencepiece

from kerasllm.errors import InputError
from kerasllm.text.sentencepiece_model import segmenter
from kerasllm.text.tokenizer import Tokenizer, valid_unicode
from kerasllm.text.words import CHINESE_SPLIT, WordTokenizer, most_frequent, unknown_rate

if TYPE_CHECKING:
    import tensorflow as tf

_VOCABULARY = "vocabulary.json"
_SEGMENTER = "segmenter.model"
_BLANKS, _SINGLE, _CHINESE = CHINESE_SPLIT
_CHARACTERS = [chr(code) for code in range(ord(_CHINESE[0]), ord(_CHINESE[-1]) + 1)]


class JiebaTokenizer(Tokenizer):
    """A fixed list of words, found in Chinese text as jieba finds them; ids 0, 1 and 2 are `<unk>`, bos and eos.

    jieba (https://github.com/fxsjy/jieba) without its hidden Markov model cuts a run of Chinese characters into those
    words of its dictionary whose probabilities, count / total, have the greatest product; a character that is no word
    counts once. A unigram model of the SentencePiece library does the same (Kudo, arXiv:1804.10959, section 3.2). So
    the dictionary becomes such a model, and both faces run it: in Python through the library, in the graph through the
    operation of TensorFlow Text, which is the same C++ code. They agree exactly, and with `jieba.cut(..., HMM=False)`;
    jieba's own code is Python and could not be in a SavedModel. Only `train` needs the package.

    The hidden Markov model, which joins characters to words that are in no dictionary, is left out for that reason. All
    else, also the few words of the dictionary that are partly Latin, is cut as `WordTokenizer` does with
    `split="word"`. The dictionary is of simplified words: traditional text falls into characters unless it is
    converted (`kerasllm.data.prepare(..., script="simplified")`) or another dictionary is given. A program that loads
    a SavedModel with this tokenizer needs `import tensorflow_text`.
    """

    bos_id = WordTokenizer.bos_id
    eos_id = WordTokenizer.eos_id
    unk_id = WordTokenizer.unk_id
    lossless = False
    file_names = (_VOCABULARY, _SEGMENTER)

    def __init__(self, words: Sequence[str], model: bytes) -> None:
        """Use a list of words.

        Args:
            words: The vocabulary after the three special ids, without repetition.
            model: Cuts runs of Chinese characters: a SentencePiece model with a piece for each of them.

        Raises:
            InputError: A word repeats, or the model is none or lacks a character.
        """
        self._words = WordTokenizer(words)
        self.words = self._words.words
        self.vocabulary_size = self._words.vocabulary_size
        self._model = model
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError:
            raise InputError(f"{_SEGMENTER} is not a SentencePiece model") from None
        unknown = self._processor.unk_id()
        if lacking := [c for c in _CHARACTERS if self._processor.piece_to_id(c) == unknown]:
            raise InputError(f"{_SEGMENTER} has no piece for {lacking[0]!r}, nor for {len(lacking) - 1} others")
        self._pattern = re.compile(f"([{_CHINESE}]+)|[{_SINGLE}]|[^{_BLANKS}{_SINGLE}{_CHINESE}]+")

    @classmethod
    def train(
        cls, texts: Iterable[str], vocabulary_size: int, *, dictionary: str | os.PathLike[str] | None = None
    ) -> Self:
        """Take the most frequent words; ties go by code point.

        Args:
            texts: Read once.
            vocabulary_size: Number of ids, the three special ones included.
            dictionary: File with a word, its count and anything else on each line; None means that of jieba.

        Returns:
            The tokenizer.

        Raises:
            InputError: jieba is not installed, the dictionary is none, or the texts have fewer different words.
        """
        splitter = cls([], _segmenter(jieba_dictionary() if dictionary is None else Path(dictionary)))
        return cls(most_frequent(map(splitter.split, texts), vocabulary_size), splitter._model)

    def split(self, text: str) -> Iterator[str]:
        """Yield the words of a text, those outside of the vocabulary too; blanks vanish."""
        for match in self._pattern.finditer(valid_unicode(text)):
            if match[1] is None:
                yield match[0]
            else:
                yield from self._processor.encode(match[1], out_type=str)

    def encode(self, text: str) -> list[int]:
        """See `Tokenizer.encode`."""
        return self._words.word_ids(self.split(text))

    def decode(self, ids: Sequence[int]) -> str:
        """See `Tokenizer.decode`; an unknown word shows as `<unk>`."""
        return self._words.decode(ids)

    def out_of_vocabulary_rate(self, texts: Iterable[str]) -> float:
        """Part of the words that the vocabulary lacks, 0 to 1 (0 for no words); read once."""
        return unknown_rate(self, texts)

    def tokenize(self, texts: "tf.Tensor") -> "tf.RaggedTensor":
        """See `Tokenizer.tokenize`."""
        import tensorflow as tf

        with tf.device("/CPU:0"):
            texts = tf.strings.regex_replace(texts, f"[{_BLANKS}]", " ")
            texts = tf.strings.regex_replace(texts, f"([{_CHINESE}]+|[{_SINGLE}])", r" \1 ")
            parts = tf.strings.split(texts, " ")
            parts = tf.ragged.boolean_mask(parts, parts != "")
            flat = parts.flat_values
            chinese = tf.strings.regex_full_match(flat, f"[{_CHINESE}]+")
            cut = self._op.tokenize(tf.where(chinese, flat, ""))
            others = tf.RaggedTensor.from_row_lengths(flat[~chinese], tf.cast(~chinese, tf.int64))
            return self._words.lookup(parts.with_values(tf.concat([cut, others], axis=1)).merge_dims(1, 2))

    def detokenize(self, ids: "tf.RaggedTensor") -> "tf.Tensor":
        """See `Tokenizer.detokenize`."""
        return self._words.detokenize(ids)

    def trackables(self) -> list[Any]:
        """See `Tokenizer.trackables`."""
        return [self._op, *self._words.trackables()]

    @functools.cached_property
    def _op(self) -> Any:
        import tensorflow as tf
        import tensorflow_text

        # A name of its own, for a loaded SavedModel takes two ops of one name for the same.
        name = f"segmenter_{hashlib.sha256(self._model).hexdigest()[:16]}"
        with tf.init_scope(), tf.device("/CPU:0"):
            return tensorflow_text.SentencepieceTokenizer(model=self._model, out_type=tf.string, name=name)

    def _files(self) -> dict[str, bytes]:
        return {**self._words._files(), _SEGMENTER: self._model}

    @classmethod
    def _restore(cls, settings: dict[str, Any], files: dict[str, bytes]) -> Self:
        words = json.loads(files[_VOCABULARY])
        if not isinstance(words, list):
            raise InputError(f"{_VOCABULARY} must be a list of words")
        return cls(words, files[_SEGMENTER], **settings)


def jieba_dictionary() -> Path:
    """Find the dictionary in the installed package jieba, whose code does not run.

    Raises:
        InputError: It is not installed.
    """
    spec = importlib.util.find_spec("jieba")
    path = Path(spec.origin or "").with_name("dict.txt") if spec else Path()
    if not path.is_file():
        raise InputError("tokenizer 'jieba': it is not installed; pip install 'kerasllm[zh]'")
    return path


def _segmenter(dictionary: Path) -> bytes:
    """The model that cuts as jieba does with this dictionary."""
    counts: dict[str, int] = {}
    total = 0
    wanted = re.compile(f"[{_CHINESE}]+")
    try:
        with dictionary.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                word, count = (*line.split(), "", "")[:2]
                if not count.isascii() or not count.isdecimal() or len(count) > 15:
                    raise InputError(f"{dictionary}:{number}: {line.strip()!r:.50} is not a word and its count")
                total += int(count)
                if wanted.fullmatch(word) and int(count):
                    counts[word] = int(count)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{dictionary}: cannot be read ({error}); give a dictionary in UTF-8") from None
    if not counts:
        raise InputError(f"{dictionary}: has no Chinese word; give lines of a word and its count")
    # What is no word counts once.
    counts = {**dict.fromkeys(_CHARACTERS, 1), **counts}
    return segmenter({word: math.log(count) - math.log(total) for word, count in counts.items()})
