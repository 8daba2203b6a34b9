"""A phone's runtime draws what Keras draws, imports nothing heavy, and refuses what is broken in one line."""

import shutil

import numpy as np
import pytest
from artefacts import CHUNKS, CONTEXT, NAMES, NEW_TOKENS, PROMPTS, SCORED, greedy, one_line, pair, run_fresh, tflite
from hypothesis import given, settings
from hypothesis import strategies as st

import kerasllm
from kerasllm.edge import EdgeModel, sample
from kerasllm.errors import InputError
from kerasllm.generation import sample as keras_sample
from kerasllm.generation import score_windows
from kerasllm.text import ByteTokenizer

LONG = "the history of mathematics in two parts, which he wrote in Paris now."


@pytest.fixture(scope="module")
def edge():
    return {name: EdgeModel(tflite(name)) for name in NAMES}


def refused(path):
    """The message with which a file is refused."""
    with pytest.raises(InputError) as caught:
        EdgeModel(path)
    return one_line(caught)


@pytest.mark.parametrize("name", NAMES)
class TestAnswers:
    def test_greedy_text_is_that_of_keras(self, edge, name):
        assert edge[name].generate(PROMPTS, max_new_tokens=NEW_TOKENS) == greedy(name)
        assert edge[name].generate(PROMPTS[0], max_new_tokens=NEW_TOKENS) == greedy(name)[0]

    @pytest.mark.parametrize(
        "options",
        [
            {"temperature": 1.0},
            {"temperature": 0.7, "seed": 3},
            {"temperature": 1.3, "top_k": 5, "seed": 1},
            {"temperature": 1.0, "top_p": 0.8, "seed": 2},
            {"temperature": 0.9, "top_k": 40, "top_p": 0.9, "seed": 4},
            {"temperature": 1.5, "min_p": 0.1, "seed": 5},
        ],
    )
    def test_sampled_text_is_that_of_keras_with_the_same_seed(self, edge, name, options):
        expected = kerasllm.generate(*pair(name), PROMPTS, max_new_tokens=16, **options)
        assert edge[name].generate(PROMPTS, max_new_tokens=16, **options) == expected

    def test_a_long_prompt_is_read_in_chunks_that_fit_exactly(self, edge, name, monkeypatch):
        model, tokenizer = edge[name], edge[name].tokenizer
        tokens = [tokenizer.bos_id, *tokenizer.encode(LONG)]
        read, run = [], EdgeModel._run

        def spy(self, signature, row, place, inputs):
            read.append((signature, place, list(row)))
            return run(self, signature, row, place, inputs)

        monkeypatch.setattr(EdgeModel, "_run", spy)
        assert len(tokens) > sum(CHUNKS) + 3
        drawn = list(model.tokens(tokens, np.zeros(4, "float32")))
        seen = [token for _, _, row in read for token in row]
        assert seen == [*tokens, *drawn][: len(seen)]
        assert [place for _, place, _ in read] == list(np.cumsum([0] + [len(row) for _, _, row in read[:-1]]))
        assert {f"prefill_{n}" for n in CHUNKS} <= {signature for signature, _, _ in read}
        assert all(len(row) == int((signature + "_1").split("_")[1]) for signature, _, row in read)

    @pytest.mark.parametrize("options", [{}, {"temperature": 1.2, "seed": 6}], ids=["greedy", "sampled"])
    def test_a_stream_is_that_of_keras_piece_by_piece(self, edge, name, options):
        for prompt in PROMPTS[:3]:
            options = {**options, "max_new_tokens": 16}
            whole = edge[name].generate(prompt, **options)
            for stop in ((), whole[5:7], [whole[9:12], whole[2:3]]):
                pieces = list(edge[name].stream(prompt, stop=stop, **options))
                assert pieces == list(kerasllm.stream(*pair(name), prompt, stop=stop, **options))
                assert all(pieces) and whole.startswith("".join(pieces))
                assert "".join(pieces) == kerasllm.generate(*pair(name), prompt, stop=stop, **options)

    def test_token_ids_will_do_for_a_text(self, edge, name):
        ids = edge[name].tokenizer.prompt_ids(PROMPTS[0])
        assert edge[name].generate(ids, max_new_tokens=8) == edge[name].generate(PROMPTS[0], max_new_tokens=8)
        assert edge[name].generate([ids, PROMPTS[1]], max_new_tokens=8) == edge[name].generate(
            PROMPTS[:2], max_new_tokens=8
        )
        for wrong in ([], [-1], [edge[name].vocabulary_size]):
            with pytest.raises(InputError) as caught:
                edge[name].generate([wrong])
            assert "needs token ids from 0 to" in one_line(caught)

    def test_it_stops_at_every_stop_token_of_the_tokenizer(self, edge, name, monkeypatch):
        tokens = edge[name].tokenizer.prompt_ids(PROMPTS[0])
        drawn = list(edge[name].tokens(tokens, np.zeros(12, "float32")))
        other = next(token for token in drawn if token != drawn[0])
        monkeypatch.setattr(type(edge[name].tokenizer), "stop_ids", (edge[name].tokenizer.eos_id, other))
        assert list(edge[name].tokens(tokens, np.zeros(12, "float32"))) == drawn[: drawn.index(other)]

    @pytest.mark.parametrize("length", [1, 2, 5, 17, 41])
    def test_the_state_after_a_prompt_of_any_length_is_that_of_keras(self, edge, name, length):
        tokens = np.random.default_rng(length).integers(0, edge[name].vocabulary_size, length).tolist()
        state = edge[name]._read(tokens[:-1])
        logits = edge[name]._run("decode", tokens[-1:], length - 1, state)["logits"][0, 0]
        expected = np.array(pair(name)[0](np.array([tokens])))[0, -1]
        np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)

    def test_logits_are_those_of_keras(self, edge, name):
        tokens = np.random.default_rng(5).integers(0, edge[name].vocabulary_size, 20)
        expected = np.array(pair(name)[0](tokens[None]))[0]
        np.testing.assert_allclose(edge[name].logits(tokens), expected, rtol=0, atol=1e-4)

    @pytest.mark.parametrize("chunks", [1, 3])
    def test_scores_are_those_of_keras(self, edge, name, chunks):
        tokens = np.random.default_rng(6).integers(0, edge[name].vocabulary_size, (2, chunks * SCORED + 1))
        log_probs, top_1 = edge[name].score_tokens(tokens[:, :-1], tokens[:, 1:])
        expected, expected_top_1 = score_windows(pair(name)[0], tokens[:, :-1].astype("int32"), tokens[:, 1:])
        np.testing.assert_allclose(log_probs, expected, rtol=0, atol=1e-4)
        np.testing.assert_array_equal(top_1, expected_top_1)

    @pytest.mark.parametrize("length", [0, 1, SCORED - 1, SCORED + 1])
    def test_lengths_that_no_chunk_divides_are_refused(self, edge, name, length):
        with pytest.raises(InputError) as caught:
            edge[name].score_tokens(np.zeros((1, length), "int32"), np.zeros((1, length), "int32"))
        assert f"multiples of {SCORED}" in one_line(caught) and f"not {length}" in one_line(caught)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"max_new_tokens": 0}, "max_new_tokens"),
            ({"max_new_tokens": -1}, "max_new_tokens"),
            ({"temperature": -0.1}, "temperature"),
            ({"temperature": float("nan")}, "temperature"),
            ({"top_k": -1}, "top_k"),
            ({"seed": -1}, "seed"),
            ({"top_p": 0.0}, "top_p"),
            ({"top_p": 1.5}, "top_p"),
            ({"min_p": -0.1}, "min_p"),
            ({"min_p": 1.5}, "min_p"),
        ],
    )
    def test_options_out_of_range_are_refused(self, edge, name, options, message):
        with pytest.raises(InputError) as caught:
            edge[name].generate("a", **options)
        assert message in one_line(caught)


def test_a_prompt_too_long_names_the_context(edge):
    with pytest.raises(InputError) as caught:
        edge["learned"].generate("a" * CONTEXT, max_new_tokens=1)
    assert f"context of {CONTEXT}" in one_line(caught)
    with pytest.raises(InputError) as caught:
        edge["learned"].score_tokens(np.zeros((1, CONTEXT + SCORED), "int32"), np.zeros((1, CONTEXT + SCORED), "int32"))
    assert str(CONTEXT) in one_line(caught)
    # However many tokens are asked for, no numbers are drawn for them before.
    with pytest.raises(InputError) as caught:
        edge["learned"].generate("a", max_new_tokens=10**14)
    assert f"context of {CONTEXT}" in one_line(caught)
    assert edge["lstm"].context_length is None
    assert isinstance(edge["lstm"].generate("a" * 3 * CONTEXT, max_new_tokens=1), str)


def test_the_last_slot_of_the_context_is_used(edge):
    model, tokenizer = pair("learned")
    prompt = "b" * (CONTEXT - 9)  # with bos and 8 new tokens exactly the context
    expected = kerasllm.generate(model, tokenizer, prompt, max_new_tokens=8)
    assert edge["learned"].generate(prompt, max_new_tokens=8) == expected


@settings(deadline=None, max_examples=60)
@given(
    logits=st.lists(st.integers(-8, 8), min_size=2, max_size=12),
    uniform=st.floats(0, 1, exclude_max=True, width=32),
    temperature=st.sampled_from([0.0, 0.5, 1.0, 2.0]),
    top_k=st.integers(0, 14),
    top_p=st.sampled_from([0.125, 0.5, 0.9, 1.0]),
    min_p=st.sampled_from([0.0, 0.01, 0.3, 1.0]),
)
def test_numpy_draws_the_token_that_keras_draws(logits, uniform, temperature, top_k, top_p, min_p):
    row = np.array(logits, "float32") / 2
    settings_ = np.float32(temperature), np.int32(top_k), np.float32(top_p), np.float32(min_p)
    expected = int(keras_sample(row[None], np.array([uniform], "float32"), *settings_)[0])
    drawn = sample(row, uniform, temperature, top_k, top_p, min_p)
    # At the edge of two tokens' shares the rounding of two exponential functions may decide.
    assert drawn == expected or min(abs(boundaries(row, temperature) - uniform)) < 1e-5


def boundaries(logits, temperature):
    ordered = np.sort(logits)[::-1].astype("float64") / (temperature or 1)
    shares = np.exp(ordered - ordered[0])
    return np.concatenate([shares.cumsum() / shares[: n + 1].sum() for n in range(len(shares))])


def test_importing_and_running_brings_nothing_heavy():
    code = """
import json, sys
from kerasllm.edge import EdgeModel
EdgeModel(sys.argv[1]).generate("a", max_new_tokens=2, temperature=1.0)
print(json.dumps(sorted({module.split(".")[0] for module in sys.modules})))
"""
    heavy = {"tensorflow", "tensorflow_text", "keras", "jax", "pandas", "matplotlib", "safetensors"}
    assert not heavy & set(run_fresh(code, tflite("grouped")))


def test_a_missing_file_is_refused(tmp_path):
    assert "no such file" in refused(tmp_path / "absent.tflite")
    assert "no such file" in refused(tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"TFL3", b"\0" * 100, b"not a flatbuffer " * 1000, b"\x1c\0\0\0TFL3" + bytes(64)]
)
def test_garbage_is_refused(tmp_path, content):
    ByteTokenizer().save(tmp_path)
    (tmp_path / "m.tflite").write_bytes(content)
    assert "m.tflite" in refused(tmp_path / "m.tflite")


@pytest.mark.parametrize("part", [0.01, 0.3, 0.7, 0.99])
def test_a_truncated_file_is_refused(tmp_path, part):
    folder = shutil.copytree(tflite("grouped").parent, tmp_path / "m")
    content = (folder / "model.tflite").read_bytes()
    (folder / "model.tflite").write_bytes(content[: int(len(content) * part)])
    assert "model.tflite" in refused(folder / "model.tflite")


@pytest.mark.parametrize(
    ("names", "output", "message"),
    [
        (["add"], "logits", "no signature 'decode'"),
        (["decode"], "scores", "'decode' does not return 'logits'"),
        (["decode"], "logits", "does not turn one token into logits"),
        (["decode", "prefill_8_x"], "logits", "8_x"),
    ],
)
def test_a_file_of_something_else_is_refused(tmp_path, names, output, message):
    import tensorflow as tf

    function = tf.function(lambda tokens: {output: tokens + 1.0})
    concrete = function.get_concrete_function(tf.TensorSpec((1,), tf.float32, name="tokens"))
    signatures = dict.fromkeys(names, concrete)
    tf.saved_model.save(tf.Module(), str(tmp_path / "sm"), signatures=signatures)
    content = tf.lite.TFLiteConverter.from_saved_model(str(tmp_path / "sm"), signature_keys=names).convert()
    (tmp_path / "m.tflite").write_bytes(content)
    ByteTokenizer().save(tmp_path)
    assert message in refused(tmp_path / "m.tflite")


def test_a_file_without_its_tokenizer_is_refused(tmp_path):
    shutil.copy(tflite("lstm"), tmp_path / "m.tflite")
    assert "tokenizer.json" in refused(tmp_path / "m.tflite")


def test_the_tokenizer_of_another_model_is_refused(tmp_path):
    shutil.copy(tflite("lstm"), tmp_path / "m.tflite")
    ByteTokenizer().save(tmp_path)
    message = refused(tmp_path / "m.tflite")
    assert "340" in message and "258" in message
