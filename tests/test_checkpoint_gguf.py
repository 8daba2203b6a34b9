"""GGUF files: what llama.cpp's own package writes is read value for value, what is damaged is refused in one line."""

import math
import struct

import gguf
import numpy as np
import pytest
from checkpoint_files import (
    METADATA,
    T16,
    TWO,
    gguf_bytes,
    gguf_string,
    gguf_tensor,
    kv,
    read_all,
    refused,
    smollm2,
    write,
    write_gguf,
)

from kerasllm.convert.gguf_file import GGUFFile
from kerasllm.convert.readers import TensorInfo, open_checkpoint


def q8_0(block):
    """32 numbers: a float16 scale and 32 int8."""
    return np.float32(np.frombuffer(block[:2], "<f2")[0]) * np.frombuffer(block[2:], np.int8).astype(np.float32)


def q4_0(block):
    """32 numbers: a float16 scale, then the first 16 in the low halves of 16 bytes and the others in the high ones."""
    q = np.array([b & 15 for b in block[2:]] + [b >> 4 for b in block[2:]], np.float32)
    return np.float32(np.frombuffer(block[:2], "<f2")[0]) * (q - 8)


def q4_1(block):
    """As `q4_0`, with a float16 minimum after the scale instead of the offset 8."""
    scale, minimum = np.frombuffer(block[:4], "<f2").astype(np.float32)
    q = np.array([b & 15 for b in block[4:]] + [b >> 4 for b in block[4:]], np.float32)
    return scale * q + minimum


ORACLES = {"q8_0": (q8_0, 34), "q4_0": (q4_0, 18), "q4_1": (q4_1, 20)}


def dequantised(data, dtype):
    oracle, size = ORACLES[dtype]
    return np.concatenate([oracle(data[at : at + size]) for at in range(0, len(data), size)])


def test_what_llama_cpp_writes_is_read(tmp_path):
    arrays = write_gguf(tmp_path / "m.gguf")
    source = open_checkpoint(tmp_path / "m.gguf")
    assert isinstance(source, GGUFFile)
    assert source.metadata == {"general.architecture": "llama"} | {k: v for k, (_, v) in METADATA.items()}
    assert type(source.metadata["a.flag"]) is bool and type(source.metadata["a.list"][0]) is int
    found = read_all(source)
    for dtype, array in arrays.items():
        assert source.tensors[dtype].dtype == dtype and source.tensors[dtype].shape == (3, 64)
        if dtype in ORACLES:
            data = gguf.quants.quantize(array, gguf.GGMLQuantizationType[dtype.upper()]).tobytes()
            assert found[dtype].dtype == np.float32 and source.tensors[dtype].nbytes == len(data)
            np.testing.assert_array_equal(found[dtype].reshape(-1), dequantised(data, dtype))
            np.testing.assert_allclose(found[dtype], array, atol=0.02 if dtype == "q8_0" else 0.35)
        else:
            assert found[dtype].dtype == dtype
            np.testing.assert_array_equal(found[dtype], array.astype(found[dtype].dtype))


def test_smollm2_is_read_as_llama_cpps_reader_does():
    source, theirs = GGUFFile(smollm2()), gguf.GGUFReader(smollm2())
    expected = {key: field.contents() for key, field in theirs.fields.items() if not key.startswith("GGUF.")}
    assert source.metadata == expected and len(source.metadata["tokenizer.ggml.merges"]) == 48_900
    infos = {t.name: (tuple(t.shape.tolist()[::-1]), int(t.n_bytes)) for t in theirs.tensors}
    assert {name: (info.shape, info.nbytes) for name, info in source.tensors.items()} == infos
    assert sum(math.prod(info.shape) for info in source.tensors.values()) == 134_515_008
    assert {info.dtype for info in source.tensors.values()} == {"float32", "q8_0", "q4_1"}
    data = {t.name: t.data for t in theirs.tensors}
    for name, dtype in (("blk.7.attn_k.weight", "q4_1"), ("blk.29.attn_v.weight", "q4_1")):
        assert source.tensors[name] == TensorInfo((192, 576), dtype, 192 * 576 // 32 * 20)
        np.testing.assert_array_equal(source.read(name).reshape(-1), dequantised(data[name].tobytes(), dtype))
    embedding = source.read("token_embd.weight")  # is dequantised in many pieces: look at rows all over it
    assert embedding.shape == (49152, 576)
    for row in (0, 1, 909, 910, 911, 20_000, 49_151):
        np.testing.assert_array_equal(embedding[row], dequantised(data["token_embd.weight"][row].tobytes(), "q8_0"))
    norm = source.read("blk.3.ffn_norm.weight")
    np.testing.assert_array_equal(norm, data["blk.3.ffn_norm.weight"])


BAD_GGUF = {
    "empty": (b"", "is empty"),
    "magic": (gguf_bytes(magic=b"GGML"), "no GGUF file"),
    "only the magic": (b"GGUF", "ends within its version"),
    "version 1": (gguf_bytes(version=1), "version 1"),
    "version 4": (gguf_bytes(version=4), "version 4"),
    "big-endian": (gguf_bytes(version=3 << 24), "big-endian"),
    "2**60 tensors": (gguf_bytes(counts=(2**60, 0)), str(2**60)),
    "2**63 entries": (gguf_bytes(counts=(0, 2**63)), str(2**63)),
    "one entry too many": (gguf_bytes([kv("a", 0, b"\1")], counts=(0, 2)), "without a name"),
    "key of 2**62 bytes": (gguf_bytes([gguf_string("a", 2**62) + bytes(20)]), "ends within a metadata key"),
    "string of 2**63 bytes": (gguf_bytes([kv("a", 8, gguf_string("xy", 2**63))]), "metadata 'a'"),
    "list of 2**61 strings": (gguf_bytes([kv("a", 9, struct.pack("<IQ", 8, 2**61))]), "metadata 'a'"),
    "list of 2**61 numbers": (gguf_bytes([kv("a", 9, struct.pack("<IQ", 12, 2**61))]), "metadata 'a'"),
    "list of lists": (gguf_bytes([kv("a", 9, struct.pack("<IQIQ", 9, 1, 0, 0))]), "unknown type 9"),
    "unknown type": (gguf_bytes([kv("a", 13, bytes(8))]), "unknown type 13"),
    "a bool of 2": (gguf_bytes([kv("a", 7, b"\2")]), "neither true nor false"),
    "key twice": (gguf_bytes([kv("a", 0, b"\1"), kv("a", 0, b"\1")]), "two metadata entries 'a'"),
    "no UTF-8": (gguf_bytes([kv("a", 8, gguf_string(b"\xff\xfe"))]), "not UTF-8"),
    "alignment 0": (gguf_bytes([kv("general.alignment", 4, struct.pack("<I", 0))]), "no power of two"),
    "alignment 48": (gguf_bytes([kv("general.alignment", 4, struct.pack("<I", 48))]), "no power of two"),
    "alignment of text": (gguf_bytes([kv("general.alignment", 8, gguf_string("a\nb"))]), "no power of two"),
    "alignment 2**31": (
        gguf_bytes([kv("general.alignment", 4, struct.pack("<I", 2**31))], [T16], bytes(64)),
        "ends within tensor 't'",
    ),
    "part of a split": (gguf_bytes([kv("split.count", 2, struct.pack("<H", 3))]), "one of 3 parts"),
    "five axes": (gguf_bytes(tensors=[gguf_tensor("t", [1] * 5, 0)]), "5 axes"),
    "2**32 - 1 axes": (gguf_bytes(tensors=[gguf_tensor("t", [16], 0, axes=2**32 - 1)]), "axes"),
    "long name": (gguf_bytes(tensors=[gguf_tensor("t" * 65, [16], 0)], data=bytes(64)), "name of 65 bytes"),
    "no name": (gguf_bytes(tensors=[gguf_tensor("", [16], 0)], data=bytes(64)), "name of 0 bytes"),
    "absurd shape": (gguf_bytes(tensors=[gguf_tensor("t", [2**40, 2**40], 0)], data=bytes(64)), "larger than the file"),
    "no elements": (gguf_bytes(tensors=[gguf_tensor("t", [0, 2**60], 0)]), "cannot have shape"),
    "half a block": (gguf_bytes(tensors=[gguf_tensor("t", [16, 2], 0, 8)], data=bytes(64)), "cannot have shape"),
    "Q6_K": (gguf_bytes(tensors=[gguf_tensor("t", [256], 0, 14)], data=bytes(224)), "'t' is of type Q6_K"),
    "I32": (gguf_bytes(tensors=[gguf_tensor("t", [16], 0, 26)], data=bytes(64)), "'t' is of type I32"),
    "type 99": (gguf_bytes(tensors=[gguf_tensor("t", [16], 0, 99)], data=bytes(64)), "'t' is of type number 99"),
    "tensor twice": (
        gguf_bytes(tensors=[T16, gguf_tensor("t", [16], 64)], data=bytes(128)),
        "two tensors of name 't'",
    ),
    "overlap": (gguf_bytes(tensors=[T16, gguf_tensor("u", [16], 32)], data=bytes(128)), "tensor 'u' is said to start"),
    "gap": (gguf_bytes(tensors=[T16, gguf_tensor("u", [16], 96)], data=bytes(160)), "tensor 'u' is said to start"),
    "far offset": (gguf_bytes(tensors=[gguf_tensor("t", [16], 2**63)], data=bytes(64)), "tensor 't' is said to start"),
    "unaligned": (gguf_bytes(tensors=[gguf_tensor("t", [16], 8)], data=bytes(72)), "tensor 't' is said to start"),
    "cut short": (gguf_bytes(tensors=TWO, data=bytes(127)), "ends within tensor 'u'"),
    "no data": (gguf_bytes(tensors=TWO), "ends within tensor 't'"),
    "surplus": (gguf_bytes(tensors=TWO, data=bytes(160)), "32 bytes after its last tensor"),
}


@pytest.mark.parametrize("case", BAD_GGUF)
def test_damaged_gguf_is_refused(tmp_path, case):
    content, expected = BAD_GGUF[case]
    path = write(tmp_path / "m.gguf", content)
    message = refused(open_checkpoint, path)
    assert message.startswith(f"{path}: ") and expected in message
