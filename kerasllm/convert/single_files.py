"""Models in one file: GGUF (llama.cpp) and llama2.c."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from kerasllm.config import RotaryScaling, TransformerConfig
from kerasllm.convert.build import build_model
from kerasllm.convert.gguf_file import GGUFFile
from kerasllm.convert.llama2c import Llama2cConfig, Llama2cFile
from kerasllm.convert.readers import about
from kerasllm.convert.tables import GGUF_LLAMA
from kerasllm.errors import InputError
from kerasllm.models import LanguageModel, TransformerLanguageModel

if TYPE_CHECKING:
    from kerasllm.text import Tokenizer

_ROTARY_FACTORS = "rope_freqs.weight"
_LLAMA_3: dict[str, Any] = {"low_frequency_factor": 1.0, "high_frequency_factor": 4.0, "original_length": 8192}
"""What all Llama 3.1 and 3.2 models have in common."""


def from_gguf(source: GGUFFile, *, dtype: str | None = None) -> tuple[LanguageModel, "Tokenizer"]:
    """Load a model of llama.cpp's `llama` architecture; quantized tensors are made real numbers again.

    Args:
        source: The file, with tensors in F32, F16, BF16, Q8_0, Q4_0 or Q4_1.
        dtype: Dtype policy of the model; Keras' default where `None`.

    Returns:
        The model and the tokenizer that is in the file.

    Raises:
        InputError: The file is damaged, of another architecture, or holds tensors of another kind.
    """
    from kerasllm.text.pretrained import tokenizer_from_gguf

    try:
        config = _gguf_config(source)
        tokenizer = tokenizer_from_gguf(source.metadata, vocabulary_size=config.vocabulary_size)
    except InputError as error:
        raise about(source.path, error) from None
    unused = (_ROTARY_FACTORS.replace(".", r"\."),)
    model = build_model(TransformerLanguageModel, config, source, GGUF_LLAMA, dtype=dtype, also_unused=unused)
    return model, tokenizer


def _gguf_config(source: GGUFFile) -> TransformerConfig:
    values = source.metadata
    architecture = values.get("general.architecture")
    if architecture != "llama":
        raise InputError(f"architecture {architecture!r} is not supported; only llama is")
    name = {
        "num_layers": "llama.block_count",
        "num_heads": "llama.attention.head_count",
        "hidden_dim": "llama.embedding_length",
        "intermediate_dim": "llama.feed_forward_length",
        "max_sequence_length": "llama.context_length",
        "norm_epsilon": "llama.attention.layer_norm_rms_epsilon",
    }
    embeddings = source.tensors.get("token_embd.weight")
    if embeddings is None or len(embeddings.shape) != 2:
        raise InputError("lacks tensor token_embd.weight of two axes; copy or download it again")
    if missing := sorted(key for key in name.values() if key not in values):
        raise InputError(f"its metadata lack {missing[0]}; convert the model anew")
    biased = {part: f"blk.0.{part}.bias" in source.tensors for part in ("attn_q", "ffn_up")}
    config = TransformerConfig.from_dict(
        {
            **{ours: values[theirs] for ours, theirs in name.items()},
            "vocabulary_size": embeddings.shape[0],
            "num_key_value_heads": values.get("llama.attention.head_count_kv"),
            "rotary_base": values.get("llama.rope.freq_base", 10_000.0),
            "use_bias": biased["ffn_up"],
            "attention_bias": None if biased["attn_q"] == biased["ffn_up"] else biased["attn_q"],
            "tie_embeddings": "output.weight" not in source.tensors,
        }
    )
    _check_rotary(values, config)
    scaling = _rotary_scaling(source, config)
    return TransformerConfig.from_dict({**config.to_dict(), "rotary_scaling": scaling})


def _check_rotary(values: Mapping[str, Any], config: TransformerConfig) -> None:
    for key in ("llama.rope.dimension_count", "llama.attention.key_length", "llama.attention.value_length"):
        if values.get(key, config.head_dim) != config.head_dim:
            raise InputError(
                f"{key} {values[key]!r} is not the head size {config.head_dim}; such models are not supported"
            )
    kind = values.get("llama.rope.scaling.type", "none")
    if kind != "none" or values.get("llama.rope.scale_linear", 1.0) != 1.0:
        raise InputError(f"rotary scaling {kind!r} is not supported; only that of Llama 3 is")
    if values.get("llama.expert_count", 0):
        raise InputError("mixtures of experts are not supported")


def _rotary_scaling(source: GGUFFile, config: TransformerConfig) -> RotaryScaling | None:
    """llama.cpp stores no parameters but what each wavelength is multiplied by: find what makes the same."""
    if _ROTARY_FACTORS not in source.tensors:
        return None
    factors = source.read(_ROTARY_FACTORS).astype("float64")
    scaling = RotaryScaling(factor=round(float(factors.max()), 6), **_LLAMA_3)
    half = config.head_dim // 2
    turns = config.rotary_base ** (-np.arange(half) / half) * scaling.original_length / (2 * np.pi)
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    kept = np.clip((turns - low) / (high - low), 0, 1)
    if factors.shape != (half,) or not np.allclose(factors, 1 / (kept + (1 - kept) / scaling.factor), rtol=1e-3):
        raise InputError(f"tensor {_ROTARY_FACTORS} scales rotary positions in another way than Llama 3; not supported")
    return scaling


def from_llama2c(source: Llama2cFile, *, dtype: str | None = None) -> tuple[LanguageModel, "Tokenizer"]:
    """Load a model of llama2.c.

    Args:
        source: The `.bin` file (version 0 or 1). Its tokenizer lies beside it: `tok<vocabulary size>.bin`, as the
            training of llama2.c writes it, or `tokenizer.bin`.
        dtype: Dtype policy of the model; Keras' default where `None`.

    Returns:
        The model and its tokenizer.

    Raises:
        InputError: A file is missing or damaged, or the tokenizer is another model's.
    """
    from kerasllm.text.pretrained import tokenizer_from_llama2c

    config = _llama2c_config(source.config)
    names = (f"tok{config.vocabulary_size}.bin", "tokenizer.bin")
    found = [file for name in names if (file := source.path.parent / name).is_file()]
    if not found:
        raise InputError(f"{source.path}: no tokenizer beside it; copy {' or '.join(names)} there")
    tokenizer = tokenizer_from_llama2c(found[0], vocabulary_size=config.vocabulary_size)
    return build_model(TransformerLanguageModel, config, source, GGUF_LLAMA, dtype=dtype), tokenizer


def _llama2c_config(header: Llama2cConfig) -> TransformerConfig:
    return TransformerConfig(
        vocabulary_size=header.vocab_size,
        num_layers=header.n_layers,
        num_heads=header.n_heads,
        hidden_dim=header.dim,
        intermediate_dim=header.hidden_dim,
        num_key_value_heads=header.n_kv_heads,
        max_sequence_length=header.seq_len,
        norm_epsilon=1e-5,
        tie_embeddings=header.shared_classifier,
    )
