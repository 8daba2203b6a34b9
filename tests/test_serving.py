"""A server's runtime says what Keras says and refuses what is broken in one line."""

import json
import shutil

import numpy as np
import pytest
from artefacts import CONTEXT, NAMES, NEW_TOKENS, PROMPTS, TEXTS, greedy, one_line, pair, run_fresh, saved_model

from kerasllm.errors import InputError
from kerasllm.generation import generate_tokens, score_windows
from kerasllm.serving import ServedModel
from kerasllm.text import ByteTokenizer


@pytest.fixture(scope="module")
def served():
    return {name: ServedModel(saved_model(name)) for name in NAMES}


def refused(path):
    """The message with which a folder is refused."""
    with pytest.raises(InputError) as caught:
        ServedModel(path)
    return one_line(caught)


@pytest.mark.parametrize("name", NAMES)
class TestAnswers:
    def test_greedy_text_and_tokens_are_those_of_keras(self, served, name):
        assert served[name].generate(PROMPTS, max_new_tokens=NEW_TOKENS) == greedy(name)
        assert served[name].generate(PROMPTS[2], max_new_tokens=NEW_TOKENS) == greedy(name)[2]
        expected = generate_tokens(*pair(name), PROMPTS, max_new_tokens=NEW_TOKENS)
        np.testing.assert_array_equal(served[name].tokens(PROMPTS, NEW_TOKENS), expected)

    def test_logits_and_scores_are_those_of_keras(self, served, name):
        model, tokenizer = pair(name)
        tokens = np.random.default_rng(7).integers(0, tokenizer.vocabulary_size, (2, 21)).astype("int32")
        log_probs, top_1 = served[name].score_tokens(tokens[:, :-1], tokens[:, 1:])
        expected, expected_top_1 = score_windows(model, tokens[:, :-1], tokens[:, 1:])
        np.testing.assert_allclose(log_probs, expected, rtol=0, atol=1e-4)
        np.testing.assert_array_equal(top_1, expected_top_1)
        logits = served[name].logits(tokens[0])
        np.testing.assert_allclose(logits, np.array(model(tokens[:1]))[0], rtol=0, atol=1e-4)

    def test_a_text_scores_the_same_in_company(self, served, name):
        together = served[name].score(TEXTS)
        for row, text in enumerate(TEXTS):
            for key, values in served[name].score([text]).items():
                np.testing.assert_allclose(values[0], together[key][row], rtol=1e-6)

    def test_a_seed_draws_the_same_again(self, served, name):
        options = {"max_new_tokens": 16, "temperature": 1.0, "top_k": 50, "top_p": 0.95}
        first = served[name].generate(PROMPTS, seed=1, **options)
        assert served[name].generate(PROMPTS, seed=1, **options) == first
        assert served[name].generate(PROMPTS, seed=2, **options) != first

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"max_new_tokens": 0}, "max_new_tokens"),
            ({"temperature": -0.1}, "temperature"),
            ({"temperature": float("nan")}, "temperature"),
            ({"max_new_tokens": 2**31}, "max_new_tokens"),
            ({"top_k": -1}, "top_k"),
            ({"top_k": 2**31}, "top_k"),
            ({"seed": -1}, "seed"),
            ({"seed": 2**31}, "seed"),
            ({"top_p": 0.0}, "top_p"),
            ({"top_p": 1.5}, "top_p"),
        ],
    )
    def test_options_out_of_range_are_refused(self, served, name, options, message):
        with pytest.raises(InputError) as caught:
            served[name].generate("a", **options)
        assert one_line(caught).startswith(message)


def test_a_prompt_too_long_names_the_context(served):
    with pytest.raises(InputError) as caught:
        served["learned"].generate(["a", "a" * CONTEXT])
    assert f"context of {CONTEXT}" in one_line(caught)
    assert served["learned"].context_length == CONTEXT
    assert served["lstm"].context_length is None


@pytest.mark.parametrize("name", ["grouped", "learned"])
def test_too_many_tokens_name_the_context(served, name):
    assert len(served[name].logits([1] * CONTEXT)) == CONTEXT
    tokens = np.ones((2, CONTEXT + 1), "int32")
    for call in (lambda: served[name].logits(tokens[0]), lambda: served[name].score_tokens(tokens, tokens)):
        with pytest.raises(InputError) as caught:
            call()
        assert f"do not fit the context of {CONTEXT} tokens; give fewer tokens" in one_line(caught)


def test_half_a_character_is_read_as_the_tokenizer_reads_it(served):
    broken, whole = ["a\ud800b"], ["a\ufffdb"]
    assert served["learned"].generate(broken, max_new_tokens=4) == served["learned"].generate(whole, max_new_tokens=4)
    np.testing.assert_array_equal(served["learned"].tokens(broken, 4), served["learned"].tokens(whole, 4))
    assert served["learned"].score(broken) == served["learned"].score(whole)


def test_the_last_slot_of_the_context_is_used(served):
    prompt = "b" * (CONTEXT - 9)  # with bos and 8 new tokens exactly the context
    expected = generate_tokens(*pair("learned"), [prompt], max_new_tokens=8)
    np.testing.assert_array_equal(served["learned"].tokens([prompt], 8), expected)


def test_serving_imports_neither_keras_models_nor_layers():
    code = """
import json, sys
from kerasllm.serving import ServedModel
ServedModel(sys.argv[1]).generate("a", max_new_tokens=2)
print(json.dumps(sorted(module for module in sys.modules if module.startswith("kerasllm"))))
"""
    modules = run_fresh(code, saved_model("grouped"))
    assert "kerasllm.serving" in modules
    assert not [m for m in modules if m.startswith(("kerasllm.models", "kerasllm.layers", "kerasllm.generation"))]


def test_a_missing_folder_is_refused(tmp_path):
    assert "absent" in refused(tmp_path / "absent")
    assert str(tmp_path) in refused(tmp_path)


@pytest.mark.parametrize("content", [b"", b"garbage", b"\xff" * 1000])
def test_garbage_is_refused(tmp_path, content):
    folder = shutil.copytree(saved_model("lstm"), tmp_path / "1")
    (folder / "saved_model.pb").write_bytes(content)
    assert str(folder) in refused(folder)


def test_a_truncated_graph_is_refused(tmp_path):
    folder = shutil.copytree(saved_model("lstm"), tmp_path / "1")
    content = (folder / "saved_model.pb").read_bytes()
    (folder / "saved_model.pb").write_bytes(content[: len(content) // 2])
    assert str(folder) in refused(folder)


@pytest.mark.parametrize("name", ["variables.index", "variables.data-00000-of-00001"])
def test_missing_variables_are_refused(tmp_path, name):
    folder = shutil.copytree(saved_model("lstm"), tmp_path / "1")
    (folder / "variables" / name).unlink()
    assert str(folder) in refused(folder)


def test_a_saved_model_of_somebody_else_is_refused(tmp_path):
    import tensorflow as tf

    tf.saved_model.save(tf.Module(), str(tmp_path / "1"))
    assert "was not exported by kerasllm" in refused(tmp_path / "1")


def test_a_model_without_its_tokenizer_is_refused(tmp_path):
    folder = shutil.copytree(saved_model("lstm"), tmp_path / "1")
    (folder / "assets.extra" / "tokenizer.json").unlink()
    assert "tokenizer.json" in refused(folder)


@pytest.mark.parametrize("content", [{}, [], {"config": []}, {"config": {}}])
def test_a_model_without_its_config_is_refused(tmp_path, content):
    folder = shutil.copytree(saved_model("lstm"), tmp_path / "1")
    (folder / "assets.extra" / "config.json").write_text(json.dumps(content))
    assert "config.json" in refused(folder)


def test_the_tokenizer_of_another_model_is_refused(tmp_path):
    folder = shutil.copytree(saved_model("lstm"), tmp_path / "1")
    ByteTokenizer().save(folder / "assets.extra")
    message = refused(folder)
    assert "340" in message and "258" in message
