"""MediaWiki XML dumps, read page by page.

The format is described at https://www.mediawiki.org/wiki/Help:Export#Export_format and
https://meta.wikimedia.org/wiki/Data_dumps/Dump_format. Readers of other libraries were tried first: gensim's does not
tell redirects from articles nor a damaged dump from a whole one, and mwxml refuses dumps without `<siteinfo>` and keeps
an element for every page it has passed. The standard library's incremental parser needs little more code than they do.
"""

import importlib.util
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from xml.etree import ElementTree

from kerasllm.data.compressed import read_chunks
from kerasllm.data.markup import Site
from kerasllm.errors import InputError

_CORPUS = "enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"


@dataclass(frozen=True)
class Page:
    """A page of a dump, in the last of its revisions there (the latest: dumps are in order of time).

    Attributes:
        title: Title with its namespace prefix, if any.
        namespace: Number of the namespace; articles are in 0 (https://www.mediawiki.org/wiki/Manual:Namespace).
        redirect: The page only points to another one.
        wikitext: The source is wikitext, not JSON, CSS, Lua or another content model.
        text: Source; empty where the text was deleted or the dump holds none.
    """

    title: str
    namespace: int
    redirect: bool
    wikitext: bool
    text: str


def default_corpus() -> Path:
    """The dump of 106 English articles that ships inside the gensim wheel (gensim itself is not imported).

    Raises:
        InputError: gensim is not installed, or is packaged without its test data.
    """
    spec = importlib.util.find_spec("gensim")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder) / "test" / "test_data" / _CORPUS
        if path.is_file():
            return path
    raise InputError(f"{_CORPUS}: not found; it is part of the gensim package: pip install 'gensim>=4.3'")


class Dump:
    """The pages of one dump file, in its order: `.xml`, `.xml.bz2` (also multistream) or `.xml.gz`, UTF-8 or UTF-16.

    Memory does not grow with the dump. Iterate once at a time.

    Attributes:
        path: The file.
        site: Namespace names from `<siteinfo>`, known once the first page has been read; the English ones for a dump
            that has no `<siteinfo>`.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.site = Site()
        self._reset()

    def __iter__(self) -> Iterator[Page]:
        """Read the file from its start.

        Raises:
            InputError: The file cannot be read or unpacked, is not a MediaWiki dump, is damaged or ends early. The
                message names the place and the last whole page.
        """
        self._reset()
        parser: ElementTree.XMLPullParser[Any] = ElementTree.XMLPullParser(("start", "end"))
        try:
            for chunk in self._chunks():
                parser.feed(chunk)
                yield from self._pages(parser)
            self._at_end = True
            parser.close()
            yield from self._pages(parser)
        except ElementTree.ParseError as error:
            raise InputError(self._diagnosis(error)) from None

    def _reset(self) -> None:
        self._namespaces: dict[str, int] = {}
        self._root: ElementTree.Element | None = None
        self._revision: ElementTree.Element | None = None
        self._last_title = ""
        self._bytes = 0
        self._at_end = False

    def _chunks(self) -> Iterator[bytes]:
        try:
            for chunk in read_chunks(self.path):
                self._bytes += len(chunk)
                yield chunk
        except InputError as error:
            raise InputError(f"{error}{self._progress()}") from None

    def _pages(self, parser: "ElementTree.XMLPullParser[Any]") -> Iterator[Page]:
        for event, element in cast("Iterator[tuple[str, ElementTree.Element]]", parser.read_events()):
            tag = element.tag.rpartition("}")[2]
            if event == "start":
                if self._root is None:
                    self._root = element
                    if tag != "mediawiki":
                        raise InputError(f"{self.path}: is XML (<{tag}>) but not a MediaWiki dump (<mediawiki>)")
            elif tag == "page":
                page = self._page(element)
                self._root.clear()  # type: ignore[union-attr]  # or the tree of all pages would stay in memory
                self._revision = None
                self._last_title = page.title
                yield page
            elif tag == "revision":
                if self._revision is not None:
                    self._revision.clear()  # a dump with the history holds thousands of revisions of one page
                self._revision = element
            elif tag == "siteinfo":
                self._read_siteinfo(element)

    def _read_siteinfo(self, element: ElementTree.Element) -> None:
        pairs = [(_number(name.get("key", "0")), name.text or "") for name in element.iterfind(".//{*}namespace")]
        self._namespaces = {name.lower(): number for number, name in pairs if name}
        self.site = Site.from_namespaces(pairs)

    def _page(self, element: ElementTree.Element) -> Page:
        title = (element.findtext("{*}title") or "").strip()
        number = element.findtext("{*}ns")
        if number is None:  # schema 0.5 and older
            number = str(self._namespaces.get(title.partition(":")[0].lower(), 0) if ":" in title else 0)
        revision = self._revision if self._revision is not None else ElementTree.Element("revision")
        text = revision.findtext("{*}text") or ""
        return Page(
            title=title,
            namespace=_number(number),
            # <redirect> came with schema 0.4; the magic word works in English on every wiki.
            redirect=element.find("{*}redirect") is not None or text.lstrip()[:9].lower() == "#redirect",
            wikitext=(revision.findtext("{*}model") or "wikitext") == "wikitext",
            text=text,
        )

    def _diagnosis(self, error: ElementTree.ParseError) -> str:
        line, column = error.position
        place = f"line {line}, column {column}"
        if not self._bytes:
            return f"{self.path}: is empty; a MediaWiki XML dump was expected"
        if self._root is None:
            return f"{self.path}: is not XML ({place}: {error.msg.split(':')[0]}); a MediaWiki XML dump was expected"
        what = "the XML ends early" if self._at_end else f"the XML is damaged ({error.msg.split(':')[0]})"
        return (
            f"{self.path}: {what} at {place}, near byte {self._bytes} of the unpacked file; "
            f"get the file again and compare its checksum{self._progress()}"
        )

    def _progress(self) -> str:
        if not self._last_title:
            return "; no page was whole"
        return f'; the last whole page is {self._last_title!r} (on_error="stop" or --on-error stop keeps all before it)'


def _number(text: str) -> int:
    """A namespace's number; one that is no number is nobody's, and its pages are not articles."""
    try:
        return int(text)
    except ValueError:
        return -9
