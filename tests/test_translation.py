"""Encoder-decoders in generation: naive loops agree, a batch is each source alone, toy tasks are learnt."""

import dataclasses

import keras
import numpy as np
import pytest
from seq2seq_cases import SEQ2SEQS, SOURCE_VOCABULARY, VOCABULARY, make
from test_beam import Words

from kerasllm import backend
from kerasllm.errors import InputError
from kerasllm.generation import generate, generate_sequences, source_ids, stream, translate
from kerasllm.models import LSTMEncoderDecoder, TransformerSeq2Seq

SOURCES = [[1, 5, 7], [1], [1, 2, 3, 4, 9, 8, 3, 3, 5, 6, 1, 2, 4, 4, 4, 6, 7, 8], [18, 17]]
STOP = (2, 11)
CASES = {name: SEQ2SEQS[name] for name in ("learned", "grouped", "luong", "bahdanau")}
SAMPLED = {"temperature": 1.2, "top_k": 9, "seed": 7}


class Start(Words):
    """Texts are token ids, and begin with token 1."""

    def prompt_ids(self, text):
        return [1, *super().prompt_ids(text)]


TARGETS = Start(VOCABULARY, STOP)


def of_sources(model):
    return Start(model.source_vocabulary_size, STOP)


@pytest.fixture(scope="module")
def models():
    # An LSTM of small weights would say the same of every source.
    scales = {"luong": 1.5, "bahdanau": 1.5}
    return {name: make(config, seed=3, scale=scales.get(name, 0.4)) for name, config in CASES.items()}


@pytest.fixture(params=CASES)
def model(request, models):
    return models[request.param]


def write(model, sources=SOURCES, **options):
    return translate(model, TARGETS, sources, source_tokenizer=of_sources(model), max_new_tokens=9, **options)


def log_probs(model, source, target):
    """After each token of a target, by the plain forward pass of source and target."""
    forward = backend.compiled(model, lambda model, *pair: model(pair), "forward")
    logits = np.array(forward(np.array([source], "int32"), np.array([target], "int32")))[0].astype("float64")
    return (
        logits
        - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True))
        - logits.max(-1, keepdims=True)
    )


def test_greedy_is_the_naive_loop(model):
    for source, found in zip(SOURCES, write(model), strict=True):
        target = [1]
        while len(target) < 10 and target[-1] not in STOP:
            target.append(int(log_probs(model, source, target)[-1].argmax()))
        expected = target[1:-1] if target[-1] in STOP else target[1:]
        assert found == TARGETS.decode(expected)


@pytest.mark.parametrize("options", [{}, SAMPLED, {"num_beams": 3}], ids=["greedy", "sampled", "beams"])
def test_a_batch_is_each_source_alone(model, options):
    batch = write(model, **options)
    assert len(set(batch)) > 1
    for row, source in enumerate(SOURCES):
        if "seed" not in options:
            assert write(model, source, **options) == batch[row]
        # A sampled row depends on its own stream only.
        others = [[3] * (1 + r) for r in range(len(SOURCES))]
        others[row] = source
        assert write(model, others, **options)[row] == batch[row]


def reference_search(model, source, beams, count, penalty):
    """Beam search in plain Python: no state, no batch."""
    running, finished = [((), 0.0)], []
    for length in range(1, count + 1):
        candidates = [
            ((*tokens, token), total + value)
            for tokens, total in running
            for token, value in enumerate(log_probs(model, source, [1, *tokens])[-1])
        ]
        candidates.sort(key=lambda one: -one[1])
        for tokens, total in candidates[:beams]:
            if tokens[-1] in STOP or length == count:
                finished.append((tokens, total / length**penalty))
        finished = sorted(finished, key=lambda one: -one[1])[:beams]
        running = [one for one in candidates if one[0][-1] not in STOP][:beams]
        if len(finished) == beams and running[0][1] / length**penalty <= finished[-1][1]:
            break
    return finished


def test_beams_are_those_of_plain_python(model):
    read = {"sources": SOURCES[:2], "source_tokenizer": of_sources(model)}
    for penalty in (0.0, 1.5):
        options = {"num_beams": 3, "num_sequences": 3, "max_new_tokens": 5, "length_penalty": penalty, **read}
        rows = generate_sequences(model, TARGETS, ["", ""], **options)
        for source, found in zip(SOURCES, rows, strict=False):
            expected = reference_search(model, source, 3, 5, penalty)
            assert [one.tokens for one in found] == [tokens for tokens, _ in expected]
            np.testing.assert_allclose([one.score for one in found], [score for _, score in expected], atol=1e-4)
        best = write(model, SOURCES[:2], num_beams=3, length_penalty=penalty) if penalty else []
        assert len(set(best)) == len(best)


def test_prompts_of_unequal_length_begin_targets(model):
    prompts, read = [[1, 5, 4, 3], [1], [1, 7], [1, 9, 8]], {"source_tokenizer": of_sources(model), "max_new_tokens": 6}
    batch = generate(model, TARGETS, prompts, sources=SOURCES, **read)
    for row, (prompt, source) in enumerate(zip(prompts, SOURCES, strict=True)):
        assert generate(model, TARGETS, prompt, sources=source, **read) == batch[row]
        assert "".join(stream(model, TARGETS, prompt, sources=source, **read)) == batch[row]
        first = log_probs(model, source, prompt)[-1].argmax()
        assert batch[row] == "" if first in STOP else batch[row].split()[0] == str(first)
    several = generate_sequences(model, TARGETS, prompts, sources=SOURCES, num_sequences=2, temperature=1.0, **read)
    for prompt, source, row in zip(prompts, SOURCES, several, strict=True):
        for one in row:
            expected = log_probs(model, source, [*prompt, *one.tokens])[len(prompt) - 1 : -1]
            np.testing.assert_allclose(one.log_probs, expected[np.arange(len(one.tokens)), one.tokens], atol=1e-4)


def test_a_text_is_read_as_a_document(models):
    model = models["grouped"]
    assert source_ids(TARGETS, "5 7") == [1, 5, 7, 2]
    texts = translate(model, TARGETS, ["5 7", ""], max_new_tokens=5)
    assert texts == translate(model, TARGETS, [[1, 5, 7, 2], [1, 2]], max_new_tokens=5)
    assert translate(model, TARGETS, "5 7", max_new_tokens=5) == texts[0]
    assert translate(model, TARGETS, [], max_new_tokens=5) == translate(model, TARGETS, [], num_beams=2) == []


REFUSED = {
    "source 2: needs token ids from 0 to 18": {"sources": [[1], [19]]},
    "source 1: needs token ids from 0 to": {"sources": [[], [1]]},
    "needs a source for each of 2 prompts, received 1": {"sources": [[1]]},
    "needs a source for each of 2 prompts, received none": {"sources": None},
    "the tokenizer of sources has 23 tokens": {"source_tokenizer": Start(SOURCE_VOCABULARY, STOP)},
}


@pytest.mark.parametrize("message", REFUSED)
def test_sources_that_cannot_be_read_are_refused(message, models):
    given = {"sources": [[1], [1]], **REFUSED[message]}
    for call in (generate, lambda *a, **k: generate_sequences(*a, num_beams=2, **k)):
        with pytest.raises(InputError, match=message) as error:
            call(models["grouped"], TARGETS, ["", ""], **given)
        assert "\n" not in str(error.value)


def test_a_source_must_fit_the_context_and_be_for_an_encoder_decoder(models):
    from model_cases import LSTMS
    from model_cases import make as make_language_model

    with pytest.raises(InputError, match="source 1: 41 tokens do not fit the model's context of 40; shorten"):
        write(models["learned"], [[1] * 41])
    with pytest.raises(InputError, match="the model reads no sources"):
        generate(make_language_model(LSTMS["lstm"]), TARGETS, [""], sources=[[1]])


def pairs(count, seed):
    """Words of two to seven letters, and their reverse; start 1, end 2, padding 0."""
    rng = np.random.default_rng(seed)
    source, target = np.zeros((2, count, 9), "int32")
    for row in range(count):
        word = rng.integers(3, VOCABULARY, rng.integers(2, 8))
        source[row, : len(word) + 2], target[row, : len(word) + 2] = [1, *word, 2], [1, *word[::-1], 2]
    return source, target


LEARNERS = {
    "transformer": (
        TransformerSeq2Seq,
        dataclasses.replace(SEQ2SEQS["vaswani"], num_layers=1, hidden_dim=64, intermediate_dim=128, norm_first=True),
        12,
    ),
    "lstm": (
        LSTMEncoderDecoder,
        dataclasses.replace(SEQ2SEQS["luong"], num_layers=1, embedding_dim=32, hidden_dim=96),
        4,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", LEARNERS)
def test_it_learns_to_reverse(kind):
    keras.utils.set_random_seed(1)
    cls, config, epochs = LEARNERS[kind]
    model = cls(dataclasses.replace(config, dropout=0.0))
    source, target = pairs(4096, 0)
    inputs = {"source": source, "target": target[:, :-1], "source_padding_mask": source > 0}
    labels = target[:, 1:]
    model.compile(keras.optimizers.Adam(4e-3))
    history = model.fit(
        inputs, labels, sample_weight=(labels > 0).astype("float32"), batch_size=64, epochs=epochs, verbose=0
    )
    assert history.history["loss"][-1] < 0.3 * history.history["loss"][0]
    source, target = pairs(100, 1)
    rows = [row[row > 0].tolist() for row in source]
    found = translate(model, Start(VOCABULARY, (2,)), rows, max_new_tokens=9, num_beams=2)
    right = np.mean([text == TARGETS.decode(row[row > 2].tolist()) for text, row in zip(found, target, strict=True)])
    assert right > 0.8
