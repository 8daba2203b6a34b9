import collections
import contextlib
import re
import statistics
import time

import mwparserfromhell
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kerasllm.data.markup import ENGLISH, Site, clean
from kerasllm.data.wikipedia import Dump, default_corpus

LEFTOVERS = re.compile(
    r"\[\[|\]\]|\{\{|\}\}|\{\||\|\}|''|<ref|</|==|thumb\||Category:|File:|Image:|&nbsp;|&amp;|&lt;|&gt;|<br|__TOC__|<!--|-->"
)


@pytest.fixture(scope="module")
def articles():
    pages = [page for page in Dump(default_corpus()) if not page.redirect and page.namespace == 0]
    return {page.title: (page.text, clean(page.text)) for page in pages}


@pytest.mark.parametrize(
    ("wikitext", "text"),
    [
        ("'''Bold''', ''italic'' and '''''both'''''", "Bold, italic and both"),
        ("l''''un'''", "l'un"),
        ("[[Tree]]s, [[Tree|the trees]] and [[:Category:Oaks]]", "Trees, the trees and Oaks"),
        ("[[Mercury (planet)|]]", "Mercury"),
        ("[[wikt:tree]] and [[wikt:tree|a word]]", "tree and a word"),
        ("See [https://a.org/b?c=d the ''page''] and [https://a.org].", "See the page and."),
        ("a[[File:x.jpg|thumb|A [[b|c]] and [[d]]]]b", "ab"),
        ("a\n[[Category:X|y]]\n[[de:Baum]]\n[[zh-yue:x]]", "a"),
        ("[[File:broken.jpg|thumb|no end\n\nText.", "Text."),
        ("A{{Infobox\n|a={{b|{{{c|}}}}}\n}}B", "AB"),
        ("{{Unclosed|\n\nText", "Unclosed|\n\nText"),
        ("A\n{|\n|-\n| b {{c|\n}}\n{|\n| nested\n|}\n| d\n|}\nE", "A\n\nE"),
        ("{{a|\n{|\n| b\n|}\n}}C", "C"),
        ("<table><tr><td>a<table></table></td></tr></table>b", "b"),
        ("A<ref name=x>note</ref> b<ref name=x/>.<!-- c -->", "A b."),
        ("<nowiki>[[a]] ''b'' <ref></nowiki>", "[[a]] ''b'' <ref>"),
        ("<math>x^2</math> is it.", "is it."),
        ("x<sup>2</sup> 10<sup>−6</sup> 5<sup>th</sup> H<sub>2</sub>O", "x^2 10^−6 5th H2O"),
        ("a<x and y>c, <stdio.h>, <span class='x'>d</span>", "a<x and y>c, <stdio.h>, d"),
        ("a&nbsp;b &lt;i&gt; AT&T &amp;c &#65;&#x42; &notit", "a b <i> AT&T &c AB &notit"),
        ("__NOTOC__a __init__", "a __init__"),
        ("X ({{IPA-xx|a}}; {{audio|b}}) is", "X is"),
        ("X ({{IPA-xx|a}}; born 1900, {{age}}) is", "X (born 1900) is"),
        ("f() and g({{x}}){{cn}}, h", "f() and g, h"),
        ("{{convert|1300|mi|km}}, {{convert|3|-|5|ft|m}}, {{lang|fr|mot}}", "1300 mi, 3–5 ft, mot"),
        ("{{nowrap|[[a|b]] c}} {{snd}} {{frac|1|2}}", "b c – 1/2"),
        ("* a\n** [[b]]\n# c\n; d : e", "a\nb\nc\nd: e"),
        ("one\ntwo\n\nthree<br>four", "one two\n\nthree\nfour"),
        ("中文\n中文", "中文中文"),
        ("<poem>one\ntwo</poem>", "one\ntwo"),
        ("a\n== H ==\nb\n\n\n\n=== I ===\n* c", "a\n\nH\n\nb\n\nI\n\nc"),
        ("a\n== Notes ==\n{{Reflist}}\n== See ==\n=== Also ===\n<references/>\n", "a"),
        ("== Kept ==\n=== Below ===\nb", "Kept\n\nBelow\n\nb"),
        ("-{zh-hans:计算机; zh-hant:電腦}-和-{x}-", "计算机和x"),
        ("a\r\n#b\x00\ufdd0c", "a\nbc"),
        ("<pre>a = [[1]]\n  b</pre>", "a = [[1]]\n  b"),
        ("", ""),
    ],
)
def test_small(wikitext, text):
    assert clean(wikitext) == text


def test_names_of_other_languages():
    site = Site.from_namespaces([(-2, "Медия"), (6, "Файл"), (14, "Категория"), (0, "")])
    assert clean("а[[Файл:x|мини|б]][[Категория:в]] [[файл:y]][[Category:z]] г", site) == "а г"
    assert clean("a[[Картинка:x.jpg|мини|b]]") == "a"  # an alias that no dump lists, told by the file's ending
    assert "" not in site.files
    assert ENGLISH.files <= site.files


def test_no_markup_is_left_in_the_corpus(articles):
    # None of the 106 articles is about markup, so there is no exception to make.
    assert len(articles) == 106
    assert [(title, found) for title, (_, text) in articles.items() if (found := LEFTOVERS.findall(text))] == []


def reference_words(wikitext):
    """The words that mwparserfromhell keeps outside templates, tables, references and pictures."""
    code = mwparserfromhell.parse(wikitext)
    gone = [*code.filter_comments(), *code.filter_templates(recursive=False)]
    gone += [tag for tag in code.filter_tags() if str(tag.tag).lower() in ("ref", "table", "math", "gallery")]
    links = code.filter_wikilinks()
    gone += [
        link for link in links if re.match(r"\s*(file|image|category|[a-z]{2,3}(-[a-z]+)*)\s*:", str(link.title), re.I)
    ]
    for node in gone:
        with contextlib.suppress(ValueError):  # stood inside one that went before
            code.remove(node)
    return words(code.strip_code())


def words(text):
    return collections.Counter(re.findall(r"\w+", text.lower()))


def recalls(articles, titles):
    result = {}
    for title in titles:
        expected = reference_words(articles[title][0])
        result[title] = (sum((expected & words(articles[title][1])).values()), sum(expected.values()))
    return result


def test_words_are_kept(articles):
    """Every sixth article, to be quick; benchmarks/clean.py measures all of them."""
    found = recalls(articles, sorted(articles)[::6])
    assert sum(kept for kept, _ in found.values()) / sum(total for _, total in found.values()) >= 0.99
    worst = min(found, key=lambda title: found[title][0] / found[title][1])
    assert found[worst][0] / found[worst][1] >= 0.9, worst


def test_nothing_is_invented(articles):
    for title in ("Anarchism", "Albert Einstein", "Apollo 11"):
        source, text = articles[title]
        assert sum((words(text) - words(source)).values()) < 0.01 * sum(words(text).values())


def test_paragraphs_stay_separated(articles):
    for title, start, next_start in [
        ("Anarchism", "Anarchism is a political philosophy", "Anarchism draws on many currents of thought"),
        ("Albert Einstein", "Albert Einstein (14 March 1879", "Near the beginning of his career"),
    ]:
        paragraphs = articles[title][1].split("\n\n")
        assert paragraphs[0].startswith(start)
        assert paragraphs[1].startswith(next_start)
        assert "History" in paragraphs or "Biography" in paragraphs
    lengths = [len(block) for _, text in articles.values() for block in text.split("\n\n")]
    assert 100 < statistics.mean(lengths) < 600
    assert not any("\n\n\n" in text for _, text in articles.values())
    assert not any("\ufdd0" <= char <= "\ufdef" for _, text in articles.values() for char in set(text))


UNITS = [
    "{{",
    "}}",
    "{{{",
    "{|\n",
    "\n{|",
    "\n|}",
    "[[",
    "]]",
    "[",
    "[[a|",
    "[http://a ",
    "<ref>",
    "<!--",
    "<table>",
    "<math>",
]
UNITS += [
    "<nowiki>",
    "</ref>",
    "x<sup>",
    "''",
    "'''",
    "=",
    "\n==a",
    "\n==a\n",
    "-{a;",
    "(",
    "(;{{a}}",
    "{{a}}",
    " {{a}} ;",
    "__A",
]
UNITS += [", {{a}}", "\n*", " ", "{{nowrap|", "{{lang|x|[[", "<a", "&#1", "{{\n{|", "\u00a0 "]


@pytest.mark.parametrize("unit", UNITS)
def test_linear_time(unit):
    """A third of a megabyte of each; quadratic handling would take minutes, linear takes a fraction of a second."""
    start = time.process_time()
    clean(unit * (300_000 // len(unit)))
    assert time.process_time() - start < 5


def test_three_megabytes():
    page = ("{{Infobox|a={{b}}\n{|\n" + "A [[link|word]] of '''text'''.\n\n" * 10) * 9_000
    assert len(page) > 3_000_000
    start = time.process_time()
    assert clean(page).count("A word of text.") > 10
    assert time.process_time() - start < 15


pieces = st.one_of(
    st.sampled_from(
        [*UNITS, "}}", "]]", "|}", "</ref>", "-->", "</math>", "</nowiki>", "|", ":", ";", "File:", "a", "}-", ")"]
    ),
    st.text(max_size=6),
)


@settings(max_examples=300, deadline=2000, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(pieces, max_size=60).map("".join))
def test_any_markup(wikitext):
    text = clean(wikitext)
    assert text == text.strip("\n ")
    assert not re.search("[\ufdd0-\ufdef\x00]", text)
    text.encode()
