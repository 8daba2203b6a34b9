"""Articles from whatever holds them: a MediaWiki dump, wikiextractor's output, JSON lines or plain text."""

import html
import itertools
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from kerasllm.data.compressed import SUFFIXES, read_chunks, read_lines
from kerasllm.data.markup import Site, clean
from kerasllm.data.pool import available_cores, map_in_order
from kerasllm.data.wikipedia import Dump, default_corpus
from kerasllm.errors import InputError

__all__ = ["Article", "ReadReport", "default_corpus", "read_articles"]

T = TypeVar("T")

_BATCH = 1 << 19  # characters of wikitext that a worker gets at a time
_BEFORE_POOL = 8  # batches (4 million characters, under a second) cleaned here before processes are worth starting

_DOC = re.compile(r"<doc\b([^>]*)>\s*")
_DOC_TITLE = re.compile(r'\btitle="(.*)"')
_TITLE_LINE = re.compile(r" ?= ([^=\s](?:.*[^=\s])?) = ?")
_JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")


@dataclass(frozen=True)
class Article:
    """A title and the plain text under it (which does not repeat the title)."""

    title: str
    text: str


@dataclass
class ReadReport:
    """What was read and what was left out; `read_articles` fills it while its articles are taken.

    Attributes:
        files: Files read.
        ignored_files: Files of a folder whose names say that they hold something else.
        pages: Pages of a dump, or records of another source.
        redirects: Pages that only point to another one.
        non_articles: Pages of other namespaces (talk, user, template, ...) or without wikitext (JSON, Lua, ...).
        empty: Articles with no text left after cleaning.
        articles: Articles given out. `pages` is the sum of this and the three above.
        bytes: UTF-8 bytes of the text given out.
        stopped: With `on_error="stop"`, the error that ended the reading.
    """

    files: int = 0
    ignored_files: int = 0
    pages: int = 0
    redirects: int = 0
    non_articles: int = 0
    empty: int = 0
    articles: int = 0
    bytes: int = 0
    stopped: str | None = None


def read_articles(
    path: str | os.PathLike[str],
    *,
    workers: int | None = None,
    report: ReadReport | None = None,
    on_error: str = "raise",
) -> Iterator[Article]:
    """Read the articles of a file, or of all files of a folder in the order of their names.

    What a file holds is told from its first bytes and its name; each may be packed with bzip2 or gzip:

    * a MediaWiki XML dump: articles cleaned of their markup; redirects and other namespaces skipped;
    * wikiextractor's `<doc title="...">` ... `</doc>` or its JSON;
    * `.jsonl`: an object with `title` and `text` on each line, other keys ignored;
    * anything else is UTF-8 text: one article named as the file, or, where the first line has the form ` = Title = ` of
      the WikiText corpora, one for each such line (their text is kept as it is, tokens and all).

    Every page counts, however long; cleaning takes time in proportion. A page without readable text is skipped and
    counted. The articles and their order do not depend on `workers`.

    Args:
        path: A file or folder (read with its subfolders; hidden files are passed over).
        workers: Processes that clean dumps; all cores by default. Small dumps are cleaned in this process.
        report: Is filled in as the articles are taken.
        on_error: What to do at damage in a file: `"raise"` an error after the articles before it, or `"stop"` there and
            note it in `report.stopped`.

    Returns:
        An iterator that reads as it goes: memory does not grow with the source.

    Raises:
        InputError: Nothing is at `path`, `workers` is below 1, or, while iterating: a file is damaged or of no known
            kind, or there is no article at all.
    """
    path = Path(path)
    if on_error not in ("raise", "stop"):
        raise InputError(f'on_error: {on_error!r} is neither "raise" nor "stop"')
    if workers is not None and workers < 1:
        raise InputError(f"workers: {workers} is too few; give 1 or more, or None for all cores")
    if not path.exists():
        raise InputError(f"{path}: no such file or folder; check the path")
    reader = _Reader(available_cores() if workers is None else workers, ReadReport() if report is None else report)
    files = reader.list_files(path)
    return reader.read(path, files, on_error)


class _Reader:
    def __init__(self, workers: int, report: ReadReport) -> None:
        self.workers = workers
        self.report = report
        self.failure: InputError | None = None

    def list_files(self, path: Path) -> list[Path]:
        if not path.is_dir():
            return [path]
        visible = [
            file
            for file in sorted(path.rglob("*"))
            if file.is_file() and not any(part.startswith(".") for part in file.relative_to(path).parts)
        ]
        files = [file for file in visible if _may_hold_articles(file)]
        self.report.ignored_files += len(visible) - len(files)
        if not files:
            raise InputError(
                f"{path}: holds no file to read; expected .xml, .txt, .jsonl (or .bz2, .gz of them) or wiki_*"
            )
        return files

    def read(self, path: Path, files: list[Path], on_error: str) -> Iterator[Article]:
        for file in files:
            for article in self._read_file(file):
                if not article.text:
                    self.report.empty += 1
                    continue
                self.report.articles += 1
                self.report.bytes += len(article.text.encode())
                yield article
            if self.failure is not None:
                break
        if self.failure is not None and (on_error == "raise" or not self.report.articles):
            raise self.failure
        self.report.stopped = str(self.failure) if self.failure else None
        if not self.report.articles:
            report = self.report
            raise InputError(
                f"{path}: holds no article ({report.pages} pages or records: {report.redirects} redirects, "
                f"{report.non_articles} of other namespaces, {report.empty} without text); choose another source"
            )

    def _read_file(self, file: Path) -> Iterator[Article]:
        try:
            reader = _detect(file)
        except InputError as error:
            self.failure = error
            return
        self.report.files += 1
        if reader is None:
            yield from self._read_dump(file)
            return
        for article in self._until_failure(reader(file)):
            self.report.pages += 1
            yield article

    def _until_failure(self, items: Iterable[T]) -> Iterator[T]:
        """Hold an error back, so that what was read before it is worked off first, by whatever number of workers."""
        try:
            yield from items
        except InputError as error:
            self.failure = error

    def _read_dump(self, file: Path) -> Iterator[Article]:
        batches = self._batches(Dump(file))
        for batch in map(_clean_batch, itertools.islice(batches, _BEFORE_POOL)):
            yield from batch
        for batch in map_in_order(_clean_batch, batches, workers=self.workers):
            yield from batch

    def _batches(self, dump: Dump) -> Iterator[tuple[Site, list[tuple[str, str]]]]:
        report = self.report
        batch: list[tuple[str, str]] = []
        size = 0
        for page in self._until_failure(dump):
            report.pages += 1
            if page.namespace != 0 or not page.wikitext:
                report.non_articles += 1
                continue
            if page.redirect:
                report.redirects += 1
                continue
            batch.append((page.title, page.text))
            size += len(page.text)
            if size >= _BATCH:
                yield dump.site, batch
                batch, size = [], 0
        if batch:
            yield dump.site, batch


def _clean_batch(batch: tuple[Site, list[tuple[str, str]]]) -> list[Article]:
    site, pages = batch
    return [Article(title, clean(text, site)) for title, text in pages]


def _base_name(file: Path) -> str:
    return file.stem if file.suffix.lower() in SUFFIXES else file.name


def _may_hold_articles(file: Path) -> bool:
    name = _base_name(file).lower()
    return name.startswith("wiki_") or ".xml" in name or name.endswith((".txt", ".text", *_JSON_SUFFIXES))


def _detect(file: Path) -> Callable[[Path], Iterator[Article]] | None:
    """The function that reads this kind of file; None for a dump, whose pages need cleaning."""
    head = next(read_chunks(file), b"")[:4096]
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    name = _base_name(file).lower()
    # UTF-16, with or without a byte order mark, has a zero byte beside "<".
    if (
        start.startswith((b"<mediawiki", b"<?xml"))
        or name.endswith(".xml")
        or (b"<\x00" in head[:8] or b"\x00<" in head[:8])
    ):
        return None
    if not start:
        raise InputError(f"{file}: is empty; expected a dump, wikiextractor output, JSON lines or text")
    if b"\x00" in head:
        raise InputError(f"{file}: is not text; expected a dump, wikiextractor output, JSON lines or text")
    if start.startswith(b"<doc "):
        return _read_wikiextractor
    if name.endswith(_JSON_SUFFIXES) or (start.startswith(b'{"') and name.startswith("wiki_")):
        return _read_json
    return _read_text


def _read_wikiextractor(file: Path) -> Iterator[Article]:
    """The format of https://github.com/attardi/wikiextractor: a line with the tag, the title again, text, end tag."""
    title: str | None = None
    lines: list[str] = []
    opened = 0
    for number, line in read_lines(file):
        tag = _DOC.fullmatch(line)
        if tag:
            if title is not None:
                raise InputError(
                    f"{file}: line {number} opens an article inside {title!r} (line {opened}); mend the file"
                )
            match = _DOC_TITLE.search(tag[1])
            if not match:
                raise InputError(f'{file}: line {number} has no title="..." in its <doc>; make the file anew')
            title, lines, opened = html.unescape(match[1]), [], number
        elif line.startswith("</doc>"):
            if title is None:
                raise InputError(f"{file}: line {number} closes an article that was not opened; mend the file")
            yield Article(title, _without_title(title, "\n".join(lines)))
            title = None
        elif title is not None:
            lines.append(line)
        elif line.strip():
            raise InputError(f"{file}: line {number} is outside of <doc> ... </doc>; mend the file")
    if title is not None:
        raise InputError(f"{file}: ends inside the article {title!r} that line {opened} opens; get the file again")


def _read_json(file: Path) -> Iterator[Article]:
    for number, line in read_lines(file):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise InputError(f"{file}: line {number} is not JSON ({error}); write one object on each line") from None
        for key in ("title", "text"):
            if not isinstance(record, dict) or not isinstance(record.get(key), str):
                raise InputError(f'{file}: line {number} has no string "{key}"; expected {{"title": ..., "text": ...}}')
            try:
                record[key].encode()
            except UnicodeEncodeError:
                raise InputError(
                    f'{file}: line {number} has half a surrogate pair in "{key}"; mend the escapes'
                ) from None
        yield Article(record["title"].strip(), _without_title(record["title"], record["text"]))


def _read_text(file: Path) -> Iterator[Article]:
    """One article, or one for each ` = Title = ` line when the first line is one."""
    title = Path(_base_name(file)).stem
    lines: list[str] = []
    by_titles: bool | None = None
    for _, line in read_lines(file):
        heading = _TITLE_LINE.fullmatch(line) if by_titles is not False else None
        if by_titles is None and line.strip():
            by_titles = heading is not None
        if heading and by_titles:
            if any(line.strip() for line in lines):
                yield Article(title, "\n".join(lines).strip())
            title, lines = heading[1], []
        else:
            lines.append(line)
    yield Article(title, "\n".join(lines).strip())


def _without_title(title: str, text: str) -> str:
    """Wikiextractor repeats the title above the text; the article has it already."""
    first, _, rest = text.lstrip().partition("\n")
    return (rest if html.unescape(first).strip() == html.unescape(title).strip() else text).strip()
