"""A prepared corpus: articles split, a tokenizer trained on one part of them, and all of them as tokens."""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kerasllm.data.article_files import SPLITS, Reading, Source, copy_source, no_counts, progress_bar, read_article_file
from kerasllm.data.encoding import LENGTH_DTYPE, encode_articles, token_dtype
from kerasllm.data.packing import packed_dataset
from kerasllm.data.script import script_converter
from kerasllm.errors import InputError
from kerasllm.files import atomic_folder, read_json, sha256, write_json
from kerasllm.text import (
    ByteTokenizer,
    JiebaTokenizer,
    SentencePieceTokenizer,
    Tokenizer,
    WordTokenizer,
    load_tokenizer,
)
from kerasllm.text.segmentation import jieba_dictionary

if TYPE_CHECKING:
    import tensorflow as tf

    from kerasllm.data.sources import Article

_FORMAT = 1
_BLOCK = 2**20
_MANIFEST = "manifest.json"
_TOKENIZER = "tokenizer"
_TRAINERS: dict[str, Callable[[Iterable[str], int], Tokenizer]] = {
    "sentencepiece": lambda texts, size: SentencePieceTokenizer.train(texts, size),
    "sentencepiece-bpe": lambda texts, size: SentencePieceTokenizer.train(texts, size, model_type="bpe"),
    "character": lambda texts, size: SentencePieceTokenizer.train(texts, size, model_type="char"),
    "jieba": lambda texts, size: JiebaTokenizer.train(texts, size),
    "word": lambda texts, size: WordTokenizer.train(texts, size),
    "whitespace": lambda texts, size: WordTokenizer.train(texts, size, split="whitespace"),
    "byte": lambda texts, size: ByteTokenizer(),
}


@dataclass(frozen=True)
class Corpus:
    """A prepared corpus on the disk; nothing of it is in memory but the tokenizer.

    Attributes:
        folder: Where it is.
        manifest: Content of `manifest.json`: counts per split, tokenizer, source, checksums.
        tokenizer: What the tokens were made with.
    """

    folder: Path
    manifest: dict[str, Any]
    tokenizer: Tokenizer

    @property
    def identity(self) -> dict[str, str]:
        """What makes this corpus the one it is: the SHA-256 of the tokens of each split, and the tokenizer's."""
        files = {name: entry["sha256"] for name, entry in self.manifest["files"].items() if name.endswith(".tokens")}
        return {**files, "tokenizer": self.manifest["tokenizer"]["fingerprint"]}

    def articles(self, split: str) -> Iterator["Article"]:
        """Yield the articles of "train", "validation" or "test" one by one, in the order of the source."""
        from kerasllm.data.sources import Article

        for entry in read_article_file(self._path(split, "jsonl")):
            yield Article(title=entry["title"], text=entry["text"])

    def tokens(self, split: str) -> np.ndarray:
        """Map the token stream of a split: (n,) uint16 or uint32, every article as bos, its tokens, eos."""
        path = self._path(split, "tokens")
        dtype = token_dtype(self.tokenizer)
        # An empty file cannot be mapped.
        return np.memmap(path, dtype, mode="r") if path.stat().st_size else np.zeros(0, dtype)

    def documents(self, split: str) -> Iterator[np.ndarray]:
        """Yield the tokens of each article of a split, bos and eos included, (n,) uint16 or uint32."""
        tokens = self.tokens(split)
        start = 0
        for end in self._ends(split, tokens):
            yield np.array(tokens[start:end])
            start = end

    def _ends(self, split: str, tokens: np.ndarray) -> Iterator[int]:
        """Where each article ends. No token tells: eos may be bos, and a text may spell either."""
        path = self._path(split, "lengths")
        if path.name not in self.manifest["files"]:
            # A corpus of the time before: its tokenizers never make bos of a text.
            for offset in range(0, len(tokens), _BLOCK):
                for begin in np.flatnonzero(tokens[offset : offset + _BLOCK] == self.tokenizer.bos_id) + offset:
                    if begin:
                        yield int(begin)
            if len(tokens):
                yield len(tokens)
            return
        end = 0
        with path.open("rb") as lengths:
            while len(block := np.fromfile(lengths, LENGTH_DTYPE, _BLOCK)):
                for length in block.tolist():
                    end += length
                    yield end

    def dataset(
        self,
        split: str,
        *,
        batch_size: int,
        sequence_length: int,
        seed: int | None = None,
        repeat: bool = False,
        start: int = 0,
        columns: bool = False,
    ) -> "tf.data.Dataset":
        """Cut the token stream of a split into batches of full windows; see `kerasllm.data.packed_dataset`.

        Args:
            split: "train", "validation" or "test".
            batch_size: Windows in a batch.
            sequence_length: Tokens in a window.
            seed: Shuffles the windows, differently in each epoch. None keeps the order and every window.
            repeat: Never end.
            start: Batches to skip, for going on after an interruption; needs `repeat`.
            columns: Row r of each batch continues row r of the batch before (for carried LSTM state).

        Returns:
            Dataset of (inputs, targets), each int32 (batch_size, sequence_length).

        Raises:
            InputError: The split is too short for one batch, or is unknown.
        """
        return packed_dataset(
            self.tokens(split),
            batch_size=batch_size,
            sequence_length=sequence_length,
            seed=seed,
            repeat=repeat,
            start=start,
            columns=columns,
            name=f"{self.folder}: split {split!r}",
        )

    def _path(self, split: str, suffix: str) -> Path:
        if split not in SPLITS:
            raise InputError(f"split: {split!r} is none of {', '.join(SPLITS)}")
        return self.folder / f"{split}.{suffix}"


def prepare(
    source: Source | Mapping[str, Source],
    out: str | os.PathLike[str],
    *,
    tokenizer: str | Tokenizer = "sentencepiece",
    vocabulary_size: int = 4096,
    validation: float = 0.05,
    test: float = 0.05,
    seed: int = 0,
    workers: int | None = None,
    on_error: str = "raise",
    script: str | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> Corpus:
    """Read, split and tokenize a corpus; memory does not grow with its size.

    The same source and arguments give the same files, byte for byte, for any number of workers.

    Args:
        source: What `read_articles` reads, or the articles themselves; or one of those for each of "train",
            "validation" and "test", where the split is given (then `validation`, `test` and `seed` do nothing).
        out: Folder to make.
        tokenizer: "sentencepiece" (unigram), "sentencepiece-bpe", "character", "jieba" (words of Chinese), "word",
            "whitespace" or "byte", trained on the training split alone; or a tokenizer to use as it is.
        vocabulary_size: Number of ids of a tokenizer to be trained; "byte" has its own.
        validation: Part of the articles, 0 to 1, by a hash of the title. 0 leaves the split empty.
        test: The same for the test split.
        seed: Salt of that hash.
        workers: Processes that read and encode; None means one per core.
        on_error: Of `read_articles`: "raise" at damage in the source, or "stop" there and keep what came before.
        script: "simplified" or "traditional": write Chinese titles and texts so; other text stays as it is. The split
            goes by the titles of the source, so it is the same for each script.
        overwrite: Replace `out` if it exists.
        progress: Show progress bars on a terminal.

    Returns:
        The corpus.

    Raises:
        InputError: The source cannot be read, `out` exists, a split would be empty, the training split allows no such
            vocabulary, or a package for Chinese is missing.
    """
    _check_arguments(source, tokenizer, validation, test, workers)
    reading = Reading(workers, on_error, progress, script_converter(script))
    with atomic_folder(out, overwrite=overwrite) as folder:
        how, inputs, wanted = _plan(source, validation, test, seed)
        counts = {split: no_counts() for split in SPLITS}
        sources = {key: copy_source(one, folder, choose, counts, reading) for key, one, choose in inputs}
        _check_splits(counts, wanted)
        if not isinstance(tokenizer, Tokenizer):
            texts = (entry["text"] for entry in read_article_file(folder / "train.jsonl"))
            texts = progress_bar(texts, progress, "train tokenizer", " articles")
            tokenizer = _TRAINERS[tokenizer](texts, vocabulary_size)
        _encode_splits(folder, tokenizer, counts, workers, progress)
        manifest: dict[str, Any] = {"format": _FORMAT, "split": how, "sources": sources}
        manifest |= {"script": script, "tokenizer": _describe(tokenizer)}
        write_json(folder / _MANIFEST, {**manifest, "splits": counts, "files": _checksums(folder)})
    return load_corpus(out)


def _check_arguments(source: Any, tokenizer: Any, validation: float, test: float, workers: int | None) -> None:
    if not isinstance(tokenizer, Tokenizer) and tokenizer not in _TRAINERS:
        raise InputError(f"tokenizer: {tokenizer!r} is none of {', '.join(_TRAINERS)}")
    if tokenizer == "jieba":
        jieba_dictionary()  # before hours of reading
    if min(validation, test) < 0 or validation + test >= 1:
        raise InputError(f"validation {validation} and test {test} must be fractions that leave something to train on")
    if workers is not None and workers < 1:
        raise InputError(f"workers: {workers} is too few; give 1 or more, or None for all cores")
    if isinstance(source, Mapping) and ("train" not in source or not set(source) <= set(SPLITS)):
        raise InputError(f"source: needs 'train', and may have others of {', '.join(SPLITS)}; got {list(source)}")


_Input = tuple[str, Any, Callable[[str], str]]
"""A source's key in the manifest, the source, and a function of the title that gives the split."""


def _plan(
    source: Source | Mapping[str, Source], validation: float, test: float, seed: int
) -> tuple[dict[str, Any], list[_Input], set[str]]:
    """How the split is made (for the manifest), what to read, and the splits that must not be empty."""
    if isinstance(source, Mapping):
        return {"by": "source"}, [(s, source[s], _always(s)) for s in SPLITS if s in source], set(source)
    wanted = {"train", *(["validation"] if validation else []), *(["test"] if test else [])}
    how = {"by": "hash of the title", "validation": validation, "test": test, "seed": seed}
    return how, [("all", source, lambda title: _split_of(title, validation, test, seed))], wanted


def load_corpus(folder: str | os.PathLike[str], *, verify: bool = False) -> Corpus:
    """Open what `prepare` made.

    Args:
        folder: The corpus.
        verify: Also read every file and compare its SHA-256.

    Returns:
        The corpus.

    Raises:
        InputError: Something is missing, of another format, or not what the manifest says. Nothing is repaired.
    """
    folder = Path(folder)
    path = folder / _MANIFEST
    manifest = read_json(path)
    if not isinstance(manifest, dict) or manifest.get("format") != _FORMAT:
        found = manifest.get("format") if isinstance(manifest, dict) else None
        raise InputError(f"{path}: format {found!r} is not {_FORMAT}; prepare the corpus anew")
    try:
        described = manifest["tokenizer"]
        itemsize = np.dtype(described["dtype"]).itemsize
        files = {name: (entry["bytes"], entry["sha256"]) for name, entry in manifest["files"].items()}
        counts = manifest["splits"]
        agree = all(files[f"{split}.tokens"][0] == counts[split]["tokens"] * itemsize for split in SPLITS) and all(
            files[name][0] == counts[split]["articles"] * LENGTH_DTYPE.itemsize
            for split in SPLITS
            if (name := f"{split}.lengths") in files
        )
        fingerprint = described["fingerprint"]
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: is not the manifest of a corpus ({error!r}); prepare the corpus anew") from None
    if not agree:
        raise InputError(f"{path}: its token counts contradict its file sizes; prepare the corpus anew")
    for name, (size, digest) in files.items():
        file = folder / name
        if not file.is_file():
            raise InputError(f"{file}: is missing; copy it again or prepare the corpus anew")
        if file.stat().st_size != size:
            raise InputError(f"{file}: has {file.stat().st_size} bytes instead of {size}; prepare the corpus anew")
        if verify and sha256(file) != digest:
            raise InputError(f"{file}: its SHA-256 is not the one in {_MANIFEST}; prepare the corpus anew")
    tokenizer = load_tokenizer(folder / _TOKENIZER)
    if tokenizer.fingerprint != fingerprint:
        raise InputError(f"{folder / _TOKENIZER}: is not the tokenizer of these tokens; prepare the corpus anew")
    return Corpus(folder, manifest, tokenizer)


def _split_of(title: str, validation: float, test: float, seed: int) -> str:
    """Choose a split by the title alone: an article stays where it is when others come or go."""
    digest = hashlib.sha256(f"{seed}\n{title}".encode()).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64
    return "test" if place < test else "validation" if place < test + validation else "train"


def _always(split: str) -> Callable[[str], str]:
    return lambda title: split


def _check_splits(counts: dict[str, dict[str, Any]], wanted: set[str]) -> None:
    total = sum(count["articles"] for count in counts.values())
    if empty := [split for split in SPLITS if split in wanted and not counts[split]["articles"]]:
        raise InputError(
            f"split {empty[0]!r} would be empty, for the source has only {total} articles; "
            "choose other fractions (0 for no such split), another seed or a larger source "
            "(a text file is one article: give a folder of them, or JSON lines)"
        )


def _encode_splits(
    folder: Path, tokenizer: Tokenizer, counts: dict[str, dict[str, Any]], workers: int | None, progress: bool
) -> None:
    """Write the tokenizer and the tokens of every split, and count them."""
    tokenizer.save(folder / _TOKENIZER)
    for split in SPLITS:
        articles = folder / f"{split}.jsonl"
        with progress_bar(None, progress, f"encode {split}", "B", total=articles.stat().st_size) as bar:
            done = encode_articles(
                articles,
                folder / _TOKENIZER,
                folder / f"{split}.tokens",
                folder / f"{split}.lengths",
                workers=workers,
                progress=bar.update,
            )
        counts[split]["tokens"] = done.tokens
        if tokenizer.unk_id is not None:
            encoded = done.tokens - 2 * counts[split]["articles"]
            counts[split]["out_of_vocabulary_rate"] = done.unknown / encoded if encoded else 0.0


def _describe(tokenizer: Tokenizer) -> dict[str, Any]:
    return {
        "class": type(tokenizer).__name__,
        "fingerprint": tokenizer.fingerprint,
        "vocabulary_size": tokenizer.vocabulary_size,
        "lossless": tokenizer.lossless,
        "dtype": token_dtype(tokenizer).str,
    }


def _checksums(folder: Path) -> dict[str, dict[str, Any]]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256(path)} for path in files
    }
