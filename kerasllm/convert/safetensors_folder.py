"""Folders of safetensors files as Hugging Face lays them out: one `model.safetensors`, or shards with an index.

Source: https://huggingface.co/docs/safetensors, and `save_pretrained` of transformers for the names of shards.
"""

import contextlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from kerasllm.convert.readers import AGAIN, SAFE, TensorInfo, file_size, no_tensor, quoted
from kerasllm.errors import InputError
from kerasllm.files import atomic_file, atomic_folder, write_json

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_MOST_HEADER = 100_000_000
"""Bytes; the bound of the safetensors library."""
_PIECE = 2**25
"""Bytes of a large tensor read from one mapping, so that mapped pages never count twice what is read."""
_STAGING = ".model.safetensors"

_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
}
_ORDER = ("U64", "I64", "F64", "F32", "U32", "I32", "BF16", "F16", "U16", "I16", "I8", "U8", "BOOL")
"""Dtypes as the library orders the data of a file."""


class SafetensorsFolder:
    """Reader of a folder of safetensors files, or of a single file. Tensors are read through a memory map.

    Each piece has a mapping of its own, because the pages of a mapping stay in memory as long as it does.

    Attributes:
        path: The folder or file.
        tensors: What all files hold together.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Read the headers.

        Args:
            path: Folder with `model.safetensors`, or with `model.safetensors.index.json` and the shards it names; or
                one file.

        Raises:
            InputError: There are no safetensors (a pickle is never read), a file is damaged, or index and shards do
                not agree about every tensor.
        """
        self.path = Path(path)
        self.tensors: dict[str, TensorInfo] = {}
        self._files: dict[str, Path] = {}
        if not self.path.is_dir():
            self._add(self.path, read_header(self.path))
        elif (self.path / WEIGHTS).exists():
            file = _inside(self.path, WEIGHTS)
            self._add(file, read_header(file))
        elif (self.path / INDEX).exists():
            self._add_shards(self.path / INDEX)
        else:
            raise _no_weights(self.path)

    def read(self, name: str) -> np.ndarray:
        """Read one tensor; see `TensorSource.read`."""
        if name not in self.tensors:
            raise no_tensor(self, name)
        import ml_dtypes  # noqa: F401  (gives numpy the name "bfloat16")

        info, file = self.tensors[name], self._files[name]
        if info.nbytes <= _PIECE or info.shape[0] == 1:
            with _opened(file) as tensors:
                return tensors.get_tensor(name)
        result = np.empty(info.shape, info.dtype)
        rows = max(1, _PIECE * info.shape[0] // info.nbytes)
        for start in range(0, len(result), rows):
            stop = min(start + rows, len(result))  # the library refuses slices that go over the end
            with _opened(file) as tensors:
                result[start:stop] = tensors.get_slice(name)[start:stop]
        return result

    def _add(self, file: Path, tensors: dict[str, TensorInfo]) -> None:
        self.tensors |= tensors
        self._files |= dict.fromkeys(tensors, file)

    def _add_shards(self, index: Path) -> None:
        if file_size(index) > _MOST_HEADER:
            raise InputError(f"{index}: is larger than {_MOST_HEADER} bytes, so no index; {AGAIN}")
        content = _parse(index.read_bytes(), index)
        names = content.get("weight_map") if isinstance(content, dict) else None
        if not isinstance(names, dict) or not names or not all(isinstance(shard, str) for shard in names.values()):
            raise InputError(f"{index}: has no weight_map from tensors to files; {AGAIN}")
        for shard in dict.fromkeys(names.values()):
            file = _inside(self.path, shard)
            tensors = read_header(file)
            expected = {name for name, place in names.items() if place == shard}
            if missing := sorted(expected - tensors.keys()):
                raise InputError(f"{file}: lacks tensor {quoted(missing[0])}, which {INDEX} says it holds; {AGAIN}")
            if surplus := sorted(tensors.keys() - expected):
                where = f"in {quoted(names[surplus[0]])}" if surplus[0] in names else "nowhere"
                raise InputError(
                    f"{file}: holds tensor {quoted(surplus[0])}, which {INDEX} says is {where}; "
                    "copy index and shards again, from one place"
                )
            self._add(file, tensors)


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Names, shapes and dtypes of one safetensors file, held against its size.

    Args:
        path: The file.

    Returns:
        Tensors in the order of their data.

    Raises:
        InputError: It is no safetensors file, damaged or cut short, or has a dtype that numpy lacks.
    """
    size = file_size(path)
    with path.open("rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or length > _MOST_HEADER:
            claim = f"its header would have {length} bytes" if len(start) == 8 else f"has {size} bytes"
            raise InputError(f"{path}: is no safetensors file ({claim}); {AGAIN}")
        if length > size - 8:
            raise InputError(f"{path}: ends within its header ({size} of {8 + length} bytes); {AGAIN}")
        content = _parse(file.read(length), path)
    if not isinstance(content, dict):
        raise InputError(f"{path}: is no safetensors file (its header is no JSON object); {AGAIN}")
    content.pop("__metadata__", None)
    places = {name: _place(path, name, entry) for name, entry in content.items()}
    tensors, at = {}, 0
    for name, (info, begin) in sorted(places.items(), key=lambda item: item[1][1]):
        if begin != at:
            raise InputError(
                f"{path}: tensor {quoted(name)} is said to start at byte {begin} of the data, where another lies or "
                f"none (expected {at}); {AGAIN}"
            )
        tensors[name], at = info, at + info.nbytes
    if size != (expected := 8 + length + at):
        raise InputError(f"{path}: its header asks for {expected} bytes, the file has {size}; {AGAIN}")
    with _opened(path):  # the library's own checks, now and not at the first tensor
        return tensors


def write_tensors(
    path: str | os.PathLike[str],
    arrays: Mapping[str, Any],
    metadata: Mapping[str, str] | None = None,
    *,
    read: Callable[[Any], np.ndarray] = np.asarray,
) -> None:
    """Write one safetensors file, atomically, byte for byte as the library does but one tensor after the other.

    The library makes the whole file in memory first, beside the arrays. Here the header is written first, from shapes
    and dtypes alone, so that memory holds no more than one tensor that `read` makes.

    Args:
        path: The file; replaced if it exists.
        arrays: By name: arrays, or whatever else has a `shape` and a `dtype` of those that safetensors knows (bfloat16
            is that of `ml_dtypes`), such as Keras variables.
        metadata: What to record in the header.
        read: Makes an array of one of them.

    Raises:
        InputError: A dtype is none of safetensors'.
    """
    kinds = {ours: theirs for theirs, ours in _DTYPES.items()}
    entries: dict[str, tuple[str, list[int]]] = {}
    for name, array in arrays.items():
        if str(array.dtype) not in kinds:
            raise InputError(f"{path}: {quoted(name)} is of dtype {array.dtype}, which safetensors files cannot hold")
        entries[name] = kinds[str(array.dtype)], [int(size) for size in array.shape]
    # The order of the library, which aligns every tensor: large items first, then names.
    order = sorted(entries, key=lambda name: (_ORDER.index(entries[name][0]), name.encode()))
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    at = 0
    for name in order:
        kind, shape = entries[name]
        end = at + math.prod(shape) * _item_bytes(_DTYPES[kind])
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with atomic_file(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            # A view of bytes, because bfloat16 has no buffer of its own.
            file.write(np.ascontiguousarray(read(arrays[name])).reshape(-1).view(np.uint8))


def write_safetensors_folder(
    folder: str | os.PathLike[str],
    tensors: Iterable[tuple[str, np.ndarray]],
    *,
    max_shard_bytes: int = 2_000_000_000,
) -> list[Path]:
    """Write weights as transformers' `save_pretrained` does: one file, or shards with an index.

    Tensors are taken one after the other and written as soon as they fill a shard, so that no more than one shard is
    in memory. What is written has its names only when all is complete, the index last.

    Args:
        folder: Where to write; made where it is missing. Other files there are left alone.
        tensors: Names and arrays of any shape, of a dtype that safetensors knows (bfloat16 is that of `ml_dtypes`).
        max_shard_bytes: Most bytes of data in one file; a larger tensor has a file to itself.

    Returns:
        The files, the index last.

    Raises:
        InputError: The folder has weights already, or two tensors have the same name.
    """
    folder = Path(folder)
    if folder.is_dir() and (old := sorted(folder.glob("model*.safetensors*"))):
        raise InputError(f"{old[0]}: exists already; choose another folder")
    staging = folder / _STAGING
    try:
        with atomic_folder(staging, overwrite=True) as target:
            shards = _write_shards(target, tensors, max_shard_bytes)
            count = len(shards)
            names = (
                [WEIGHTS] if count == 1 else [f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)]
            )
            if count > 1:
                sizes = {name: size for shard in shards for name, size in shard.items()}
                index = {name: file for file, shard in zip(names, shards, strict=True) for name in shard}
                metadata = {"total_size": sum(sizes.values())}
                write_json(target / INDEX, {"metadata": metadata, "weight_map": dict(sorted(index.items()))})
        for number, name in enumerate(names):
            (staging / str(number)).replace(folder / name)
        if count > 1:
            (staging / INDEX).replace(folder / INDEX)
            names.append(INDEX)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return [folder / name for name in names]


def _write_shards(folder: Path, tensors: Iterable[tuple[str, np.ndarray]], most: int) -> list[dict[str, int]]:
    """Write files `0`, `1` ... and give the bytes of each one's tensors, by name."""
    shards: list[dict[str, int]] = []
    shard: dict[str, np.ndarray] = {}

    def write() -> None:
        write_tensors(folder / str(len(shards)), shard, {"format": "pt"})
        shards.append({name: array.nbytes for name, array in shard.items()})
        shard.clear()

    for name, tensor in tensors:
        array = np.asarray(tensor)
        if name in shard or any(name in written for written in shards):
            raise InputError(f"{folder.parent}: two tensors have the name {quoted(name)}; each needs one of its own")
        if shard and sum(other.nbytes for other in shard.values()) + array.nbytes > most:
            write()
        shard[name] = array
    if shard or not shards:
        write()
    return shards


def _place(path: Path, name: str, entry: Any) -> tuple[TensorInfo, int]:
    """Check what a header says of one tensor; gives that and where its data begin."""
    shape, kind, offsets = (
        entry.get(k) if isinstance(entry, dict) else None for k in ("shape", "dtype", "data_offsets")
    )
    if not _are_sizes(shape) or not _are_sizes(offsets) or len(offsets) != 2 or not isinstance(kind, str):
        raise InputError(f"{path}: its header says of {quoted(name)} no shape, dtype and data_offsets; {AGAIN}")
    if kind not in _DTYPES:
        raise InputError(
            f"{path}: tensor {quoted(name)} has dtype {quoted(kind)}; use a checkpoint with {', '.join(_DTYPES)} only"
        )
    dtype = _DTYPES[kind]
    nbytes = math.prod(shape) * _item_bytes(dtype)
    if nbytes == 0 or offsets[1] - offsets[0] != nbytes:
        raise InputError(
            f"{path}: tensor {quoted(name)} of shape {shape} and dtype {kind} cannot have {offsets[1] - offsets[0]} "
            f"bytes; {AGAIN}"
        )
    return TensorInfo(tuple(shape), dtype, nbytes), offsets[0]


def _item_bytes(dtype: str) -> int:
    return 2 if dtype == "bfloat16" else np.dtype(dtype).itemsize


def _are_sizes(value: Any) -> TypeGuard[list[int]]:
    """Whether it is a short list of natural numbers that fit 64 bits (numpy has no more than 64 axes)."""
    return (
        isinstance(value, list) and len(value) <= 64 and all(type(item) is int and 0 <= item < 2**63 for item in value)
    )


def _inside(folder: Path, name: str) -> Path:
    """The path of a file of the folder that an index names.

    A link may lead elsewhere in the folder or, as in the cache of huggingface_hub, from `snapshots/<revision>` to the
    `blobs` beside it; to nowhere else.
    """
    if (
        name != Path(name).name
        or name in (".", "..")
        or "\\" in name
        or "\0" in name
        or Path(name).suffix != ".safetensors"
    ):
        raise InputError(
            f"{folder / INDEX}: names {quoted(name)}, which is no .safetensors file of this folder; {AGAIN}"
        )
    real, home = (folder / name).resolve(), folder.resolve()
    allowed = [home, home.parent.parent / "blobs"] if home.parent.name == "snapshots" else [home]
    if not any(real.is_relative_to(place) for place in allowed):
        raise InputError(f"{folder / name}: is a link out of its folder; put the file itself there")
    return folder / name


def _parse(data: bytes, path: Path) -> Any:
    """JSON without duplicate keys, of which a plain parser would keep the last."""

    def distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise InputError(f"{path}: names {quoted(twice)} twice; {AGAIN}")
        return found

    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=distinct)
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: its JSON is damaged ({str(error).splitlines()[0]}); {AGAIN}") from None


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    import safetensors

    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            yield file
    except safetensors.SafetensorError as error:
        message = str(error).splitlines()[0][:200]
        raise InputError(f"{path}: is not a sound safetensors file ({message}); {AGAIN}") from None


def _no_weights(folder: Path) -> InputError:
    names = sorted(file.name for file in folder.iterdir())
    for name in names:
        if name.endswith(_PICKLES):
            return InputError(f"{folder / name}: is the only kind of weights here; {SAFE}")
    for name in names:
        if name.endswith((".safetensors", ".gguf")):
            return InputError(f"{folder}: has no {WEIGHTS} or {INDEX}; give the file itself ({folder / name})")
    return InputError(f"{folder}: has neither {WEIGHTS} nor {INDEX}; give the folder of a Hugging Face model")
