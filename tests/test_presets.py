"""Presets have the published sizes, counted on models that are built without memory."""

import re
import resource
from pathlib import Path

import pytest

from kerasllm import backend, presets
from kerasllm.config import TransformerConfig
from kerasllm.models import HEADS, REGISTRY, SEQ2SEQ
from kerasllm.plan import parameter_count
from kerasllm.presets import PRESETS

# Published, or counted from the published tensors: GPT-2 without its masks, BERT with the pooler and without heads.
CLASSES = {**REGISTRY, **SEQ2SEQ, **HEADS}
PUBLISHED = {
    "gpt2_base": 124_439_808,
    "gpt2_medium": 354_823_168,
    "gpt2_large": 774_030_080,
    "gpt2_xl": 1_557_611_200,
    "bert_base": 109_482_240,
    "bert_large": 335_141_888,
    "bert_base_chinese": 102_267_648,
    "minilm_l6": 22_713_216,
    "llama_7b": 6_738_415_616,
    "llama_13b": 13_015_864_320,
    "llama3_2_1b": 1_235_814_400,
    "smollm2_135m": 134_515_008,
    "smollm2_360m": 361_821_120,
    "stories260k": 260_032,
}


def lstm(inputs, units):
    return 4 * units * (inputs + units + 1)


# What tutorials make of Keras' and PyTorch's own layers, by arithmetic.
BY_HAND = {
    "lstm_small": 10_000 * 64 + lstm(64, 128) + 129 * 10_000,
    "rnn_small": 10_000 * 64 + 128 * (64 + 128 + 1) + 129 * 10_000,
    "lstm_token_classifier": 10_000 * 128 + lstm(128, 1024) + 1025 * 1024 + 1025 * 2,
    "lstm_classifier": 10_000 * 128 + 2 * lstm(128, 1024) + 2049 * 1024 + 1025 * 2,
    "lstm_encoder_decoder": 2 * (10_000 * 64 + lstm(64, 128)) + 129 * 10_000,
    "lstm_attention": 2 * 10_000 * 64 + lstm(64, 128) + 2 * lstm(64, 64) + 3 * 128 * 128 + 129 * 10_000,
    "transformer_pytorch": 33_278 * 401 + 2 * (4 * 200 * 201 + 2 * 200 * 201 + 4 * 200),
    "decoder_demo": 10 * 64 + 4 * 64 * 65 + 2 * 64 * 128 + 128 + 64 + 4 * 64 + 65 * 10,
    "transformer_base": 37_000 * 512 + 18 * (4 * 512 * 513 + 2 * 512) + 12 * (2 * 512 * 2048 + 2048 + 512 + 2 * 512),
}


def entry(name):
    cls = CLASSES[PRESETS[name]["class"]]
    return cls, cls.config_class.from_dict(PRESETS[name]["config"])


@pytest.mark.parametrize("name", PRESETS)
def test_the_count_is_that_of_the_model_and_takes_no_memory(name):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    cls, config = entry(name)
    with backend.deferred():
        model = cls(config)
        model.build()
    if name in BY_HAND:
        assert model.count_params() == BY_HAND[name]
    if cls.__name__ in REGISTRY:
        assert model.count_params() == parameter_count(config)
    assert model.count_params() == PUBLISHED.get(name, model.count_params())
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kilobytes; most presets need more


def test_every_published_size_is_of_a_preset_and_in_its_comment():
    assert set(PUBLISHED) | set(BY_HAND) < set(PRESETS)
    assert all(preset["class"] in REGISTRY or name in BY_HAND for name, preset in PRESETS.items())
    source = Path(presets.__file__).read_text(encoding="utf-8")
    for name, count in {**PUBLISHED, **BY_HAND, "llama_tiny": parameter_count(entry("llama_tiny")[1])}.items():
        comment = re.search(rf'((?: +#.*\n)+) +"{name}"', source)[1]
        assert f"{count:,}" in comment.replace("\n    #", ""), name


def test_bert_is_bidirectional_and_llama_3_stretches_its_waves():
    for name in ("bert_base", "bert_large", "bert_base_chinese", "minilm_l6"):
        config = entry(name)[1]
        assert (config.causal, config.num_segments, config.pooler, config.norm_first) == (False, 2, True, False)
    config = entry("llama3_2_1b")[1]
    assert (config.rotary_scaling.factor, config.rotary_scaling.original_length) == (32.0, 8192)
    assert config.tie_embeddings and config.head_dim == 64
    assert entry("smollm2_135m")[1].rotary_base == 100_000


def test_presets_are_independent_of_each_other():
    values = [entry["config"] for entry in PRESETS.values()]
    assert len({id(value) for value in values}) == len(values)
    for value in values:
        assert all(isinstance(item, int | float | str | bool | dict | None) for item in value.values())
    names = [name for name, entry in PRESETS.items() if entry["class"] == "TransformerLanguageModel"]
    assert len({TransformerConfig.from_dict(PRESETS[name]["config"]) for name in names}) == len(names)
