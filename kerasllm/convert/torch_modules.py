"""The Transformers of PyTorch's tutorials, as `state_dict`s: of language modelling and of translation.

Both modules appear in many texts. The one of language modelling is an `nn.TransformerEncoder` between `encoder`, an
`nn.Embedding`, and `decoder`, an `nn.Linear`, with a causal mask; the one of translation an `nn.Transformer` between
`src_tok_emb`, `tgt_tok_emb` and `generator`. PyTorch itself is not needed here, and no pickle is ever read: give the
`state_dict` of a module in memory, or a safetensors file of it.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kerasllm.config import TransformerConfig, TransformerSeq2SeqConfig
from kerasllm.convert import tables
from kerasllm.convert.build import build_model
from kerasllm.convert.readers import TensorInfo, TensorSource, open_checkpoint
from kerasllm.convert.weights import written_weights
from kerasllm.errors import InputError
from kerasllm.models import TransformerLanguageModel, TransformerSeq2Seq

StateDict = Mapping[str, Any] | str | os.PathLike[str]
"""Name to tensor or array, or the path of a safetensors file."""

_LIKE_TORCH: dict[str, Any] = {
    "positions": "sine",
    "norm": "layer_norm",
    "activation": "relu",
    "use_bias": True,
    "tie_embeddings": False,
    "output_bias": True,
    "embedding_scale": True,
    "initializer": "uniform",
}


def from_torch_language_model(
    state_dict: StateDict,
    *,
    num_heads: int,
    norm_first: bool = False,
    max_sequence_length: int = 5000,
    dropout: float = 0.0,
    dtype: str | None = None,
) -> TransformerLanguageModel:
    """The language model of a tutorial's `TransformerModel(ntoken, ninp, nhead, nhid, nlayers, dropout)`.

    Args:
        state_dict: Its weights.
        num_heads: `nhead`, which weights do not tell.
        norm_first: As its layers were made.
        max_sequence_length: Longest context in tokens; positions are computed, for any length.
        dropout: Rate for training on.
        dtype: Dtype policy of the model.

    Returns:
        The built model.

    Raises:
        InputError: A tensor is missing, surplus or of another shape.
    """
    source = _opened(state_dict)
    vocabulary_size, hidden_dim = _shape(source, "encoder.weight")
    config = TransformerConfig(
        vocabulary_size=vocabulary_size,
        num_layers=_layers(source, "transformer_encoder.layers"),
        num_heads=num_heads,
        hidden_dim=hidden_dim,
        intermediate_dim=_shape(source, "transformer_encoder.layers.0.linear1.weight")[0],
        max_sequence_length=max_sequence_length,
        norm_first=norm_first,
        final_norm="transformer_encoder.norm.weight" in source.tensors,
        dropout=dropout,
        **_LIKE_TORCH,
    )
    return build_model(TransformerLanguageModel, config, source, tables.TORCH_LANGUAGE_MODEL, dtype=dtype)


def from_torch_seq2seq(
    state_dict: StateDict,
    *,
    num_heads: int,
    norm_first: bool = False,
    max_sequence_length: int = 5000,
    dropout: float = 0.0,
    dtype: str | None = None,
) -> TransformerSeq2Seq:
    """The encoder-decoder of a tutorial's `Seq2SeqTransformer`, which wraps `torch.nn.Transformer`.

    Args:
        state_dict: Its weights.
        num_heads: `nhead`, which weights do not tell.
        norm_first: As its layers were made.
        max_sequence_length: Longest context in tokens; positions are computed, for any length.
        dropout: Rate for training on.
        dtype: Dtype policy of the model.

    Returns:
        The built model, with one embedding for sources and one for targets.

    Raises:
        InputError: A tensor is missing, surplus or of another shape.
    """
    source = _opened(state_dict)
    vocabulary_size, hidden_dim = _shape(source, "tgt_tok_emb.embedding.weight")
    config = TransformerSeq2SeqConfig(
        vocabulary_size=vocabulary_size,
        source_vocabulary_size=_shape(source, "src_tok_emb.embedding.weight")[0],
        num_layers=_layers(source, "transformer.decoder.layers"),
        num_encoder_layers=_layers(source, "transformer.encoder.layers"),
        num_heads=num_heads,
        hidden_dim=hidden_dim,
        intermediate_dim=_shape(source, "transformer.decoder.layers.0.linear1.weight")[0],
        max_sequence_length=max_sequence_length,
        norm_first=norm_first,
        final_norm="transformer.decoder.norm.weight" in source.tensors,
        dropout=dropout,
        **_LIKE_TORCH,
    )
    return build_model(TransformerSeq2Seq, config, source, tables.TORCH_SEQ2SEQ, dtype=dtype)


def to_torch_state_dict(model: TransformerLanguageModel) -> dict[str, np.ndarray]:
    """The weights of a model under the names of the tutorial's module; positions, a buffer there, are not among them.

    Args:
        model: A language model or an encoder-decoder, as `from_torch_language_model` or `from_torch_seq2seq` makes it.

    Raises:
        InputError: The module computes something else.
    """
    for name, value in _LIKE_TORCH.items():
        if name != "initializer" and getattr(model.config, name) != value:
            raise InputError(f"PyTorch's module needs {name} {value!r}, the model has {getattr(model.config, name)!r}")
    seq2seq = isinstance(model, TransformerSeq2Seq)
    return dict(written_weights(model, tables.TORCH_SEQ2SEQ if seq2seq else tables.TORCH_LANGUAGE_MODEL))


class _Arrays:
    """A `state_dict` in memory, as a checkpoint is read."""

    def __init__(self, arrays: Mapping[str, Any]) -> None:
        self.path = Path("state_dict")
        self._arrays = {name: np.asarray(value) for name, value in arrays.items()}
        self.tensors = {name: TensorInfo(a.shape, str(a.dtype), a.nbytes) for name, a in self._arrays.items()}

    def read(self, name: str) -> np.ndarray:
        """See `TensorSource.read`."""
        return self._arrays[name]


def _opened(state_dict: StateDict) -> TensorSource:
    return _Arrays(state_dict) if isinstance(state_dict, Mapping) else open_checkpoint(state_dict)


def _shape(source: TensorSource, name: str) -> tuple[int, int]:
    info = source.tensors.get(name)
    if info is None or len(info.shape) != 2:
        raise InputError(f"{source.path}: lacks matrix {name}; give the state_dict of the tutorial's module")
    return info.shape[0], info.shape[1]


def _layers(source: TensorSource, prefix: str) -> int:
    found = [re.match(rf"{re.escape(prefix)}\.(\d+)\.", name) for name in source.tensors]
    return 1 + max((int(match[1]) for match in found if match), default=0)
