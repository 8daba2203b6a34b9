"""Several continuations and beams: exhaustive search, `transformers`, and the model's own probabilities agree."""

import dataclasses

import numpy as np
import pytest
from artefacts import one_line
from model_cases import LSTMS, TRANSFORMERS, VOCABULARY, make

from kerasllm import stopping
from kerasllm.errors import InputError
from kerasllm.generation import generate, generate_sequences

CASES = {"transformer": TRANSFORMERS["grouped"], "learned": TRANSFORMERS["gpt2"], "lstm": LSTMS["lstm_stack"]}
PROMPTS = [[1, 5, 7], [1], [1, 2, 3, 4, 9, 8]]


class Numbers:
    """A tokenizer whose texts are token ids, with several stop tokens."""

    def __init__(self, size=VOCABULARY, stop_ids=(2, 11)):
        self.vocabulary_size, self.stop_ids, self.eos_id = size, tuple(stop_ids), stop_ids[0]

    def prompt_ids(self, text):
        return [int(word) for word in text.split()]

    def decode(self, ids):
        return " ".join(map(str, ids))


@pytest.fixture(scope="module")
def models():
    return {name: make(config, seed=3) for name, config in CASES.items()}


@pytest.fixture(params=CASES)
def model(request, models):
    return models[request.param]


def log_probs(model, tokens):
    """Log probabilities after every token of a text, by the plain forward pass."""
    logits = np.array(model(np.array([tokens], "int32")))[0].astype("float64")
    return (
        logits
        - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True))
        - logits.max(-1, keepdims=True)
    )


def probabilities(model, prompt, tokens):
    """Log probability of each token of a continuation."""
    rows = log_probs(model, [*prompt, *tokens])[len(prompt) - 1 : -1]
    return rows[np.arange(len(tokens)), list(tokens)]


def test_log_probabilities_are_those_of_the_forward_pass(model):
    found = generate_sequences(model, Numbers(), PROMPTS, num_sequences=3, max_new_tokens=9, temperature=1.5, seed=4)
    assert [len(row) for row in found] == [3, 3, 3]
    ended = 0
    for prompt, row in zip(PROMPTS, found, strict=True):
        for one in row:
            np.testing.assert_allclose(one.log_probs, probabilities(model, prompt, one.tokens), atol=2e-4)
            assert one.score == pytest.approx(sum(one.log_probs) / len(one.tokens), abs=1e-5)
            stops = [token in (2, 11) for token in one.tokens]
            assert not any(stops[:-1]) and (stops[-1] or len(one.tokens) == 9)
            assert one.text == " ".join(str(token) for token in one.tokens if token not in (2, 11))
            ended += stops[-1]
    assert ended


def test_the_first_of_several_is_the_one_alone_and_the_others_differ(model):
    options = {"max_new_tokens": 12, "temperature": 1.2, "top_p": 0.95, "seed": 7}
    several = generate_sequences(model, Numbers(), PROMPTS, num_sequences=4, **options)
    assert [row[0].text for row in several] == generate(model, Numbers(), PROMPTS, **options)
    assert all(len({one.tokens for one in row}) > 1 for row in several)
    # In a batch as alone; but the streams of row 0 are those of the first prompt only.
    alone = generate_sequences(model, Numbers(), PROMPTS[:1], num_sequences=4, **options)
    assert [one.tokens for one in alone[0]] == [one.tokens for one in several[0]]


def test_generation_stops_at_every_stop_token(model):
    options = {"max_new_tokens": 16, "temperature": 2.0, "seed": 1}
    endless = Numbers(stop_ids=(VOCABULARY - 1,))
    texts = [row[0].tokens for row in generate_sequences(model, endless, PROMPTS * 4, **options)]
    for stop_ids in ((2, 11), (11, 2), (5,)):
        stopped = generate(model, Numbers(stop_ids=stop_ids), PROMPTS * 4, **options)
        for tokens, text in zip(texts, stopped, strict=True):
            kept = stopping.until(tokens, stop_ids)
            if VOCABULARY - 1 not in kept:
                assert text == " ".join(map(str, kept))


def exhaustive(model, prompt, length, penalty, stop_ids):
    """All continuations of at most `length` tokens with their scores, best first."""
    found = []

    def walk(tokens, total):
        if tokens and (tokens[-1] in stop_ids or len(tokens) == length):
            found.append((total / len(tokens) ** penalty, tokens))
            return
        for token, value in enumerate(log_probs(model, [*prompt, *tokens])[-1]):
            walk((*tokens, token), total + value)

    walk((), 0.0)
    return sorted(found, reverse=True)


@pytest.mark.parametrize("kind", CASES)
@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.0])
def test_enough_beams_find_the_best_of_all_continuations(kind, penalty):
    size, length = 5, 3
    model = make(dataclasses.replace(CASES[kind], vocabulary_size=size), seed=5)
    tokenizer = Numbers(size, (2,))
    prompt = [1, 3]
    expected = exhaustive(model, prompt, length, penalty, (2,))[:6]
    options = {"num_beams": size**length, "num_sequences": 6, "max_new_tokens": length, "length_penalty": penalty}
    found = generate_sequences(model, tokenizer, [prompt], **options)[0]
    assert [one.tokens for one in found] == [tokens for _, tokens in expected]
    np.testing.assert_allclose([one.score for one in found], [score for score, _ in expected], atol=1e-4)


def test_a_batch_of_searches_is_each_alone_and_never_worse_than_greedy(model):
    options = {"num_beams": 4, "num_sequences": 4, "max_new_tokens": 10}
    together = generate_sequences(model, Numbers(), PROMPTS, **options)
    for prompt, row in zip(PROMPTS, together, strict=True):
        alone = generate_sequences(model, Numbers(), [prompt], **options)[0]
        assert [one.tokens for one in alone] == [one.tokens for one in row]
        assert [one.score for one in row] == sorted((one.score for one in row), reverse=True)
        for one in row:
            np.testing.assert_allclose(one.log_probs, probabilities(model, prompt, one.tokens), atol=2e-4)
        greedy = generate_sequences(model, Numbers(), [prompt], max_new_tokens=10, length_penalty=0.0)[0][0]
        best = generate_sequences(model, Numbers(), [prompt], **{**options, "length_penalty": 0.0})[0][0]
        assert best.score >= greedy.score - 1e-5


def test_one_beam_is_greedy(model):
    greedy = generate(model, Numbers(), PROMPTS, max_new_tokens=10)
    assert [row[0].text for row in generate_sequences(model, Numbers(), PROMPTS, max_new_tokens=10)] == greedy


@pytest.mark.parametrize("penalty", [0.0, 1.0, 1.7])
def test_beams_are_those_of_transformers(penalty, tmp_path):
    import torch
    import transformers

    from kerasllm.convert.huggingface import read_huggingface_model

    torch.manual_seed(1)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.LlamaConfig(vocab_size=VOCABULARY, max_position_embeddings=64, **sizes)
    theirs = transformers.LlamaForCausalLM(config).eval()
    for parameter in theirs.parameters():
        parameter.data.mul_(12)  # a new model is nearly uniform: its beams would be ties
    theirs.save_pretrained(tmp_path)
    model = read_huggingface_model(tmp_path)
    for prompt in PROMPTS:
        with torch.no_grad():
            output = theirs.generate(
                torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
                generation_config=transformers.GenerationConfig(
                    num_beams=4,
                    num_return_sequences=3,
                    max_new_tokens=12,
                    do_sample=False,
                    length_penalty=penalty,
                    early_stopping=False,
                    eos_token_id=[2, 11],
                    pad_token_id=2,
                    bos_token_id=1,
                ),
                return_dict_in_generate=True,
                output_scores=True,
            )
        options = {"num_beams": 4, "num_sequences": 3, "max_new_tokens": 12, "length_penalty": penalty}
        found = generate_sequences(model, Numbers(), [prompt], **options)[0]
        for one, tokens, score in zip(found, output.sequences.tolist(), output.sequences_scores.tolist(), strict=True):
            assert list(one.tokens) == tokens[len(prompt) :][: len(one.tokens)]
            assert one.score == pytest.approx(score, abs=1e-3)


@pytest.mark.parametrize("kind", ["transformer", "lstm"])
def test_xla_gives_the_same(kind, models):
    options = {"max_new_tokens": 10, "num_sequences": 2}
    for more in ({"temperature": 1.1, "min_p": 0.02, "top_k": 9, "repetition_penalty": 1.2}, {"num_beams": 3}):
        plain, compiled = (
            generate_sequences(models[kind], Numbers(), PROMPTS, jit_compile=jit, **options, **more)
            for jit in (False, True)
        )
        assert [[one.tokens for one in row] for row in plain] == [[one.tokens for one in row] for row in compiled]


def test_token_ids_and_texts_are_alike(model):
    texts = [" ".join(map(str, prompt)) for prompt in PROMPTS]
    assert generate(model, Numbers(), texts, max_new_tokens=6) == generate(model, Numbers(), PROMPTS, max_new_tokens=6)
    assert generate(model, Numbers(), PROMPTS[0], max_new_tokens=6) == generate(
        model, Numbers(), texts[0], max_new_tokens=6
    )


REFUSED = {
    "num_sequences must be at least 1, received 0": {"num_sequences": 0},
    "num_beams must be at least 1, received -1": {"num_beams": -1},
    "num_sequences 3 is more than num_beams 2": {"num_sequences": 3, "num_beams": 2},
    "a greedy continuation has no 2 versions": {"num_sequences": 2},
    "draws nothing": {"num_beams": 2, "temperature": 1.0},
    "length_penalty must be a number": {"num_beams": 2, "length_penalty": float("nan")},
    "from -10 to 10, received 1000": {"num_beams": 2, "length_penalty": 1000.0},
    "from -10 to 10, received -20": {"num_beams": 2, "length_penalty": -20.0},
    "min_p must be": {"temperature": 1.0, "min_p": 1.5},
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_cannot_be_is_refused(message, models):
    with pytest.raises(InputError) as error:
        generate_sequences(models["lstm"], Numbers(), PROMPTS, **REFUSED[message])
    assert message in one_line(error)


@pytest.mark.parametrize("penalty", [-10.0, 10.0])
def test_the_strongest_penalties_of_length_still_compare(penalty, models):
    options = {"num_beams": 2, "num_sequences": 2, "max_new_tokens": 24, "length_penalty": penalty}
    for row in generate_sequences(models["transformer"], Numbers(), PROMPTS, **options):
        assert len(row) == 2 and all(np.isfinite(one.score) and one.score < 0 for one in row)


@pytest.mark.parametrize("prompt", [[], [-1], [VOCABULARY]])
def test_ids_that_the_model_lacks_are_refused(prompt, models):
    with pytest.raises(InputError) as error:
        generate_sequences(models["lstm"], Numbers(), [[1], prompt])
    assert "prompt 2: needs token ids from 0 to" in one_line(error)
