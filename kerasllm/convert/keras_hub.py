"""KerasHub (formerly KerasNLP) backbones taken over and handed back: LLaMA, GPT-2 and BERT."""

import dataclasses
from typing import Any

import keras
import numpy as np

from kerasllm import backend
from kerasllm.config import RotaryScaling, TransformerConfig
from kerasllm.convert.build import build_model
from kerasllm.convert.readers import TensorInfo
from kerasllm.convert.tables import KERAS_HUB_BERT, KERAS_HUB_GPT2, KERAS_HUB_LLAMA
from kerasllm.convert.weights import written_weights
from kerasllm.errors import InputError
from kerasllm.models import LanguageModel, TransformerLanguageModel, merged

_GPT2 = {"positions": "learned", "norm": "layer_norm", "activation": "gelu_approximate", "use_bias": True}
_BERT = {
    **{"positions": "learned", "norm": "layer_norm", "norm_first": False, "norm_epsilon": 1e-12},
    # KerasHub approximates GELU by tanh, which BERT itself does not.
    **{"activation": "gelu_approximate", "causal": False, "use_bias": True, "embedding_norm": True, "pooler": True},
}
_LLAMA = {"positions": "rotary", "norm": "rms_norm", "activation": "swiglu"}
_CONSTANTS: dict[str, dict[str, Any]] = {"GPT2Backbone": _GPT2, "BertBackbone": _BERT, "LlamaBackbone": _LLAMA}
_FREE = {
    "GPT2Backbone": (),
    "BertBackbone": (),
    "LlamaBackbone": ("rotary_scaling", "tie_embeddings", "max_sequence_length"),
}
"""Fields that the backbone can vary, beside `_FIELDS`, or has no need of."""
_ALIKE = {"BertBackbone": {"activation": ("gelu",)}}
"""Values of constants that are handed over although the backbone computes something slightly different."""
_SHARED = {name: name for name in ("vocabulary_size", "num_layers", "hidden_dim", "intermediate_dim", "dropout")}
_LEARNED = {**_SHARED, "num_heads": "num_heads", "max_sequence_length": "max_sequence_length"}
_FIELDS = {
    "GPT2Backbone": _LEARNED,
    "BertBackbone": {**_LEARNED, "num_segments": "num_segments"},
    "LlamaBackbone": {
        **_SHARED,
        "num_heads": "num_query_heads",
        "num_key_value_heads": "num_key_value_heads",
        "norm_epsilon": "layer_norm_epsilon",
        "rotary_base": "rope_max_wavelength",
    },
}
"""Our config field to KerasHub's, by the name of the backbone's class."""
_FIELDS["Llama3Backbone"] = _FIELDS["LlamaBackbone"]
_TABLES = {
    "GPT2Backbone": KERAS_HUB_GPT2,
    "BertBackbone": KERAS_HUB_BERT,
    "LlamaBackbone": KERAS_HUB_LLAMA,
    "Llama3Backbone": KERAS_HUB_LLAMA,
}
_SCALING = {
    "factor": "rope_frequency_adjustment_factor",
    "low_frequency_factor": "rope_low_freq_factor",
    "high_frequency_factor": "rope_high_freq_factor",
    "original_length": "rope_pretraining_sequence_length",
}


class _Backbone:
    """A KerasHub backbone as a source of tensors. Kernels of attention lose their axis of heads."""

    path = "the KerasHub backbone"

    def __init__(self, backbone: keras.Model) -> None:
        self._weights = {weight.path: weight for weight in backbone.weights}
        self.tensors = {name: TensorInfo(_flat(name, w.shape), str(w.dtype), 0) for name, w in self._weights.items()}

    def read(self, name: str) -> np.ndarray:
        """Values of one weight."""
        return keras.ops.convert_to_numpy(self._weights[name].value).reshape(self.tensors[name].shape)


def from_keras_hub(
    backbone: Any, *, max_sequence_length: int | None = None, dtype: str | None = None
) -> TransformerLanguageModel:
    """Take over a `LlamaBackbone`, `Llama3Backbone`, `GPT2Backbone` or `BertBackbone`, or a task that has one.

    Args:
        backbone: The KerasHub (or keras-nlp) model.
        max_sequence_length: Longest context in tokens of a LLaMA, of which KerasHub keeps no record; 2048 by default.
        dtype: Dtype policy of the model; that of the backbone where `None`.

    Returns:
        A model of ours with a copy of its weights. Its tokenizer stays yours: `kerasllm.text.pretrained` reads the same
        files.

    Raises:
        InputError: The backbone is of another class, or computes something that no config of ours expresses.
    """
    backbone = getattr(backbone, "backbone", backbone)
    kind = type(backbone).__name__
    if kind not in _TABLES:
        raise InputError(f"a {kind} cannot be taken over; known are {', '.join(_TABLES)}")
    theirs = backbone.get_config()
    values = {ours: theirs[name] for ours, name in _FIELDS[kind].items()}
    if kind == "GPT2Backbone":
        values |= _GPT2
    elif kind == "BertBackbone":
        values |= _BERT
    else:
        values |= _rotary(theirs, backbone)
        values["max_sequence_length"] = max_sequence_length or 2048
    policy = backbone.dtype_policy.name if dtype is None else dtype
    config = TransformerConfig.from_dict(values)
    source: Any = _Backbone(backbone)
    model = build_model(TransformerLanguageModel, config, source, _TABLES[kind], dtype=policy)
    assert isinstance(model, TransformerLanguageModel)
    return model


def _rotary(theirs: dict[str, Any], backbone: Any) -> dict[str, Any]:
    if theirs["rope_position_scaling_factor"] != 1:
        raise InputError(f"rope_position_scaling_factor {theirs['rope_position_scaling_factor']} is not supported")
    scaling = None
    if theirs[_SCALING["factor"]] is not None:
        scaling = RotaryScaling(**{ours: theirs[name] for ours, name in _SCALING.items()})
    return {
        "rotary_base": float(theirs["rope_max_wavelength"]),
        "rotary_scaling": scaling,
        "tie_embeddings": backbone.token_embedding.tie_weights,
    }


def to_keras_hub(model: LanguageModel) -> Any:
    """Hand a model back as a KerasHub backbone, for KerasHub's tasks, trainers and exporters.

    Args:
        model: A built Transformer that one of the backbones above can express; adapters are merged.

    Returns:
        The backbone, with a copy of the weights. A BERT with exact GELU differs there by about 1e-3: KerasHub computes
        the approximation by tanh whatever a model was trained with.

    Raises:
        InputError: None of the backbones computes what the model's config says.
    """
    import keras_hub

    if not isinstance(model, TransformerLanguageModel):
        raise InputError(f"{type(model).__name__} has no counterpart in KerasHub; only Transformers can be handed back")
    model = merged(model)
    kind = _kind(model.config)
    arguments = {theirs: getattr(model.config, ours) for ours, theirs in _FIELDS[kind].items()}
    if kind.startswith("Llama"):
        arguments["num_key_value_heads"] = model.config.num_key_value_heads or model.config.num_heads
        arguments["tie_word_embeddings"] = model.config.tie_embeddings
        if model.config.rotary_scaling is not None:
            arguments |= {theirs: getattr(model.config.rotary_scaling, ours) for ours, theirs in _SCALING.items()}
    cls = getattr(keras_hub.models, kind)
    with backend.deferred():
        backbone = cls(**arguments, dtype=model.dtype_policy)
    weights = {weight.path: weight for weight in backbone.weights}
    for name, array in written_weights(model, _TABLES[kind]):
        weight = weights.pop(name)
        backend.set_value(weight, array.reshape(weight.shape))
    if weights:
        raise InputError(f"the model has no {next(iter(weights))}, which a {kind} needs")
    backend.initialize_rest(backbone)
    return backbone


def _kind(config: TransformerConfig) -> str:
    """The backbone that computes what a config says."""
    reasons = []
    for kind, constants in _CONSTANTS.items():
        free = {*_FIELDS[kind], *_FREE[kind]}
        differing = [
            f"{field.name} {getattr(config, field.name)!r}"
            for field in dataclasses.fields(config)
            if field.name not in free
            and getattr(config, field.name) not in _ALIKE.get(kind, {}).get(field.name, ())
            and getattr(config, field.name) != constants.get(field.name, field.default)
        ]
        if not differing:
            # Of the LLaMAs only the third generation ties its embeddings or stretches its rotary positions.
            third = kind == "LlamaBackbone" and (config.tie_embeddings or config.rotary_scaling is not None)
            return "Llama3Backbone" if third else kind
        reasons.append(f"{kind} for {differing[0]}")
    raise InputError(f"KerasHub has no backbone for this model: it is not {', not '.join(reasons)}")


def _flat(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of a weight without an axis of heads: `(in, out)`, or `(out,)` for a bias."""
    if len(shape) == 3:
        first, second, third = shape
        return (first * second, third) if "attention_output" in name else (first, second * third)
    return (shape[0] * shape[1],) if len(shape) == 2 and name.endswith("bias") else tuple(shape)
