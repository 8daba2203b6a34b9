"""Averaged weights (Polyak and Juditsky 1992), validated instead of the raw ones."""

from typing import Any

import keras
import numpy as np


class AveragedWeights(keras.callbacks.Callback):
    """Validate with the moving averages of an optimizer made with `use_ema=True`, and train on with the raw weights.

    Keras' own `SwapEMAWeights` swaps by sums and differences on TensorFlow, which rounds the weights at each
    validation; this one swaps exactly. At the end of `fit` Keras itself puts the averages into the model.
    """

    def __init__(self) -> None:
        super().__init__()
        self._raw: list[np.ndarray] | None = None

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Put the averages into the model."""
        pairs = averaged(self.model)
        self._raw = [np.array(keras.ops.convert_to_numpy(weight)) for weight, _ in pairs]
        for weight, average in pairs:
            # a copy: JAX would share the array, and give its memory away when it evaluates
            weight.assign(np.array(keras.ops.convert_to_numpy(average)))

    def on_test_end(self, logs: dict[str, Any] | None = None) -> None:
        """Put the raw weights back."""
        if self._raw is not None:
            for (weight, _), raw in zip(averaged(self.model), self._raw, strict=True):
                weight.assign(raw)
        self._raw = None


def averaged(model: keras.Model) -> list[tuple[Any, Any]]:
    """Pairs of a trainable weight and the variable with its moving average; empty if the optimizer keeps none."""
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    if not getattr(optimizer, "use_ema", False) or not optimizer.built:
        return []
    return list(zip(optimizer._trainable_variables, optimizer._model_variables_moving_average, strict=True))
