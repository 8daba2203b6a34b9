"""KerasHub backbones taken over and handed back: equal logits both ways, and refusals."""

import dataclasses

import keras
import numpy as np
import pytest
from artefacts import one_line

from kerasllm.config import LSTMConfig, RotaryScaling, TransformerConfig
from kerasllm.convert.keras_hub import from_keras_hub, to_keras_hub
from kerasllm.errors import InputError
from kerasllm.models import LSTMLanguageModel, TransformerLanguageModel

VOCABULARY = 29
_SIZES = {"vocabulary_size": VOCABULARY, "num_layers": 2, "hidden_dim": 16, "intermediate_dim": 24}
_LLAMA = {**_SIZES, "num_query_heads": 4, "num_key_value_heads": 2}
_STRETCHED = {
    "rope_frequency_adjustment_factor": 8.0,
    "rope_low_freq_factor": 1.0,
    "rope_high_freq_factor": 4.0,
    "rope_pretraining_sequence_length": 16,
}
BACKBONES = {
    "llama": ("LlamaBackbone", _LLAMA),
    "llama-multi-head": ("LlamaBackbone", {**_LLAMA, "num_key_value_heads": 4, "layer_norm_epsilon": 1e-3}),
    "llama3": ("Llama3Backbone", {**_LLAMA, **_STRETCHED, "rope_max_wavelength": 500.0}),
    "llama3-tied": ("Llama3Backbone", {**_LLAMA, "tie_word_embeddings": True}),
    "gpt2": ("GPT2Backbone", {**_SIZES, "num_heads": 4, "max_sequence_length": 20}),
    "bert": ("BertBackbone", {**_SIZES, "num_heads": 4, "max_sequence_length": 20, "num_segments": 3}),
}


def backbone(name):
    """A backbone with weights so large that every one matters."""
    import keras_hub

    kind, arguments = BACKBONES[name]
    made = getattr(keras_hub.models, kind)(**arguments)
    rng = np.random.default_rng(len(name))
    for weight in made.weights:
        centre = 1.0 if weight.path.endswith(("scale", "gamma")) else 0.0
        weight.assign(centre + rng.normal(size=weight.shape) * 0.3)
    return made


def batch():
    """Tokens and a mask: the second row has three tokens of padding on the right."""
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, (2, 11)).astype("int32")
    mask = np.arange(11)[None, :] < np.array([[11], [8]])
    return tokens, mask


def their_outputs(model, segments=None):
    tokens, mask = batch()
    inputs = {"token_ids": tokens, "padding_mask": mask.astype("int32")}
    if type(model).__name__ == "BertBackbone":
        outputs = model({**inputs, "segment_ids": tokens % 3 if segments is None else segments})
        return [np.array(outputs["sequence_output"])[mask], np.array(outputs["pooled_output"])]
    hidden = model(inputs)
    return [np.array(model.token_embedding(hidden, reverse=True))[mask]]


def our_outputs(model):
    tokens, mask = batch()
    if model.config.causal:
        return [np.array(model(tokens, padding_mask=mask))[mask]]
    hidden = model.encode(tokens, padding_mask=mask, segment_ids=tokens % 3)
    return [np.array(hidden)[mask], np.array(model.pool(hidden))]


@pytest.mark.parametrize("name", BACKBONES)
def test_a_backbone_taken_over_and_handed_back_computes_the_same(name):
    theirs = backbone(name)
    expected = their_outputs(theirs)
    ours = from_keras_hub(theirs)
    for mine, wanted in zip(our_outputs(ours), expected, strict=True):
        np.testing.assert_allclose(mine, wanted, atol=1e-4)
    again = to_keras_hub(ours)
    assert type(again) is type(theirs)
    for mine, wanted in zip(their_outputs(again), expected, strict=True):
        np.testing.assert_allclose(mine, wanted, atol=1e-5)
    again.compile("adam", "mse")  # handed back as a model that trains
    assert all(weight.value is not None for weight in again.variables)


def test_a_task_gives_its_backbone_and_dtypes_are_kept():
    import keras_hub

    made = keras_hub.models.LlamaBackbone(**_LLAMA, dtype="bfloat16")
    task = keras_hub.models.LlamaCausalLM(made, preprocessor=None)
    model = from_keras_hub(task, max_sequence_length=99)
    assert model.config.max_sequence_length == 99
    assert {weight.dtype for weight in model.weights} == {"bfloat16"}
    assert to_keras_hub(model).dtype_policy.name == "bfloat16"
    assert from_keras_hub(made, dtype="float32").dtype_policy.name == "float32"


def test_a_copy_is_a_copy():
    theirs = backbone("gpt2")
    expected = their_outputs(theirs)
    for weight in from_keras_hub(theirs).weights:
        weight.assign(keras.ops.zeros_like(weight))
    np.testing.assert_array_equal(their_outputs(theirs)[0], expected[0])


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"activation": "gelu"}, "gelu"),
        ({"use_bias": True}, "use_bias"),
        ({"attention_bias": True}, "attention_bias"),
        ({"causal": False}, "causal"),
        ({"positions": "sine"}, "sine"),
    ],
)
def test_what_no_backbone_computes_is_refused(change, word):
    config = TransformerConfig(VOCABULARY, num_layers=1, num_heads=2, hidden_dim=8, intermediate_dim=8)
    model = TransformerLanguageModel(dataclasses.replace(config, **change))
    model.build()
    with pytest.raises(InputError) as error:
        to_keras_hub(model)
    assert word in one_line(error)


def test_other_models_are_refused():
    with pytest.raises(InputError, match="LSTMLanguageModel has no counterpart"):
        to_keras_hub(LSTMLanguageModel(LSTMConfig(5, 4, 4)))
    with pytest.raises(InputError, match="a Sequential cannot be taken over; known are"):
        from_keras_hub(keras.Sequential())
    import keras_hub

    stretched = keras_hub.models.LlamaBackbone(**_LLAMA, rope_position_scaling_factor=2.0)
    with pytest.raises(InputError, match=r"rope_position_scaling_factor 2\.0"):
        from_keras_hub(stretched)


def test_exact_gelu_is_handed_over_though_kerashub_approximates_it():
    theirs = backbone("bert")
    config = dataclasses.replace(from_keras_hub(theirs).config, activation="gelu")
    exact = TransformerLanguageModel(config)
    exact.build()
    exact.set_weights(from_keras_hub(theirs).get_weights())
    difference = np.abs(their_outputs(to_keras_hub(exact))[0] - our_outputs(exact)[0]).max()
    assert 1e-6 < difference < 1e-2


def test_scaling_is_that_of_the_formula():
    model = from_keras_hub(backbone("llama3"))
    assert model.config.rotary_scaling == RotaryScaling(8.0, 1.0, 4.0, 16)
