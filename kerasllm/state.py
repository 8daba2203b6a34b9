"""What a model carries from token to token: the decode state.

A decode state is a flat dictionary of tensors, so that every backend's loop, jit and export machinery takes it as it
is. `model.initial_state(batch_size, length, padding)` makes one, `model.encode(tokens, state=state)` returns the next.

* `position`, `()` int32: tokens already read; the next one goes to this slot.
* `padding`, `(batch,)` int32, optional: empty slots on the left of each row's prompt.
* `kv_cache_k_<i>` and `kv_cache_v_<i>`, `(batch, num_key_value_heads, length, head_dim)`: keys (rotated, where
  positions are rotary) and values of Transformer block i.
* `lstm_h_<i>` and `lstm_c_<i>`, `(batch, hidden_dim)`: output and cell of LSTM layer i; other recurrent layers have no
  cell.

An encoder-decoder's state begins with what it has read of a source (`model.encode_source`), which never changes:

* `memory_k_<i>` and `memory_v_<i>`: keys and values that cross-attention of block i reads, `(batch,
  num_key_value_heads, source_length, head_dim)`; in an LSTM, which has one attention, `(batch, source_length, width)`.
* `source_padding_mask`, `(batch, source_length)` boolean, optional: where the source is real.

Caches are in the model's compute dtype. Their names are those of the inputs and outputs of an exported TFLite file, and
`kv_cache_k_<i>` / `kv_cache_v_<i>` are the names the LiteRT-LM engine looks for. Their layout needs no transpose in a
step: queries meet keys as `(batch, heads, 1, head_dim) x (batch, heads, length, head_dim)`.
"""

from typing import Any, TypeAlias

DecodeState: TypeAlias = dict[str, Any]

POSITION = "position"
PADDING = "padding"
SOURCE_PADDING_MASK = "source_padding_mask"


def key_cache(index: int) -> str:
    """Name of the key cache of Transformer block `index`."""
    return f"kv_cache_k_{index}"


def value_cache(index: int) -> str:
    """Name of the value cache of Transformer block `index`."""
    return f"kv_cache_v_{index}"


def lstm_output(index: int) -> str:
    """Name of the output of LSTM layer `index`."""
    return f"lstm_h_{index}"


def lstm_cell(index: int) -> str:
    """Name of the cell of LSTM layer `index`."""
    return f"lstm_c_{index}"


def memory_key(index: int) -> str:
    """Name of the keys that cross-attention of block `index` reads."""
    return f"memory_k_{index}"


def memory_value(index: int) -> str:
    """Name of the values that cross-attention of block `index` reads."""
    return f"memory_v_{index}"


def constant(name: str) -> bool:
    """Whether a part of a state stays as it was made: padding, and what was read of a source."""
    return name in (PADDING, SOURCE_PADDING_MASK) or name.startswith("memory_")


def carried(state: DecodeState) -> DecodeState:
    """The part of a state that a caller must hand on: all but `position` and `padding`."""
    return {name: value for name, value in state.items() if name not in (POSITION, PADDING)}
