"""Rows of the data sets' files: one function for each format, from paths to dictionaries."""

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from kerasllm.data.archives import read_member
from kerasllm.data.compressed import read_lines
from kerasllm.errors import InputError

Row = dict[str, Any]
Reader = Callable[[Sequence[Path], Sequence[str]], Iterator[Row]]
"""Takes the files of a split and the data set's labels."""

_NEUTRAL = 0.5  # tweets rated at most this far from 0 are neutral
_TWEETS = "hutto_ICWSM_2014/tweets_GroundTruth.txt"


def read_articles(paths: Sequence[Path], labels: Sequence[str]) -> Iterator[Row]:
    """Articles of any file that `kerasllm.data.read_articles` reads."""
    from kerasllm.data.sources import read_articles as articles

    for path in paths:
        for article in articles(path):
            yield {"title": article.title, "text": article.text}


def read_title_text(paths: Sequence[Path], labels: Sequence[str]) -> Iterator[Row]:
    """`title<TAB>text`."""
    for _, (title, text) in _table(paths, "title<TAB>text"):
        yield {"title": title, "text": text}


def read_polarity(paths: Sequence[Path], labels: Sequence[str]) -> Iterator[Row]:
    """A zip with a file of sentences for each class."""
    for label, end in enumerate(("neg", "pos")):
        content = b"".join(read_member(paths[0], f"*/rt-polarity.{end}"))
        for line in _text(paths[0], content).split("\n"):
            if line.strip():
                yield {"text": line.strip(), "label": label}


def read_tweets(paths: Sequence[Path], labels: Sequence[str]) -> Iterator[Row]:
    """The tweets in the archive of Hutto and Gilbert 2014: number, mean rating from -4 to 4, text."""
    for number, line in enumerate(_text(paths[0], b"".join(read_member(paths[0], _TWEETS))).splitlines(), 1):
        fields = line.split("\t")
        rating = _number(fields[1]) if len(fields) == 3 else None
        if rating is None:
            raise _malformed(paths[0], number, "number<TAB>rating<TAB>text")
        label = 1 if abs(rating) <= _NEUTRAL else 2 * (rating > 0)
        yield {"text": fields[2].strip(), "label": label, "rating": rating}


def read_label_text(paths: Sequence[Path], labels: Sequence[str]) -> Iterator[Row]:
    """`label<TAB>text` with a line of headings."""
    for place, (label, text) in _table(paths, "label<TAB>text", headings=1):
        yield {"text": text, "label": _label(place, label, labels)}


def read_text_label(paths: Sequence[Path], labels: Sequence[str]) -> Iterator[Row]:
    """`text<TAB>label`."""
    for place, (text, label) in _table(paths, "text<TAB>label"):
        yield {"text": text, "label": _label(place, label, labels)}


def read_ag_news(paths: Sequence[Path], labels: Sequence[str]) -> Iterator[Row]:
    """CSV of class (from 1), title and description; the text is both."""
    for path in paths:
        rows = csv.reader((line + "\n" for _, line in read_lines(path)), strict=True)
        try:
            for fields in rows:
                if len(fields) != 3 or not fields[0].isdigit():
                    raise _malformed(path, rows.line_num, '"class","title","description"')
                label = _label((path, rows.line_num), str(int(fields[0]) - 1), labels)
                yield {"text": f"{fields[1].strip()} {fields[2].strip()}".strip(), "label": label}
        except csv.Error as error:
            raise InputError(f"{path}: line {rows.line_num} is not CSV ({error}); get the file again") from None


def read_conll(paths: Sequence[Path], labels: Sequence[str]) -> Iterator[Row]:
    """A token and its tag on each line, sentences apart by empty lines, documents by `-DOCSTART-`.

    Tags become BIO (Ramshaw and Marcus 1995), whatever they were: an entity begins with B. Of several tags the first
    is taken.
    """
    known = {"O", *(f"{mark}-{label}" for mark in "BI" for label in labels)}
    document = 0
    for path in paths:
        tokens: list[str] = []
        tags: list[str] = []
        for number, line in [*read_lines(path), (0, "")]:
            fields = line.split()
            if not fields:
                if tokens:
                    yield {"tokens": tokens, "tags": _bio(tags), "document": document}
                tokens, tags = [], []
            elif fields[0] == "-DOCSTART-":
                document += 1
            elif len(fields) == 2 and (tag := fields[1].split(",")[0]) in known:
                tokens.append(fields[0])
                tags.append(tag)
            else:
                raise _malformed(path, number, f"token<TAB>tag, of the types {', '.join(labels)}")


def read_spans(paths: Sequence[Path], labels: Sequence[str]) -> Iterator[Row]:
    """JSON lines of a text and its entities as inclusive spans of characters; the tokens are the characters.

    Where two spans overlap, the one that begins first is taken, and of those the longer.
    """
    for path, number, record in _json_lines(paths):
        try:
            text = record["text"]
            spans = [
                (first, last, kind)
                for kind, names in record["label"].items()
                for places in names.values()
                for first, last in places
            ]
            tags = ["O"] * len(text)
            for first, last, kind in sorted(spans, key=lambda span: (span[0], -span[1])):
                if not 0 <= first <= last < len(text) or kind not in labels:
                    raise ValueError
                if set(tags[first : last + 1]) == {"O"}:
                    tags[first : last + 1] = [f"B-{kind}"] + [f"I-{kind}"] * (last - first)
        except (KeyError, TypeError, ValueError, AttributeError):
            raise _malformed(path, number, '{"text": ..., "label": {type: {name: [[first, last]]}}}') from None
        yield {"tokens": list(text), "tags": tags}


def read_squad(paths: Sequence[Path], labels: Sequence[str]) -> Iterator[Row]:
    """The JSON of SQuAD 1.1: articles of paragraphs of questions.

    An answer that is not at its place is looked for in the context, and left out where it is not in there; so is a
    question without any answer.
    """
    for path in paths:
        try:
            for article in _json(path)["data"]:
                for paragraph in article["paragraphs"]:
                    context = paragraph["context"]
                    for question in paragraph["qas"]:
                        found = [
                            _place(context, answer["text"], answer["answer_start"]) for answer in question["answers"]
                        ]
                        kept = [(text, start) for text, start in found if start >= 0]
                        if kept:
                            yield {
                                "id": question["id"],
                                "title": article["title"],
                                "context": context,
                                "question": question["question"].strip(),
                                "answers": [text for text, _ in kept],
                                "answer_starts": [start for _, start in kept],
                            }
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{path}: is not in SQuAD's format ({error!r}); get the file again") from None


def read_attributed_pairs(paths: Sequence[Path], labels: Sequence[str]) -> Iterator[Row]:
    """`source<TAB>target<TAB>attribution`."""
    for _, (source, target, attribution) in _table(paths, "source<TAB>target<TAB>attribution"):
        yield {"source": source, "target": target, "attribution": attribution}


def read_parallel(paths: Sequence[Path], labels: Sequence[str]) -> Iterator[Row]:
    """Two files, line by line."""
    sides = [[line.strip() for _, line in read_lines(path)] for path in paths]
    if len(sides) != 2 or len(sides[0]) != len(sides[1]):
        raise InputError(f"{paths[0]}: has {len(sides[0])} lines, but {paths[-1]} {len(sides[-1])}; get both again")
    for source, target in zip(*sides, strict=True):
        if source and target:
            yield {"source": source, "target": target}


def read_scitldr(paths: Sequence[Path], labels: Sequence[str]) -> Iterator[Row]:
    """JSON lines of an abstract in sentences and its summaries, by the authors first and then by others."""
    for path, number, record in _json_lines(paths):
        try:
            text = " ".join(record["source"]).strip()
            summaries = [summary.strip() for summary in record["target"] if summary.strip()]
            row = {"text": text, "summary": summaries[0], "summaries": summaries, "title": record["title"]}
        except (KeyError, TypeError, AttributeError, IndexError):
            raise _malformed(path, number, '{"source": [...], "target": [...], "title": ...}') from None
        yield row


def read_csl(paths: Sequence[Path], labels: Sequence[str]) -> Iterator[Row]:
    """`to title<TAB>abstract<TAB>title`."""
    for _, (_, text, summary) in _table(paths, "to title<TAB>abstract<TAB>title"):
        yield {"text": text, "summary": summary}


def read_turns(paths: Sequence[Path], labels: Sequence[str]) -> Iterator[Row]:
    """A dialogue on each line, turns apart by tabs; empty ones at the end are left out."""
    for path in paths:
        for number, line in read_lines(path):
            turns = [turn.strip() for turn in line.rstrip().split("\t")]
            if not all(turns):
                raise _malformed(path, number, "turns apart by tabs, none of them empty")
            yield {"turns": turns}


def read_kdconv(paths: Sequence[Path], labels: Sequence[str]) -> Iterator[Row]:
    """JSON of dialogues; the domain is in the file's name."""
    for path in paths:
        domain = next((label for label in labels if label in path.name), "")
        try:
            for dialogue in _json(path):
                turns = [message["message"].strip() for message in dialogue["messages"]]
                yield {"turns": [turn for turn in turns if turn], "domain": domain}
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{path}: is not in KdConv's format ({error!r}); get the file again") from None


def join_dialogues(paths: Sequence[Path], out: IO[bytes]) -> None:
    """Write the dialogues of Schema-Guided's JSON files as `read_turns` reads them, in their order."""
    for path in paths:
        try:
            for dialogue in _json(path):
                turns = (re.sub(r"\s+", " ", turn["utterance"]) for turn in dialogue["turns"])
                out.write(("\t".join(turns) + "\n").encode())
        except (KeyError, TypeError) as error:
            path.unlink()  # a download, or the next call would meet it again
            raise InputError(f"{path}: is not in Schema-Guided's format ({error!r}); try again") from None


READERS: dict[str, Reader] = {
    "articles": read_articles,
    "title_text": read_title_text,
    "polarity": read_polarity,
    "tweets": read_tweets,
    "label_text": read_label_text,
    "text_label": read_text_label,
    "ag_news": read_ag_news,
    "conll": read_conll,
    "spans": read_spans,
    "squad": read_squad,
    "attributed_pairs": read_attributed_pairs,
    "parallel": read_parallel,
    "scitldr": read_scitldr,
    "csl": read_csl,
    "turns": read_turns,
    "kdconv": read_kdconv,
}


def _table(paths: Sequence[Path], form: str, *, headings: int = 0) -> Iterator[tuple[tuple[Path, int], list[str]]]:
    """Lines of as many fields as `form` has, each with its place; rows with an empty field are left out."""
    columns = form.count("<TAB>") + 1
    for path in paths:
        for number, line in read_lines(path):
            if number <= headings or not line.strip():
                continue
            fields = [value.strip() for value in line.split("\t")]
            if len(fields) != columns:
                raise _malformed(path, number, form)
            if all(fields):
                yield (path, number), fields


def _json(path: Path) -> Any:
    """A JSON file, plain or alone in a zip."""
    content = b"".join(read_member(path, "*.json")) if path.suffix.lower() == ".zip" else path.read_bytes()
    try:
        return json.loads(_text(path, content))
    except (json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"{path}: is not JSON ({error}); get the file again") from None


def _json_lines(paths: Sequence[Path]) -> Iterator[tuple[Path, int, Any]]:
    for path in paths:
        for number, line in read_lines(path):
            try:
                if line.strip():
                    yield path, number, json.loads(line)
            except (json.JSONDecodeError, RecursionError) as error:
                raise InputError(f"{path}: line {number} is not JSON ({error}); get the file again") from None


def _text(path: Path, content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 (byte {error.start}: {error.reason}); get the file again") from None


def _label(place: tuple[Path, int], text: str, labels: Sequence[str]) -> int:
    if not text.isdigit() or int(text) >= len(labels):
        path, number = place
        raise InputError(f"{path}: line {number} has the label {text!r}, expected 0 to {len(labels) - 1}; get it again")
    return int(text)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _bio(tags: Iterable[str]) -> list[str]:
    """Tags in which every entity begins with B; neighbours of one type without a B between them are one entity."""
    out: list[str] = []
    for tag in tags:
        begins = tag[:2] == "I-" and (not out or out[-1][2:] != tag[2:])
        out.append(f"B-{tag[2:]}" if begins else tag)
    return out


def _place(context: str, answer: str, start: int) -> tuple[str, int]:
    """An answer and where it begins; -1 if it is not in the context."""
    if answer and context[start : start + len(answer)] == answer:
        return answer, start
    answer = answer.strip()
    return answer, context.find(answer) if answer else -1


def _malformed(path: Path, number: int, form: str) -> InputError:
    return InputError(f"{path}: line {number} is not of the form {form}; get the file again")
