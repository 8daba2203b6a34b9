"""Generation: a batch is each prompt alone, a stream is the whole, and few shapes are ever compiled."""

import dataclasses
import functools
import gc
import inspect
import weakref

import numpy as np
import pytest
from keras import ops
from model_cases import BIDIRECTIONAL, LSTMS, TRANSFORMERS, make

from kerasllm import edge
from kerasllm.errors import InputError
from kerasllm.generation import (
    Sampling,
    Tracing,
    decode,
    generate,
    generate_tokens,
    left_pad,
    prefill,
    score_windows,
    stream,
)
from kerasllm.stopping import cut, settled
from kerasllm.text import ByteTokenizer

BYTES = ByteTokenizer()
PROMPTS = ["", "a", "The quick brown fox", "né"]
SAMPLED = {"temperature": 1.2, "top_k": 40, "top_p": 0.9, "seed": 7}


def byte_model(config, **changes):
    return make(dataclasses.replace(config, vocabulary_size=258, num_layers=1, **changes), scale=0.3)


@pytest.fixture(scope="module")
def models():
    """Shared, so that each function is compiled once."""
    return {
        "transformer": byte_model(TRANSFORMERS["grouped"], max_sequence_length=64),
        "learned": byte_model(TRANSFORMERS["gpt2"], max_sequence_length=40),
        "lstm": byte_model(LSTMS["lstm_stack"]),
    }


@pytest.fixture(params=["transformer", "learned", "lstm"])
def model(request, models):
    return models[request.param]


def naive(model, prompt, count, repetition_penalty=1.0, uniforms=None, temperature=0.0, top_k=0, top_p=1.0):
    """Read the whole text anew for each token; no state, no padding, no compiled function."""
    text, drawn = [BYTES.bos_id, *BYTES.encode(prompt)], []
    for step in range(count):
        logits = np.array(model(np.array([text + drawn], "int32")))[0, -1]
        seen = np.isin(np.arange(258), text + drawn)
        penalized = np.where(logits > 0, logits / repetition_penalty, logits * repetition_penalty)
        logits = np.where(seen, penalized, logits)
        uniform = 0.0 if uniforms is None else float(uniforms[step])
        drawn.append(edge.sample(logits, uniform, temperature, top_k, top_p))
        if drawn[-1] == BYTES.eos_id:
            break
    return drawn


def test_greedy_is_the_naive_loop(model):
    for prompt in PROMPTS[:3]:
        expected = naive(model, prompt, 12)
        tokens = generate_tokens(model, BYTES, [prompt], max_new_tokens=12)[0].tolist()
        assert tokens == expected + [BYTES.eos_id] * (12 - len(expected))
        assert generate(model, BYTES, prompt, max_new_tokens=12) == BYTES.decode(expected)


def test_sampling_is_the_naive_loop_on_the_seeds_uniforms(model):
    uniforms = np.random.default_rng([7, 0]).random(12, "float32")
    settings = {name: value for name, value in SAMPLED.items() if name != "seed"}
    for penalty in (1.0, 1.7):
        expected = BYTES.decode(naive(model, "The quick", 12, penalty, uniforms, **settings))
        options = {**SAMPLED, "repetition_penalty": penalty}
        assert generate(model, BYTES, "The quick", max_new_tokens=12, **options) == expected


def test_a_batch_is_each_prompt_alone(model):
    batch = generate(model, BYTES, PROMPTS, max_new_tokens=16)
    assert batch == [generate(model, BYTES, prompt, max_new_tokens=16) for prompt in PROMPTS]
    assert len(set(batch)) > 1


def test_a_sampled_row_depends_on_its_own_stream_only(model):
    batch = generate(model, BYTES, PROMPTS, max_new_tokens=16, **SAMPLED)
    assert generate(model, BYTES, PROMPTS[0], max_new_tokens=16, **SAMPLED) == batch[0]
    for row in range(1, len(PROMPTS)):
        others = [f"neighbour {row}" * (1 + r % 2) for r in range(len(PROMPTS))]
        others[row] = PROMPTS[row]
        assert generate(model, BYTES, others, max_new_tokens=16, **SAMPLED)[row] == batch[row]
    assert generate(model, BYTES, PROMPTS, max_new_tokens=16, **{**SAMPLED, "seed": 8}) != batch
    same = generate(model, BYTES, ["a"] * 3, max_new_tokens=16, **SAMPLED)
    assert len(set(same)) == 3


def test_longer_is_only_longer(model):
    """What is drawn does not depend on how much shall be drawn, nor on what is padded inside."""
    long = generate_tokens(model, BYTES, ["fox"], max_new_tokens=20)[0]
    for count in (1, 7, 16, 17):
        assert generate_tokens(model, BYTES, ["fox"], max_new_tokens=count)[0].tolist() == long[:count].tolist()


@pytest.mark.parametrize("chunk", [1, 3, 100])
@pytest.mark.parametrize(
    "options", [{}, SAMPLED, {**SAMPLED, "stop": ["e", "x\x16"]}], ids=["greedy", "sampled", "stop"]
)
def test_a_stream_joined_is_the_whole(model, chunk, options):
    pieces = list(stream(model, BYTES, "The", chunk=chunk, max_new_tokens=20, **options))
    assert "".join(pieces) == generate(model, BYTES, "The", max_new_tokens=20, **options)
    assert all(pieces)


@functools.cache
def _speaker():
    config = dataclasses.replace(
        TRANSFORMERS["gpt2"], vocabulary_size=258, num_layers=1, hidden_dim=260, num_heads=1, intermediate_dim=2,
        norm_first=False, max_sequence_length=64, tie_embeddings=False,
    )  # fmt: skip
    model = make(config, scale=0)
    model.embedding.reverse_embeddings.assign(np.eye(260, 258))
    return model


def speaker(text):
    """A Transformer that says a text: what stands at position p is answered with byte p of it."""
    model = _speaker()
    positions = np.zeros((64, 260), "float32")
    for position, token in enumerate([*text.encode(), BYTES.eos_id]):
        positions[position, token] = 1
    model.positions.embeddings.assign(positions)
    return model


def say(text, **options):
    """Whole and streamed continuation of the empty prompt (its one token stands at position 0)."""
    model = speaker(text)
    whole = generate(model, BYTES, "", max_new_tokens=60, **options)
    for chunk in (1, 2, 3, 7):
        assert "".join(stream(model, BYTES, "", chunk=chunk, max_new_tokens=60, **options)) == whole
    return whole


def test_the_end_token_ends_a_text():
    assert say("Hello.") == "Hello."
    tokens = generate_tokens(speaker("Hello."), BYTES, ["", "ab"], max_new_tokens=10)
    assert tokens.tolist() == [[*b"Hello.", *[BYTES.eos_id] * 4], [*b"llo.", *[BYTES.eos_id] * 6]]


TEXT = "one two three, four five six seven eight nine"


@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        ("three", "one two "),
        (["four", "two"], "one "),
        ("r five", "one two three, fou"),  # its middle stands at the 16th token, where one looks
        (["nothing", ""], TEXT),
        ("n", "o"),
        ("one", ""),
        ("nine", TEXT[:-4]),
        (["two three", "thr"], "one two "),  # the one that is complete first, however often one looks
        (["wo t", "o"], ""),
    ],
    ids=str,
)
def test_a_text_ends_before_a_stop_string(stop, expected):
    assert say(TEXT, stop=stop) == expected


def test_a_stop_string_of_several_bytes_a_character_is_found():
    assert say("été né à Noël", stop="né") == "été "
    assert say("日本語。東京", stop="。") == "日本語"
    assert say("aéb", stop="aé") == ""


def test_a_stream_never_shows_a_part_of_a_stop_string_or_of_a_character():
    for text, stop in ((TEXT, "three,"), ("aé", "aé"), ("日本語。", "。")):
        model, shown = speaker(text), ""
        for piece in stream(model, BYTES, "", chunk=1, stop=stop, max_new_tokens=60):
            shown += piece
            assert "\ufffd" not in shown
        assert shown == text[: text.index(stop)]


def test_what_is_settled():
    assert settled("abc", ["cde"]) == 2
    assert settled("abcd", ["cde", "bcdx"]) == 1
    assert settled("ab\ufffd", ["bé"]) == 1
    assert settled("ab\ufffd", []) == 2
    assert settled("abc", ["x"]) == 3
    assert cut("one two", ["two", "ne"]) == ("o", True)
    assert cut("one two", ["three"]) == ("one two", False)


def test_rows_end_each_at_its_own_stop():
    model = speaker(TEXT)
    assert generate(model, BYTES, ["", "xy"], max_new_tokens=40, stop=["two", "four"]) == ["one ", "e "]


def test_the_repetition_penalty_stops_a_loop():
    model = speaker("aaaaaaaa")
    assert generate(model, BYTES, "", max_new_tokens=4) == "aaaa"
    table = np.array(model.positions.embeddings.value)
    table[:8, ord("b")] = 0.8
    model.positions.embeddings.assign(table)
    assert generate(model, BYTES, "", max_new_tokens=2) == "aa"
    assert generate(model, BYTES, "", max_new_tokens=2, repetition_penalty=1.5) == "ab"
    # Tokens of the prompt count too.
    assert generate(model, BYTES, "a", max_new_tokens=1, repetition_penalty=1.5) == "b"


@pytest.mark.parametrize("count", [1, 15, 16, 17])
def test_max_new_tokens_is_exact(models, count):
    assert generate_tokens(models["lstm"], BYTES, ["ab"], max_new_tokens=count).shape == (1, count)
    assert generate(speaker("a" * 40), BYTES, "", max_new_tokens=count) == "a" * count
    assert "".join(stream(speaker("a" * 40), BYTES, "", chunk=4, max_new_tokens=count)) == "a" * count


def test_no_prompts_is_no_continuations(models):
    assert generate(models["lstm"], BYTES, [], max_new_tokens=4) == []


def test_a_prompt_may_fill_the_context_and_no_more(models):
    model = models["learned"]  # 40 tokens, between two powers of two
    for prompt, count in (("x" * 33, 6), ("x" * 38, 1), ("", 39)):
        expected = naive(model, prompt, count)
        assert generate_tokens(model, BYTES, [prompt], max_new_tokens=count)[0, : len(expected)].tolist() == expected
    for prompt, count in (("x" * 39, 1), ("x" * 3, 37), ("x" * 500, 1)):
        with pytest.raises(InputError, match=r"^prompt 2: .* do not fit the model's context of 40; .*$") as error:
            generate(model, BYTES, ["a", prompt], max_new_tokens=count)
        assert "\n" not in str(error.value)
    # An LSTM has no such limit.
    assert generate_tokens(models["lstm"], BYTES, ["x" * 100], max_new_tokens=2).shape == (1, 2)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("max_new_tokens", 0),
        ("max_new_tokens", 2**31),
        ("seed", -1),
        ("top_k", 2**31),
        ("temperature", -1.0),
        ("temperature", float("nan")),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("repetition_penalty", 0.0),
    ],
)
def test_options_out_of_range_are_refused_and_named(models, option, value):
    with pytest.raises(InputError, match=f"^{option} must be .*received .*{value}"):
        generate(models["lstm"], BYTES, "a", **{option: value})
    with pytest.raises(InputError, match=f"^{option} must be"):
        list(stream(models["lstm"], BYTES, "a", **{option: value}))


@pytest.mark.parametrize("chunk", [0, -1])
def test_a_stream_that_would_not_move_is_refused(models, chunk):
    with pytest.raises(InputError, match=f"^chunk must be at least 1, received {chunk}$"):
        next(stream(models["lstm"], BYTES, "a", chunk=chunk))


def test_a_bidirectional_model_is_refused():
    model = byte_model(BIDIRECTIONAL["bidirectional"])
    with pytest.raises(InputError, match="^a bidirectional model cannot continue text; "):
        generate(model, BYTES, "a")


def test_another_models_tokenizer_is_refused():
    with pytest.raises(InputError, match="^the tokenizer has 258 tokens but the model 19; use the tokenizer"):
        generate(make(LSTMS["lstm"]), BYTES, "a")


# Compiled functions


def counted(model):
    """Count the model's runs in Python: compiled functions run it only while they are traced."""
    calls, encode = [], model.encode

    def counting(*arguments, **options):
        calls.append(1)
        return encode(*arguments, **options)

    model.encode = counting
    return calls


@pytest.mark.parametrize("config", [TRANSFORMERS["llama"], LSTMS["lstm"]], ids=["transformer", "lstm"])
def test_nothing_is_traced_again_for_like_calls(config):
    changes = {} if "embedding_dim" in config.to_dict() else {"max_sequence_length": 128}
    model = byte_model(config, **changes)
    calls = counted(model)
    # One loop for greedy tokens, one for drawn ones, and one that looks at what was seen.
    for options in ({}, {"temperature": 1.0}, {"temperature": 1.0, "repetition_penalty": 1.1}):
        generate(model, BYTES, "abc", max_new_tokens=5, **options)
    traced = len(calls)
    assert 0 < traced < 20
    for prompt in ("", "a", "fourteen bytes", "xyz"):  # up to 16 with the start token
        generate(model, BYTES, prompt, max_new_tokens=7, temperature=0.5, top_k=3, top_p=0.8, repetition_penalty=1.2)
        generate(model, BYTES, prompt, max_new_tokens=16, temperature=1.5, seed=3, stop="q")
    "".join(stream(model, BYTES, "abc", max_new_tokens=9))
    assert len(calls) == traced
    # Other lengths and batches once more, then never: TensorFlow leaves their size open.
    generate(model, BYTES, ["x" * 20, "y"], max_new_tokens=5)
    again = len(calls)
    for size in (1, 3, 60):
        generate(model, BYTES, ["x" * size] * 3, max_new_tokens=5)
    assert len(calls) == again


def test_new_weights_are_used_at_once(models):
    for model in (models["transformer"], models["lstm"]):
        text = np.array([[256, 97, 98]], "int32")
        before = generate_tokens(model, BYTES, ["ab"], max_new_tokens=4), score_windows(model, text, text)[0]
        for variable in model.trainable_variables:
            variable.assign(-variable.value)
        assert generate_tokens(model, BYTES, ["ab"], max_new_tokens=4)[0].tolist() == naive(model, "ab", 4)
        log_probs = score_windows(model, text, text)[0]
        expected = np.take_along_axis(np.array(ops.log_softmax(model(text))), text[..., None], -1)[..., 0]
        np.testing.assert_allclose(log_probs, expected, atol=1e-5)
        assert np.abs(log_probs - before[1]).max() > 1e-3
        for variable in model.trainable_variables:  # the models are shared
            variable.assign(-variable.value)
        assert generate_tokens(model, BYTES, ["ab"], max_new_tokens=4).tolist() == before[0].tolist()


@pytest.mark.parametrize("config", [TRANSFORMERS["llama"], LSTMS["lstm"]], ids=["transformer", "lstm"])
def test_a_model_goes_with_its_compiled_functions(config):
    model = byte_model(config)
    generate(model, BYTES, "a", max_new_tokens=2)
    score_windows(model, np.zeros((1, 2), "int32"), np.zeros((1, 2), "int32"))
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_prefill_and_decode_are_pure_functions_of_tensors(models):
    """Cut anywhere, the loop goes on as if it had not been cut; a done row stays done."""
    model = models["transformer"]
    tokens, padding = left_pad([[256, 97], [256, *b"quick"]], BYTES.eos_id)
    uniforms = np.random.default_rng(0).random((2, 8), "float32")
    tracing = Tracing(BYTES.stop_ids)
    start = prefill(model, tokens, padding, 8, tracing)
    options = {"sampling": Sampling(1.0), "tracing": tracing}
    whole = decode(model, start, uniforms, 0, 8, **options)
    half = decode(model, decode(model, start, uniforms, 0, 3, **options), uniforms, 3, 8, **options)
    assert np.array(whole.tokens).tolist() == np.array(half.tokens).tolist()
    assert np.array(start.tokens).tolist() == [[BYTES.eos_id] * 8] * 2
    done = start._replace(done=np.array([True, True]))
    assert np.array(decode(model, done, uniforms, 0, 8, **options).tokens).tolist() == [[BYTES.eos_id] * 8] * 2


def test_tokens_seen_are_those_of_the_prompt_and_no_padding(models):
    tokens, padding = left_pad([[256, 97, 97], [5], [256, *b"quick"]], BYTES.eos_id)
    seen = np.array(prefill(models["lstm"], tokens, padding, 8, Tracing(BYTES.stop_ids, penalize=True)).seen)
    assert seen.shape == (3, 258) and seen.dtype == bool
    assert [set(np.flatnonzero(row)) for row in seen] == [{97, 256}, {5}, {256, *b"quick"}]


def test_left_pad_rounds_up_but_not_beyond_the_bound():
    for length, bound, expected in ((1, None, 16), (16, None, 16), (17, None, 32), (17, 20, 20), (3, 8, 8)):
        tokens, padding = left_pad([[5] * length, [6]], 9, bound)
        assert tokens.shape == (2, expected)
        assert padding.tolist() == [expected - length, expected - 1]
        assert tokens[1].tolist() == [9] * (expected - 1) + [6]


def test_generate_and_stream_offer_the_same_options():
    options = set(inspect.signature(generate).parameters) - {"model", "tokenizer", "prompts"}
    more = {"max_new_tokens", "stop", "seed", "jit_compile", "sources", "source_tokenizer"}
    assert options == {*Sampling._fields, *more}
