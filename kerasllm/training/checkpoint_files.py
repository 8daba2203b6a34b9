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
import safetensors.numpy

from kerasllm.convert.safetensors_folder import SafetensorsFolder
from kerasllm.errors import InputError
from kerasllm.files import atomic_folder, read_json, remove_folder, write_json
from kerasllm.folder import CONFIG, WEIGHTS, verify, write_description, write_manifest
from kerasllm.training.state import Snapshot

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
        safetensors.numpy.save_file(snapshot.weights, target / WEIGHTS)
        safetensors.numpy.save_file(snapshot.arrays, target / _ARRAYS)
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
    needed = ("step", "epoch", "steps_per_epoch", "finished", "callbacks", "history", "best", "identity")
    if not isinstance(found, dict) or found.get("format") != _FORMAT or any(name not in found for name in needed):
        raise InputError(f"{path / _CONTENT}: is not format {_FORMAT}; it was written by something else")
    return found


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


def config_of(path: Path) -> Any:
    """What a checkpoint says of its model, or None."""
    return read_json(path / CONFIG) if (path / CONFIG).is_file() else None


def checkpoints(folder: Path) -> list[Path]:
    """All checkpoints of a folder, the oldest first."""
    found = [path for path in folder.glob(PATTERN) if path.name.removeprefix(_PREFIX).isdecimal() and path.is_dir()]
    return sorted(found, key=step_of)


def step_of(path: Path) -> int:
    """The step in a checkpoint's name."""
    return int(path.name.removeprefix(_PREFIX))


def newest(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint that is whole, and its content; damaged ones are named on standard error and put aside.

    Returns:
        None where there is no checkpoint.

    Raises:
        InputError: There are checkpoints, but all are damaged.
    """
    damaged = []
    for path in reversed(checkpoints(folder)):
        try:
            found = path, content(path)
        except InputError as error:
            damaged.append((path, error))
            continue
        for broken, why in damaged:
            aside = broken.with_name(_DAMAGED + broken.name)
            if aside.exists():
                remove_folder(aside)
            broken.replace(aside)
            print(f"{why}. It is {aside.name} now; going on from {path.name}", file=sys.stderr)
        return found
    if damaged:
        raise InputError(f"{damaged[0][1]} (nor is another checkpoint whole: start anew in another folder)")
    return None


def differences(before: Any, now: Any, name: str = "") -> list[str]:
    """What differs between two pieces of JSON, each as `name: before -> now`."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        names = [*before, *(key for key in now if key not in before)]
        parts = (differences(before.get(key), now.get(key), f"{name}.{key}" if name else key) for key in names)
        return [line for part in parts for line in part]
    return [] if before == now else [f"{name}: {before!r} -> {now!r}"]


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
