"""Perplexity against numpy in float64: masks, long epochs, precisions, saving, and the JAX backend."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest

from kerasllm.metrics import Perplexity


def oracle(batches):
    """Perplexity of (targets, logits, weight) batches, in float64."""
    nll = tokens = 0.0
    for targets, logits, weight in batches:
        logits = logits.astype(np.float64)
        top = logits.max(-1, keepdims=True)
        log_probs = logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))
        each = -np.take_along_axis(log_probs, targets[..., None], -1)[..., 0]
        nll, tokens = nll + (each * weight).sum(), tokens + weight.sum()
    return np.exp(nll / tokens)


def batches(seed=0, count=4, masked=True):
    rng = np.random.default_rng(seed)
    for _ in range(count):
        rows, length = rng.integers(1, 5), rng.integers(1, 9)
        weight = rng.integers(0, 2, (rows, length)) if masked else np.ones((rows, length))
        yield rng.integers(0, 7, (rows, length)), rng.normal(size=(rows, length, 7)).astype("float32") * 3, weight


@pytest.mark.parametrize("masked", [False, True])
def test_equals_numpy(masked):
    metric = Perplexity()
    assert metric.name == "perplexity"
    for targets, logits, weight in batches(masked=masked):
        metric.update_state(targets, logits, weight.astype(bool) if masked else None)
    assert float(metric.result()) == pytest.approx(oracle(batches(masked=masked)), rel=1e-6)
    metric.reset_state()
    assert float(metric.result()) == 1.0


def test_probabilities_and_weights_per_row():
    targets, logits, _ = next(batches(seed=3))
    weight = np.arange(1.0, len(targets) + 1)
    probabilities = keras.ops.softmax(logits)
    metric = Perplexity(from_logits=False)
    metric.update_state(targets, probabilities, weight)
    expected = oracle([(targets, logits, np.broadcast_to(weight[:, None], targets.shape))])
    assert float(metric.result()) == pytest.approx(expected, rel=1e-5)


def test_masked_infinity_does_not_count_and_nan_shows():
    metric = Perplexity()
    logits = np.zeros((1, 2, 3), "float32")
    logits[0, 1] = [-np.inf, 0, 0]
    metric.update_state(np.zeros((1, 2), int), logits, np.array([[1, 0]]))
    assert float(metric.result()) == pytest.approx(3)
    metric.update_state(np.zeros((1, 2), int), np.full((1, 2, 3), np.nan, "float32"))
    assert np.isnan(float(metric.result()))


def test_long_epochs_lose_nothing():
    """A billion tokens in, a batch still counts: a single float32 would have stopped at 16.8 million."""
    metric = Perplexity()
    tokens, nll = 10**9 + 1, 3.0 * 10**9
    for name, value in (("nll", nll), ("token", tokens)):
        getattr(metric, f"_{name}_units").assign(value // 65536)
        getattr(metric, f"_{name}_rest").assign(value % 65536)
    logits = np.zeros((4, 25, 8), "float32")
    for _ in range(1000):
        metric.update_state(np.zeros((4, 25), int), logits)
    total_nll, total_tokens = metric.totals()
    assert total_tokens == tokens + 100_000
    assert total_nll == pytest.approx(nll + 100_000 * np.log(8), abs=3)
    assert float(metric.result()) == pytest.approx(np.exp(total_nll / total_tokens), rel=1e-6)


def test_bfloat16_predictions_are_summed_in_float32():
    metric = Perplexity()
    logits = keras.ops.cast(np.zeros((2, 600, 11)), "bfloat16")
    for _ in range(20):
        metric.update_state(np.zeros((2, 600), int), logits)
    assert float(metric.result()) == pytest.approx(11, rel=1e-6)


def test_serializes():
    metric = keras.saving.deserialize_keras_object(
        keras.saving.serialize_keras_object(Perplexity(from_logits=False, name="word_perplexity"))
    )
    assert isinstance(metric, Perplexity)
    assert (metric.from_logits, metric.name) == (False, "word_perplexity")


def test_in_fit_and_evaluate_with_a_mask():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((None,), dtype="int32"), keras.layers.Embedding(9, 4), keras.layers.Dense(9)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss, metrics=[Perplexity(name="every_token")], weighted_metrics=[Perplexity()])
    rng = np.random.default_rng(0)
    x, y, mask = rng.integers(0, 9, (12, 6)), rng.integers(0, 9, (12, 6)), rng.integers(0, 2, (12, 6)).astype("float32")
    model.fit(x, y, sample_weight=mask, batch_size=5, verbose=0)
    logs = model.evaluate(x, y, sample_weight=mask, batch_size=5, verbose=0, return_dict=True)
    logits = model.predict(x, verbose=0)
    assert logs["perplexity"] == pytest.approx(oracle([(y, logits, mask)]), rel=1e-6)
    assert logs["every_token"] == pytest.approx(oracle([(y, logits, np.ones_like(mask))]), rel=1e-6)


def test_jax_backend():
    pytest.importorskip("jax")
    code = (
        "import numpy as np, jax; from kerasllm.metrics import Perplexity; m = Perplexity();"
        "step = jax.jit(m.stateless_update_state); state = [v.value for v in m.variables];"
        "state = step(state, np.zeros((2, 70000), 'int32'), np.zeros((2, 70000, 5), 'float32'), np.ones((2, 70000)));"
        "assert [float(s) for s in state[2:]] == [2, 140000 - 2 * 65536], state;"
        "assert abs(float(m.stateless_result(state)) - 5) < 1e-5"
    )
    environment = {**os.environ, "KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
