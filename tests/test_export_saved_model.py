"""A SavedModel says what Keras says, to a process that has TensorFlow and nothing of kerasllm."""

import json

import numpy as np
import pytest
import tensorflow as tf
from artefacts import (
    CONTEXT,
    NAMES,
    NEW_TOKENS,
    PROMPTS,
    SCORED,
    STRIDE,
    TEXTS,
    documents,
    greedy,
    leftovers,
    one_line,
    pair,
    randomized,
    run_fresh,
    saved_model,
)
from tensorflow.core.protobuf import saved_model_pb2

import kerasllm
from kerasllm.errors import InputError
from kerasllm.evaluation.windows import windows
from kerasllm.export import export_saved_model
from kerasllm.export.saved_model import without_cudnn
from kerasllm.generation import Sampling, Tracing, decode, left_pad, prefill, score_windows
from kerasllm.models import LSTMLanguageModel, TransformerLanguageModel
from kerasllm.text import ByteTokenizer

SAMPLED = {"max_new_tokens": 12, "temperature": 0.9, "top_k": 20, "top_p": 0.9, "seed": 7}
FRESH = """
import json, sys
import numpy as np
import tensorflow as tf
import tensorflow_text

def call(function, **inputs):
    return {name: value.numpy() for name, value in function(**{n: tf.constant(v) for n, v in inputs.items()}).items()}

def plain(value):
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, list):
        return [plain(item) for item in value]
    return value.decode() if isinstance(value, bytes) else value

request = json.loads(open(sys.argv[1], encoding="utf-8").read())
answers = {}
for name, case in request["cases"].items():
    loaded = tf.saved_model.load(case["path"])
    s = loaded.signatures
    prompts, options = request["prompts"], request["sampled"]
    number = {"max_new_tokens": np.int32, "top_k": np.int32, "seed": np.int32}
    options = {k: number.get(k, np.float32)(v) for k, v in options.items()}
    sampled = lambda rows, **other: call(s["generate"], text=np.array(rows, object), **{**options, **other})
    tokens = np.array(case["tokens"], "int32")
    ids = call(s["tokenize"], text=np.array(prompts, object))
    try:
        sampled(["word " * 300])
        error = ["none", ""]
    except Exception as caught:
        error = [type(caught).__name__, str(caught)]
    refused = {}
    for key, value in {"max_new_tokens": np.int32(0), "temperature": np.float32(-1), "top_k": np.int32(-1),
                       "top_p": np.float32(0)}.items():
        try:
            sampled(["a"], **{key: value})
        except tf.errors.InvalidArgumentError as caught:
            refused[key] = str(caught)
    answers[name] = {
        "signatures": sorted(s),
        "greedy": call(s["serving_default"], text=np.array(prompts, object)),
        "singles": [call(s["serving_default"], text=np.array([p], object))["text"][0] for p in prompts],
        "sampled": sampled(prompts),
        "again": sampled(prompts)["tokens"],
        "other_seed": sampled(prompts, seed=np.int32(8))["tokens"],
        "top_k_1": sampled(prompts, top_k=np.int32(1))["tokens"],
        "cold": sampled(prompts, temperature=np.float32(0))["tokens"],
        "logits": call(s["logits"], tokens=tokens)["logits"],
        "score": call(s["score"], text=np.array(request["texts"], object)),
        "score_tokens": call(s["score_tokens"], tokens=tokens[:, :-1], targets=tokens[:, 1:]),
        "tokenize": ids,
        "detokenize": call(s["detokenize"], tokens=ids["tokens"], lengths=ids["lengths"])["text"],
        "error": error,
        "refused": refused,
    }
answers = {n: {k: {i: plain(j) for i, j in v.items()} if isinstance(v, dict) else plain(v) for k, v in a.items()}
           for n, a in answers.items()}
answers["modules"] = sorted({module.split(".")[0] for module in sys.modules})
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    """What a process with only TensorFlow and TensorFlow Text gets from the SavedModels."""
    cases = {}
    for name in NAMES:
        tokenizer = pair(name)[1]
        tokens = np.random.default_rng(3).integers(0, tokenizer.vocabulary_size, (2, 24))
        cases[name] = {"path": str(saved_model(name)), "tokens": tokens.tolist()}
    request = {"cases": cases, "prompts": PROMPTS, "texts": [*TEXTS, ""], "sampled": SAMPLED}
    path = tmp_path_factory.mktemp("fresh") / "request.json"
    path.write_text(json.dumps(request), encoding="utf-8")
    answers = run_fresh(FRESH, path)
    for name in NAMES:
        answers[name]["given"] = np.array(cases[name]["tokens"], "int32")
    return answers


def test_the_server_process_has_nothing_of_kerasllm(fresh):
    assert "tensorflow" in fresh["modules"]
    assert "kerasllm" not in fresh["modules"]


@pytest.mark.parametrize("name", NAMES)
class TestServedAnswers:
    def test_all_signatures_are_there(self, fresh, name):
        expected = ["detokenize", "generate", "logits", "score", "score_tokens", "serving_default", "tokenize"]
        assert fresh[name]["signatures"] == expected

    def test_greedy_text_is_that_of_keras(self, fresh, name):
        assert fresh[name]["greedy"]["text"] == greedy(name)
        assert len(set(greedy(name))) > 1

    def test_a_batch_equals_each_prompt_alone(self, fresh, name):
        assert fresh[name]["singles"] == fresh[name]["greedy"]["text"]

    def test_logits_are_those_of_keras(self, fresh, name):
        expected = np.array(pair(name)[0](fresh[name]["given"], training=False))
        assert expected.std() > 0.1
        np.testing.assert_allclose(fresh[name]["logits"], expected, rtol=0, atol=1e-4)

    def test_sampled_tokens_are_those_keras_draws_with_the_same_uniform_numbers(self, fresh, name):
        model, tokenizer = pair(name)
        tokens, padding = left_pad([[tokenizer.bos_id, *tokenizer.encode(p)] for p in PROMPTS], tokenizer.eos_id)
        count, options = SAMPLED["max_new_tokens"], (SAMPLED["temperature"], SAMPLED["top_k"], SAMPLED["top_p"], 1.0)
        uniforms = tf.random.stateless_uniform((len(PROMPTS), count), seed=[SAMPLED["seed"], 0])
        start = prefill(model, tokens, padding, count, Tracing(tokenizer.stop_ids))
        drawn = decode(model, start, uniforms, 0, count, Sampling(*options), Tracing(tokenizer.stop_ids)).tokens
        np.testing.assert_array_equal(fresh[name]["sampled"]["tokens"], drawn)
        texts = [tokenizer.decode(row) for row in np.array(drawn)]
        assert fresh[name]["sampled"]["text"] == texts

    def test_the_seed_decides_and_top_k_1_and_temperature_0_are_greedy(self, fresh, name):
        answers = fresh[name]
        assert answers["again"] == answers["sampled"]["tokens"]
        assert answers["other_seed"] != answers["sampled"]["tokens"]
        assert answers["top_k_1"] == answers["cold"] != answers["sampled"]["tokens"]

    def test_score_is_the_total_over_windows(self, fresh, name):
        model, tokenizer = pair(name)
        texts = [*TEXTS, ""]
        for row, document in enumerate(documents(tokenizer, texts)):
            total = 0.0
            for window in windows(document, SCORED, STRIDE):
                log_probs = score_windows(model, window.tokens[None], window.targets[None])[0][0]
                total += float(log_probs[window.first : window.last].sum(dtype="float64"))
            answer = {key: values[row] for key, values in fresh[name]["score"].items()}
            assert answer["log_probability"] == pytest.approx(total, rel=1e-5)
            assert answer["token_count"] == len(document) - 1
            assert answer["byte_count"] == len(texts[row].encode())

    def test_score_tokens_is_that_of_keras(self, fresh, name):
        given, answer = fresh[name]["given"], fresh[name]["score_tokens"]
        log_probs, top_1 = score_windows(pair(name)[0], given[:, :-1], given[:, 1:])
        np.testing.assert_allclose(answer["log_probs"], log_probs, rtol=0, atol=1e-4)
        np.testing.assert_array_equal(answer["top_1"], top_1)

    def test_tokenize_and_detokenize_are_the_tokenizer(self, fresh, name):
        tokenizer, answer = pair(name)[1], fresh[name]["tokenize"]
        rows = [row[:length] for row, length in zip(answer["tokens"], answer["lengths"], strict=True)]
        assert rows == [tokenizer.encode(prompt) for prompt in PROMPTS]
        assert fresh[name]["detokenize"] == list(PROMPTS)

    def test_a_prompt_too_long_is_an_invalid_argument_that_names_the_context(self, fresh, name):
        kind, message = fresh[name]["error"]
        if name == "lstm":
            assert kind == "none", message  # no limit
        else:
            assert kind == "InvalidArgumentError"
            assert f"context of {CONTEXT} tokens" in message

    def test_options_out_of_range_are_invalid_arguments_that_name_the_option(self, fresh, name):
        assert set(fresh[name]["refused"]) == {"max_new_tokens", "temperature", "top_k", "top_p"}
        assert all(option in message for option, message in fresh[name]["refused"].items())

    def test_keras_gets_its_model_back(self, name):
        model, tokenizer = kerasllm.load(saved_model(name))
        assert kerasllm.generate(model, tokenizer, PROMPTS, max_new_tokens=NEW_TOKENS) == greedy(name)
        assert tokenizer.fingerprint == pair(name)[1].fingerprint
        assert kerasllm.load(saved_model(name).parent)[0].config == model.config  # the folder that holds 1/

    def test_tokenizer_and_config_lie_beside_the_graph(self, name):
        model, tokenizer = pair(name)
        extra = saved_model(name) / "assets.extra"
        assert leftovers(extra) == sorted(["config.json", "tokenizer.json", *tokenizer.file_names])
        content = json.loads((extra / "config.json").read_text(encoding="utf-8"))
        assert content == {"format": 1, "class": type(model).__name__, "config": model.config.to_dict()}

    def test_the_graph_has_no_operation_of_a_gpu_and_no_graph_twice(self, name):
        content = saved_model_pb2.SavedModel.FromString((saved_model(name) / "saved_model.pb").read_bytes())
        graph = content.meta_graphs[0].graph_def
        bodies = [[node.op for node in function.node_def] for function in graph.library.function]
        assert not [op for ops in [*bodies, [node.op for node in graph.node]] for op in ops if "Cudnn" in op]
        large = [tuple(ops) for ops in bodies if len(ops) > 150]
        assert large and len(set(large)) == len(large)


def test_tracing_for_export_switches_cudnn_off_and_on_again(monkeypatch):
    import keras

    model, _ = pair("lstm")
    seen, call = [], keras.layers.LSTM.call

    def spy(self, *arguments, **options):
        seen.append(self.use_cudnn)
        return call(self, *arguments, **options)

    monkeypatch.setattr(keras.layers.LSTM, "call", spy)
    with without_cudnn(model):
        model(np.zeros((1, 3), "int32"))
    assert seen == [False, False]
    model(np.zeros((1, 3), "int32"))
    assert seen[2:] == ["auto", "auto"]


def test_a_mixed_precision_model_answers_as_keras_does_in_mixed_precision(tmp_path):
    tokenizer = ByteTokenizer()
    config = {"vocabulary_size": 258, "embedding_dim": 8, "hidden_dim": 8}
    model = randomized(LSTMLanguageModel(config, dtype="mixed_bfloat16"))
    loaded = tf.saved_model.load(str(export_saved_model(model, tokenizer, tmp_path / "1", context=8)))
    tokens = np.arange(6, dtype="int32")[None]
    logits = loaded.signatures["logits"](tokens=tf.constant(tokens))["logits"]
    assert logits.dtype == tf.float32
    np.testing.assert_allclose(logits, np.array(model(tokens, training=False)), rtol=0, atol=1e-2)


def test_an_existing_folder_is_refused_and_stays(tmp_path):
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "precious").write_text("x")
    with pytest.raises(InputError) as caught:
        export_saved_model(*pair("lstm"), tmp_path / "1")
    assert "exists already" in one_line(caught)
    assert leftovers(tmp_path / "1") == ["precious"]


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_failure_in_the_middle_leaves_nothing(tmp_path, monkeypatch, error):
    def fail(module, folder, **_):
        (tmp_path / folder / "saved_model.pb").write_bytes(b"half")
        raise error

    monkeypatch.setattr(tf.saved_model, "save", fail)
    with pytest.raises(type(error)):
        export_saved_model(*pair("lstm"), tmp_path / "1")
    assert leftovers(tmp_path) == []


def test_a_file_in_the_way_is_refused_whatever_may_be_replaced(tmp_path):
    (tmp_path / "1").write_text("mine")
    with pytest.raises(InputError) as caught:
        export_saved_model(*pair("lstm"), tmp_path / "1", overwrite=True)
    assert one_line(caught).endswith("is a file; choose another output")


def test_a_failed_overwrite_keeps_what_was_there(tmp_path, monkeypatch):
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "old").write_text("x")

    def fail(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr(tf.saved_model, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        export_saved_model(*pair("lstm"), tmp_path / "1", overwrite=True)
    assert leftovers(tmp_path) == ["1"]
    assert leftovers(tmp_path / "1") == ["old"]


def test_the_tokenizer_of_another_model_is_refused(tmp_path):
    with pytest.raises(InputError) as caught:
        export_saved_model(pair("lstm")[0], ByteTokenizer(), tmp_path / "1")
    assert "258 tokens but the model 340" in one_line(caught)
    assert leftovers(tmp_path) == []


def test_a_bidirectional_model_is_refused(tmp_path):
    config = {"vocabulary_size": 258, "num_layers": 1, "num_heads": 2, "hidden_dim": 8, "intermediate_dim": 8}
    model = TransformerLanguageModel({**config, "causal": False})
    with pytest.raises(InputError) as caught:
        export_saved_model(model, ByteTokenizer(), tmp_path / "1")
    assert "causal" in one_line(caught)
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize(("context", "stride"), [(CONTEXT + 1, 1), (8, 9), (8, -1), (-1, 1)])
def test_windows_that_cannot_be_scored_are_refused(tmp_path, context, stride):
    with pytest.raises(InputError) as caught:
        export_saved_model(*pair("grouped"), tmp_path / "1", context=context, stride=stride)
    assert "context" in one_line(caught)
    assert leftovers(tmp_path) == []


def test_another_backend_is_refused_in_one_line(tmp_path, monkeypatch):
    model = LSTMLanguageModel({"vocabulary_size": 258, "embedding_dim": 4, "hidden_dim": 4})
    monkeypatch.setattr("keras.backend.backend", lambda: "jax")
    with pytest.raises(InputError, match="KERAS_BACKEND=tensorflow"):
        export_saved_model(model, ByteTokenizer(), tmp_path / "x")
    with pytest.raises(InputError, match="KERAS_BACKEND=tensorflow"):
        kerasllm.export_tflite(model, tmp_path / "x.tflite")
    assert not list(tmp_path.iterdir())
