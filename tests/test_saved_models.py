"""The published models: complete, small, as their cards say, and the same in every form."""

import json
from pathlib import Path

import numpy as np
import pytest

import kerasllm
from kerasllm.evaluation import evaluate, open_model
from kerasllm.evaluation.runners import KerasModel, documents
from kerasllm.files import sha256
from kerasllm.generation import generate_tokens

FOLDER = Path(__file__).parent.parent / "saved_models"
NAMES = sorted(path.parent.name for path in FOLDER.glob("*/card.json"))
MEGABYTES = 12
TEXT = "The history of the city began in the ninth century, when the first church was built on the hill.\n\nGeography\n"


def card(name: str) -> dict:
    return json.loads((FOLDER / name / "card.json").read_text(encoding="utf-8"))


def test_both_quickstart_models_are_published():
    assert {"quickstart-lstm", "quickstart-transformer"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_holds_what_its_card_lists_and_nothing_else(name):
    files = {p.relative_to(FOLDER / name).as_posix(): p for p in (FOLDER / name).rglob("*") if p.is_file()}
    del files["card.json"]
    assert {path: sha256(file) for path, file in files.items()} == card(name)["sha256"]
    assert sum(file.stat().st_size for file in files.values()) <= MEGABYTES * 1e6


@pytest.mark.parametrize("name", NAMES)
def test_a_card_says_how_the_model_was_made_and_that_it_was_verified(name):
    content = card(name)
    assert content["name"] == name
    assert content["command"].startswith("kerasllm ") and content["device"] and content["seconds"] > 0
    for check in content["verification"].values():
        assert check["problems"] == []
        assert check["max_logit_difference"] <= 1e-4
        assert check["greedy_equal"] == check["prompts"] == 5


@pytest.mark.parametrize("name", NAMES)
def test_a_published_model_loads_by_name_and_is_the_same_in_every_form(name):
    model, tokenizer = kerasllm.load(name)
    assert model.count_params() == card(name)["parameters"]
    forms = {
        "keras": KerasModel(model, tokenizer),
        "saved_model": open_model(name),
        "tflite": open_model(FOLDER / name / "model.tflite"),
    }
    text = TEXT * 4
    scores = {form: evaluate(runner, documents([text], tokenizer), [text])[0] for form, runner in forms.items()}
    bits = [score.bits_per_byte for score in scores.values()]
    assert np.ptp(bits) < 1e-4
    assert bits[0] < 4, "worse than chance over bytes means the weights are not those that were trained"
    prompts = ["The history of", "我爱北京"]
    texts = [runner.generate(prompts, max_new_tokens=32) for runner in forms.values()]
    assert texts[0] == texts[1] == texts[2]


@pytest.mark.parametrize("name", NAMES)
def test_a_published_model_has_learned_english(name):
    model, tokenizer = kerasllm.load(name)
    tokens = generate_tokens(model, tokenizer, ["He was born in"], max_new_tokens=16)
    assert len(set(tokens[0].tolist())) > 3, "a greedy continuation that repeats one token has learned nothing"
    keras_scores = card(name)["scores"]["keras"]["bits_per_byte"]
    assert all(abs(s["bits_per_byte"] - keras_scores) < 1e-4 for s in card(name)["scores"].values())
