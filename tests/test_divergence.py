"""A training that diverges stops and says where, or leaves the step out; no NaN is saved."""

import keras
import numpy as np
import pytest
import trainings
from artefacts import one_line
from trainings import interrupted

from kerasllm.errors import InputError
from kerasllm.training import StopOnNaN, checkpoint_files


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return trainings.make_corpus(tmp_path_factory.mktemp("divergence"))


def poison(value, name="embedding"):
    def set_weights(checkpoint):
        weight = next(weight for weight in checkpoint.model.weights if name in weight.path)
        weight.assign(np.full(weight.shape, value, "float32"))

    return set_weights


def test_nan_stops_with_step_batch_and_the_last_good_checkpoint(corpus, tmp_path):
    caught = interrupted("transformer", corpus, tmp_path, "on_train_batch_end", 18, poison(np.nan), expect=InputError)
    said = one_line(caught)
    assert "loss is nan at step 19 (epoch 2, batch 7)" in said
    assert "the last good checkpoint is " in said and said.endswith("step-00000015")


def test_a_weight_that_is_no_number_is_never_saved(corpus, tmp_path):
    caught = interrupted(
        "transformer", corpus, tmp_path, "on_train_batch_end", 10, poison(np.inf), before=True, expect=InputError
    )
    assert "is not finite after step 10" in one_line(caught)
    assert [path.name for path in checkpoint_files.checkpoints(tmp_path / "checkpoints")] == ["step-00000005"]


def test_an_exploding_loss_stops(corpus, tmp_path):
    caught = interrupted(
        "transformer", corpus, tmp_path, "on_train_batch_end", 6, poison(1e4, "final_norm"), expect=InputError
    )
    assert "times what it was at first, at step 7" in one_line(caught)


class Poisoned(keras.layers.Layer):
    """Gives NaN for one batch: the one that begins with token 1."""

    def __init__(self):
        super().__init__()
        self.scale = self.add_weight((), "ones", name="scale")

    def call(self, x):
        return x * self.scale / keras.ops.where(x[0, 0] == 1, 0.0, 1.0) * keras.ops.sign(x)


def test_a_step_that_gives_nan_is_left_out_when_asked(capsys):
    x = np.ones((6, 2, 1), "float32") * np.arange(2, 8)[:, None, None]
    x[3] = [[1], [0]]  # 0 / 0
    model = keras.Sequential([keras.Input((1,)), Poisoned()])
    wrapped = keras.optimizers.LossScaleOptimizer(
        keras.optimizers.SGD(0.01), initial_scale=1.0, dynamic_growth_steps=2**30
    )
    model.compile(wrapped, "mse")
    watch = StopOnNaN(skip=1)
    history = model.fit(x.reshape(-1, 1), np.zeros((12, 1)), batch_size=2, shuffle=False, verbose=0, callbacks=[watch])
    assert watch.skipped == 1 and np.isfinite(history.history["loss"]).all()
    assert "batch 4): left out, 1 of at most 1" in capsys.readouterr().err
    expected, losses = 1.0, []
    for batch in [*x[:3], *x[4:]]:
        losses.append(np.mean((expected * batch) ** 2))
        expected -= 0.01 * np.mean(2 * expected * batch**2)
    np.testing.assert_allclose(float(model.weights[0]), expected, rtol=1e-5)
    np.testing.assert_allclose(history.history["loss"], np.mean(losses), rtol=1e-5)


def test_leaving_out_needs_an_optimizer_that_leaves_out():
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    with pytest.raises(InputError, match="LossScaleOptimizer"):
        model.fit(np.ones((2, 1)), np.ones((2, 1)), verbose=0, callbacks=[StopOnNaN(skip=1)])


def test_a_step_that_is_left_out_does_not_spoil_the_carried_state():
    model = trainings.make_model("lstm")
    model.carry_state(2)
    model.compile(keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1), initial_scale=1.0))
    tokens = np.random.default_rng(0).integers(0, 258, (2, 8))
    model.fit(tokens, tokens, batch_size=2, verbose=0)
    weight = model.embedding.weights[0]
    good = np.array(weight)
    before = [np.array(v) for pairs in model._carried["train"] for v in pairs]
    weight.assign(np.full_like(good, np.nan))
    history = model.fit(tokens, tokens, batch_size=2, verbose=0).history
    assert np.isnan(history["loss"][0])
    for variable, value in zip((v for pairs in model._carried["train"] for v in pairs), before, strict=True):
        np.testing.assert_array_equal(variable, value)
