"""Named data sets as pandas frames, `tf.data` or articles: found on this machine, or downloaded.

A file is looked for in the folder that KERASLLM_DATA names, then in the cache (KERASLLM_CACHE, or the platform's), and
then downloaded into the cache. Splits are those of the origin where it has any. Otherwise they are made here, the same
on every machine: rows in the order of a SHA-256 of their text go to test until it has a tenth of them, then to
validation for another tenth, then to train. (Articles, which are read one by one, go by the value of that hash: about
a tenth.)

No text is ever in two splits. Where an origin has one in two of its own, test keeps it before validation, and that
before train: so test splits are always complete, and scores compare.
"""

import collections
import hashlib
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kerasllm.data.dataset_files import find
from kerasllm.data.dataset_info import SPLITS, DatasetInfo
from kerasllm.data.dataset_readers import READERS, Row
from kerasllm.data.dataset_registry import dataset_names, describe
from kerasllm.data.sources import Article, read_articles
from kerasllm.data.wikipedia import default_corpus
from kerasllm.errors import InputError

if TYPE_CHECKING:
    import pandas as pd
    import tensorflow as tf

__all__ = ["as_tf_dataset", "dataset_articles", "dataset_names", "dataset_paths", "describe", "load_dataset"]

_SHARE = 0.1  # of validation, and of test, where the split is made here
_SEED = 0
_KEPT = SPLITS[::-1]  # who keeps a text that the origin has in two splits
# Bytes of a frame for a byte of a file: 6.7 for wikiextractor's text in bzip2, 3.5 for a dump, 0.9 to 1.9 for plain
# text (measured), and some room.
_EXPANSION = {".bz2": 8, ".gz": 8}
_PLAIN_EXPANSION = 3


def load_dataset(
    name: str, split: str | None = None, *, limit: int | None = None, progress: bool = True
) -> "pd.DataFrame":
    """Read a data set.

    Args:
        name: One of `dataset_names()`.
        split: One of `describe(name).splits`; all of them by default, in one frame with a column `split` in front.
        limit: Rows of each split at most: a sample, the same each time; of articles the first.
        progress: Show the progress of downloads on a terminal.

    Returns:
        A frame with the columns `describe(name).columns`. By task: articles `title`, `text`; classification `text`,
        `label` (a number; names are in `describe(name).labels`); tagging `tokens`, `tags` (BIO); question_answering
        `id`, `title`, `context`, `question`, `answers`, `answer_starts` (characters of the context); translation
        `source`, `target`; summarization `text`, `summary`; dialogue `turns`. Plural columns hold lists.

    Raises:
        InputError: The data set or split is unknown, a file is missing and cannot be downloaded, has another checksum
            or form than expected, or the articles would not fit the memory.
    """
    import pandas as pd

    info = describe(name)
    wanted = info.splits if split is None else (_checked_split(info, split),)
    if limit is not None and limit < 1:
        raise InputError(f"limit: {limit} is too few; give 1 or more, or None for all rows")
    if info.task == "articles" and limit is None:
        _check_memory(info, [path for part in wanted for path in dataset_paths(name, part, progress=progress)])
    rows = _read(info, wanted, limit, progress)
    frames = []
    for part in wanted:
        columns = {column: [row[column] for row in rows[part]] for column in info.columns}
        frame = pd.DataFrame(columns)
        if split is None:
            frame.insert(0, "split", part)
        frames.append(frame)
    return frames[0] if split is not None else pd.concat(frames, ignore_index=True)


def dataset_articles(
    name: str, split: str | None = None, *, workers: int | None = None, progress: bool = True
) -> Iterator[Article]:
    """Read the articles of a data set one by one: memory does not grow with it.

    Args:
        name: One of `dataset_names("articles")`.
        split: One of `describe(name).splits`; everything by default.
        workers: Processes that clean dumps; all cores by default.
        progress: Show the progress of downloads on a terminal.

    Returns:
        An iterator, for `kerasllm.data.prepare` for example.

    Raises:
        InputError: As for `load_dataset`, or it holds no articles.
    """
    info = describe(name)
    if info.task != "articles":
        raise InputError(f"{info.name}: holds no articles but {info.task}; read it with load_dataset")
    parts = info.splits if split is None else (_checked_split(info, split),)
    if not info.official:
        rows = _stream(info, dataset_paths(name, parts[0], progress=progress), workers)
        return (article for article, part in rows if part in parts)
    paths = [path for part in parts for path in dataset_paths(name, part, progress=progress)]
    return itertools.chain.from_iterable(read_articles(path, workers=workers) for path in paths)


def dataset_paths(name: str, split: str | None = None, *, progress: bool = True) -> list[Path]:
    """The files of a data set, downloaded if need be.

    Args:
        name: One of `dataset_names()`.
        split: The split whose files to give; where splits are made here, all are in the same files.
        progress: Show the progress of downloads on a terminal.

    Raises:
        InputError: As for `load_dataset`.
    """
    info = describe(name)
    if info.package:
        return [default_corpus()]
    parts = info.splits if split is None else (_checked_split(info, split),)
    files = dict.fromkeys(file for part in parts for file in info.files_of(part))
    return [path for file in files for path in find(info, file, progress=progress)]


def as_tf_dataset(
    frame: "pd.DataFrame",
    inputs: str | None = None,
    targets: str | None = None,
    *,
    batch_size: int | None = None,
    seed: int | None = None,
) -> "tf.data.Dataset":
    """The rows of a frame as `tf.data`.

    Args:
        frame: Of `load_dataset`.
        inputs: A column; by default rows are dictionaries of all columns.
        targets: A column that goes with `inputs`, for `model.fit`.
        batch_size: Rows in a batch; by default there are no batches.
        seed: Shuffles the rows, anew in each epoch.

    Returns:
        Dataset of dictionaries, inputs, or (inputs, targets). A column of strings or numbers is a tensor of shape () or
        (batch,); one of lists is (length,), and in batches a RaggedTensor (batch, None).

    Raises:
        InputError: There is no such column or no row, or `targets` comes without `inputs`.
    """
    import tensorflow as tf

    if targets is not None and inputs is None:
        raise InputError("inputs: is missing; name the column that goes with targets")
    for column in filter(None, (inputs, targets)):
        if column not in frame.columns:
            raise InputError(f"frame: has no column {column!r}; choose one of {', '.join(map(str, frame.columns))}")
    if frame.empty:
        raise InputError("frame: has no row; choose another split or limit")
    names = list(frame.columns) if inputs is None else [name for name in (inputs, targets) if name]
    values = {name: _tensor(frame[name]) for name in names}
    rows = tf.data.Dataset.range(len(frame))
    if seed is not None:
        rows = rows.shuffle(len(frame), seed=seed)
    if batch_size is not None:
        rows = rows.batch(batch_size)

    def gather(index: "tf.Tensor") -> Any:
        taken = {name: tf.gather(value, index) for name, value in values.items()}
        return taken if inputs is None else tuple(taken.values()) if targets else taken[inputs]

    return rows.map(gather).prefetch(tf.data.AUTOTUNE)


def _tensor(column: "pd.Series") -> Any:
    import tensorflow as tf

    values = column.tolist()
    if isinstance(values[0], list):
        flat = tf.constant(list(itertools.chain.from_iterable(values)))
        return tf.RaggedTensor.from_row_lengths(flat, [len(value) for value in values])
    return tf.constant(values)


def _checked_split(info: DatasetInfo, split: str) -> str:
    if split not in info.splits:
        raise InputError(f"split: {info.name} has no {split!r}; choose one of {', '.join(info.splits)}")
    return split


def _check_memory(info: DatasetInfo, paths: Iterable[Path]) -> None:
    import psutil

    factors = ((path, _EXPANSION.get(path.suffix, _PLAIN_EXPANSION)) for path in set(paths))
    need, free = sum(path.stat().st_size * factor for path, factor in factors), psutil.virtual_memory().available
    if need > free:
        raise InputError(
            f"{info.name}: takes some {need / 1e9:.1f} GB as a frame, {free / 1e9:.1f} GB are free; give a limit, or "
            "read dataset_articles, whose memory does not grow"
        )


def _read(info: DatasetInfo, wanted: tuple[str, ...], limit: int | None, progress: bool) -> dict[str, list[Row]]:
    if info.official:
        rows = _read_official(info, wanted, progress)
    else:
        paths = dataset_paths(info.name, progress=progress)
        if info.task == "articles":
            return _first_articles(_stream(info, paths, None if limit is None else 1), wanted, limit)
        rows = {split: [] for split in wanted}
        for row, part in _split(info, list(_rows(info, paths))):
            if part in rows:
                rows[part].append(row)
    if limit is None:
        return rows
    sample = _head if info.task == "articles" else _sample
    return {split: sample(found, limit) for split, found in rows.items()}


def _head(rows: list[Row], count: int) -> list[Row]:
    return rows[:count]


def _sample(rows: list[Row], count: int) -> list[Row]:
    """The rows of smallest hash, in their order: the first rows of a file may all be of one class."""
    order = sorted(range(len(rows)), key=lambda i: _place(_digest("row", str(rows[i]))))
    return [rows[i] for i in sorted(order[:count])]


def _first_articles(
    stream: Iterator[tuple[Article, str]], wanted: tuple[str, ...], limit: int | None
) -> dict[str, list[Row]]:
    rows: dict[str, list[Row]] = {split: [] for split in wanted}
    for article, part in stream:
        if part in rows and (limit is None or len(rows[part]) < limit):
            rows[part].append({"title": article.title, "text": article.text})
            if limit is not None and all(len(found) >= limit for found in rows.values()):
                break
    return rows


def _read_official(info: DatasetInfo, wanted: tuple[str, ...], progress: bool) -> dict[str, list[Row]]:
    """Rows by split, without those whose text is in a split that comes before it in `_KEPT`."""
    rows: dict[str, list[Row]] = {}
    seen: set[bytes] = set()
    for split in (part for part in _KEPT if part in info.splits):
        kept: list[Row] = []
        keys: set[bytes] = set()
        for row in _rows(info, dataset_paths(info.name, split, progress=progress)):
            own = _keys(info, row)
            if seen.isdisjoint(own):
                keys.update(own)
                kept.append(row)
        seen |= keys
        if split in wanted:
            rows[split] = kept
        if len(rows) == len(wanted):
            break
    return rows


def _rows(info: DatasetInfo, paths: list[Path]) -> Iterator[Row]:
    return READERS[info.reader](paths, info.labels)


def _keys(info: DatasetInfo, row: Row) -> list[bytes]:
    """What rows of different splits must not share: a digest for each column, of its text without white space."""
    return [_digest(column, row[column]) for column in info.identity]


def _digest(column: str, value: Any) -> bytes:
    text = "\n".join(value) if isinstance(value, list) else str(value)
    return hashlib.blake2b(f"{column}\n{''.join(text.split())}".encode(), digest_size=16).digest()


def _stream(info: DatasetInfo, paths: list[Path], workers: int | None) -> Iterator[tuple[Article, str]]:
    """Articles and their splits, by the text alone."""
    for path in paths:
        if info.reader == "articles":
            articles: Iterable[Article] = read_articles(path, workers=workers)
        else:
            articles = (Article(row["title"], row["text"]) for row in _rows(info, [path]))
        for article in articles:
            yield article, _part(_place(_digest("text", article.text)))


def _split(info: DatasetInfo, rows: list[Row]) -> Iterator[tuple[Row, str]]:
    """Rows and their splits; rows that share a text, or that others tie together, go the same way (union-find)."""
    parents: dict[bytes, bytes] = {}

    def root(key: bytes) -> bytes:
        while (parent := parents.setdefault(key, key)) != key:
            parents[key] = parents[parent]
            key = parents[key]
        return key

    keys = [_keys(info, row) for row in rows]
    for first, *others in keys:
        for other in others:
            # The smallest digest stands for all, so that the order of the rows changes nothing.
            low, high = sorted((root(first), root(other)))
            parents[high] = low
    roots = [root(first) for first, *_ in keys]
    sizes = collections.Counter(roots)
    parts: dict[bytes, str] = {}
    filled = dict.fromkeys(("test", "validation"), 0)
    for key in sorted(sizes, key=_place):
        parts[key] = next((part for part, size in filled.items() if size < _SHARE * len(rows)), "train")
        if parts[key] in filled:
            filled[parts[key]] += sizes[key]
    for row, key in zip(rows, roots, strict=True):
        yield row, parts[key]


def _place(key: bytes) -> float:
    """Where a text stands among all texts: uniform from 0 to 1."""
    digest = hashlib.sha256(f"{_SEED}\n".encode() + key).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _part(place: float) -> str:
    return "test" if place < _SHARE else "validation" if place < 2 * _SHARE else "train"
