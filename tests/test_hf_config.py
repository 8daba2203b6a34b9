"""`config.json` of published models as it is: understood, and of the right size; what changes the model is refused."""

import dataclasses
import json
from pathlib import Path

import pytest
from artefacts import one_line

from kerasllm.convert.hf_config import read_config
from kerasllm.errors import InputError
from kerasllm.plan import parameter_count

PUBLISHED = json.loads((Path(__file__).parent / "references" / "published-configs.json").read_text())
"""The literal files of the models' repositories, and how many parameters each has (a BERT with its pooler)."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs_are_read_and_have_their_parameters(name):
    family, config = read_config(PUBLISHED[name]["config.json"])
    config = dataclasses.replace(config, pooler=family == "bert")
    assert parameter_count(config) == PUBLISHED[name]["parameters"]


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("bert-base-chinese", "pooler_type", "mean"),
        ("bert-base-uncased", "pruned_heads", {"pruned_heads": [0]}),
        ("gpt2-medium", "n_special", 2),
        ("huggyllama/llama-7b", "max_sequence_length", 4096),
        ("SmolLM2-135M", "rope_parameters", {"rope_type": "default", "partial_rotary_factor": 0.5}),
    ],
)
def test_values_that_change_the_model_are_refused(name, key, value):
    with pytest.raises(InputError) as caught:
        read_config({**PUBLISHED[name]["config.json"], key: value})
    assert (key if not isinstance(value, dict) else list(value)[-1]) in one_line(caught)
