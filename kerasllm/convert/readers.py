"""What every reader of foreign checkpoint files gives: names, shapes and dtypes from the headers, one tensor at a time.

A reader believes nothing: every count, length and offset of a header is held against the size of the file before
anything is allocated for it, and what does not fit is an `InputError` of one line.
"""

import math
import os
from pathlib import Path
from typing import IO, NamedTuple, Protocol

import numpy as np

from kerasllm.errors import InputError

AGAIN = "copy or download it again"
"""What to do about a damaged file."""

_PICKLES = (b"PK\x03\x04", b"\x80")
"""How `torch.save` files start: a zip archive, or a bare pickle of protocol 2 and above."""
SAFE = (
    "it may hold a pickle, which can run code and is never read: load it with transformers and write it with "
    "save_pretrained(folder, safe_serialization=True)"
)
"""Advice on files of `torch.save`."""
_HDF5 = b"\x89HDF"
_KERAS = (
    "it may hold code (Lambda layers, classes by name) and is never opened: where you trust it, load it with Keras, "
    "and save the model with kerasllm.save, or a KerasHub backbone with kerasllm.convert.keras_hub.from_keras_hub"
)


class TensorInfo(NamedTuple):
    """What a header says of one tensor.

    Attributes:
        shape: Sizes of the axes in numpy's order; a projection is (out, in).
        dtype: How the file stores it, by numpy's names (`"float32"`, `"bfloat16"`, ...) or, where it is quantised in
            blocks, by ggml's in lower case (`"q8_0"`, `"q4_0"`, `"q4_1"`).
        nbytes: Bytes in the file.
    """

    shape: tuple[int, ...]
    dtype: str
    nbytes: int


class TensorSource(Protocol):
    """A checkpoint that is open for reading. It keeps no file open and no memory mapped between calls."""

    @property
    def path(self) -> Path:
        """File or folder, for messages."""

    @property
    def tensors(self) -> dict[str, TensorInfo]:
        """What there is, by name, in the order of the file; known from headers alone."""

    def read(self, name: str) -> np.ndarray:
        """Read one tensor into memory of its own.

        Args:
            name: One of `tensors`.

        Returns:
            The tensor, of the shape of its `TensorInfo`, in the dtype in which it is stored (bfloat16 is that of
            `ml_dtypes`); float32 where it is quantised.

        Raises:
            InputError: There is none of that name, or the file changed since its header was read.
        """


def open_checkpoint(path: str | os.PathLike[str]) -> TensorSource:
    """Open a checkpoint of any format that is known.

    Args:
        path: A folder with safetensors, or a safetensors, GGUF or llama2.c file, told apart by what they start with.

    Returns:
        Its reader.

    Raises:
        InputError: It is none of these, or damaged.
    """
    from kerasllm.convert.gguf_file import MAGIC, GGUFFile
    from kerasllm.convert.llama2c import Llama2cFile
    from kerasllm.convert.safetensors_folder import SafetensorsFolder

    path = Path(path)
    if path.is_dir() or path.suffix == ".safetensors":
        return SafetensorsFolder(path)
    file_size(path)
    with path.open("rb") as file:
        start = file.read(len(MAGIC))
    if start == MAGIC or path.suffix == ".gguf":
        return GGUFFile(path)
    if path.suffix == ".bin" and not start.startswith(_PICKLES):
        return Llama2cFile(path)
    refuse_code(path)
    kinds = "a model folder, a SavedModel, a Hugging Face folder, or a .gguf, .bin or .tflite file"
    raise InputError(f"{path}: is no model; give {kinds}")


def file_size(path: Path) -> int:
    """Size of a file in bytes.

    Raises:
        InputError: There is no such file, it is a folder (or a device), or it is empty.
    """
    if not path.exists():
        raise InputError(f"{path}: no such file")
    if not path.is_file():
        raise InputError(f"{path}: is a folder or a device, not a file; give the file itself")
    if size := path.stat().st_size:
        return size
    raise InputError(f"{path}: is empty; {AGAIN}")


def refuse_code(path: Path) -> None:
    """Refuse a pickle, a file of `torch.save` or one of Keras by its name and first bytes.

    Raises:
        InputError: It is one.
    """
    with path.open("rb") as file:
        start = file.read(4)
        if path.suffix in (".keras", ".h5", ".hdf5") or start == _HDF5:
            raise InputError(f"{path}: looks like a file of Keras; {_KERAS}")
        if start.startswith(_PICKLES):
            raise InputError(f"{path}: looks like a file of torch.save; {SAFE}")


def no_tensor(source: TensorSource, name: str) -> InputError:
    """The error of asking for a tensor that is not there."""
    return InputError(f"{source.path}: has no tensor {quoted(name)}; it is not the model it was taken for")


def read_items(file: IO[bytes], path: Path, dtype: str, count: int) -> np.ndarray:
    """Read the next `count` items of an open file.

    Args:
        file: Open for reading at the right place.
        path: Its name, for the message.
        dtype: Of the items, little-endian; `"bfloat16"` too.
        count: How many.

    Returns:
        Array (count,) in memory of its own.

    Raises:
        InputError: The file has fewer: it was cut since its header was read.
    """
    array = np.fromfile(file, np.uint16 if dtype == "bfloat16" else np.dtype(dtype).newbyteorder("<"), count)
    if array.size != count:
        raise InputError(f"{path}: became shorter while it was read; {AGAIN}")
    if dtype == "bfloat16":
        import ml_dtypes

        return array.view(ml_dtypes.bfloat16)
    return array.astype(dtype, copy=False)


def read_plain(path: Path, offset: int, info: TensorInfo) -> np.ndarray:
    """Read a tensor that lies in a file as numpy would lay it out.

    Args:
        path: The file.
        offset: Where it starts, in bytes.
        info: Its shape and dtype.

    Returns:
        Array of that shape and dtype.

    Raises:
        InputError: The file is shorter than it was.
    """
    with path.open("rb") as file:
        file.seek(offset)
        return read_items(file, path, info.dtype, math.prod(info.shape)).reshape(info.shape)


def about(place: object, error: InputError) -> InputError:
    """The error with the name of its file, where it lacks that; long values out of the file are cut."""
    message = str(error)
    message = message if len(message) <= 400 else f"{message[:300]} ... {message[-90:]}"
    return InputError(message if message.startswith(str(place)) else f"{place}: {message}")


def quoted(text: str) -> str:
    """A name out of a file, fit for a message of one line however long or strange it is."""
    return repr(text if len(text) <= 80 else text[:77] + "...")
