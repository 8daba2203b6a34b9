"""What a language model has to beat: general compressors and n-gram models, in bits per byte of the same held-out text.

Every document is coded whole: an n-gram model predicts each token and the end of the document given its start
(`bos tokens eos`), a compressor sees the texts with a separator after each. Bytes are the UTF-8 bytes of the texts.
"""

import gzip
import lzma
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from kerasllm.errors import InputError

_SEPARATOR = b"\0"  # tells a compressor where a document ends, as eos tells a model; not counted as text
_FALLBACK_DISCOUNTS = np.array([0.0, 0.5, 1.0, 1.5])  # where too little text leaves a count of counts empty
_SMALLEST_WINDOW = 4096  # bytes; the format has none smaller


def compression_bits_per_byte(texts: Sequence[str], training_texts: Sequence[str] = ()) -> dict[str, float]:
    """Bits per byte of three general-purpose compressors.

    Args:
        texts: The held-out texts.
        training_texts: What a language model was trained on. The compressor primed with them may copy from them:
            its cost is the size of both together less the size of the training texts alone.

    Returns:
        `"gzip -9"`, `"xz -9e"` and, when there are training texts, `"xz -9e primed"`: bits per UTF-8 byte of `texts`.

    Raises:
        InputError: `texts` hold no characters.
    """
    size = _utf8_bytes(texts)
    held_out, training = _joined(texts), _joined(training_texts)
    coded = {"gzip -9": len(gzip.compress(held_out, 9)), "xz -9e": _xz_size(held_out)}
    if training:
        coded["xz -9e primed"] = _xz_size(training + held_out) - _xz_size(training)
    return {name: 8.0 * length / size for name, length in coded.items()}


def bits_per_byte(nll: float, texts: Sequence[str]) -> float:
    """Turn a total negative log-likelihood into bits per byte.

    Args:
        nll: Sum over all tokens and document ends, in nats.
        texts: The texts that were scored.

    Returns:
        `nll / ln 2` over the number of UTF-8 bytes.

    Raises:
        InputError: `texts` hold no characters.
    """
    return nll / math.log(2.0) / _utf8_bytes(texts)


@dataclass(frozen=True)
class _Order:
    """The k-grams of one order k; a k-gram's number is its place in `keys`."""

    keys: np.ndarray  # int64 (k-grams,), sorted: number of the first k - 1 tokens * vocabulary + last token
    share: np.ndarray  # float64 (k-grams,): discounted relative frequency given the first k - 1 tokens
    backoff: (
        np.ndarray
    )  # float64 (contexts,): mass the context leaves to the shorter context; 1 where it was never seen

    def find(self, keys: np.ndarray) -> np.ndarray:
        """Numbers of the k-grams, int64 of the same shape; -1 for those that never occurred."""
        if not len(self.keys):
            return np.full(keys.shape, -1)
        place = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return np.where(self.keys[place] == keys, place, -1)


class NGramModel:
    """Interpolated modified Kneser-Ney n-gram model over token ids (Chen and Goodman, 1999, section 3).

    With `c` the counts and `h` a context of `k - 1` tokens, `h'` the same without its first token,

        p_k(w | h) = max(c(hw) - D(c(hw)), 0) / c(h) + gamma(h) p_{k-1}(w | h')
        gamma(h) = (D_1 N_1(h .) + D_2 N_2(h .) + D_3+ N_3+(h .)) / c(h),        p_0 = 1 / vocabulary

    `c` is the number of occurrences at the highest order and for what starts a document (nothing can stand before it),
    and the number of different tokens seen before the k-gram at lower orders (Kneser and Ney, 1995). The discounts come
    from the counts of counts `n_i`: `D_i = i - (i + 1) Y n_{i+1} / n_i` with `Y = n_1 / (n_1 + 2 n_2)`. A context that
    never occurred passes its whole mass on. Order 1 is the unigram model, discounted and mixed with the uniform one, so
    that every token has a probability.

    References:
        S. F. Chen and J. Goodman, "An empirical study of smoothing techniques for language modeling", Computer Speech
        and Language 13 (1999). R. Kneser and H. Ney, "Improved backing-off for m-gram language modeling", ICASSP 1995.

    Args:
        order: Length n of the n-grams: each token is predicted from up to n - 1 tokens before it.
        vocabulary_size: Token ids are below this. Default: the largest id in the training documents, plus one.
    """

    def __init__(self, order: int, *, vocabulary_size: int | None = None) -> None:
        if order < 1:
            raise InputError(f"order={order}: an n-gram model needs an order of at least 1")
        self.order = order
        self.vocabulary_size = vocabulary_size
        self._orders: list[_Order] = []

    def fit(self, documents: Iterable[np.ndarray]) -> "NGramModel":
        """Count the documents; replaces what was learned before.

        Args:
            documents: Integer arrays (length,), each `bos tokens eos`.

        Returns:
            The model itself.

        Raises:
            InputError: No document has two tokens, or an id is outside the vocabulary.
        """
        pieces = [np.asarray(document, dtype=np.int64) for document in documents]
        pieces = [piece for piece in pieces if len(piece) > 1]
        if not pieces:
            raise InputError("documents: an n-gram model needs at least one document of two tokens (bos and eos)")
        tokens = np.concatenate(pieces)
        starts = np.cumsum([0] + [len(piece) for piece in pieces[:-1]])
        if self.vocabulary_size is None:
            self.vocabulary_size = int(tokens.max()) + 1
        self._check(tokens)
        self._orders = self._count(tokens, starts)
        return self

    def log_probs(self, document: np.ndarray) -> np.ndarray:
        """Natural logarithm of the probability of each token after the first.

        Args:
            document: Integer array (length,): `bos tokens eos`.

        Returns:
            float64 (length - 1,).

        Raises:
            InputError: The model is not fitted, or an id is outside its vocabulary.
        """
        tokens = np.asarray(document, dtype=np.int64)
        size = self._fitted_size()
        self._check(tokens)
        probability = np.full(len(tokens), 1.0 / size)
        number = np.zeros(len(tokens), dtype=np.int64)  # of the (k - 1)-gram that ends at each token; -1: never seen
        for k, order in enumerate(self._orders, start=1):
            context = number if k == 1 else np.concatenate([[-1], number[:-1]])[: len(tokens)]
            known = np.flatnonzero(context >= 0)
            number = np.full(len(tokens), -1)
            number[known] = order.find(context[known] * size + tokens[known])
            share = np.where(number[known] >= 0, order.share[number[known]], 0.0)
            probability[known] = share + order.backoff[context[known]] * probability[known]
        return np.log(probability[1:])

    def distribution(self, context: Sequence[int] | np.ndarray) -> np.ndarray:
        """Probabilities of all tokens after a context.

        Args:
            context: Token ids from the start of the document, bos first; only the last n - 1 are used.

        Returns:
            float64 (vocabulary_size,), sums to 1.

        Raises:
            InputError: The model is not fitted, or an id is outside its vocabulary.
        """
        size = self._fitted_size()
        tokens = np.asarray(context, dtype=np.int64)
        self._check(tokens)
        probability = np.full(size, 1.0 / size)
        for k, order in enumerate(self._orders, start=1):
            if k - 1 > len(tokens):
                break
            number = np.zeros(1, dtype=np.int64)
            for shorter, token in zip(self._orders, tokens[len(tokens) - k + 1 :], strict=False):
                number = np.where(number >= 0, shorter.find(number * size + token), -1)
            if number[0] < 0:
                break
            probability *= order.backoff[number[0]]
            low, high = np.searchsorted(order.keys, [number[0] * size, (number[0] + 1) * size])
            probability[order.keys[low:high] % size] += order.share[low:high]
        return probability

    def bits_per_byte(self, documents: Iterable[np.ndarray], texts: Sequence[str]) -> float:
        """Bits per byte of held-out texts.

        Args:
            documents: The texts as token ids, each `bos tokens eos`, made by a tokenizer without `<unk>`.
            texts: The texts themselves.

        Returns:
            Bits per UTF-8 byte.

        Raises:
            InputError: As in `log_probs`, or the texts hold no characters.
        """
        return bits_per_byte(-sum(float(self.log_probs(document).sum()) for document in documents), texts)

    def _count(self, tokens: np.ndarray, starts: np.ndarray) -> list[_Order]:
        """Number the k-grams of every order, then turn their counts into shares and backoffs."""
        size = self._fitted_size()
        age = np.arange(len(tokens)) - np.repeat(starts, np.diff(np.append(starts, len(tokens))))
        ends = np.arange(len(tokens))  # where the k-grams end: token i ends one when its document has k tokens up to i
        numbers = [np.zeros(len(tokens), dtype=np.int64)]  # numbers[k][i]: number of the k-gram that ends at i
        keys, first, raw = [], [], []
        for k in range(1, self.order + 1):
            ends = ends[age[ends] >= k - 1]
            before = numbers[-1][ends - 1] if k > 1 else numbers[-1][ends]
            unique, where, inverse, count = np.unique(
                before * size + tokens[ends], return_index=True, return_inverse=True, return_counts=True
            )
            number = np.zeros(len(tokens), dtype=np.int64)
            number[ends] = inverse
            numbers.append(number)
            keys.append(unique)
            first.append(ends[where])
            raw.append(count)
        raw[0] = np.bincount(numbers[1][age > 0], minlength=len(keys[0]))  # bos is never predicted
        orders = []
        for k, count in enumerate(raw, start=1):
            if k < self.order:
                # each different (k + 1)-gram is one different token before the k-gram it ends with
                before = np.bincount(numbers[k][first[k]], minlength=len(count))
                count = np.where(before > 0, before, count)  # no token before: it starts documents only
            orders.append(_smoothed(keys[k - 1], count, len(keys[k - 2]) if k > 1 else 1, size))
        return orders

    def _fitted_size(self) -> int:
        if self.vocabulary_size is None:
            raise InputError("NGramModel: not fitted yet; call fit(documents) first")
        return self.vocabulary_size

    def _check(self, tokens: np.ndarray) -> None:
        size = self._fitted_size()
        if len(tokens) and not 0 <= tokens.min() <= tokens.max() < size:
            outside = tokens[(tokens < 0) | (tokens >= size)][0]
            raise InputError(f"documents: token id {outside} is outside 0 .. {size - 1}; pass a larger vocabulary_size")


def _smoothed(keys: np.ndarray, count: np.ndarray, contexts: int, size: int) -> _Order:
    """Discount the counts of one order and give each context's freed mass to its backoff."""
    context = keys // size
    discount = _discounts(count)[np.minimum(count, 3)]
    total = np.bincount(context, weights=count, minlength=contexts)
    freed = np.bincount(context, weights=discount, minlength=contexts)
    seen = total > 0
    backoff = np.divide(freed, total, out=np.ones(contexts), where=seen)
    share = np.divide(count - discount, total[context], out=np.zeros(len(keys)), where=seen[context])
    return _Order(keys, share, backoff)


def _discounts(count: np.ndarray) -> np.ndarray:
    """Discounts for counts 0, 1, 2 and 3 or more, from the counts of counts (Chen and Goodman, section 3)."""
    n = np.bincount(np.minimum(count, 5), minlength=6).astype(np.float64)
    if not n[1:5].all():
        return _FALLBACK_DISCOUNTS
    i = np.arange(4)
    discounts = i - (i + 1) * n[1] / (n[1] + 2 * n[2]) * n[i + 1] / np.where(i > 0, n[i], np.inf)
    return discounts if (discounts >= 0).all() else _FALLBACK_DISCOUNTS


def _joined(texts: Sequence[str]) -> bytes:
    return b"".join(text.encode() + _SEPARATOR for text in texts)


def _utf8_bytes(texts: Sequence[str]) -> int:
    size = sum(len(text.encode()) for text in texts)
    if not size:
        raise InputError("texts: nothing to measure, they hold no characters; pass a larger held-out part")
    return size


def _xz_size(content: bytes) -> int:
    """Size after `xz -9e`, with a window that reaches back over all of the content."""
    window = max(len(content), _SMALLEST_WINDOW)
    chain = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": window}]
    return len(lzma.compress(content, filters=chain))
