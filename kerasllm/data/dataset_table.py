"""The table of docs/datasets.md, made of the registry: `python -m kerasllm.data.dataset_table docs/datasets.md`."""

import sys
import urllib.parse
from pathlib import Path

from kerasllm.data.dataset_info import DataFile, DatasetInfo
from kerasllm.data.dataset_registry import evidence, registry
from kerasllm.errors import InputError
from kerasllm.files import atomic_file

_BEGIN = "<!-- table: made by python -m kerasllm.data.dataset_table docs/datasets.md -->"
_END = "<!-- end of table -->"


def table() -> str:
    """Markdown: a line for each data set, and below the addresses of their files."""
    lines = [
        "| name | what | task | language | splits | licence | origin checked |",
        "|---|---|---|---|---|---|---|",
    ]
    for info in registry().values():
        splits = ", ".join(info.splits) + ("" if info.official else " (made here)")
        cells = [f"[`{info.name}`]({info.homepage})", info.title.replace("<", "&lt;"), info.task, info.language, splits]
        lines.append("| " + " | ".join([*cells, info.licence, info.origin_checked]) + " |")
    lines += ["", "| file | bytes | compared on arrival | origin | origin checked |", "|---|---|---|---|---|"]
    seen: set[DataFile] = set()
    for info in registry().values():
        for split in info.files:
            for file in info.files[split]:
                if file not in seen:
                    lines.append(_line(info, file))
                seen.add(file)
    legend = [f"* *{word}*: {meaning}." for word, meaning in evidence().items()]
    notes = [f"* `{info.name}`: {note}" for info in registry().values() for note in info.notes]
    return "\n".join([*lines, "", *legend, "* *not checked*: nothing is known but the address.", "", *notes])


def update(text: str) -> str:
    """A page with its table made anew.

    Raises:
        InputError: The page does not have the two marks between which the table stands.
    """
    before, begin, rest = text.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not begin or not end:
        raise InputError(
            f"the page lacks the line {_END if begin else _BEGIN}; put the two marks where the table belongs"
        )
    return f"{before}{_BEGIN}\n\n{table()}\n\n{_END}{after}"


def _line(info: DatasetInfo, file: DataFile) -> str:
    origin = file.origin
    where, checked = "none: only in KERASLLM_DATA", ""
    if info.package:
        where = f"the package {info.package}"
    elif origin is not None:
        address = urllib.parse.urlsplit(origin.urls[0])
        where = f"[{address.netloc}]({origin.urls[0]})"
        where += f", {origin.member} in it" if origin.member else ""
        where += f" and {len(origin.urls) - 1} more, joined" if len(origin.urls) > 1 else ""
        checked = origin.evidence or "not checked"
    size = f"{file.size:,}" if file.size is not None else ""
    digest = file.sha256 or file.git_blob
    return (
        f"| `{file.path}` | {size} | {file.checksum}{f' `{digest[:16]}...`' if digest else ''} | {where} | {checked} |"
    )


if __name__ == "__main__":
    page = Path(sys.argv[1])
    content = update(page.read_text(encoding="utf-8"))
    with atomic_file(page, "w") as out:
        out.write(content)
