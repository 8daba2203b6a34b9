"""llama2.c files are read value for value; every reader refuses what is no checkpoint and leaves no memory behind."""

import json
import struct
import subprocess
import sys

import gguf
import numpy as np
import pytest
import safetensors.numpy
from checkpoint_files import (
    LLAMA2C,
    SOUND_DATA,
    SOUND_HEADER,
    TWO,
    equal,
    gguf_bytes,
    kv,
    llama2c_bytes,
    llama2c_tensors,
    read_all,
    refused,
    safetensors_bytes,
    smollm2,
    write,
    write_gguf,
)

from kerasllm.convert import memory
from kerasllm.convert.gguf_file import GGUFFile
from kerasllm.convert.llama2c import Llama2cConfig, Llama2cFile
from kerasllm.convert.readers import open_checkpoint
from kerasllm.convert.safetensors_folder import SafetensorsFolder, write_safetensors_folder

PEAK = """
import json, sys
import gguf, ml_dtypes, numpy, safetensors
from kerasllm.convert.readers import open_checkpoint
def resident(key):  # in bytes; VmHWM and not ru_maxrss, which starts at what the parent process had
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(key))
before = resident("VmRSS")
source = open_checkpoint(sys.argv[1])
for name in source.tensors:
    source.read(name)
print(json.dumps([resident("VmHWM") - before, resident("VmRSS") - before]))
"""


def peak(path):
    result = subprocess.run([sys.executable, "-c", PEAK, str(path)], capture_output=True, text=True, check=True)
    return json.loads(result.stdout)


@pytest.mark.parametrize("version", [0, 1])
@pytest.mark.parametrize("shared", [True, False])
def test_llama2c_files_are_read(tmp_path, version, shared):
    tensors = llama2c_tensors(shared=shared)
    source = open_checkpoint(write(tmp_path / "m.bin", llama2c_bytes(tensors, version=version, shared=shared)))
    assert isinstance(source, Llama2cFile)
    assert source.config == Llama2cConfig(**LLAMA2C, shared_classifier=shared, version=version)
    equal(read_all(source), tensors)


def test_stories260k_is_read(data_dir):
    path = data_dir / "checkpoints" / "stories260K.bin"
    source = open_checkpoint(path)
    assert source.config == Llama2cConfig(64, 172, 5, 8, 4, 512, 512, shared_classifier=True, version=0)
    tensors = read_all(source)
    assert "output.weight" not in tensors and sum(array.size for array in tensors.values()) == 260_032
    raw = np.frombuffer(path.read_bytes()[28:], "<f4")
    # all before the rotary tables, which hold cosines and sines of 512 positions and 4 frequencies
    assert raw.size - 260_032 == 2 * 512 * 4
    np.testing.assert_array_equal(tensors["output_norm.weight"], raw[260_032 - 64 : 260_032])
    cosine, sine = raw[260_032:].reshape(2, 512, 4)
    np.testing.assert_allclose(cosine**2 + sine**2, 1, atol=1e-5)
    for i in range(5):  # weights of norms of a trained model are near one, those of projections near zero
        assert 0.3 < tensors[f"blk.{i}.attn_norm.weight"].mean() < 3
        assert 0.3 < tensors[f"blk.{i}.ffn_norm.weight"].mean() < 3
        assert abs(tensors[f"blk.{i}.ffn_down.weight"].mean()) < 0.02


def llama2c_with(**changes):
    return llama2c_bytes(llama2c_tensors(), dict(LLAMA2C) | changes)


BAD_LLAMA2C = {
    "empty": (b"", "is empty"),
    "short": (bytes(27), "27 of 28 bytes"),
    "zeros": (bytes(64), "dim would be 0"),
    "short version 1": (llama2c_bytes(llama2c_tensors(), version=1)[:255], "255 of 256 bytes"),
    "int8": (llama2c_bytes(llama2c_tensors(), version=2), "int8 weights, version 2"),
    "version 9": (llama2c_bytes(llama2c_tensors(), version=9), "version 9"),
    "one byte less": (llama2c_with()[:-1], "the file has"),
    "one byte more": (llama2c_with() + b"\0", "the file has"),
    "2**31 - 1 layers": (struct.pack("<7i", 8, 12, 2**31 - 1, 2, 1, 16, 4) + bytes(64), "make no model"),
    "all absurd": (struct.pack("<7i", 2**30, 2**30, 9999, 1, 1, 2**30, 2**30) + bytes(64), "the file has 92"),
    "heads do not divide": (struct.pack("<7i", 8, 12, 2, 3, 1, 16, 4) + bytes(64), "make no model"),
    "odd heads": (struct.pack("<7i", 9, 12, 2, 3, 1, 16, 4) + bytes(64), "make no model"),
    "groups do not divide": (struct.pack("<7i", 8, 12, 2, 4, 3, 16, 4) + bytes(64), "make no model"),
    "vocabulary of -2**31": (struct.pack("<7i", 8, 12, 2, 2, 1, -(2**31), 4) + bytes(64), "the file has 92"),
}


@pytest.mark.parametrize("case", BAD_LLAMA2C)
def test_damaged_llama2c_is_refused(tmp_path, case):
    content, expected = BAD_LLAMA2C[case]
    path = write(tmp_path / "m.bin", content)
    message = refused(open_checkpoint, path)
    assert message.startswith(f"{path}: ") and expected in message


def test_an_unknown_name_and_a_file_cut_after_opening_are_refused(tmp_path):
    big = np.ones((3, 64), np.float32)
    write_gguf(tmp_path / "m.gguf")
    write(tmp_path / "m.bin", llama2c_bytes(llama2c_tensors()))
    safetensors.numpy.save_file({"a": big, "b": big}, tmp_path / "m.safetensors")
    for name in ("m.gguf", "m.bin", "m.safetensors"):
        source = open_checkpoint(tmp_path / name)
        assert "has no tensor 'nothing'" in refused(source.read, "nothing")
        write(tmp_path / name, (tmp_path / name).read_bytes()[:300])
        assert str(tmp_path / name) in refused(source.read, list(source.tensors)[-1])


def test_reading_leaves_nothing_in_memory(tmp_path):
    megabyte = 2**20
    largest, slack = 49_152 * 576 * 4, 50 * megabyte
    most, after = peak(smollm2())
    assert largest < most < largest + slack and after < slack
    big = np.zeros((40_000, 512), np.float32)
    write_safetensors_folder(tmp_path, [("a", big), ("b", big), ("c", big)], max_shard_bytes=big.nbytes * 2)
    most, after = peak(tmp_path)
    # a piece of 32 MB counts twice while it is copied: mapped and copied
    assert big.nbytes < most < big.nbytes + 64 * megabyte + slack / 2 and after < slack


def test_more_than_there_is_of_memory_is_refused(monkeypatch):
    memory.check_memory(1, "m.gguf")
    available = memory.available_memory()
    message = refused(memory.check_memory, 2**60, "m.gguf")
    assert message.startswith("m.gguf: needs 1152921504.6 GB") and available > 2**20
    monkeypatch.setattr(memory, "available_memory", lambda: 5_000_000)
    assert "needs 6 MB of memory, 5 MB are available" in refused(memory.check_memory, 6_000_000, "x")


def test_the_limits_of_control_groups_count(tmp_path):
    def group(path, names, limit, used, stat):
        folder = tmp_path / path
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in zip(names, (limit, used), strict=True):
            (folder / name).write_text(f"{content}\n")
        (folder / "memory.stat").write_text(f"anon 3\n{stat} 20\n")

    own = tmp_path / "own"
    assert memory._group_rests(tmp_path, own) == []
    two = ("memory.max", "memory.current")
    group("a", two, 1000, 300, "inactive_file")
    group("a/b", two, "max", 100, "inactive_file")
    own.write_text("0::/a/b\n")
    assert memory._group_rests(tmp_path, own) == [720]
    group("a/b", two, 50, 100, "inactive_file")
    assert sorted(memory._group_rests(tmp_path, own)) == [0, 720]
    group("memory/c", ("memory.limit_in_bytes", "memory.usage_in_bytes"), 500, 100, "total_inactive_file")
    own.write_text("5:devices:/\n4:cpu,memory:/c\n0::/\n")
    assert memory._group_rests(tmp_path, own) == [420]


def test_pickles_are_never_read(tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "pytorch_model.bin"
    for zipped in (True, False):
        torch.save({"a": torch.zeros(2)}, path, _use_new_zipfile_serialization=zipped)
        for call, place in ((SafetensorsFolder, tmp_path), (open_checkpoint, path), (Llama2cFile, path)):
            message = refused(call, place)
            assert str(path) in message and "safe_serialization=True" in message


def test_what_is_no_checkpoint_is_refused(tmp_path):
    assert "no such file" in refused(open_checkpoint, tmp_path / "nothing")
    assert "no such file" in refused(SafetensorsFolder, tmp_path / "nothing")
    assert "neither model.safetensors nor" in refused(open_checkpoint, tmp_path)
    assert "is no model" in refused(open_checkpoint, write(tmp_path / "a.txt", b"hello"))
    (tmp_path / "model.safetensors").mkdir()
    (tmp_path / "m.gguf").mkdir()
    for reader, place in ((SafetensorsFolder, tmp_path), (GGUFFile, tmp_path / "m.gguf"), (Llama2cFile, tmp_path)):
        assert "is a folder or a device" in refused(reader, place)
    other = tmp_path / "other"
    other.mkdir()
    write(other / "x.gguf", b"GGUF")
    assert "give the file itself" in refused(open_checkpoint, other)


def test_the_builders_make_sound_files(tmp_path):
    """What is refused above is refused for its damage, not for the way it is written here."""
    data = np.arange(32, dtype=np.float32)
    path = write(tmp_path / "m.gguf", gguf_bytes([kv("general.alignment", 4, b"\x20\0\0\0")], TWO, data.tobytes()))
    equal(read_all(GGUFFile(path)), {"t": data[:16], "u": data[16:].reshape(2, 8)})
    assert [t.name for t in gguf.GGUFReader(path).tensors] == ["t", "u"]
    version2 = write(tmp_path / "2.gguf", gguf_bytes(tensors=TWO, data=data.tobytes(), version=2))
    assert GGUFFile(version2).tensors == GGUFFile(path).tensors
    path = write(tmp_path / "m.safetensors", safetensors_bytes(SOUND_HEADER, SOUND_DATA))
    assert safetensors.numpy.load_file(path).keys() == read_all(SafetensorsFolder(path)).keys() == {"a", "b"}
