"""Checkpoints on the disk: model folders that also hold the rest of a training.

```
checkpoints/step-00001200/
    config.json, tokenizer.json ...   as in every model folder, where the model is one of this library
    model.safetensors                 the weights, averaged where the optimizer averages
    training.safetensors              optimizer, metrics, random generators, callbacks' arrays
    training.json                     step, epoch, callbacks' numbers, history, what must not change
    manifest.json                     SHA-256 and size of every other file, written last
```
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kerasllm.convert.safetensors_folder import SafetensorsFolder, write_tensors
from kerasllm.errors import InputError
from kerasllm.files import atomic_folder, read_json, remove_folder, write_json
from kerasllm.folder import WEIGHTS, verify, write_description, write_manifest
from kerasllm.training.state import Snapshot, from_json

if TYPE_CHECKING:
    from kerasllm.models import LanguageModel
    from kerasllm.text import Tokenizer

_ARRAYS = "training.safetensors"
_CONTENT = "training.json"
_PREFIX = "step-"
_DAMAGED = "damaged-"
_FORMAT = 1

PATTERN = f"{_PREFIX}*"
"""Glob pattern of the names of checkpoints."""


def write(
    folder: Path, step: int, snapshot: Snapshot, model: "LanguageModel | None", tokenizer: "Tokenizer | None"
) -> Path:
    """Write a checkpoint under a temporary name, flush it to the disk, rename it.

    Args:
        folder: Of all checkpoints.
        step: Batches trained on.
        snapshot: The training.
        model: Described in `config.json`, if it is one of this library that comes with a tokenizer.
        tokenizer: Its tokenizer.

    Returns:
        The checkpoint.

    Raises:
        InputError: A weight or a variable of the optimizer is not finite.
        OSError: The disk is full, for example; nothing is left of the attempt.
    """
    _check_finite(step, {**snapshot.weights, **snapshot.arrays})
    path = folder / f"{_PREFIX}{step:08}"
    with atomic_folder(path, overwrite=True) as target:
        if model is not None and tokenizer is not None:
            write_description(model, tokenizer, target)
        write_tensors(target / WEIGHTS, snapshot.weights)
        write_tensors(target / _ARRAYS, snapshot.arrays)
        write_json(target / _CONTENT, {"format": _FORMAT, "step": step, **snapshot.content})
        write_manifest(target)
    return path


def content(path: Path) -> dict[str, Any]:
    """The plain part of a checkpoint, every file of which was first compared with the manifest.

    Raises:
        InputError: A file is missing or changed, or of another format.
    """
    verify(path, (_ARRAYS, _CONTENT))
    found = read_json(path / _CONTENT)
    if not isinstance(found, dict) or found.get("format") != _FORMAT:
        raise InputError(f"{path / _CONTENT}: is not format {_FORMAT}; it was written by something else")
    for name, kind in _KINDS.items():
        if type(found.get(name)) is not kind:
            raise InputError(f"{path / _CONTENT}: {name} is no {kind.__name__}; it was written by something else")
    counts = [found["step"], found["epoch"], found["steps_per_epoch"], found["best"].get("step", 0)]
    whole = all(type(count) is int and 0 <= count < 2**53 for count in counts) and found["step"] == step_of(path)
    values = [found["best"].get("value", 0.0)] if found["best"].keys() <= {"step", "value"} else [None]
    values += [value for each in found["history"].values() for value in (each if isinstance(each, list) else [None])]
    numbers = all(isinstance(from_json(value), int | float) for value in values)
    states = all(
        isinstance(state, dict) and isinstance(state.get("class"), str) and isinstance(state.get("state"), dict)
        for state in found["callbacks"]
    )
    if not (whole and numbers and states):
        raise InputError(f"{path / _CONTENT}: holds no state of a training; it was written by something else")
    return found


_KINDS = {
    **{"step": int, "epoch": int, "steps_per_epoch": int, "finished": bool, "callbacks": list},
    **{"history": dict, "best": dict, "identity": dict, "model": dict},
}


def read(path: Path, *, arrays: bool = True) -> Snapshot:
    """Read a checkpoint.

    Args:
        path: Of `write`.
        arrays: Read more than the weights.

    Raises:
        InputError: A file is missing or changed.
    """
    plain = content(path)
    return Snapshot(_tensors(path / WEIGHTS), _tensors(path / _ARRAYS) if arrays else {}, plain)


def checkpoints(folder: Path) -> list[Path]:
    """All checkpoints of a folder, the oldest first."""
    found = [path for path in folder.glob(PATTERN) if path.name.removeprefix(_PREFIX).isdecimal() and path.is_dir()]
    return sorted(found, key=step_of)


def step_of(path: Path) -> int:
    """The step in a checkpoint's name."""
    return int(path.name.removeprefix(_PREFIX))


def newest(folder: Path) -> tuple[Path, dict[str, Any], dict[Path, str]] | None:
    """The newest checkpoint that is whole, its content, and newer ones that are damaged with what is wrong.

    Returns:
        None where there is no checkpoint.

    Raises:
        InputError: There are checkpoints, but all are damaged.
    """
    damaged: dict[Path, str] = {}
    for path in reversed(checkpoints(folder)):
        try:
            return path, content(path), damaged
        except (InputError, OSError) as error:
            damaged[path] = str(error)
    if damaged:
        why = next(iter(damaged.values()))
        raise InputError(f"{why} (nor is another checkpoint whole: start anew in another folder)")
    return None


def put_aside(path: Path, why: str) -> None:
    """Give a damaged checkpoint another name, and say so on standard error."""
    aside = path.with_name(_DAMAGED + path.name)
    if aside.exists():
        remove_folder(aside)
    path.replace(aside)
    print(f"{why}. It is {aside.name} now", file=sys.stderr)


def _tensors(path: Path) -> dict[str, np.ndarray]:
    source = SafetensorsFolder(path)
    return {name: source.read(name) for name in source.tensors}


def _check_finite(step: int, arrays: Mapping[str, np.ndarray]) -> None:
    """A checkpoint with a NaN is none that one could go back to."""
    for name, array in arrays.items():
        if name.startswith(("random/", "metric/", "callback/")) or array.dtype.kind in "iub":
            continue
        if not np.isfinite(array).all():
            raise InputError(f"{name} is not finite after step {step}: lower the learning rate or clip the gradients")
