"""GGUF files (llama.cpp): metadata and tensors, quantised ones dequantised to float32.

Types, block sizes and the arithmetic of dequantisation are those of the `gguf` package. Its `GGUFReader` is not used:
it trusts every count of the header, keeps the whole file mapped, and spends 1.5 s and 160 MB on the vocabulary of
SmolLM2-135M, because it makes arrays of every string.

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import math
import os
import struct
from pathlib import Path
from typing import IO, Any

import numpy as np

from kerasllm.convert.readers import AGAIN, TensorInfo, file_size, no_tensor, quoted, read_items, read_plain
from kerasllm.errors import InputError

MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_MOST_HEADER = 100_000_000
"""Bytes; real ones, vocabulary included, have at most about 20 million. (safetensors sets the same bound.)"""
_MOST_AXES = 4
_MOST_NAME = 64
_PIECE = 2**19
"""Elements dequantised at a time, so that what is needed besides the result is small. A multiple of every block."""

_PLAIN = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_QUANTISED = {"Q8_0": "q8_0", "Q4_0": "q4_0", "Q4_1": "q4_1"}
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_BOOL, _STRING, _ARRAY = 7, 8, 9


class GGUFFile:
    """Reader of one GGUF file.

    Attributes:
        path: The file.
        metadata: Everything the header says, as plain strings, numbers, bools and lists of those.
        tensors: Shapes in numpy's order (out, in); GGUF writes them the other way round.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Read the header of `path` and hold all of it against the size of the file.

        Raises:
            InputError: It is no GGUF file of version 2 or 3, a part of a split one, damaged, or has a tensor of a type
                that is not read.
        """
        self.path = Path(path)
        size = file_size(self.path)
        with self.path.open("rb") as file:
            header = _Header(file, self.path, size)
            count, entries = header.start()
            self.metadata = header.entries(entries)
            found = [header.tensor() for _ in range(count)]
        if (parts := self.metadata.get("split.count", 1)) not in (0, 1):
            raise InputError(
                f"{self.path}: is one of {parts} parts of a model; join them with llama.cpp's llama-gguf-split --merge"
            )
        self.tensors: dict[str, TensorInfo] = {}
        self._offsets: dict[str, int] = {}
        self._place(found, header.at, size)

    def read(self, name: str) -> np.ndarray:
        """Read one tensor; see `TensorSource.read`. Quantised ones become float32."""
        if name not in self.tensors:
            raise no_tensor(self, name)
        info = self.tensors[name]
        if info.dtype in _PLAIN.values():
            return read_plain(self.path, self._offsets[name], info)
        return self._dequantise(info, self._offsets[name])

    def _dequantise(self, info: TensorInfo, offset: int) -> np.ndarray:
        from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
        from gguf.quants import dequantize

        kind = GGMLQuantizationType[info.dtype.upper()]
        block, block_bytes = GGML_QUANT_SIZES[kind]
        result = np.empty(math.prod(info.shape), np.float32)
        with self.path.open("rb") as file:
            file.seek(offset)
            for start in range(0, result.size, _PIECE):
                piece = result[start : start + _PIECE]
                packed = read_items(file, self.path, "uint8", piece.size // block * block_bytes)
                piece[:] = dequantize(packed.reshape(1, -1), kind)[0]
        return result.reshape(info.shape)

    def _place(self, found: list[tuple[str, TensorInfo, int]], header: int, size: int) -> None:
        """Check that the tensors follow each other without gap or overlap up to the end of the file."""
        alignment = self.metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise InputError(f"{self.path}: general.alignment is {quoted(str(alignment))}, no power of two; {AGAIN}")
        start = at = _aligned(header, alignment)
        for name, info, offset in found:
            if name in self.tensors:
                raise InputError(f"{self.path}: has two tensors of name {quoted(name)}; {AGAIN}")
            if start + offset != at:
                raise InputError(
                    f"{self.path}: tensor {quoted(name)} is said to start {offset} bytes into the data, where another "
                    f"lies or none (expected {at - start}); {AGAIN}"
                )
            if at + info.nbytes > size:
                raise InputError(
                    f"{self.path}: ends within tensor {quoted(name)} ({size} bytes, it would reach to "
                    f"{at + info.nbytes}); {AGAIN}"
                )
            self.tensors[name], self._offsets[name] = info, at
            at = _aligned(at + info.nbytes, alignment)
        if size > at:
            raise InputError(f"{self.path}: has {size - at} bytes after its last tensor; {AGAIN}")


class _Header:
    """The header of a GGUF file, read from front to back; `at` is the place."""

    def __init__(self, file: IO[bytes], path: Path, size: int) -> None:
        self.file, self.path, self.size, self.at = file, path, size, 0

    def start(self) -> tuple[int, int]:
        """Magic and version; gives the number of tensors and of metadata entries."""
        if self.take(4, "its magic number") != MAGIC:
            raise InputError(f"{self.path}: is no GGUF file; give one, or a folder with safetensors")
        version = self.number("I", "its version")
        if version in (known << 24 for known in _VERSIONS):
            raise InputError(f"{self.path}: is a big-endian GGUF file; make a little-endian one of it")
        if version not in _VERSIONS:
            raise InputError(f"{self.path}: is a GGUF file of version {version}; convert it to version 3")
        tensors, entries = self.number("Q", "its counts"), self.number("Q", "its counts")
        # the smallest entry is an empty key, a type and one byte, the smallest tensor an empty name, no axis, and so on
        self.afford(entries * (8 + 4 + 1) + tensors * (8 + 4 + 4 + 8), f"{tensors} tensors and {entries} entries")
        return tensors, entries

    def entries(self, count: int) -> dict[str, Any]:
        """The metadata."""
        found: dict[str, Any] = {}
        for _ in range(count):
            key = self.text("a metadata key")
            if not key:
                raise InputError(f"{self.path}: has a metadata entry without a name before byte {self.at}; {AGAIN}")
            if key in found:
                raise InputError(f"{self.path}: has two metadata entries {quoted(key)}; {AGAIN}")
            found[key] = self.value(self.number("I", f"the type of {quoted(key)}"), f"metadata {quoted(key)}")
        return found

    def value(self, kind: int, what: str) -> Any:
        """A value of a metadata entry."""
        if kind == _STRING:
            return self.text(what)
        if kind != _ARRAY:
            return self.scalars(kind, 1, what)[0]
        kind, count = self.number("I", what), self.number("Q", what)
        if kind == _STRING:
            self.afford(8 * count, what)
            return [self.text(what) for _ in range(count)]
        return self.scalars(kind, count, what)

    def scalars(self, kind: int, count: int, what: str) -> list[Any]:
        """`count` numbers or bools."""
        if kind not in _SCALARS:
            raise InputError(f"{self.path}: {what} is of unknown type {kind}; {AGAIN}")
        data = self.take(count * struct.calcsize(f"<{_SCALARS[kind]}"), what)
        if kind == _BOOL and data.strip(b"\0\1"):
            raise InputError(f"{self.path}: {what} is neither true nor false; {AGAIN}")
        return np.frombuffer(data, np.dtype(_SCALARS[kind]).newbyteorder("<")).tolist()

    def tensor(self) -> tuple[str, TensorInfo, int]:
        """Name, shape and type of a tensor, and where it starts in the data."""
        name = self.text("a tensor's name")
        what = f"tensor {quoted(name)}"
        axes = self.number("I", what)
        if axes > _MOST_AXES or not 0 < len(name.encode()) <= _MOST_NAME:
            raise InputError(
                f"{self.path}: {what} has {axes} axes and a name of {len(name.encode())} bytes; at most {_MOST_AXES} "
                f"and 1 to {_MOST_NAME} can be; {AGAIN}"
            )
        shape = tuple(self.number("Q", what) for _ in range(axes))[::-1]
        kind, offset = self.number("I", what), self.number("Q", what)
        return name, self.info(what, shape, kind), offset

    def info(self, what: str, shape: tuple[int, ...], kind: int) -> TensorInfo:
        """Check type and shape, and compute the bytes of a tensor."""
        from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

        label = next((known.name for known in GGMLQuantizationType if known == kind), f"number {kind}")
        dtype = (_PLAIN | _QUANTISED).get(label)
        if dtype is None:
            raise InputError(
                f"{self.path}: {what} is of type {label}; use a file with {', '.join(_PLAIN | _QUANTISED)} only "
                "(llama.cpp's llama-quantize --allow-requantize makes one)"
            )
        block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType[label]]
        elements = math.prod(shape)
        if elements == 0 or (shape or (1,))[-1] % block:
            raise InputError(f"{self.path}: {what} of type {label} cannot have shape {shape}; {AGAIN}")
        nbytes = elements // block * block_bytes
        if nbytes > self.size:
            raise InputError(f"{self.path}: {what} of shape {shape} is larger than the file; {AGAIN}")
        return TensorInfo(shape, dtype, nbytes)

    def text(self, what: str) -> str:
        """A string: its length, then UTF-8."""
        data = self.take(self.number("Q", what), what)
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            raise InputError(f"{self.path}: {what} is not UTF-8 (before byte {self.at}); {AGAIN}") from None

    def number(self, kind: str, what: str) -> int:
        """One unsigned integer."""
        return int.from_bytes(self.take(struct.calcsize(f"<{kind}"), what), "little")

    def take(self, count: int, what: str) -> bytes:
        """The next `count` bytes."""
        self.afford(count, what)
        data = self.file.read(count)
        if len(data) != count:
            raise InputError(f"{self.path}: became shorter while it was read; {AGAIN}")
        self.at += count
        return data

    def afford(self, count: int, what: str) -> None:
        """Refuse what the rest of the file, or any sensible header, cannot hold."""
        if count > self.size - self.at:
            raise InputError(
                f"{self.path}: ends within {what}: {count} bytes at least from byte {self.at} on, the file has "
                f"{self.size}; {AGAIN}"
            )
        if self.at + count > _MOST_HEADER:
            raise InputError(f"{self.path}: {what} makes its header larger than {_MOST_HEADER} bytes; {AGAIN}")


def _aligned(offset: int, alignment: int) -> int:
    return -(-offset // alignment) * alignment
