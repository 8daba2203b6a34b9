"""Articles as JSON lines on the disk, one file for each split, written and counted in one pass."""

import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tqdm import tqdm

from kerasllm.text.tokenizer import valid_unicode
from kerasllm.text.words import count_words

if TYPE_CHECKING:
    from kerasllm.data.sources import Article

SPLITS = ("train", "validation", "test")

Source = str | os.PathLike[str] | Iterable["Article"]


class Reading(NamedTuple):
    """How `copy_source` reads.

    Attributes:
        workers: Processes; None means one per core.
        on_error: Of `read_articles`.
        progress: Show a bar on a terminal.
        convert: What is done to each title and text.
    """

    workers: int | None
    on_error: str
    progress: bool
    convert: Callable[[str], str]


def no_counts() -> dict[str, Any]:
    """The counts of a split without articles."""
    return {"articles": 0, "bytes": 0, "characters": 0, "words": 0, "tokens": 0}


def copy_source(
    source: Source, folder: Path, choose: Callable[[str], str], counts: dict[str, dict[str, Any]], reading: Reading
) -> dict[str, Any]:
    """Append each article to the file of its split and count it.

    Args:
        source: What `read_articles` reads, or the articles.
        folder: Holds `<split>.jsonl`.
        choose: Gives the split of a title, as it is in the source.
        counts: By split; added to.
        reading: How to read.

    Returns:
        What the manifest says of the source.
    """
    from kerasllm.data.sources import ReadReport, read_articles

    report = None
    if isinstance(source, str | os.PathLike):
        report = ReadReport()
        name = Path(source).name
        articles = read_articles(source, workers=reading.workers, report=report, on_error=reading.on_error)
    else:
        name, articles = "articles", iter(source)
    with ExitStack() as stack:
        files = {
            split: stack.enter_context((folder / f"{split}.jsonl").open("a", encoding="utf-8", newline="\n"))
            for split in SPLITS
        }
        for article in progress_bar(articles, reading.progress, f"read {name}", " articles"):
            title, text = valid_unicode(article.title), valid_unicode(article.text)
            split = choose(title)
            title, text = reading.convert(title), reading.convert(text)
            files[split].write(json.dumps({"title": title, "text": text}, ensure_ascii=False) + "\n")
            count = counts[split]
            count["articles"] += 1
            count["bytes"] += len(text.encode())
            count["characters"] += len(text)
            count["words"] += count_words(text)
    return {"name": name, "report": None if report is None else asdict(report)}


def read_article_file(path: Path) -> Iterator[dict[str, str]]:
    """Yield "title" and "text" of each article of a file that `copy_source` wrote."""
    # A file opened so ends lines at \n only; U+2028 and its like stay inside.
    with path.open(encoding="utf-8", newline="\n") as lines:
        for line in lines:
            yield json.loads(line)


def progress_bar(items: Any, progress: bool, what: str, unit: str, total: int | None = None) -> Any:
    """A progress bar around `items`, on a terminal only, and only if `progress`."""
    # None shows the bar on a terminal only.
    return tqdm(
        items, desc=what, unit=unit, unit_scale=total is not None, total=total, disable=None if progress else True
    )
