"""Exported encoder-decoders: a SavedModel turns strings into strings, a TFLite file encodes and decodes."""

import dataclasses
import json
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter
from artefacts import leftovers, one_line, run_fresh, sentencepiece
from seq2seq_cases import SEQ2SEQS, make
from test_export_tflite import graphs, stored

import kerasllm
from kerasllm.errors import InputError
from kerasllm.export import export_saved_model, export_tflite
from kerasllm.generation import generate_sequences, source_ids, translate
from kerasllm.text import ByteTokenizer, load_tokenizer

SOURCES = ["The history of", "In mathematics, a set", "我爱北京天安门", "a", ""]
TARGETS = ["A set.", "", "He was born", "x", "a b c"]
NEW_TOKENS, CONTEXT, SOURCE_LENGTH = 16, 48, 40
NAMES = ("learned", "luong", "bahdanau", "plain")
_folder = tempfile.TemporaryDirectory(prefix="kerasllm-test-")
BYTES = ByteTokenizer()
FRESH = """
import json, sys
import numpy as np
import tensorflow as tf
import tensorflow_text

request, answers = json.loads(sys.argv[1]), {}
sources, targets = (tf.constant(np.array(request[name], object)) for name in ("sources", "targets"))

def texts(result):
    return [text.decode() for text in result["text"].numpy()]

for name, path in request["paths"].items():
    loaded = tf.saved_model.load(path)
    s = loaded.signatures
    options = {"temperature": tf.constant(1.0), "top_k": tf.constant(9), "top_p": tf.constant(0.9)}
    draw = lambda seed: s["generate"](text=sources, max_new_tokens=tf.constant(9), seed=tf.constant(seed), **options)
    found = s["search"](text=sources, max_new_tokens=tf.constant(16), length_penalty=tf.constant(0.5))
    scored = s["score"](source=sources, target=targets)
    pair = tf.constant([[1, 2, 3]]), tf.constant([[4, 5, 6, 7]])
    try:
        s["serving_default"](text=tf.constant(["word " * 300]))
        error = "none"
    except tf.errors.InvalidArgumentError as caught:
        error = str(caught)
    answers[name] = {
        "signatures": sorted(s),
        "greedy": texts(s["serving_default"](text=sources)),
        "singles": [texts(s["serving_default"](text=sources[r : r + 1]))[0] for r in range(len(request["sources"]))],
        "drawn": [draw(seed)["tokens"].numpy().tolist() for seed in (1, 1, 2)],
        "search": texts(found),
        "scores": found["score"].numpy().tolist(),
        "log_probability": scored["log_probability"].numpy().tolist(),
        "token_count": scored["token_count"].numpy().tolist(),
        "logits": s["logits"](
            **dict(zip(("source", "target"), pair)))["logits"].numpy().tolist(),
        "error": error,
    }
print(json.dumps({"answers": answers, "modules": sorted({module.split(".")[0] for module in sys.modules})}))
"""


@cache
def model(name):
    """A model of bytes; the one with an embedding of its own for sources reads SentencePiece."""
    config = SEQ2SEQS[name]
    changes = {"vocabulary_size": 258, "source_vocabulary_size": None}
    if name == "learned":
        changes |= {"source_vocabulary_size": sentencepiece().vocabulary_size, "max_sequence_length": CONTEXT}
    return make(dataclasses.replace(config, **changes), seed=3, scale=0.5 if name == "learned" else 1.2)


def source_tokenizer(name):
    return sentencepiece() if name == "learned" else BYTES


@cache
def saved_model(name):
    path = Path(_folder.name) / name / "1"
    own = {"source_tokenizer": sentencepiece()} if name == "learned" else {}
    return export_saved_model(model(name), BYTES, path, max_new_tokens=NEW_TOKENS, **own)


@cache
def tflite(name, quantization=None):
    path = Path(_folder.name) / f"{name}-{quantization}" / "model.tflite"
    own = {"source_tokenizer": sentencepiece()} if name == "learned" else {}
    lengths = {"context_length": CONTEXT, "source_length": SOURCE_LENGTH}
    return export_tflite(model(name), path, BYTES, quantization=quantization, **lengths, **own)


@cache
def greedy(name):
    return translate(model(name), BYTES, SOURCES, source_tokenizer=source_tokenizer(name), max_new_tokens=NEW_TOKENS)


@pytest.fixture(scope="module")
def fresh():
    """What a process with only TensorFlow and TensorFlow Text gets from the SavedModels."""
    paths = {name: str(saved_model(name)) for name in ("learned", "luong")}
    result = run_fresh(FRESH, json.dumps({"paths": paths, "sources": SOURCES, "targets": TARGETS}))
    assert not {"kerasllm"} & set(result["modules"])
    return result["answers"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["learned", "luong"])
class TestServedAnswers:
    def test_texts_are_those_of_keras(self, fresh, name):
        answers = fresh[name]
        expected = ["detokenize", "generate", "logits", "score", "search", "serving_default", "tokenize"]
        assert answers["signatures"] == expected
        assert answers["greedy"] == answers["singles"] == greedy(name)
        assert len(set(greedy(name))) > 2
        assert answers["drawn"][0] == answers["drawn"][1] != answers["drawn"][2]

    def test_a_search_is_that_of_keras(self, fresh, name):
        options = {"num_beams": 4, "length_penalty": 0.5, "max_new_tokens": NEW_TOKENS}
        read = {"sources": SOURCES, "source_tokenizer": source_tokenizer(name)}
        rows = generate_sequences(model(name), BYTES, [""] * len(SOURCES), **options, **read)
        assert fresh[name]["search"] == [row[0].text for row in rows]
        np.testing.assert_allclose(fresh[name]["scores"], [row[0].score for row in rows], atol=1e-3)

    def test_scores_are_log_probabilities_of_whole_targets(self, fresh, name):
        for row, (source, target) in enumerate(zip(SOURCES, TARGETS, strict=True)):
            document = [BYTES.bos_id, *BYTES.encode(target), BYTES.eos_id]
            pair = [source_ids(source_tokenizer(name), source)], [document[:-1]]
            logits = tf.nn.log_softmax(model(name)(tuple(np.array(part, "int32") for part in pair)))[0].numpy()
            total = logits[np.arange(len(document) - 1), document[1:]].sum()
            assert fresh[name]["log_probability"][row] == pytest.approx(total, rel=1e-4)
            assert fresh[name]["token_count"][row] == len(document) - 1

    def test_logits_are_those_of_keras(self, fresh, name):
        pair = np.array([[1, 2, 3]], "int32"), np.array([[4, 5, 6, 7]], "int32")
        np.testing.assert_allclose(fresh[name]["logits"], np.array(model(name)(pair)), atol=1e-4)

    def test_a_source_too_long_names_the_context(self, fresh, name):
        if name == "luong":
            assert fresh[name]["error"] == "none"
        else:
            assert f"a source does not fit the context of {CONTEXT} tokens" in fresh[name]["error"]

    def test_keras_gets_its_model_back(self, name):
        again, tokenizer = kerasllm.load(saved_model(name))
        assert again.config == model(name).config
        extra = saved_model(name) / "assets.extra"
        own = extra / "source_tokenizer"
        assert own.exists() == (name == "learned")
        read = load_tokenizer(own) if own.exists() else tokenizer
        assert translate(again, tokenizer, SOURCES, source_tokenizer=read, max_new_tokens=NEW_TOKENS) == greedy(name)


@pytest.mark.parametrize("name", ["vaswani", "plain"])
def test_a_model_folder_gives_the_same_model(name, tmp_path):
    config = dataclasses.replace(SEQ2SEQS[name], vocabulary_size=258)
    given = make(config, seed=5)
    kerasllm.save(given, BYTES, tmp_path / "model")
    again, tokenizer = kerasllm.load(tmp_path / "model")
    assert type(again) is type(given) and again.config == config
    pair = np.array([[1, 2, 3]], "int32"), np.array([[4, 5, 6, 7]], "int32")
    np.testing.assert_array_equal(np.array(again(pair)), np.array(given(pair)))
    assert tokenizer.fingerprint == BYTES.fingerprint


def write(path, ids):
    """Greedy target of a source, as a phone would write it: `encode` once, then `decode` token after token."""
    interpreter = Interpreter(str(path), num_threads=1)
    encode, decode = (interpreter.get_signature_runner(name) for name in ("encode", "decode"))
    source, mask = np.zeros((1, SOURCE_LENGTH), "int32"), np.arange(SOURCE_LENGTH)[None] < len(ids)
    source[0, : len(ids)] = ids
    state = encode(source=source, source_padding_mask=mask)
    wanted = decode.get_input_details()
    state |= {"source_padding_mask": mask} if "source_padding_mask" in wanted else {}
    token, drawn, rows = BYTES.bos_id, [], []
    for place in range(NEW_TOKENS):
        position = {"input_pos": np.array([place], "int32")} if "input_pos" in wanted else {}
        outputs = decode(tokens=np.array([[token]], "int32"), **position, **state)
        rows.append(outputs.pop("logits")[0, 0])
        state |= outputs
        token = int(rows[-1].argmax())
        if token == BYTES.eos_id:
            break
        drawn.append(token)
    return BYTES.decode(drawn), np.stack(rows)


@pytest.mark.parametrize("name", NAMES)
class TestFiles:
    def test_greedy_text_is_that_of_keras(self, name):
        ids = [source_ids(source_tokenizer(name), source) for source in SOURCES]
        assert [write(tflite(name), row)[0] for row in ids] == greedy(name)

    def test_signatures_and_tensors_are_as_promised(self, name):
        config = model(name).config
        if name == "learned":
            heads = config.num_heads
            state = {f"kv_cache_{part}_0": (1, heads, CONTEXT, config.head_dim) for part in "kv"}
            memory = {f"memory_{part}_0": (1, heads, SOURCE_LENGTH, config.head_dim) for part in "kv"}
        else:
            parts = "hc" if config.cell == "lstm" else "h"
            state = {f"lstm_{part}_{i}": (1, width) for i, width in enumerate(config.layer_dims) for part in parts}
            memory = {f"memory_{part}_0": (1, SOURCE_LENGTH, config.output_dim) for part in "kv" if config.attention}
        # Without attention, the final state is all that a step knows of the source.
        seen = {"source_padding_mask": (1, SOURCE_LENGTH)} if memory else {}
        source, place = (1, SOURCE_LENGTH), {"input_pos": (1,)} if name == "learned" else {}
        interpreter = Interpreter(str(tflite(name)))
        assert set(interpreter.get_signature_list()) == {"encode", "decode"}
        for signature, inputs, outputs in (
            ("encode", {"source": source, "source_padding_mask": source}, {**state, **memory}),
            (
                "decode",
                {"tokens": (1, 1), **place, **state, **memory, **seen},
                {"logits": (1, 1, 258), **state},
            ),
        ):
            runner = interpreter.get_signature_runner(signature)
            for details, expected in ((runner.get_input_details(), inputs), (runner.get_output_details(), outputs)):
                assert {key: tuple(map(int, value["shape"])) for key, value in details.items()} == expected
        tokenizer = load_tokenizer(tflite(name).parent)
        assert tokenizer.fingerprint == BYTES.fingerprint
        assert (tflite(name).parent / "source_tokenizer").exists() == (name == "learned")

    @pytest.mark.slow
    def test_quantization_costs_little(self, name):
        ids = source_ids(source_tokenizer(name), SOURCES[0])
        exact, near = (write(path, ids)[1][0] for path in (tflite(name), tflite(name, "int8")))
        assert np.abs(exact - near).max() < 0.3 * exact.std()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "tables"), [("vaswani", 1), ("luong", 2), ("bahdanau", 3)])
@pytest.mark.parametrize("quantization", [None, "int8"])
def test_weights_are_stored_once(name, tables, quantization, tmp_path):
    config, width = SEQ2SEQS[name], 1 if quantization else 4
    size = {"hidden_dim": 128, "vocabulary_size": 4000, "source_vocabulary_size": 3000 if tables == 3 else None}
    size |= {"intermediate_dim": 256} if name == "vaswani" else {"embedding_dim": 96}
    large = make(dataclasses.replace(config, **size), scale=0.05)
    lengths = {"context_length": 16, "source_length": 16}
    path = export_tflite(large, tmp_path / "m.tflite", quantization=quantization, **lengths)
    assert width * large.count_params() <= path.stat().st_size <= 1.15 * width * large.count_params() + 300_000
    # The embedding, an LSTM's projection, and an embedding of its own for sources.
    assert len([elements for elements in stored(graphs(path)[1]) if elements >= 3000 * 96]) == tables


OPTIONS = {
    "chunk lengths out": {"prefill_lengths": (4,)},
    "context_length 49 is more than the model's 48": {"context_length": CONTEXT + 1},
    "source_length 49 is more than the model's 48": {"source_length": CONTEXT + 1},
    "source_length must be at least 1, received 0": {"source_length": 0},
    "context_length must be at least 1, received 0": {"context_length": 0},
    "the tokenizer of sources has 258 tokens but the model 340": {"tokenizer": BYTES},
}


@pytest.mark.parametrize("message", OPTIONS)
def test_what_cannot_be_exported_is_refused_first(message, tmp_path):
    with pytest.raises(InputError) as caught:
        export_tflite(model("learned"), tmp_path / "m.tflite", **OPTIONS[message])
    assert message in one_line(caught)
    assert leftovers(tmp_path) == []


def test_options_of_the_other_kind_are_refused(tmp_path):
    from kerasllm.models import LSTMLanguageModel

    language_model = LSTMLanguageModel({"vocabulary_size": 258, "embedding_dim": 4, "hidden_dim": 4})
    for call, message in (
        (lambda: export_tflite(language_model, tmp_path / "m.tflite", source_length=3), "reads no sources"),
        (lambda: export_saved_model(language_model, BYTES, tmp_path / "1", source_tokenizer=BYTES), "reads no sources"),
        (lambda: export_saved_model(model("luong"), BYTES, tmp_path / "1", context=3), "leave context and stride out"),
        (lambda: export_saved_model(model("luong"), BYTES, tmp_path / "1", num_beams=0), "num_beams must be at least"),
    ):
        with pytest.raises(InputError) as caught:
            call()
        assert message in one_line(caught)
    assert leftovers(tmp_path) == []
