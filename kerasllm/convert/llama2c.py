"""llama2.c's `.bin` files: the legacy format (version 0) and version 1, both float32.

Source: Andrej Karpathy, llama2.c, `export.py` (https://github.com/karpathy/llama2.c).
"""

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kerasllm.convert.readers import AGAIN, TensorInfo, file_size, no_tensor, read_plain, refuse_code
from kerasllm.errors import InputError

_MAGIC = 0x616B3432
_FIELDS = "<7i"
_LEGACY_BYTES = struct.calcsize(_FIELDS)
_HEADER_BYTES = 256
_MOST_LAYERS = 10_000
"""Deeper than any model; a bound for what one header can make us list."""


@dataclass(frozen=True)
class Llama2cConfig:
    """The header of a llama2.c file.

    Attributes:
        dim: Width of the hidden states.
        hidden_dim: Width inside the feed-forward layer.
        n_layers: Blocks.
        n_heads: Query heads.
        n_kv_heads: Key and value heads.
        vocab_size: Tokens.
        seq_len: Longest sequence.
        shared_classifier: Whether the embedding is also the output projection.
        version: Of the format, 0 or 1.
    """

    dim: int
    hidden_dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    vocab_size: int
    seq_len: int
    shared_classifier: bool
    version: int


class Llama2cFile:
    """Reader of one llama2.c file. Tensors have the names and shapes that the same model has in a GGUF file.

    Rows of query and key are laid out for interleaved rotary positions, as they are in GGUF.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Read the header of `path` and hold it against the size of the file.

        Raises:
            InputError: It is no such file, of version 2 (int8), or not exactly as long as its header makes it.
        """
        self.path = Path(path)
        size = file_size(self.path)
        refuse_code(self.path)
        self.config = _read_config(self.path)
        self.tensors: dict[str, TensorInfo] = {}
        self._offsets: dict[str, int] = {}
        at = _HEADER_BYTES if self.config.version else _LEGACY_BYTES
        expected = at + sum(
            4 * count * shape[0] * (shape[1] if len(shape) > 1 else 1) for _, shape, count in _groups(self.config)
        )
        if size != expected:
            raise InputError(f"{self.path}: its header asks for {expected} bytes, the file has {size}; {AGAIN}")
        for pattern, shape, count in _groups(self.config):
            nbytes = 4 * int(np.prod(shape))
            for layer in range(count):
                if pattern:
                    name = pattern.format(layer)
                    self.tensors[name] = TensorInfo(shape, "float32", nbytes)
                    self._offsets[name] = at
                at += nbytes

    def read(self, name: str) -> np.ndarray:
        """Read one tensor; see `TensorSource.read`."""
        if name not in self.tensors:
            raise no_tensor(self, name)
        return read_plain(self.path, self._offsets[name], self.tensors[name])


def _read_config(path: Path) -> Llama2cConfig:
    with path.open("rb") as file:
        header = file.read(_HEADER_BYTES)
    if len(header) < _LEGACY_BYTES:
        raise InputError(f"{path}: ends within its header ({len(header)} of {_LEGACY_BYTES} bytes); {AGAIN}")
    magic, version = struct.unpack_from("<Ii", header)
    if magic == _MAGIC:
        if version != 1:
            kind = "of int8 weights, " if version == 2 else ""
            raise InputError(
                f"{path}: is a llama2.c file {kind}version {version}, and 0 and 1 (float32) are read; "
                "export it anew with llama2.c's export.py --version 1"
            )
        if len(header) < _HEADER_BYTES:
            raise InputError(f"{path}: ends within its header ({len(header)} of {_HEADER_BYTES} bytes); {AGAIN}")
        flag = header[8 + _LEGACY_BYTES]
        if flag > 1 or any(header[9 + _LEGACY_BYTES :]):
            raise InputError(f"{path}: its header is damaged at or after byte {8 + _LEGACY_BYTES}; {AGAIN}")
        dim, hidden, layers, heads, kv_heads, vocabulary, length = struct.unpack_from(_FIELDS, header, 8)
        shared, version = bool(flag), 1
    else:
        dim, hidden, layers, heads, kv_heads, vocabulary, length = struct.unpack_from(_FIELDS, header)
        # the legacy format says by a negative vocabulary size that the classifier has weights of its own
        shared, vocabulary, version = vocabulary > 0, abs(vocabulary), 0
    config = Llama2cConfig(dim, hidden, layers, heads, kv_heads, vocabulary, length, shared, version)
    _check(config, path)
    return config


def _check(config: Llama2cConfig, path: Path) -> None:
    for name in ("dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "seq_len"):
        if getattr(config, name) <= 0:
            raise InputError(f"{path}: is no llama2.c file: {name} would be {getattr(config, name)}; {AGAIN}")
    if config.dim % (2 * config.n_heads) or config.n_heads % config.n_kv_heads or config.n_layers > _MOST_LAYERS:
        raise InputError(
            f"{path}: is no llama2.c file: dim {config.dim}, n_layers {config.n_layers}, n_heads {config.n_heads} and "
            f"n_kv_heads {config.n_kv_heads} make no model; {AGAIN}"
        )


def _groups(config: Llama2cConfig) -> Iterator[tuple[str, tuple[int, ...], int]]:
    """(name, shape, how many follow each other) in the order of the file; without a name what is not needed."""
    dim, hidden, layers = config.dim, config.hidden_dim, config.n_layers
    head = dim // config.n_heads
    embedding = ("token_embd.weight", (config.vocab_size, dim), 1)
    norms = [("blk.{}.attn_norm.weight", (dim,), layers), ("blk.{}.ffn_norm.weight", (dim,), layers)]
    attention = [
        ("blk.{}.attn_q.weight", (dim, dim), layers),
        ("blk.{}.attn_k.weight", (config.n_kv_heads * head, dim), layers),
        ("blk.{}.attn_v.weight", (config.n_kv_heads * head, dim), layers),
        ("blk.{}.attn_output.weight", (dim, dim), layers),
    ]
    feedforward = [
        ("blk.{}.ffn_gate.weight", (hidden, dim), layers),
        ("blk.{}.ffn_down.weight", (dim, hidden), layers),
        ("blk.{}.ffn_up.weight", (hidden, dim), layers),
    ]
    final = ("output_norm.weight", (dim,), 1)
    if config.version:
        yield from [*norms, final, embedding, *attention, *feedforward]
    else:
        # the last are tables of rotary cosines and sines, which anybody can compute
        rotary = [("", (config.seq_len, head // 2), 1)] * 2
        yield from [embedding, norms[0], *attention, norms[1], *feedforward, final, *rotary]
    if not config.shared_classifier:
        yield ("output.weight", (config.vocab_size, dim), 1)
