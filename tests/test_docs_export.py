"""What docs/export.md says of artefacts is true, and its decode loop says what Keras says."""

import json
import re
from pathlib import Path

import pytest
from ai_edge_litert.interpreter import Interpreter
from artefacts import CHUNKS, CONTEXT, NEW_TOKENS, PROMPTS, SCORED, greedy, pair, run_fresh, saved_model, tflite

PAGE = (Path(__file__).parent.parent / "docs" / "export.md").read_text(encoding="utf-8")
LOOP = re.search(r"```python\n(import sys\n.*?)```", PAGE, re.DOTALL)[1]
DRIVER = """
import json, sys
sys.path.insert(0, sys.argv[1])
from loop import generate
prompts, count = json.loads(sys.argv[2]), int(sys.argv[3])
texts = [[generate(model, tokenizer, prompt, count) for prompt in prompts]
         for model, tokenizer in zip(sys.argv[4::2], sys.argv[5::2])]
try:
    generate(sys.argv[4], sys.argv[5], "word " * 200, count)
except ValueError as error:
    refused = str(error)
print(json.dumps({"texts": texts, "refused": refused, "modules": sorted({m.split(".")[0] for m in sys.modules})}))
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """What the page's loop says in a process of its own."""
    folder = tmp_path_factory.mktemp("docs")
    (folder / "loop.py").write_text(LOOP, encoding="utf-8")
    paths = [path for name in ("grouped", "lstm") for path in (tflite(name), tflite(name).parent / "tokenizer.model")]
    return run_fresh(DRIVER, folder, json.dumps(PROMPTS), NEW_TOKENS, *paths)


def test_the_loop_says_what_keras_says_for_both_kinds(answers):
    assert answers["texts"] == [greedy("grouped"), greedy("lstm")]


def test_the_loop_names_the_context_that_a_prompt_does_not_fit(answers):
    assert f"context of {CONTEXT}" in answers["refused"]


def test_the_loop_needs_neither_tensorflow_nor_keras_nor_kerasllm(answers):
    assert not {"tensorflow", "tensorflow_text", "keras", "jax", "kerasllm"} & set(answers["modules"])
    imported = set(re.findall(r"^(?:import|from) (\w+)", LOOP, re.MULTILINE))
    assert imported == {"sys", "numpy", "sentencepiece", "ai_edge_litert"}


def test_the_loop_is_short_enough_to_copy():
    assert len([line for line in LOOP.splitlines() if line.strip()]) <= 45
    assert max(map(len, LOOP.splitlines())) <= 120


def rows(heading):
    """Cells of the tables of a section of the page."""
    section = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)[1]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:3] == "| `"]


def named(cell, **values):
    """Tensor names in a cell of the table."""
    for key, value in values.items():
        cell = cell.replace(f"<{key}>", str(value))
    return set(re.findall(r"`(\w+)`", cell)) | ({"state"} if re.search(r"\bstate\b", cell) else set())


def test_the_page_lists_the_signatures_of_a_saved_model():
    import tensorflow as tf
    import tensorflow_text  # noqa: F401

    loaded = tf.saved_model.load(str(saved_model("lstm")))
    table = {row[0].strip("`"): row[1:] for row in rows("SavedModel")}
    assert set(table) == set(loaded.signatures)
    for name, (inputs, outputs) in table.items():
        signature = loaded.signatures[name]
        assert named(inputs) == set(signature.structured_input_signature[1])
        assert named(outputs) == set(signature.structured_outputs)


def test_the_page_lists_the_signatures_of_a_tflite_file():
    table = {row[0].strip("`"): row[1:] for row in rows("TFLite") if len(row) == 3}
    interpreter = Interpreter(str(tflite("grouped")))
    layers = range(pair("grouped")[0].config.num_layers)
    state = {f"kv_cache_{part}_{i}" for part in "kv" for i in layers}
    signatures = {"prefill_<n>": f"prefill_{CHUNKS[0]}", "decode": "decode", "score_<n>": f"score_{SCORED}"}
    assert set(table) == set(signatures)
    for name, (inputs, outputs) in table.items():
        runner = interpreter.get_signature_runner(signatures[name])
        for cell, details in ((inputs, runner.get_input_details()), (outputs, runner.get_output_details())):
            assert named(cell) - {"state"} == set(details) - state
            assert "state" in named(cell) and state <= set(details)
