"""docs/chinese.md and its translation: the code runs, prints what they say, and the tables are those of the results."""

import importlib.util
import re
from pathlib import Path

import pytest

from kerasllm.files import read_json

ROOT = Path(__file__).parent.parent
PAGES = {name: (ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("chinese.md", "chinese.zh-CN.md")}


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGES[page], re.DOTALL | re.MULTILINE)


def benchmark():
    spec = importlib.util.spec_from_file_location("chinese_tokenizers", ROOT / "benchmarks" / "chinese_tokenizers.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_code_runs_and_prints_what_the_page_says(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    corpus, picture = blocks("chinese.md", "python")
    exec(corpus, {})
    assert capsys.readouterr().out == blocks("chinese.md", "text")[0]
    exec(picture, {})
    assert (tmp_path / "attention.png").stat().st_size > 1000


def test_both_pages_have_the_same_structure():
    english, chinese = PAGES
    for language in ("python", "text"):
        assert blocks(english, language) == blocks(chinese, language)
    marks = [re.findall(r"^(#+ |\* |\|---|<!-- \S+)", page, re.MULTILINE) for page in PAGES.values()]
    assert marks[0] == marks[1]


@pytest.mark.parametrize("page", PAGES)
def test_the_table_is_that_of_the_results(page):
    script = benchmark()
    results = read_json(script.RESULTS)
    assert script.table(results, script.PAGES[page]) in PAGES[page]
    entries = results["tokenizers"]
    assert tuple(entries) == script.KINDS
    assert {entry["test_bytes"] for entry in entries.values()} == {results["corpus"]["splits"]["test"]["bytes"]}
    for entry in entries.values():
        assert entry["lossless"] == (entry["out_of_vocabulary_rate"] is None)
        for model in filter(None, (entry["ngram"], entry["lstm"])):
            assert entry["lossless"] == (model["bits_per_byte"] is not None)
            assert model["token_perplexity"] > 1
