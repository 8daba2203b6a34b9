"""No damage to a checkpoint does anything but a refusal in one line, or values that the damage left readable."""

import json
import math
import struct
import tracemalloc

import gguf
import numpy as np
import pytest
from checkpoint_files import (
    gguf_bytes,
    gguf_string,
    gguf_tensor,
    kv,
    llama2c_bytes,
    llama2c_tensors,
    one_line,
    read_all,
    write,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from kerasllm.convert.gguf_file import GGUFFile
from kerasllm.convert.llama2c import Llama2cFile
from kerasllm.convert.readers import open_checkpoint
from kerasllm.convert.safetensors_folder import SafetensorsFolder, write_safetensors_folder
from kerasllm.errors import InputError

MOST_ALLOCATED = 4_000_000
"""Bytes; the files have less than 10,000."""
INTERESTING = [0, 1, 2**7, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**60, 2**62, 2**63 - 1, 2**63, 2**64 - 32, 2**64 - 1]


def _safetensors(tmp_path):
    tensors = {"a": np.arange(16, dtype=np.float32), "b.c": np.ones((2, 6), np.float16), "i": np.arange(3)}
    write_safetensors_folder(tmp_path / "one", tensors.items())
    return (tmp_path / "one" / "model.safetensors").read_bytes()


def _gguf(_):
    # 512 elements fill a multiple of 32 bytes in every type, so that none can be taken for another
    numbers = np.linspace(-1, 1, 512, dtype=np.float32)
    quants = {kind: gguf.quants.quantize(numbers, gguf.GGMLQuantizationType(kind)) for kind in (2, 3, 8)}
    arrays = [(0, np.arange(16, dtype=np.float32)), *quants.items(), (1, numbers.astype(np.float16))]
    entries = [
        kv("general.architecture", 8, gguf_string("llama")),
        kv("general.alignment", 4, struct.pack("<I", 32)),
        kv("a.list", 9, struct.pack("<IQ3i", 5, 3, 1, 2, 3)),
        kv("a.words", 9, struct.pack("<IQ", 8, 2) + gguf_string("one") + gguf_string("two")),
        kv("a.flag", 7, b"\1"),
    ]
    tensors, data = [], b""
    for kind, array in arrays:
        dims = [512] if kind else [8, 2]
        tensors.append(gguf_tensor(f"blk.{kind}.weight", dims, len(data), kind))
        data += array.tobytes()
        data += bytes(-len(data) % 32)
    return gguf_bytes(entries, tensors, data)


def _llama2c(version, shared):
    return lambda _: llama2c_bytes(llama2c_tensors(shared=shared), version=version, shared=shared)


FORMATS = {
    "safetensors": (SafetensorsFolder, _safetensors),
    "gguf": (GGUFFile, _gguf),
    "llama2c": (Llama2cFile, _llama2c(0, True)),
    "llama2c-untied": (Llama2cFile, _llama2c(0, False)),
    "llama2c-1": (Llama2cFile, _llama2c(1, False)),
}
SUFFIXES = {"safetensors": ".safetensors", "gguf": ".gguf"}


@pytest.fixture(scope="module", params=FORMATS)
def sound(request, tmp_path_factory):
    """(name, reader, path to write to, bytes of a sound file)."""
    reader, make = FORMATS[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    path, content = folder / f"m{SUFFIXES.get(request.param, '.bin')}", make(folder)
    assert len(content) < 10_000
    assert read_all(reader(write(path, content)))  # sound, and all that is imported on the way is imported
    return request.param, reader, path, content


def attempt(reader, path):
    """What the headers say, or None where the file was refused as it should be."""
    try:
        source = reader(path)
        read_all(source)
    except InputError as error:
        assert str(path if path.is_file() else path.name) in one_line(error)
        return None
    return list(source.tensors.values())


@st.composite
def mutations(draw):
    """A few changes, as functions of a bytearray; places are drawn as shares, most of them in the first half."""
    kinds = st.sampled_from(["flip", "byte", "u32", "u64", "cut", "insert", "delete", "repeat"])
    place = st.floats(0, 1, exclude_max=True).map(lambda share: share**2)
    change = st.tuples(kinds, place, st.sampled_from(INTERESTING) | st.integers(0, 2**64 - 1), st.integers(1, 40))
    return draw(st.lists(change, min_size=1, max_size=4))


def mutated(content, changes):
    data = bytearray(content)
    for kind, share, value, count in changes:
        at = int(share * len(data))
        if kind == "flip" and data:
            data[at] ^= 1 << value % 8
        elif kind == "byte" and data:
            data[at] = value % 256
        elif kind in ("u32", "u64"):
            size = 4 if kind == "u32" else 8
            data[at // 4 * 4 : at // 4 * 4 + size] = (value % 2 ** (8 * size)).to_bytes(size, "little")
        elif kind == "cut":
            del data[at:]
        elif kind == "insert":
            data[at:at] = value.to_bytes(8, "little") * count
        elif kind == "delete":
            del data[at : at + count]
        else:
            data[at:at] = data[at : at + count]
    return bytes(data)


@settings(max_examples=250, deadline=None)
@given(changes=mutations())
def test_whatever_is_damaged_is_refused_or_read_with_little_memory(sound, changes):
    _, reader, path, content = sound
    write(path, mutated(content, changes))
    tracemalloc.start()
    try:
        attempt(reader, path)
        assert tracemalloc.get_traced_memory()[1] < MOST_ALLOCATED
    finally:
        tracemalloc.stop()


@settings(max_examples=150, deadline=None)
@given(data=st.binary(max_size=400), start=st.sampled_from([b"", b"GGUF\3\0\0\0", struct.pack("<Q", 2) + b"{}"]))
def test_whatever_bytes_are_no_checkpoint(tmp_path_factory, data, start):
    folder = tmp_path_factory.getbasetemp()
    for suffix in (".gguf", ".bin", ".safetensors"):
        attempt(open_checkpoint, write(folder / f"noise{suffix}", start + data))


def test_no_shorter_file_is_taken(sound):
    _, reader, path, content = sound
    for size in range(len(content)):
        assert attempt(reader, write(path, content[:size])) is None, size


def header_bytes(name, content):
    if name == "safetensors":
        return 8 + struct.unpack("<Q", content[:8])[0]
    if name == "gguf":
        return content.index(bytes(np.arange(16, dtype="<f4"))) // 32 * 32
    return 28 if name != "llama2c-1" else 256


def test_no_flipped_bit_of_a_header_changes_what_is_read(sound):
    """It is refused, or it was in a name or a value that says nothing of the tensors."""
    name, reader, path, content = sound
    before = attempt(reader, write(path, content))
    refused = 0
    for bit in range(8 * header_bytes(name, content)):
        data = bytearray(content)
        data[bit // 8] ^= 1 << bit % 8
        after = attempt(reader, write(path, bytes(data)))
        refused += after is None
        if after is not None:
            assert sorted(after) == sorted(before), f"bit {bit % 8} of byte {bit // 8}"
    assert refused > 100


def sharded(folder):
    write_safetensors_folder(folder, [("a", np.zeros(4)), ("b", np.ones(4))], max_shard_bytes=32)
    return folder


NAMES = (
    st.sampled_from(["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "../x", ""]) | st.text()
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | NAMES,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b"]) | st.text(), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(
    weight_map=st.dictionaries(st.sampled_from(["a", "b"]) | st.text(), NAMES, max_size=3) | JSON, changes=mutations()
)
def test_whatever_an_index_says_is_refused_or_true(tmp_path_factory, weight_map, changes):
    folder = tmp_path_factory.getbasetemp() / "sharded"
    if not folder.exists():
        sharded(folder)
    index = folder / "model.safetensors.index.json"
    text = json.dumps({"weight_map": weight_map}).encode()
    for content in (text, mutated(text, changes)):
        infos = attempt(SafetensorsFolder, write(index, content).parent)
        assert infos is None or all(math.prod(info.shape) == 4 for info in infos)


@settings(max_examples=150, deadline=None)
@given(header=st.dictionaries(st.text(max_size=5), JSON, max_size=3), size=st.integers(0, 64))
def test_whatever_json_is_a_header(tmp_path_factory, header, size):
    text = json.dumps(header).encode()
    path = tmp_path_factory.getbasetemp() / "header.safetensors"
    attempt(SafetensorsFolder, write(path, struct.pack("<Q", len(text)) + text + bytes(size)))
