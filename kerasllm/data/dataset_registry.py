"""The closed list of named data sets: `datasets.json` beside this file, read once and checked."""

import difflib
import functools
from pathlib import Path
from typing import Any

from kerasllm.data.dataset_info import COLUMNS, SPLITS, DataFile, DatasetInfo, Origin
from kerasllm.errors import InputError
from kerasllm.files import read_json

_PATH = Path(__file__).with_name("datasets.json")


def dataset_names(task: str | None = None) -> list[str]:
    """Names of all data sets, or of those of a task.

    Args:
        task: "articles", "classification", "tagging", "question_answering", "translation", "summarization" or
            "dialogue".

    Raises:
        InputError: There is no such task.
    """
    if task is not None and task not in COLUMNS:
        raise InputError(f"task: {task!r} is unknown; choose one of {', '.join(COLUMNS)}")
    return [name for name, info in registry().items() if task in (None, info.task)]


def describe(name: str) -> DatasetInfo:
    """What is known of a data set; print it for a summary.

    Args:
        name: One of `dataset_names()`; case does not matter, nor whether words are joined by `-` or `_`.

    Raises:
        InputError: There is no data set of that name.
    """
    known = registry()
    key = name.lower().replace("-", "_")
    if key not in known:
        close = difflib.get_close_matches(key, known, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(close)}?" if close else f"choose one of {', '.join(known)}"
        raise InputError(f"data set {name!r} is unknown; {hint}")
    return known[key]


@functools.cache
def registry() -> dict[str, DatasetInfo]:
    """All data sets by name, in the order of the file."""
    content = read_json(_PATH)
    infos = [_info(entry) for entry in content["datasets"]]
    return {info.name: info for info in infos}


def evidence() -> dict[str, str]:
    """What the words in `Origin.evidence` mean."""
    return dict(read_json(_PATH)["evidence"])


def _info(entry: dict[str, Any]) -> DatasetInfo:
    files = {split: tuple(_file(file) for file in files) for split, files in entry["files"].items()}
    if not (set(files) == {"all"} or set(files) <= set(SPLITS)) or entry["task"] not in COLUMNS:
        raise InputError(f"{_PATH}: {entry['name']} has unknown splits or an unknown task; install kerasllm again")
    lists = {key: tuple(value) for key, value in entry.items() if isinstance(value, list)}
    values: dict[str, Any] = {**entry, **lists, "files": files}
    return DatasetInfo(**values)


def _file(entry: dict[str, Any]) -> DataFile:
    origin, twin = entry.get("origin"), entry.get("twin")
    made = Origin(**{**origin, "urls": tuple(origin["urls"])}) if origin else None
    return DataFile(**{**entry, "origin": made, "twin": _file(twin) if twin else None})
