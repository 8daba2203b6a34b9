import bz2
import gzip
import subprocess
import sys
import tracemalloc

import pytest

from kerasllm.data.wikipedia import Dump, default_corpus
from kerasllm.errors import InputError

FOLDER = default_corpus().parent
HEAD = '<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.10/" version="0.10" xml:lang="de">'
SITEINFO = """<siteinfo><namespaces><namespace key="0" /><namespace key="6">Datei</namespace>
<namespace key="10">Vorlage</namespace><namespace key="14">Kategorie</namespace></namespaces></siteinfo>"""


def page(title, text="Text.", extra="<ns>0</ns>"):
    return f"<page><title>{title}</title>{extra}<revision><text>{text}</text></revision></page>\n"


def dump(*pages, siteinfo=SITEINFO):
    return (HEAD + siteinfo + "".join(pages) + "</mediawiki>").encode()


def write(tmp_path, content, name="dump.xml"):
    path = tmp_path / name
    path.write_bytes(content)
    return path


def test_default_corpus():
    pages = list(Dump(default_corpus()))
    assert len(pages) == 206
    assert sum(page.namespace == 0 and page.redirect for page in pages) == 99
    assert sum(page.namespace == 0 and not page.redirect for page in pages) == 106
    assert pages[0].title == "AccessibleComputing" and pages[0].redirect
    assert pages[1].title == "Anarchism"
    assert pages[1].text.rstrip().endswith("[[Category:Far-left politics]]")


def test_default_corpus_does_not_import_gensim():
    code = "import sys; from kerasllm.data import sources, wikipedia; wikipedia.default_corpus()"
    code += "; assert not {'gensim', 'tensorflow', 'keras', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_default_corpus_without_gensim(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install 'gensim"):
        default_corpus()


def test_without_siteinfo():
    source = Dump(FOLDER / "enwiki-table-markup.xml.bz2")
    assert [page.title for page in source][1:] == [
        "List of Prison Break characters",
        "Academy Award for Best Production Design",
        "Economy of Estonia",
        "Brahui language",
    ]
    assert source.site.files == {"file", "image", "media"}


def test_utf16():
    source = Dump(FOLDER / "bgwiki-latest-pages-articles-shortened.xml.bz2")
    pages = list(source)
    assert [page.namespace for page in pages] == [0, 4, 4]
    assert pages[0].title == "Григориански календар"
    assert "файл" in source.site.files and "категория" in source.site.categories


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize(
    "pack", [bytes, bz2.compress, gzip.compress, lambda raw: b"".join(map(bz2.compress, cut(raw)))]
)
def test_encodings_and_compression(tmp_path, encoding, pack):
    raw = dump(page("Größe", "Länge"), page("B")).decode().encode(encoding)
    pages = list(Dump(write(tmp_path, pack(raw))))
    assert [(page.title, page.text) for page in pages] == [("Größe", "Länge"), ("B", "Text.")]


def cut(raw):
    return raw[:100], raw[100:101], raw[101:]


def test_kinds_of_pages(tmp_path):
    revision = "<revision><model>{}</model><text {}</revision>"
    content = dump(
        page("A", extra='<ns>0</ns><redirect title="B"/>'),
        page("B", "#REDIRECT [[C]]"),
        page("Vorlage:C", extra="<ns>10</ns>"),
        page("Vorlage:Old", extra=""),
        page("Odd: title", extra=""),
        "<page><title>E</title><ns>0</ns>" + revision.format("Scribunto", ">return 1</text>") + "</page>",
        "<page><title>F</title><ns>0</ns>" + revision.format("wikitext", 'deleted="deleted"/>') + "</page>",
        "<page><title>G</title><ns>0</ns>"
        + "<revision><text>old</text></revision>" * 3
        + "<revision><text>new</text></revision></page>",
        "<page><title>H</title><ns>0</ns></page>",
        page("I", extra="<ns>none</ns>"),
    )
    pages = {page.title: page for page in Dump(write(tmp_path, content))}
    assert [page.title for page in pages.values() if page.redirect] == ["A", "B"]
    assert [page.namespace for page in pages.values()] == [0, 0, 10, 10, 0, 0, 0, 0, 0, -9]
    assert [page.title for page in pages.values() if not page.wikitext] == ["E"]
    assert pages["F"].text == "" == pages["H"].text
    assert pages["G"].text == "new"


def test_memory_is_flat(tmp_path):
    path = write(tmp_path, dump(*(page(f"P{i}", "word " * 2000) for i in range(3000))))
    assert path.stat().st_size > 30_000_000
    tracemalloc.start()
    assert sum(1 for _ in Dump(path)) == 3000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6_000_000


GOOD = dump(page("First"), page("Second"), page("Third", "x" * 100))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"Not XML at all", "is not XML .line 1, column 0"),
        (b"<html><body/></html>", "is XML .<html>. but not a MediaWiki dump"),
        (GOOD[:-30], "ends early at line 4.*'Second'"),
        (GOOD[: GOOD.index(b"<page>")], "ends early.*no page was whole"),
        (GOOD.replace(b"xxx", b"x\xffx", 1), "is damaged.*line 4.*'Second'"),
        (GOOD.replace(b"xxx", b"</text>", 1), "mismatched tag.*line 4.*'Second'"),
        (b"PK\x03\x04 archive", "packed with zip"),
        (b"7z\xbc\xaf\x27\x1c", "7-Zip; unpack"),
    ],
)
def test_damaged_xml(tmp_path, content, message):
    path = write(tmp_path, content)
    with pytest.raises(InputError, match=message) as caught:
        list(Dump(path))
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


@pytest.mark.parametrize("pack", [bz2.compress, gzip.compress])
def test_damaged_compression(tmp_path, pack):
    raw = dump(*(page(f"P{i}", f"{i * i}" * 50) for i in range(8_000)))
    whole = pack(raw)
    for content in (whole[: len(whole) // 2], whole[:-3], flip(whole, len(whole) // 2), whole + b"rubbish"):
        path = write(tmp_path, content)
        with pytest.raises(InputError, match=r"dump.xml: the (compressed data|XML) .* near byte \d+") as caught:
            list(Dump(path))
        assert "\n" not in str(caught.value)
    stream = Dump(write(tmp_path, whole[: len(whole) // 2]))
    titles = []
    with pytest.raises(InputError) as caught:
        for entry in stream:
            titles.append(entry.title)
    assert f"the last whole page is {titles[-1]!r}" in str(caught.value) if titles else "no page" in str(caught.value)


def flip(content, place):
    return content[:place] + bytes(255 - byte for byte in content[place : place + 8]) + content[place + 8 :]


def test_multistream_cut_between_streams(tmp_path):
    streams = [bz2.compress((HEAD + page("A")).encode()), bz2.compress((page("B") + "</mediawiki>").encode())]
    with pytest.raises(InputError, match="ends early.*'A'"):
        list(Dump(write(tmp_path, streams[0])))
    assert [page.title for page in Dump(write(tmp_path, b"".join(streams)))] == ["A", "B"]


def test_missing(tmp_path):
    with pytest.raises(InputError, match="none.xml: no such file"):
        list(Dump(tmp_path / "none.xml"))
    with pytest.raises(InputError, match="cannot be read"):
        list(Dump(tmp_path))
