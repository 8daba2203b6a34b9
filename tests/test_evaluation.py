"""Every token is scored exactly once with enough context, and the figures are what their names say."""

import json
import math

import numpy as np
import pytest
from artefacts import NAMES, SCORED, STRIDE, TEXTS, documents, one_line, pair, randomized, saved_model, tflite
from hypothesis import given, settings
from hypothesis import strategies as st

from kerasllm.edge import EdgeModel
from kerasllm.errors import InputError
from kerasllm.evaluation import Evaluation, KerasModel, evaluate
from kerasllm.evaluation.scores import default_context
from kerasllm.evaluation.verify import problems, verify, write_reference
from kerasllm.evaluation.windows import windows
from kerasllm.models import LSTMLanguageModel
from kerasllm.serving import ServedModel
from kerasllm.text import ByteTokenizer
from kerasllm.text.words import count_words


class BigramTable:
    """Scores a token by the one before alone: whatever the windows, the total is known."""

    def __init__(self, size, seed=0):
        logits = np.random.default_rng(seed).normal(0, 2, (size, size))
        self.table = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        self.shapes = set()

    def score_tokens(self, tokens, targets):
        self.shapes.add(tokens.shape)
        return self.table[tokens, targets].astype("float32"), self.table[tokens].argmax(axis=-1).astype("int32")

    def total(self, pieces):
        return -sum(float(self.table[piece[:-1], piece[1:]].sum()) for piece in pieces)


def random_documents(lengths, size=50, seed=1):
    random = np.random.default_rng(seed)
    return [random.integers(0, size, length).astype("int32") for length in lengths]


@settings(deadline=None, max_examples=150)
@given(length=st.integers(0, 90), context=st.integers(1, 20), data=st.data())
def test_every_target_counts_once_with_enough_tokens_before_it(length, context, data):
    stride = data.draw(st.integers(1, context))
    document = np.arange(1000, 1000 + length)
    counted = []
    for window in windows(document, context, stride):
        assert window.tokens.shape == window.targets.shape == (context,)
        assert 0 <= window.first < window.last <= context
        for column in range(window.first, window.last):
            place = int(window.targets[column]) - 1000
            # The inputs up to here are the document's tokens before the target, without a gap.
            np.testing.assert_array_equal(window.tokens[: column + 1], document[place - column - 1 : place])
            assert column + 1 == place or column + 1 >= context - stride
            counted.append(place)
        assert not window.tokens[window.last :].any()
    assert counted == list(range(1, length))


@pytest.mark.parametrize(("context", "stride"), [(8, 8), (8, 3), (5, 1), (64, 32)])
def test_the_total_is_the_sum_over_all_tokens_and_not_a_mean_of_means(context, stride):
    scorer, pieces = BigramTable(50), random_documents([2, 3, 40, 1, 17, 9])
    evaluation, top_1 = evaluate(scorer, pieces, ["a b"] * 6, context=context, stride=stride)
    tokens = sum(len(piece) - 1 for piece in pieces)
    assert evaluation.tokens == tokens == len(top_1)
    assert evaluation.nll == pytest.approx(scorer.total(pieces), rel=1e-6)
    assert evaluation.token_perplexity == pytest.approx(math.exp(scorer.total(pieces) / tokens), rel=1e-6)
    means = [scorer.total([piece]) / (len(piece) - 1) for piece in pieces if len(piece) > 1]
    assert abs(math.exp(np.mean(means)) / evaluation.token_perplexity - 1) > 0.01
    np.testing.assert_array_equal(top_1, np.concatenate([scorer.table[p[:-1]].argmax(axis=1) for p in pieces]))
    assert (evaluation.documents, evaluation.context, evaluation.stride) == (6, context, stride)


@pytest.mark.parametrize("count", [1, 15, 16, 17, 33])
def test_a_ragged_last_batch_counts_no_more_than_its_rows(count):
    scorer, pieces = BigramTable(50), random_documents([6] * count)
    evaluation, _ = evaluate(scorer, pieces, ["x"] * count, context=8, stride=8)
    assert evaluation.tokens == 5 * count
    assert evaluation.nll == pytest.approx(scorer.total(pieces), rel=1e-6)
    assert len(scorer.shapes) == 1  # one shape to compile


@pytest.mark.parametrize("name", NAMES)
def test_a_model_is_scored_as_an_oracle_in_double_precision_scores_it(name):
    model, tokenizer = pair(name)
    used, total, best = documents(tokenizer)[:1], 0.0, []
    document, logits = used[0], {}
    for target in range(1, len(document)):
        start = STRIDE * max(0, math.ceil((target - SCORED) / STRIDE))  # of the first window that reaches the target
        if start not in logits:
            logits[start] = np.array(model(document[None, start : start + SCORED]))[0].astype("float64")
        row = logits[start][target - 1 - start]
        total += math.log(np.exp(row - row.max()).sum()) + row.max() - row[document[target]]
        best.append(row.argmax())
    assert len(logits) > 1
    scorer = KerasModel(model, tokenizer)
    evaluation, top_1 = evaluate(scorer, used, TEXTS[: len(used)], context=SCORED, stride=STRIDE)
    assert evaluation.nll == pytest.approx(total, rel=1e-5)
    np.testing.assert_array_equal(top_1, best)


@pytest.mark.parametrize("name", NAMES)
def test_artefacts_evaluate_as_keras_does(name):
    model, tokenizer = pair(name)
    runners = KerasModel(model, tokenizer), ServedModel(saved_model(name)), EdgeModel(tflite(name))
    options = {"context": SCORED, "stride": STRIDE, "lossless": tokenizer.lossless}
    results = [evaluate(runner, documents(tokenizer), TEXTS, **options) for runner in runners]
    expected, expected_top_1 = results[0]
    for evaluation, top_1 in results[1:]:
        for key in ("nll", "token_perplexity", "word_perplexity", "bits_per_byte"):
            assert getattr(evaluation, key) == pytest.approx(getattr(expected, key), rel=1e-4)
        np.testing.assert_array_equal(top_1, expected_top_1)


def test_figures_are_what_their_names_say():
    evaluation = Evaluation(nll=math.log(2) * 120, tokens=60, words=30, bytes=240, documents=2, context=8, stride=4)
    assert evaluation.token_perplexity == pytest.approx(4.0)
    assert evaluation.word_perplexity == pytest.approx(16.0)
    assert evaluation.bits_per_byte == pytest.approx(0.5)


def test_words_and_bytes_are_those_of_the_texts():
    texts = ["one two three\n", "数学 is 学"]
    evaluation, _ = evaluate(BigramTable(50), random_documents([3, 3]), texts, context=4, stride=2)
    assert evaluation.words == 3 + 4
    assert evaluation.bytes == 14 + 3 * 3 + 4
    assert evaluation.bits_per_byte == pytest.approx(evaluation.nll / math.log(2) / 27)


def test_bytes_are_those_the_tokenizer_sees():
    tokenizer, text = ByteTokenizer(), "a\ud800"  # a lone surrogate counts as U+FFFD
    evaluation, _ = evaluate(BigramTable(258), documents(tokenizer, [text]), [text], context=8, stride=8)
    assert evaluation.bytes == len(tokenizer.encode(text)) == 4


def test_a_tokenizer_that_loses_text_has_no_bits_per_byte():
    evaluation, _ = evaluate(BigramTable(50), random_documents([5]), ["abc"], context=4, stride=2, lossless=False)
    assert evaluation.bits_per_byte is None
    assert evaluation.to_dict()["bits_per_byte"] is None
    assert "none" in evaluation.summary()


def test_figures_survive_json():
    evaluation, _ = evaluate(BigramTable(50), random_documents([30]), ["abc 数"], context=4, stride=2)
    values = json.loads(json.dumps(evaluation.to_dict(), allow_nan=False))
    assert values == evaluation.to_dict()
    assert set(values) >= {"nll", "tokens", "words", "bytes", "documents", "context", "stride", "lossless"}
    assert set(values) >= {"token_perplexity", "word_perplexity", "bits_per_byte"}
    hopeless = Evaluation(1e9, 1, 1, 1, 1, 1, 1)
    json.dumps(hopeless.to_dict(), allow_nan=False)


def test_the_summary_says_unit_tokens_context_and_stride():
    summary = Evaluation(100.0, 60, 30, 240, 2, 8, 4).summary()
    for part in ("token perplexity", "word perplexity", "bits per byte", "60 tokens", "context 8", "stride 4"):
        assert part in summary


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", 0),
        ("  \n", 0),
        ("one two, three.", 3),
        ("don't re-read 3.5", 3),
        ("数学是", 3),
        ("我爱Python编程", 5),
        ("数学 and 数学", 5),
        ("日本のカメラ", 6),
    ],
)
def test_words_are_what_blanks_separate_and_each_asian_character(text, words):
    assert count_words(text) == words


def test_damaged_weights_are_refused():
    model = randomized(LSTMLanguageModel({"vocabulary_size": 258, "embedding_dim": 4, "hidden_dim": 4}))
    model.weights[0].assign(np.full(model.weights[0].shape, np.nan))
    with pytest.raises(InputError) as caught:
        evaluate(KerasModel(model, ByteTokenizer()), documents(ByteTokenizer(), ["abc"]), ["abc"], context=8, stride=8)
    assert "not numbers" in one_line(caught)


@pytest.mark.parametrize("pieces", [[], [np.array([], "int32")], [np.array([5], "int32")] * 3])
def test_nothing_to_score_is_refused(pieces):
    with pytest.raises(InputError) as caught:
        evaluate(BigramTable(50), pieces, [""] * len(pieces), context=8, stride=4)
    assert "evaluate" in one_line(caught)


@pytest.mark.parametrize(("context", "stride"), [(8, 9), (8, 0), (0, 0), (8, -1)])
def test_a_stride_that_would_leave_out_tokens_is_refused(context, stride):
    with pytest.raises(InputError) as caught:
        evaluate(BigramTable(50), random_documents([5]), ["a"], context=context, stride=stride)
    assert "stride" in one_line(caught)


def test_a_context_that_the_scorer_cannot_see_is_refused():
    scorer = BigramTable(50)
    scorer.context_length = 8
    with pytest.raises(InputError, match="^context 9 is more than the model's context of 8; lower it$"):
        evaluate(scorer, random_documents([5]), ["x"], context=9, stride=1)
    evaluation, _ = evaluate(scorer, random_documents([5]), ["x"])
    assert (evaluation.context, evaluation.stride) == (8, 4)


@pytest.mark.parametrize(
    ("limit", "lengths", "context"),
    [
        (None, None, 256),
        (200, None, 200),
        (200, (128,), 128),
        (512, (128,), 256),
        (None, (100, 64), 256),
        (None, (300,), 300),
    ],
)
def test_windows_are_by_default_what_the_scorer_can_score(limit, lengths, context):
    scorer = BigramTable(2)
    scorer.context_length, scorer.score_lengths = limit, lengths
    assert default_context(scorer) == context


def test_texts_that_are_not_those_of_the_documents_are_refused():
    with pytest.raises(InputError) as caught:
        evaluate(BigramTable(50), random_documents([5, 5]), ["a"], context=8, stride=4)
    assert "2 documents" in one_line(caught) and "1 text" in one_line(caught)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """What the Keras LSTM answers, and what the same model with other weights answers."""
    folder = tmp_path_factory.mktemp("reference")
    model, tokenizer = pair("lstm")
    options = {"context": SCORED, "stride": STRIDE}
    evaluation = write_reference(model, tokenizer, documents(tokenizer), TEXTS, folder / "same", **options)
    other = randomized(LSTMLanguageModel(model.config), seed=5)
    write_reference(other, tokenizer, documents(tokenizer), TEXTS, folder / "other", **options)
    return folder, evaluation


@pytest.mark.parametrize("kind", ["saved_model", "tflite"])
def test_a_verified_artefact_has_no_problems(reference, kind):
    folder, expected = reference
    result = verify(saved_model("lstm") if kind == "saved_model" else tflite("lstm"), folder / "same")
    assert problems(result) == []
    assert result["greedy_equal"] == result["prompts"] == 5
    assert result["evaluation"]["nll"] == pytest.approx(expected.nll, rel=1e-4)
    assert ("tensorflow" in result["imported"]) == (kind == "saved_model")
    json.dumps(result, allow_nan=False)


def test_an_artefact_with_other_weights_has_problems(reference):
    found = problems(verify(tflite("lstm"), reference[0] / "other"))
    assert len(found) == 3
    for part in ("logits differ", "greedy continuations differ", "most likely tokens agree"):
        assert any(part in problem for problem in found)


def test_an_artefact_that_does_not_run_is_refused(reference, tmp_path):
    (tmp_path / "m.tflite").write_bytes(b"garbage")
    with pytest.raises(InputError) as caught:
        verify(tmp_path / "m.tflite", reference[0] / "same")
    assert "m.tflite" in one_line(caught)


def test_a_difference_that_is_no_number_is_a_problem():
    good = {"max_logit_difference": 0.0, "greedy_equal": 5, "prompts": 5, "top_1_agreement": 1.0}
    assert problems(good) == []
    for bad in ({"max_logit_difference": math.nan}, {"greedy_equal": 4}, {"top_1_agreement": math.nan}):
        assert len(problems({**good, **bad})) == 1
