"""Corners of several continuations: fewer than beams, several stop tokens, stop strings, one reading, one prompt."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from model_cases import LSTMS, TRANSFORMERS, VOCABULARY, make

from kerasllm.generation import Tracing, beam_search, generate, generate_sequences, prefill

CASES = {"transformer": TRANSFORMERS["grouped"], "lstm": LSTMS["lstm_stack"]}
PROMPTS = [[1, 5, 7], [1], [1, 2, 3, 4, 9, 8]]
TINY = 5


class Words:
    """A tokenizer whose texts are token ids."""

    def __init__(self, size=VOCABULARY, stop_ids=(2,)):
        self.vocabulary_size, self.stop_ids, self.eos_id = size, stop_ids, stop_ids[0]

    def prompt_ids(self, text):
        return [int(word) for word in text.split()]

    def decode(self, ids):
        return " ".join(map(str, ids))


@pytest.fixture(scope="module", params=CASES)
def model(request):
    return make(CASES[request.param], seed=3)


@pytest.fixture(scope="module", params=CASES)
def tiny(request):
    return make(dataclasses.replace(CASES[request.param], vocabulary_size=TINY), seed=5)


def distribution(model, tokens):
    logits = np.array(model(np.array([tokens], "int32")))[0, -1].astype("float64")
    return logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())


def reference_search(model, prompt, beams, count, penalty, stop_ids):
    """Beam search in plain Python: no state, no batch, no bound on how many candidates are looked at."""
    running, finished = [((), 0.0)], []
    for length in range(1, count + 1):
        candidates = [
            ((*tokens, token), total + value)
            for tokens, total in running
            for token, value in enumerate(distribution(model, [*prompt, *tokens]))
        ]
        candidates.sort(key=lambda one: -one[1])
        for tokens, total in candidates[:beams]:
            if tokens[-1] in stop_ids or length == count:
                finished.append((tokens, total / length**penalty))
        finished = sorted(finished, key=lambda one: -one[1])[:beams]
        running = [one for one in candidates if one[0][-1] not in stop_ids][:beams]
        full = len(finished) == beams
        if not running or (full and running[0][1] / length**penalty <= finished[-1][1]):
            break
    return finished


@pytest.mark.parametrize("stop_ids", [(2,), (2, 3), (0, 1, 2, 3)], ids=len)
@pytest.mark.parametrize("beams", [2, 9])
def test_beams_are_those_of_plain_python_however_many_tokens_stop(tiny, beams, stop_ids):
    for penalty in (0.0, 1.0, 2.0):
        options = {"num_beams": beams, "num_sequences": beams, "max_new_tokens": 5, "length_penalty": penalty}
        found = generate_sequences(tiny, Words(TINY, stop_ids), [[1, 3]], **options)[0]
        expected = reference_search(tiny, [1, 3], beams, 5, penalty, stop_ids)
        assert [one.tokens for one in found] == [tokens for tokens, _ in expected]
        np.testing.assert_allclose([one.score for one in found], [score for _, score in expected], atol=1e-4)


def test_where_there_are_fewer_continuations_than_beams_there_are_no_others(tiny):
    for count, existing in ((1, TINY), (2, 1 + (TINY - 1) * TINY)):
        options = {"num_beams": 30, "num_sequences": 30, "max_new_tokens": count}
        for row in generate_sequences(tiny, Words(TINY), [[1, 3], [4]], **options):
            assert len({one.tokens for one in row}) == len(row) == existing
            assert all(one.log_probs and one.score < 0 for one in row)
            # All there are: their probabilities are everything.
            assert sum(np.exp(sum(one.log_probs)) for one in row) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(
    "options", [{"num_beams": 4}, {"num_sequences": 3, "temperature": 1.0}], ids=["beams", "drawn"]
)
def test_no_prompts_is_no_continuations(model, options):
    assert generate_sequences(model, Words(), [], max_new_tokens=4, **options) == []


def test_one_prompt_may_stand_alone(model):
    """A text is one prompt and not its characters; ids are one prompt, too."""
    expected = generate_sequences(model, Words(), [[1, 5, 7]], max_new_tokens=5)
    assert len(expected) == 1
    for alone in ("1 5 7", [1, 5, 7], np.array([1, 5, 7])):
        assert generate_sequences(model, Words(), alone, max_new_tokens=5) == expected


@pytest.mark.parametrize(
    "options",
    [{"num_beams": 4, "num_sequences": 4}, {"num_sequences": 4, "temperature": 1.3, "seed": 2}],
    ids=["beams", "drawn"],
)
def test_tokens_end_with_the_one_that_completes_a_stop_string(model, options):
    plain = generate_sequences(model, Words(), PROMPTS, max_new_tokens=40, **options)
    longest = max(sum(plain, []), key=lambda one: len(one.tokens))
    stop = f" {longest.tokens[2]} "
    stopped = generate_sequences(model, Words(), PROMPTS, max_new_tokens=40, stop=stop, **options)
    cut = 0
    for number, row in enumerate(stopped):
        for one in row:
            whole = next(other for other in plain[number] if other.tokens[: len(one.tokens)] == one.tokens)
            assert one.log_probs == pytest.approx(whole.log_probs[: len(one.tokens)], abs=1e-5)
            assert one.score == pytest.approx(sum(one.log_probs) / len(one.tokens), abs=1e-5)
            if len(one.tokens) < len(whole.tokens):
                cut += 1
                words = Words().decode(one.tokens)
                assert stop in words and stop not in Words().decode(one.tokens[:-1])
                assert one.text == words[: words.index(stop)]
            else:
                assert stop not in one.text
        if "num_beams" in options:
            assert [one.score for one in row] == sorted((one.score for one in row), reverse=True)
        else:
            assert row[0].text == generate(model, Words(), PROMPTS, max_new_tokens=40, stop=stop,
                                           temperature=1.3, seed=2)[number]  # fmt: skip
    assert cut


@pytest.mark.parametrize("search", [False, True], ids=["drawn", "beams"])
def test_a_prompt_is_read_once_for_all_its_continuations(model, monkeypatch, search):
    read, encode = [], type(model).encode

    def spy(self, tokens, **options):
        read.append(tuple(tokens.shape))
        return encode(self, tokens, **options)

    monkeypatch.setattr(type(model), "encode", spy)
    tokens, padding = np.array([[1, 5, 7, 8], [2, 2, 1, 9]], "int32"), np.array([0, 2], "int32")
    if search:
        beam_search(model, tokens, padding, np.int32(1), np.float32(1), beams=3, capacity=4, stop_ids=(2,))
        assert read == [(2, 3), (6, 1)]
    else:
        start = prefill(model, tokens, padding, 4, Tracing((2,)), copies=3)
        assert read == [(2, 3)]
        assert np.array(start.token).tolist() == [8, 8, 8, 9, 9, 9]
        assert {value.shape[0] for name, value in start.state.items() if name != "position"} == {6}


def observe(root):
    """What each backend must agree on, as plain numbers."""
    from kerasllm import folder

    seen = {"backend": keras.backend.backend()}
    for kind in CASES:
        model = folder.load(Path(root) / kind)[0]
        for name, options in {
            "beams": {"num_beams": 4, "num_sequences": 4, "length_penalty": 0.6},
            "drawn": {"num_sequences": 3, "temperature": 1.1, "min_p": 0.03, "top_k": 12, "repetition_penalty": 1.3},
        }.items():
            found = generate_sequences(model, Words(258, (2, 11)), PROMPTS, max_new_tokens=9, **options)
            seen[f"{kind} {name}"] = [[dataclasses.asdict(one) for one in row] for row in found]
    return seen


@pytest.mark.slow
def test_jax_finds_the_sequences_that_tensorflow_finds(tmp_path):
    from kerasllm import folder
    from kerasllm.text import ByteTokenizer

    for kind, config in CASES.items():
        config = dataclasses.replace(config, vocabulary_size=258)
        folder.save(make(config, seed=3, scale=0.5), ByteTokenizer(), tmp_path / kind)
    environment = {**os.environ, "KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"}
    run = [sys.executable, __file__, str(tmp_path)]
    result = subprocess.run(run, env=environment, capture_output=True, text=True, cwd=Path(__file__).parent.parent)
    assert result.returncode == 0, result.stderr
    ours, theirs = observe(tmp_path), json.loads(result.stdout.strip().splitlines()[-1])
    assert (ours.pop("backend"), theirs.pop("backend")) == (keras.backend.backend(), "jax")
    assert ours.keys() == theirs.keys() and len(ours) == 2 * len(CASES)
    for name, rows in ours.items():
        for one, other in zip(sum(rows, []), sum(theirs[name], []), strict=True):
            assert list(one["tokens"]) == other["tokens"], name
            np.testing.assert_allclose(one["log_probs"], other["log_probs"], atol=1e-3)


if __name__ == "__main__":
    print(json.dumps(observe(sys.argv[1])))
