"""Articles to token ids with all cores, in processes that know nothing of TensorFlow."""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kerasllm.data.pool import available_cores, map_in_order
from kerasllm.text import Tokenizer, load_tokenizer

LENGTH_DTYPE = np.dtype("<u4")
"""The type of the lengths of articles, in tokens, in a file."""

# What a worker gets at a time: so many bytes of the file of articles, up to the end of the last line begun in them.
_PIECE = 2**20
# Below this size the file is encoded sooner than processes are started.
_ALONE = 4 * _PIECE


class Encoded(NamedTuple):
    """How many tokens were written, bos and eos included, and how many of them are unk."""

    tokens: int
    unknown: int


class _Piece(NamedTuple):
    articles: Path
    tokenizer: Path
    start: int
    end: int


def token_dtype(tokenizer: Tokenizer) -> np.dtype:
    """The type of the ids in a token file: little-endian uint16 or, for large vocabularies, uint32."""
    return np.dtype("<u2" if tokenizer.vocabulary_size <= 2**16 else "<u4")


def encode_articles(
    articles: Path, tokenizer: Path, out: Path, lengths: Path, *, workers: int | None, progress: Callable[[int], object]
) -> Encoded:
    """Encode a file of articles, each as bos, tokens, eos; the result does not depend on the number of workers.

    Args:
        articles: JSON lines with a "text".
        tokenizer: The folder that `Tokenizer.save` wrote.
        out: File for the ids.
        lengths: File for the number of ids of each article, bos and eos included, little-endian uint32.
        workers: Processes; None means one per core, or none where they would not pay.
        progress: Called with a number of bytes of `articles` when they are done.

    Returns:
        The counts.
    """
    size = articles.stat().st_size
    if workers is None:
        workers = available_cores() if size > _ALONE else 1
    pieces = (_Piece(articles, tokenizer, start, min(start + _PIECE, size)) for start in range(0, size, _PIECE))
    tokens = unknown = done = 0
    with out.open("wb") as file, lengths.open("wb") as lengths_file:
        for ids, lengths_here, unknown_here in map_in_order(_encode, pieces, workers=workers):
            ids.tofile(file)
            lengths_here.tofile(lengths_file)
            tokens += len(ids)
            unknown += unknown_here
            progress(min(_PIECE, size - done))
            done += _PIECE
    return Encoded(tokens, unknown)


def _encode(piece: _Piece) -> tuple[np.ndarray, np.ndarray, int]:
    """Ids and lengths of the articles whose lines begin in the piece, and the number of unknown tokens."""
    tokenizer = _tokenizer(piece.tokenizer)
    dtype = token_dtype(tokenizer)
    documents = [np.zeros(0, dtype)]
    unknown = 0
    with piece.articles.open("rb") as lines:
        if piece.start:
            # A line that began before the piece belongs to the piece before.
            lines.seek(piece.start - 1)
            lines.readline()
        while lines.tell() < piece.end:
            ids = tokenizer.encode(json.loads(lines.readline())["text"])
            unknown += 0 if tokenizer.unk_id is None else ids.count(tokenizer.unk_id)
            documents.append(np.array([tokenizer.bos_id, *ids, tokenizer.eos_id], dtype))
    lengths = np.array([len(ids) for ids in documents[1:]], LENGTH_DTYPE)
    return np.concatenate(documents), lengths, unknown


@functools.lru_cache(maxsize=1)
def _tokenizer(folder: Path) -> Tokenizer:
    return load_tokenizer(folder)
