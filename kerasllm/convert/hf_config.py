"""`config.json` of Hugging Face folders, both ways. Every key is understood, known not to matter, or refused."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from kerasllm.config import RotaryScaling, TransformerConfig
from kerasllm.convert import tables
from kerasllm.convert.weights import Table
from kerasllm.errors import InputError

Values = dict[str, Any]

_HOUSEKEEPING = frozenset(
    {
        *("_attn_implementation", "_name_or_path", "_num_labels", "architectures", "attn_implementation", "auto_map"),
        *("bos_token_id", "chunk_size_feed_forward", "classifier_dropout", "directionality", "dtype", "eos_token_id"),
        *("finetuning_task", "gradient_checkpointing", "id2label", "initializer_range", "is_llama_config"),
        *("label2id", "model_type", "n_ctx", "output_attentions", "output_hidden_states", "output_past"),
        *("pad_token_id", "pooler_fc_size", "pooler_num_attention_heads", "pooler_num_fc_layers"),
        *("pooler_size_per_head", "predict_special_tokens", "pretraining_tp", "problem_type", "return_dict"),
        *("rope_interleaved", "sep_token_id", "summary_activation", "summary_first_dropout"),
        *("summary_proj_to_labels", "summary_type", "summary_use_proj", "task_specific_params", "tokenizer_class"),
        *("torch_dtype", "torchscript", "transformers.js_config", "transformers_version", "use_cache"),
    }
)
"""Keys that say nothing of what the model computes (in LLaMA `pretraining_tp` splits a matmul without changing it)."""

_ROPE_KEYS = {
    *("rope_type", "type", "rope_theta", "factor", "low_freq_factor", "high_freq_factor"),
    "original_max_position_embeddings",
}

_LEGACY: Mapping[str, tuple[Any, ...]] = {
    "n_special": (0,),
    "pooler_type": ("first_token_transform",),
    "pruned_heads": ({}, None),
}
"""Keys of older files that only one value leaves the model as it is; they are not written."""


@dataclasses.dataclass(frozen=True)
class Family:
    """A family of published models and how `config.json` describes them.

    Args:
        architecture: Class that `transformers` loads a written folder with.
        table: The weights.
        fields: Their key to our field, where both hold the same value.
        constants: Our fields that are the same in all of the family.
        fixed: Their keys to the only values that are supported, a missing key's first. They are written too.
        read: What neither of these can say, from theirs to our fields; it takes its keys out of the dictionary.
        write: The same from our config to theirs.
    """

    architecture: str
    table: Table
    fields: Mapping[str, str]
    constants: Values
    fixed: dict[str, tuple[Any, ...]]
    read: Callable[[Values], Values]
    write: Callable[[TransformerConfig], Values]


def _read_llama(values: Values) -> Values:
    given = [values.pop(key, None) for key in ("rope_parameters", "rope_scaling")]
    rope: Values = given[0] or given[1] or {}
    base: Any = values.pop("rope_theta", 10_000.0)
    fields: Values = {"rotary_base": float(rope.get("rope_theta", base))}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "llama3":
        names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
        factor, low, high, original = (rope[name] for name in names)
        fields["rotary_scaling"] = RotaryScaling(float(factor), float(low), float(high), int(original))
    elif kind != "default":
        raise InputError(f"rope_type {kind!r} is not supported; known are default and llama3")
    length = values.get("max_position_embeddings", _DEFAULTS["llama"]["max_sequence_length"])
    if (other := values.pop("max_sequence_length", length)) != length:
        raise InputError(f"max_sequence_length {other!r} is not max_position_embeddings {length!r}; set them alike")
    if unknown := sorted(set(rope) - _ROPE_KEYS):
        raise InputError(f"{unknown[0]!r} of its rotary positions is unknown; such models are not supported")
    attention, mlp = values.pop("attention_bias", False), values.pop("mlp_bias", False)
    fields.update(use_bias=mlp, attention_bias=None if attention == mlp else attention)
    head_dim = values.pop("head_dim", None)
    heads = values["num_attention_heads"]
    if heads == 0:
        raise InputError("num_attention_heads must be at least 1, received 0")
    derived = values["hidden_size"] // heads
    if head_dim is not None and head_dim != derived:
        raise InputError(f"head_dim {head_dim} is not hidden_size / num_attention_heads = {derived}; not supported")
    return fields


def _write_llama(config: TransformerConfig) -> Values:
    # Both forms: `rope_parameters` is what transformers 5 reads, `rope_theta` and `rope_scaling` what all others do.
    rope: Values = {"rope_type": "default"}
    if config.rotary_scaling is not None:
        scaling = config.rotary_scaling
        rope = {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_frequency_factor,
            "high_freq_factor": scaling.high_frequency_factor,
            "original_max_position_embeddings": scaling.original_length,
        }
    attention = config.use_bias if config.attention_bias is None else config.attention_bias
    return {
        "rope_parameters": {**rope, "rope_theta": config.rotary_base},
        "rope_theta": config.rotary_base,
        "rope_scaling": rope if config.rotary_scaling is not None else None,
        "attention_bias": attention,
        "mlp_bias": config.use_bias,
        "head_dim": config.head_dim,
        "num_key_value_heads": config.num_key_value_heads or config.num_heads,
    }


def _read_gpt2(values: Values) -> Values:
    inner = values.pop("n_inner", None)
    return {"intermediate_dim": 4 * values["n_embd"] if inner is None else inner, **_dropout(values, _GPT2_DROPOUTS)}


def _write_gpt2(config: TransformerConfig) -> Values:
    return {"n_inner": config.intermediate_dim, **dict.fromkeys(_GPT2_DROPOUTS, config.dropout)}


def _read_bert(values: Values) -> Values:
    fields = _dropout(values, _BERT_DROPOUTS)
    activation = values.pop("hidden_act", "gelu")
    if activation not in _ACTIVATIONS:
        raise InputError(f"hidden_act {activation!r} is not supported; known are {', '.join(_ACTIVATIONS)}")
    return {"activation": _ACTIVATIONS[activation], **fields}


def _write_bert(config: TransformerConfig) -> Values:
    names = {ours: theirs for theirs, ours in reversed(_ACTIVATIONS.items())}
    return {"hidden_act": names[config.activation], **dict.fromkeys(_BERT_DROPOUTS, config.dropout)}


def _dropout(values: Values, names: tuple[str, ...]) -> Values:
    """Our one dropout rate of their several, which published models set alike."""
    rates = {name: values.pop(name, 0.1) for name in names}
    if len(set(rates.values())) > 1:
        raise InputError(f"{', '.join(rates)} differ: {', '.join(map(repr, rates.values()))}; set them alike")
    return {"dropout": float(rates[names[0]])}


_GPT2_DROPOUTS = ("resid_pdrop", "embd_pdrop", "attn_pdrop")
_BERT_DROPOUTS = ("hidden_dropout_prob", "attention_probs_dropout_prob")
_ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_approximate", "gelu_pytorch_tanh": "gelu_approximate", "relu": "relu"}

FAMILIES = {
    "llama": Family(
        architecture="LlamaForCausalLM",
        table=tables.HF_LLAMA,
        fields={
            "vocab_size": "vocabulary_size",
            "hidden_size": "hidden_dim",
            "intermediate_size": "intermediate_dim",
            "num_hidden_layers": "num_layers",
            "num_attention_heads": "num_heads",
            "num_key_value_heads": "num_key_value_heads",
            "max_position_embeddings": "max_sequence_length",
            "rms_norm_eps": "norm_epsilon",
            "tie_word_embeddings": "tie_embeddings",
        },
        constants={"positions": "rotary", "norm": "rms_norm", "activation": "swiglu"},
        fixed={"hidden_act": ("silu", "swish"), "attention_dropout": (0.0, 0), "is_decoder": (False, True)},
        read=_read_llama,
        write=_write_llama,
    ),
    "gpt2": Family(
        architecture="GPT2LMHeadModel",
        table=tables.HF_GPT2,
        fields={
            "vocab_size": "vocabulary_size",
            "n_embd": "hidden_dim",
            "n_layer": "num_layers",
            "n_head": "num_heads",
            "n_positions": "max_sequence_length",
            "layer_norm_epsilon": "norm_epsilon",
            "tie_word_embeddings": "tie_embeddings",
        },
        constants={
            "positions": "learned",
            "norm": "layer_norm",
            "activation": "gelu_approximate",
            "use_bias": True,
        },
        fixed={
            "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
            "scale_attn_weights": (True,),
            "scale_attn_by_inverse_layer_idx": (False,),
            "reorder_and_upcast_attn": (False,),
            "add_cross_attention": (False,),
            "is_encoder_decoder": (False,),
        },
        read=_read_gpt2,
        write=_write_gpt2,
    ),
    "bert": Family(
        architecture="BertModel",
        table=tables.HF_BERT,
        fields={
            "vocab_size": "vocabulary_size",
            "hidden_size": "hidden_dim",
            "intermediate_size": "intermediate_dim",
            "num_hidden_layers": "num_layers",
            "num_attention_heads": "num_heads",
            "max_position_embeddings": "max_sequence_length",
            "type_vocab_size": "num_segments",
            "layer_norm_eps": "norm_epsilon",
            "tie_word_embeddings": "tie_embeddings",
        },
        constants={
            "positions": "learned",
            "norm": "layer_norm",
            "norm_first": False,
            "causal": False,
            "use_bias": True,
            "embedding_norm": True,
        },
        fixed={
            "position_embedding_type": ("absolute",),
            "is_decoder": (False,),
            "add_cross_attention": (False,),
            "is_encoder_decoder": (False,),
        },
        read=_read_bert,
        write=_write_bert,
    ),
}

_DEFAULTS: dict[str, Values] = {
    "llama": {"num_key_value_heads": None, "max_sequence_length": 2048, "norm_epsilon": 1e-6, "tie_embeddings": False},
    "gpt2": {"max_sequence_length": 1024, "norm_epsilon": 1e-5, "tie_embeddings": True},
    "bert": {"max_sequence_length": 512, "norm_epsilon": 1e-12, "num_segments": 2, "tie_embeddings": True},
}
"""What `transformers` takes for a key that a file leaves out; sizes have no default."""


def read_config(content: Any) -> tuple[str, TransformerConfig]:
    """Family and config of a `config.json`.

    Args:
        content: The parsed file.

    Returns:
        Key of `FAMILIES` and the config; a BERT's has no pooler, which only its weights tell.

    Raises:
        InputError: The architecture is unknown, or a key is unknown, missing or has a value that is not supported.
    """
    values = dict(content) if isinstance(content, dict) else {}
    name = values.get("model_type")
    family = FAMILIES.get(name) if isinstance(name, str) else None
    if family is None:
        raise InputError(f"model_type {name!r} is not supported; known are {', '.join(FAMILIES)}")
    try:
        special = family.read(values)
        fields = {ours: values.pop(theirs) for theirs, ours in family.fields.items() if theirs in values}
    except KeyError as error:
        raise InputError(f"lacks {error.args[0]}; copy the file again from where the model came from") from None
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"holds a value of the wrong kind ({error}); copy the file again") from None
    legacy = {key: allowed for key, allowed in _LEGACY.items() if key in values}
    for key, allowed in (family.fixed | legacy).items():
        value = values.pop(key, allowed[0])
        if value not in allowed:
            raise InputError(f"{key} {value!r} is not supported, only {' or '.join(map(repr, allowed))}")
    if unknown := sorted(set(values) - _HOUSEKEEPING):
        raise InputError(f"key {unknown[0]!r} is unknown; remove it if the model computes the same without it")
    return str(name), TransformerConfig.from_dict({**_DEFAULTS[str(name)], **family.constants, **special, **fields})


def write_config(config: TransformerConfig) -> tuple[str, Values]:
    """Family and `config.json` of a config.

    Args:
        config: A config.

    Returns:
        Key of `FAMILIES` and the content of the file.

    Raises:
        InputError: No family of `transformers` computes what the config says.
    """
    reasons = []
    for name, family in FAMILIES.items():
        differing = [
            f"{field} {getattr(config, field)!r}"
            for field, value in family.constants.items()
            if getattr(config, field) != value
        ]
        if not differing:
            break
        reasons.append(f"{name} for {differing[0]}")
    else:
        raise InputError(f"no known family computes this: it is not {', not '.join(reasons)}")
    content: Values = {"model_type": name, "architectures": [family.architecture]}
    content |= {theirs: getattr(config, ours) for theirs, ours in family.fields.items()}
    content |= {key: allowed[0] for key, allowed in family.fixed.items()} | family.write(config)
    again = read_config({**content})[1]
    if different := [f.name for f in dataclasses.fields(config) if getattr(again, f.name) != _known(config, f.name)]:
        raise InputError(f"{name} models cannot express {different[0]} {getattr(config, different[0])!r}")
    return name, content


def _known(config: TransformerConfig, field: str) -> Any:
    """A field as `read_config` gives it back where it is written in another way."""
    value = getattr(config, field)
    if field == "num_key_value_heads" and value is None and config.positions == "rotary":
        return config.num_heads
    if field == "attention_bias" and value == config.use_bias:
        return None
    if field == "dropout" and config.positions == "rotary":
        return 0.0  # LLaMA was trained without; a written folder says nothing of how ours was
    return False if field == "pooler" else value
