import bz2
import json
import os
import subprocess
import sys
import textwrap

import pytest
from test_wikipedia import dump, page, write

from kerasllm.data import pool, sources
from kerasllm.data.sources import Article, ReadReport, default_corpus, read_articles
from kerasllm.errors import InputError

EXTRACTED = (
    '<doc id="1" url="u" title="A &amp; B">\nA &amp; B\n\nText.\n\nMore.\n</doc>\n<doc id="2" title="C">\nC\n\n</doc>\n'
)


def test_default_corpus():
    report = ReadReport()
    articles = list(read_articles(default_corpus(), workers=1, report=report))
    assert len(articles) == report.articles == 106
    assert (report.pages, report.redirects, report.non_articles, report.empty) == (206, 99, 1, 0)
    assert report.bytes == sum(len(article.text.encode()) for article in articles) > 2_900_000


def test_any_number_of_workers(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "_BATCH", 1000)
    monkeypatch.setattr(sources, "_BEFORE_POOL", 2)
    path = write(tmp_path, dump(*(page(f"P{i}", f"''Text'' {i}. " * 30) for i in range(40))))
    expected = list(read_articles(path, workers=1))
    assert [article.title for article in expected] == [f"P{i}" for i in range(40)]
    assert list(read_articles(path, workers=3)) == expected
    # Damage ends both at the same article.
    path.write_bytes(path.read_bytes()[:-300])
    for workers in (1, 2):
        taken = []
        with pytest.raises(InputError, match="'P38'"):
            for article in read_articles(path, workers=workers):
                taken.append(article)
        assert taken == expected[:39]


def test_workers_do_not_run_the_main_script(tmp_path):
    """A script without `if __name__ == "__main__"` works, and what it imports is not imported by the workers."""
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent("""
        import sys
        sys.modules["marker"] = sys
        from kerasllm.data import pool
        import operator
        print(list(pool.map_in_order(eval, ["1 + 1", "'marker' in __import__('sys').modules"], workers=2)))
        """)
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[2, False]"


def test_a_killed_worker_is_an_error():
    with pytest.raises(InputError, match="use fewer workers"):
        list(pool.map_in_order(os._exit, [1], workers=2))


def test_items_are_read_only_as_needed():
    read = []

    def items():
        for number in range(1000):
            read.append(number)
            yield number

    results = pool.map_in_order(abs, items(), workers=2)
    assert [next(results) for _ in range(10)] == list(range(10))
    results.close()
    assert len(read) < 20


def test_stop_keeps_what_was_read(tmp_path):
    whole = dump(page("A"), page("B"), page("C"))
    path = write(tmp_path, whole[:-60])
    report = ReadReport()
    assert [article.title for article in read_articles(path, report=report, on_error="stop")] == ["A", "B"]
    assert "'B'" in report.stopped and report.articles == 2
    with pytest.raises(InputError, match="no page was whole"):
        list(read_articles(write(tmp_path, whole[:200]), on_error="stop"))


def test_wikiextractor(tmp_path):
    report = ReadReport()
    expected = [Article("A & B", "Text.\n\nMore.")]
    folder = tmp_path / "AA"
    folder.mkdir()
    (folder / "wiki_00").write_text(EXTRACTED)
    (folder / "wiki_01.bz2").write_bytes(bz2.compress(EXTRACTED.encode()))
    (folder / ".hidden.txt").write_text("hidden")
    (folder / "picture.png").write_bytes(b"\x89PNG")
    assert [Article(a.title, a.text) for a in read_articles(tmp_path, report=report)][:1] == [
        Article("A & B", "Text.\n\nMore.")
    ]
    assert list(read_articles(folder / "wiki_00")) == expected
    assert (report.files, report.ignored_files, report.pages, report.empty, report.articles) == (2, 1, 4, 2, 2)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (EXTRACTED[:-8], "ends inside the article 'C' that line 8 opens"),
        (EXTRACTED + "stray\n", "line 12 is outside"),
        (EXTRACTED + "</doc>\n", "line 12 closes"),
        (EXTRACTED.replace("</doc>\n", "", 1), "line 7 opens an article inside 'A & B' .line 1."),
        ('<doc id="1">\nx\n</doc>', "line 1 has no title"),
    ],
)
def test_damaged_wikiextractor(tmp_path, content, message):
    with pytest.raises(InputError, match=message):
        list(read_articles(write(tmp_path, content.encode(), "wiki_00")))


def test_json_lines(tmp_path):
    lines = [
        {"title": "数学", "text": "数学\n\n是", "id": "1"},
        {"title": "B", "text": " "},
        {"text": "x\ny", "title": "C"},
    ]
    content = "\n".join(json.dumps(line, ensure_ascii=False) for line in lines) + "\n\n"
    report = ReadReport()
    for name in ("a.jsonl", "wiki_00"):
        articles = list(read_articles(write(tmp_path, content.encode(), name), report=report))
        assert articles == [Article("数学", "是"), Article("C", "x\ny")]
    assert (report.pages, report.empty, report.articles) == (6, 2, 4)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"title": "B"}', 'line 2 has no string "text"'),
        (b'{"text": "b"}', 'line 2 has no string "title"'),
        (b'{"title": "B", "text": null}', 'line 2 has no string "text"'),
        (b"[1]", "line 2 has no string"),
        (b'{"title": "B", "te', "line 2 is not JSON"),
        (b"[" * 100_000, "line 2 is not JSON"),
        (b'{"title": "B", "text": "\\ud800"}', "line 2 has half a surrogate"),
        (b'{"title": "B", "text": "\xff"}', "line 2 is not UTF-8 .its byte 24"),
    ],
)
def test_damaged_json(tmp_path, line, message):
    path = write(tmp_path, b'{"title": "A", "text": "a"}\n' + line + b"\n", "a.jsonl")
    articles = read_articles(path)
    assert next(articles) == Article("A", "a")
    with pytest.raises(InputError, match=message) as caught:
        next(articles)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_text_files(tmp_path):
    write(tmp_path, b"\xef\xbb\xbfOne\r\n\r\nTwo = 2\n = Not a title = \n", "b.txt")
    write(tmp_path, bz2.compress("ä".encode()), "a.txt.bz2")
    write(tmp_path, b" \n", "c.txt")
    with pytest.raises(InputError, match="c.txt: is empty"):
        list(read_articles(tmp_path))
    (tmp_path / "c.txt").unlink()
    assert list(read_articles(tmp_path)) == [Article("a", "ä"), Article("b", "One\n\nTwo = 2\n = Not a title =")]


def test_wikitext_corpus(tmp_path):
    content = " \n = One = \n \n a <unk> , b \n \n = = Part = = \n \n c \n \n = Empty = \n \n = Two = \n d \n"
    articles = list(read_articles(write(tmp_path, content.encode(), "wiki.test.tokens")))
    assert articles == [Article("One", "a <unk> , b \n \n = = Part = = \n \n c"), Article("Two", "d")]


def test_bad_arguments(tmp_path):
    path = write(tmp_path, b"x", "a.txt")
    with pytest.raises(InputError, match="none: no such file or folder"):
        read_articles(tmp_path / "none")
    with pytest.raises(InputError, match="workers: 0"):
        read_articles(path, workers=0)
    with pytest.raises(InputError, match="on_error"):
        read_articles(path, on_error="skip")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty: holds no file"):
        read_articles(tmp_path / "empty")


def test_nothing_to_read(tmp_path):
    with pytest.raises(InputError, match="is empty"):
        list(read_articles(write(tmp_path, b"", "a.txt")))
    with pytest.raises(InputError, match="is not text"):
        list(read_articles(write(tmp_path, b"\x00\x01\x02", "a.txt")))
    content = dump(page("A", "{{x}}"), page("B", "#redirect [[A]]"), page("User:C", extra="<ns>2</ns>"))
    with pytest.raises(
        InputError, match="no article .3 pages or records: 1 redirects, 1 of other namespaces, 1 without"
    ):
        list(read_articles(write(tmp_path, content, "d.xml")))


def test_shared_data(data_dir):
    first = next(read_articles(data_dir / "wikipedia-en"))
    assert first.title == "Anarchism" and first.text.startswith("Anarchism is a political philosophy")
    chinese = list(read_articles(data_dir / "wikipedia-zh" / "zhwiki_simplified.jsonl"))
    assert len(chinese) == 64 and chinese[0].title == "数学"
    wikitext = list(read_articles(data_dir / "wikitext-2" / "test.txt"))
    assert len(wikitext) == 62 and wikitext[0].title == "Robert <unk>"
