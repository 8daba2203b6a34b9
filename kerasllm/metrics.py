"""Perplexity, exactly: exp(total negative log-likelihood / total tokens), never a mean of batch means."""

from typing import Any

import keras
from keras import ops

_UNIT = 65536.0  # float32 counts whole units, and exactly all integers below one; 2 ** 24 units are 10 ** 12 tokens


@keras.saving.register_keras_serializable(package="kerasllm")
class Perplexity(keras.metrics.Metric):
    """Perplexity per token: `exp(sum_i w_i nll_i / sum_i w_i)` over everything seen since the last reset.

    Both sums are kept as a number of whole units of 65,536 and a rest, in float32: the rest never grows, so tokens are
    counted exactly and the likelihood to 7 digits however long the epoch is (a single float32 stops counting tokens
    at 16.8 million). A NaN in the predictions gives NaN.

    Where some positions are padding, hand the metric to `compile(weighted_metrics=[Perplexity()])` and the token mask
    to `fit` as sample weight: Keras passes no weights to plain `metrics`.

    Args:
        from_logits: Predictions are logits; otherwise probabilities.
        name: Name of the metric in the logs.
        dtype: Of the predictions' float32 copy; the sums are float32 whatever it is.

    Call arguments:
        y_true: Integer tensor (batch, length): the tokens.
        y_pred: Float tensor (batch, length, vocabulary) of logits or probabilities.
        sample_weight: Optional weights (batch, length) or (batch,); 0 or False for tokens that do not count.

    Returns:
        Float32 scalar; 1.0 before any token.

    References:
        F. Jelinek et al., "Perplexity - a measure of the difficulty of speech recognition tasks", JASA 62 (1977).
    """

    def __init__(self, from_logits: bool = True, name: str = "perplexity", dtype: str | None = None) -> None:
        super().__init__(name=name, dtype=dtype)
        self.from_logits = from_logits
        self._nll_units = self._sum_variable("nll_units")
        self._nll_rest = self._sum_variable("nll_rest")
        self._token_units = self._sum_variable("token_units")
        self._token_rest = self._sum_variable("token_rest")

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Add a batch; see the class for the arguments."""
        y_pred = ops.cast(y_pred, "float32")
        y_true = ops.cast(y_true, "int32")
        nll = ops.sparse_categorical_crossentropy(y_true, y_pred, from_logits=self.from_logits)
        if sample_weight is None:
            weight = ops.ones_like(nll)
        else:
            weight = ops.cast(sample_weight, "float32")
            while len(weight.shape) < len(nll.shape):
                weight = ops.expand_dims(weight, -1)
            weight = ops.broadcast_to(weight, ops.shape(nll))
            nll = ops.where(weight > 0, nll * weight, 0.0)  # an infinite NLL under the mask must not become NaN
        self._add(self._nll_units, self._nll_rest, ops.sum(nll))
        self._add(self._token_units, self._token_rest, ops.sum(weight))

    def result(self) -> Any:
        """Float32 scalar: the perplexity of everything since the last reset."""
        nll = self._nll_units * _UNIT + self._nll_rest
        tokens = self._token_units * _UNIT + self._token_rest
        return ops.exp(ops.divide_no_nan(nll, tokens))

    def totals(self) -> tuple[float, float]:
        """Total negative log-likelihood in nats and total number of tokens since the last reset, as Python floats."""
        sums = [
            float(ops.convert_to_numpy(units)) * _UNIT + float(ops.convert_to_numpy(rest))
            for units, rest in ((self._nll_units, self._nll_rest), (self._token_units, self._token_rest))
        ]
        return sums[0], sums[1]

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "from_logits": self.from_logits}

    def _sum_variable(self, name: str) -> Any:
        return self.add_variable(shape=(), initializer="zeros", dtype="float32", name=name)

    def _add(self, units: Any, rest: Any, amount: Any) -> None:
        """Add to the rest and move its whole units over; exact, because the unit is a power of two."""
        total = rest + amount
        carried = ops.floor(total / _UNIT)
        units.assign(units + carried)
        rest.assign(total - carried * _UNIT)
