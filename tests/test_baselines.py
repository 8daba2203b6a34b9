"""Compressors and n-gram models: against the paper's formula written out with dictionaries, and against known sizes."""

import lzma
import math
from collections import Counter

import numpy as np
import pytest

from kerasllm.errors import InputError
from kerasllm.evaluation.baselines import NGramModel, _discounts, bits_per_byte, compression_bits_per_byte

BOS, EOS = 1, 2


def random_documents(rng, count, *, vocabulary=12, length=40):
    """Documents with a skewed vocabulary and repeated pairs, so that every order has something to learn."""
    weights = 1.0 / np.arange(1, vocabulary - 2)
    documents = []
    for _ in range(count):
        tokens = rng.choice(np.arange(3, vocabulary), size=rng.integers(0, length), p=weights / weights.sum())
        documents.append(np.array([BOS, *np.repeat(tokens, rng.integers(1, 3)), EOS]))
    return documents


class Oracle:
    """Interpolated modified Kneser-Ney, straight from the formula: one dictionary of counts an order."""

    def __init__(self, order, size, documents):
        self.size = size
        grams = {
            k: Counter(tuple(d[i : i + k]) for d in documents for i in range(len(d) - k + 1))
            for k in range(1, order + 1)
        }
        self.counts = {order: grams[order]}
        for k in range(1, order):
            left = Counter(gram[1:] for gram in grams[k + 1])
            raw = {gram: grams[k][gram] for gram in grams[k] if gram[0] == BOS and k > 1}
            self.counts[k] = {**left, **raw}
        if order == 1:
            self.counts[1] = {gram: count for gram, count in grams[1].items() if gram[0] != BOS}
        self.discounts = {k: self._discounts(self.counts[k].values()) for k in self.counts}

    @staticmethod
    def _discounts(counts):
        n1, n2, n3, n4 = (sum(count == i for count in counts) for i in (1, 2, 3, 4))
        if not (n1 and n2 and n3 and n4):
            return 0, 0.5, 1.0, 1.5
        y = n1 / (n1 + 2 * n2)
        discounts = 0, 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3
        return discounts if min(discounts) >= 0 else (0, 0.5, 1.0, 1.5)

    def probability(self, word, context, k):
        if k == 0:
            return 1 / self.size
        context = context[len(context) - k + 1 :]
        after = {gram: count for gram, count in self.counts[k].items() if gram[:-1] == context}
        lower = self.probability(word, context[1:], k - 1)
        if not after:
            return lower
        total, discount = sum(after.values()), self.discounts[k]
        count = after.get((*context, word), 0)
        gamma = sum(discount[min(c, 3)] for c in after.values()) / total
        return max(count - discount[min(count, 3)], 0) / total + gamma * lower


@pytest.mark.parametrize("order", [1, 2, 3, 4, 5])
def test_equals_the_formula(order):
    rng = np.random.default_rng(order)
    training, held_out = random_documents(rng, 12), random_documents(rng, 4, vocabulary=14)
    model = NGramModel(order, vocabulary_size=14).fit(training)
    oracle = Oracle(order, 14, [tuple(document.tolist()) for document in training])
    for document in held_out:
        tokens = tuple(document.tolist())
        expected = [
            math.log(oracle.probability(tokens[i], tokens[:i], min(order, i + 1))) for i in range(1, len(tokens))
        ]
        np.testing.assert_allclose(model.log_probs(document), expected, rtol=1e-12)


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_all_words_sum_to_one_and_agree_with_log_probs(order):
    rng = np.random.default_rng(0)
    model = NGramModel(order, vocabulary_size=30).fit(random_documents(rng, 50, vocabulary=25))
    for _ in range(30):
        context = np.concatenate([[BOS], rng.integers(0, 30, size=rng.integers(0, 7))])
        distribution = model.distribution(context)
        assert distribution.shape == (30,)
        assert distribution.min() > 0
        assert distribution.sum() == pytest.approx(1, abs=1e-12)
        token = int(rng.integers(30))
        assert model.log_probs(np.append(context, token))[-1] == pytest.approx(math.log(distribution[token]), abs=1e-12)


def test_bos_is_not_predicted_where_the_formula_gives_it_no_count():
    model = NGramModel(1).fit([np.array([BOS, 3, 3, 4, EOS])] * 5)
    assert model.vocabulary_size == 5
    unseen = model.distribution([BOS])[0]
    assert model.distribution([BOS])[BOS] == unseen < model.distribution([BOS])[EOS]


def test_documents_do_not_touch_each_other():
    """The order of the documents says nothing: no n-gram reaches over their ends."""
    documents = random_documents(np.random.default_rng(1), 20)
    one, other = NGramModel(4).fit(documents), NGramModel(4).fit(documents[::-1])
    np.testing.assert_allclose(one.log_probs(documents[3]), other.log_probs(documents[3]), rtol=1e-12)


def test_short_documents_and_dtypes():
    model = NGramModel(5, vocabulary_size=6).fit([np.array([BOS, EOS], dtype=np.uint16)])
    scores = model.log_probs(np.array([BOS, 5, EOS], dtype=np.uint16))
    assert scores.dtype == np.float64
    assert scores.shape == (2,)
    assert np.isfinite(scores).all()
    assert model.log_probs(np.array([BOS])).shape == (0,)


def test_longer_context_helps_on_structured_text():
    rng = np.random.default_rng(2)
    steps = rng.integers(1, 3, size=(30, 60)).cumsum(axis=1) % 20 + 3
    documents = [np.array([BOS, *row, EOS]) for row in steps]
    nll = [
        -np.mean(np.concatenate([NGramModel(n).fit(documents[:25]).log_probs(d) for d in documents[25:]]))
        for n in (1, 2)
    ]
    assert nll[1] < 0.9 < 2.5 < nll[0]


def test_discounts():
    count = np.repeat([1, 2, 3, 4, 9], [40, 20, 10, 5, 3])
    y = 40 / 80
    np.testing.assert_allclose(_discounts(count), [0, 1 - 2 * y * 0.5, 2 - 3 * y * 0.5, 3 - 4 * y * 0.5])
    np.testing.assert_allclose(_discounts(np.array([7, 8])), [0, 0.5, 1, 1.5])


def test_errors_name_the_remedy():
    with pytest.raises(InputError, match="order=0"):
        NGramModel(0)
    with pytest.raises(InputError, match="call fit"):
        NGramModel(2).log_probs(np.array([BOS, EOS]))
    with pytest.raises(InputError, match="at least one document"):
        NGramModel(2).fit([])
    with pytest.raises(InputError, match="token id 9 .* larger vocabulary_size"):
        NGramModel(2).fit([np.array([BOS, 3, EOS])]).log_probs(np.array([BOS, 9, EOS]))
    with pytest.raises(InputError, match="no characters"):
        compression_bits_per_byte([""], ["text"])


def test_bits_per_byte():
    assert bits_per_byte(8 * math.log(2), ["ab", "中"]) == pytest.approx(8 / 5)
    documents = [np.array([BOS, 3, EOS])] * 4
    model = NGramModel(2).fit(documents)
    expected = -model.log_probs(documents[0]).sum() / math.log(2) / 3
    assert model.bits_per_byte(documents[:1], ["abc"]) == pytest.approx(expected)


def test_compressors():
    rng = np.random.default_rng(3)
    words = ["".join(map(chr, rng.integers(97, 123, size=rng.integers(2, 9)))) for _ in range(3000)]
    texts = [" ".join(rng.choice(words, size=200)) for _ in range(40)]
    scores = compression_bits_per_byte(texts[30:], texts[:30])
    assert list(scores) == ["gzip -9", "xz -9e", "xz -9e primed"]
    assert scores["xz -9e primed"] < scores["xz -9e"] < 8
    content = b"".join(text.encode() + b"\0" for text in texts[30:])
    size = len(content) - 10
    expected = 8 * len(lzma.compress(content, preset=9 | lzma.PRESET_EXTREME)) / size
    assert scores["xz -9e"] == pytest.approx(expected, rel=1e-3)
    assert compression_bits_per_byte(texts[:2], texts[:2])["xz -9e primed"] < 0.5
    assert list(compression_bits_per_byte(texts[:1])) == ["gzip -9", "xz -9e"]
