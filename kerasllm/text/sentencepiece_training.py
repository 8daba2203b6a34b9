"""Training of SentencePiece models: on a bounded sample of a text, and the same model every time."""

import collections
import io
import random
import re
from collections.abc import Iterable

import sentencepiece

from kerasllm.errors import InputError
from kerasllm.text.tokenizer import valid_unicode

MODEL_TYPES = ("unigram", "bpe", "char")

# SentencePiece writes blanks as this character.
_BLANK = "▁"
# Of the pieces that are not bytes or special, at most this part may be single characters. It matters for Chinese:
# 4,096 pieces of which 3,300 are characters make longer texts than 2,500 characters and 1,300 longer words do.
_CHARACTER_PART = 2 / 3
_FIXED_PIECES = 256 + 3 + 1  # bytes; unk, bos, eos; newline


def train_model(
    texts: Iterable[str],
    vocabulary_size: int,
    *,
    model_type: str,
    character_coverage: float | None,
    sample_bytes: int,
    seed: int,
) -> bytes:
    """Train a model; see `SentencePieceTokenizer.train` for arguments and errors.

    Returns:
        The content of a `.model` file.
    """
    if model_type not in MODEL_TYPES:
        raise InputError(f"model_type: {model_type!r} is none of {', '.join(MODEL_TYPES)}")
    lines = sample(texts, sample_bytes, seed)
    if not lines:
        raise InputError("the tokenizer has no text to train on; give at least one line that is not blank")
    if model_type == "char":
        return _train_characters(lines, vocabulary_size)
    try:
        return _train(lines, vocabulary_size, model_type, character_coverage)
    except (RuntimeError, OSError) as error:
        message = str(error)
    if largest := _largest(message, lines, model_type, character_coverage):
        message = f"{vocabulary_size} is too large for this text; the largest possible is {largest}"
    elif found := re.search(r"required_chars\. \d+ vs (\d+)", message):
        message = f"{vocabulary_size} is too small for the characters of this text; give more than {found[1]}"
    else:
        message = f"the training with {vocabulary_size} failed ({' '.join(message.split())}); try another size"
    raise InputError(f"vocabulary_size: {message}")


def sample(texts: Iterable[str], size: int, seed: int) -> list[str]:
    """Draw lines uniformly, in their order: one pass, bounded memory.

    Each line draws a number and stays while that is below a threshold, which is lowered whenever too much is kept.

    Args:
        texts: Read once.
        size: About how many bytes to keep.
        seed: Of the numbers.

    Returns:
        Lines that the library trains on.
    """
    draw = random.Random(seed).random
    kept: list[tuple[float, str]] = []
    threshold, total = 1.0, 0
    for text in texts:
        for line in _lines(text):
            if (number := draw()) >= threshold:
                continue
            kept.append((number, line))
            total += len(line.encode())
            if total > size:
                threshold *= 0.75
                kept = [entry for entry in kept if entry[0] < threshold]
                total = sum(len(line.encode()) for _, line in kept)
    return [line for _, line in kept]


def _train(
    lines: list[str],
    vocabulary_size: int,
    model_type: str,
    character_coverage: float | None,
    symbols: tuple[str, ...] = ("\n",),
) -> bytes:
    """Run the library's trainer; it raises RuntimeError or OSError."""
    if character_coverage is None:
        character_coverage = _coverage(lines, vocabulary_size)
    output = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=output,
        model_type=model_type,
        vocab_size=vocabulary_size,
        character_coverage=character_coverage,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        byte_fallback=True,
        user_defined_symbols=list(symbols),
        unk_surface="",
        num_threads=16,  # not the number of cores: the sums of unigram training depend on it
        minloglevel=2,
    )
    model = output.getvalue()
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    if not processor.is_unknown(processor.piece_to_id(_BLANK)):
        return model
    # Chinese may have next to no blanks. Without a piece of its own a blank is spelt in the bytes of U+2581, and those
    # do not come back as a blank.
    return _train(lines, vocabulary_size, model_type, character_coverage, (*symbols, _BLANK))


def _train_characters(lines: list[str], vocabulary_size: int) -> bytes:
    """The most frequent characters; the library would take fewer than asked for without a word."""
    smallest, largest = _FIXED_PIECES + 2, _FIXED_PIECES + len({*"".join(lines), " "})
    if not smallest <= vocabulary_size <= largest:
        raise InputError(
            f"vocabulary_size: {vocabulary_size} is too {'small' if vocabulary_size < smallest else 'large'} for the "
            f"characters of this text; the smallest possible is {smallest}, the largest possible is {largest}"
        )
    return _train(lines, vocabulary_size, "char", 1.0)


def _largest(message: str, lines: list[str], model_type: str, character_coverage: float | None) -> int | None:
    """The largest possible vocabulary, if that is what the trainer's message is about.

    The message names a size, but with that size `_coverage` may choose fewer characters, so it has to be tried.
    """
    largest = None
    while found := re.search(r"value <= (\d+)", message):
        largest = int(found[1])
        try:
            _train(lines, largest, model_type, character_coverage)
            break
        except (RuntimeError, OSError) as error:
            message = str(error)
    return largest


def _lines(text: str) -> Iterable[str]:
    """Split a text into training sentences.

    The library silently drops sentences over 4,192 bytes, and those that hold the two characters it uses itself or NUL.
    """
    text = valid_unicode(text).translate({0: " ", ord(_BLANK): " ", 0x2585: " "})
    for line in text.split("\n"):
        for start in range(0, len(line), 1024):
            if piece := line[start : start + 1024].strip(" "):
                yield piece


def _coverage(lines: list[str], vocabulary_size: int) -> float:
    """0.9995, or the coverage of as many characters as `_CHARACTER_PART` admits; the library wants at least 0.98."""
    counts = collections.Counter[str]()
    for line in lines:
        counts.update(line)
    room = int((vocabulary_size - _FIXED_PIECES) * _CHARACTER_PART)
    covered = sum(count for _, count in counts.most_common(max(room, 0)))
    return min(0.9995, max(0.98, covered / counts.total()))
