"""Speed and quality of the cleaning of wikitext, on the default corpus, beside mwparserfromhell and gensim.

    python benchmarks/clean.py

writes benchmarks/results/clean.json. The words kept are counted against what mwparserfromhell leaves after templates,
tables, references, formulas and pictures have been removed from its tree, as in tests/test_markup.py.
"""

import argparse
import collections
import contextlib
import datetime
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mwparserfromhell
from gensim.corpora.wikicorpus import filter_wiki

from kerasllm.data.markup import clean
from kerasllm.data.wikipedia import Dump, default_corpus
from kerasllm.files import write_json

LEFTOVERS = [
    "[[",
    "]]",
    "{{",
    "}}",
    "{|",
    "|}",
    "'''",
    "''",
    "<ref",
    "</",
    "==",
    "thumb|",
    "Category:",
    "File:",
    "Image:",
    "&nbsp;",
    "&amp;",
    "&lt;",
    "&gt;",
    "<br",
    "<!--",
]
OUTPUT = Path(__file__).parent / "results" / "clean.json"
PICTURE = re.compile(r"\s*(file|image|category|[a-z]{2,3}(-[a-z]+)*)\s*:", re.IGNORECASE)


def processor() -> str:
    """The model of the CPU."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def speed(function: Callable[[str], Any], texts: list[str], repeats: int) -> float:
    """Best of `repeats` runs over all texts, in millions of bytes of UTF-8 wikitext per second of one core."""
    best = float("inf")
    for _ in range(repeats):
        start = time.process_time()
        for text in texts:
            function(text)
        best = min(best, time.process_time() - start)
    return sum(len(text.encode()) for text in texts) / best / 1e6


def words(text: str) -> collections.Counter[str]:
    """Words with their counts, without regard to case."""
    return collections.Counter(re.findall(r"\w+", text.lower()))


def reference(wikitext: str) -> str:
    """What mwparserfromhell leaves outside templates, tables, references, formulas and pictures."""
    code = mwparserfromhell.parse(wikitext)
    gone: list[Any] = [*code.filter_comments(), *code.filter_templates(recursive=False)]
    gone += [tag for tag in code.filter_tags() if str(tag.tag).lower() in ("ref", "table", "math", "gallery")]
    gone += [link for link in code.filter_wikilinks() if PICTURE.match(str(link.title))]
    for node in gone:
        with contextlib.suppress(ValueError):  # stood inside one that went before
            code.remove(node)
    return str(code.strip_code())


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5, help="runs of kerasllm's cleaning; the best counts")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    arguments = parser.parse_args()
    pages = [page for page in Dump(default_corpus()) if page.namespace == 0 and not page.redirect]
    texts = [page.text for page in pages]
    kept, total, recall, leftovers = 0, 0, {}, collections.Counter[str]()
    for page in pages:
        text = clean(page.text)
        leftovers.update({mark: text.count(mark) for mark in LEFTOVERS if mark in text})
        expected = words(reference(page.text))
        found = (expected & words(text)).total()
        kept, total = kept + found, total + expected.total()
        recall[page.title] = found / expected.total()
    worst = sorted(recall, key=recall.__getitem__)[:3]
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent)
    results = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": commit.stdout.strip() or None,
        "command": "python benchmarks/clean.py" + "".join(f" {argument}" for argument in sys.argv[1:]),
        "device": processor(),
        "python": platform.python_version(),
        "corpus": {"file": default_corpus().name, "articles": len(pages), "bytes": sum(len(t.encode()) for t in texts)},
        "megabytes_per_second_per_core": {
            "kerasllm": round(speed(clean, texts, arguments.repeats), 2),
            f"gensim {version('gensim')} filter_wiki": round(speed(filter_wiki, texts, 1), 2),
            f"mwparserfromhell {version('mwparserfromhell')} parse and strip_code": round(
                speed(lambda text: mwparserfromhell.parse(text).strip_code(), texts, 1), 2
            ),
        },
        "words": {
            "reference": total,
            "recall": round(kept / total, 5),
            "worst": {t: round(recall[t], 4) for t in worst},
        },
        "leftovers": dict(leftovers),
    }
    write_json(arguments.output, results)
    print(arguments.output.read_text())


if __name__ == "__main__":
    main()
