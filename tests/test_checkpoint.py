"""The checkpoint callback in plain `fit`: what it keeps, puts back and refuses; and the options of training."""

import json
import math
import os
import signal

import keras
import numpy as np
import pytest
import trainings
from artefacts import one_line
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
from trainings import Struck, make_model

import kerasllm
from kerasllm.data import packed_dataset
from kerasllm.errors import InputError
from kerasllm.folder import write_manifest
from kerasllm.training import AveragedWeights, Checkpoint, TensorBoard, TrainingOptions, checkpoint_files
from kerasllm.training.options import learning_rate, optimizer
from kerasllm.training.state import from_json, to_json

SIZE, STEPS = 11, 6


def small_model(rate=0.05):
    layers = [keras.layers.Embedding(SIZE, 4, name="embedding"), keras.layers.Dense(SIZE, name="head")]
    model = keras.Sequential([keras.Input((8,)), *layers])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(rate), loss, metrics=["accuracy"])
    return model


def data(start=0):
    tokens = np.random.default_rng(0).integers(0, SIZE, 6 * 8 * STEPS + 1)
    tokens[1::2] = (tokens[:-1:2] + 1) % SIZE
    return packed_dataset(tokens, batch_size=6, sequence_length=8, seed=0, repeat=True, start=start)


def validation():
    return packed_dataset(np.arange(200) % SIZE, batch_size=6, sequence_length=8)


class Strike(keras.callbacks.Callback):
    """End as if killed, after a number of steps."""

    def __init__(self, steps):
        super().__init__()
        self.steps = steps

    def on_train_batch_begin(self, batch, logs=None):
        self.steps -= 1
        if self.steps < 0:
            raise Struck


def fit(folder, callbacks=(), epochs=4, strike=None, model=None, rate=0.05, **options):
    model = model or small_model(rate)
    with Checkpoint(folder, **{"resume": True, "every": 2, **options}) as checkpoint:
        watching = checkpoint.together_with(callbacks)
        model.fit(
            data(checkpoint.step),
            validation_data=validation(),
            steps_per_epoch=STEPS,
            epochs=epochs,
            initial_epoch=checkpoint.epoch,
            verbose=0,
            callbacks=[*watching, *([Strike(strike)] if strike is not None else [])],
        )
    return model, checkpoint


def names(folder):
    return [path.name for path in checkpoint_files.checkpoints(folder)]


def test_the_last_and_the_best_are_kept_and_the_best_is_put_back(tmp_path):
    losses, best = [3.0, 2.0, 1.0, 4.0, 1.5, 2.0, math.nan], 2
    say = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: logs.update(val_loss=losses[epoch]))
    model, checkpoint = fit(tmp_path, [say], epochs=7, keep=3)
    assert checkpoint.best == {"step": STEPS * (best + 1), "value": losses[best]}
    steps = sorted({40, 38, 42, STEPS * (best + 1)})
    assert names(tmp_path) == [f"step-{step:08}" for step in steps]
    stored = checkpoint_files.read(checkpoint.best_path).weights
    for name, value in {w.path.split("/", 1)[1]: w for w in model.weights}.items():
        np.testing.assert_array_equal(stored[name], keras.ops.convert_to_numpy(value))
    assert checkpoint.finished and model.history.history["val_loss"][:-1] == losses[:-1]


def test_patience_and_a_rate_on_a_plateau_are_resumed(tmp_path):
    def callbacks():
        return [
            keras.callbacks.EarlyStopping("val_loss", mode="min", patience=3, restore_best_weights=True),
            keras.callbacks.ReduceLROnPlateau("val_loss", mode="min", patience=1, factor=0.5, min_delta=0.5),
        ]

    keras.utils.set_random_seed(1)
    straight, one = fit(tmp_path / "a", callbacks(), epochs=40, rate=0.5)
    keras.utils.set_random_seed(1)
    for steps in (9, 8, 7):
        with pytest.raises(Struck):
            fit(tmp_path / "b", callbacks(), epochs=40, rate=0.5, strike=steps)
    resumed, other = fit(tmp_path / "b", callbacks(), epochs=40, rate=0.5)
    assert len(one.history["loss"]) < 40
    assert len(set(one.history["learning_rate"])) > 2
    for name, values in one.history.items():
        np.testing.assert_allclose(other.history[name], values, rtol=2e-4, err_msg=name)
    assert one.finished and other.finished
    with pytest.raises(InputError, match="complete"):
        fit(tmp_path / "b", callbacks(), epochs=40)


def test_a_checkpoint_is_a_model_folder(tmp_path):
    corpus = trainings.make_corpus(tmp_path)
    model, _ = trainings.run("transformer", corpus, tmp_path / "run", average=0.9)
    newest = tmp_path / "run" / "checkpoints" / names(tmp_path / "run" / "checkpoints")[-1]
    again, tokenizer = kerasllm.load(newest)
    assert tokenizer.fingerprint == corpus.tokenizer.fingerprint
    tokens = np.arange(20).reshape(2, 10)
    np.testing.assert_allclose(again(tokens), model(tokens), atol=1e-6)  # the last epoch was the best


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"initial_epoch": 0}, "pass initial_epoch=checkpoint.epoch"),
        ({"steps_per_epoch": 5}, "an epoch had 6 steps, not 5"),
        ({"steps_per_epoch": None}, "pass steps_per_epoch"),
        ({"callbacks": True}, "was written with the callbacks"),
        ({"optimizer": True}, "model.optimizer.class_name: 'Adam' -> 'SGD'"),
        ({"metrics": True}, "metric/.* compile the model as it was compiled"),
        ({"unbuilt": True}, "has no weights yet"),
    ],
)
def test_a_fit_that_is_not_the_same_is_refused(change, message, tmp_path):
    with pytest.raises(Struck):
        fit(tmp_path, strike=9)
    model = small_model()
    if "optimizer" in change or "metrics" in change:
        chosen = "sgd" if "optimizer" in change else "adam"
        model.compile(chosen, "sparse_categorical_crossentropy", metrics=["accuracy"] * ("optimizer" in change))
    if "unbuilt" in change:
        model = keras.Sequential(model.layers)
        model.compile("adam", "mse")
        model.built = False
    with Checkpoint(tmp_path, resume=True) as checkpoint:
        others = [keras.callbacks.EarlyStopping()] if "callbacks" in change else []
        length = {"steps_per_epoch": STEPS, "initial_epoch": checkpoint.epoch}
        length |= {name: value for name, value in change.items() if name in length}
        with pytest.raises(InputError, match=message) as caught:
            finite = data(checkpoint.step).take(1) if length["steps_per_epoch"] is None else data(checkpoint.step)
            if length["steps_per_epoch"] is None:
                finite = finite.filter(lambda x, y: True)  # of unknown length
            model.fit(finite, epochs=3, verbose=0, callbacks=checkpoint.together_with(others), **length)
        one_line(caught)


def test_several_steps_in_one_execution(tmp_path):
    def model(together):
        keras.utils.set_random_seed(1)
        one = small_model()
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        one.compile(keras.optimizers.Adam(0.05), loss, metrics=["accuracy"], steps_per_execution=together)
        return one

    straight, one = fit(tmp_path / "a", model=model(3))
    with pytest.raises(Struck):
        fit(tmp_path / "b", model=model(3), strike=3)
    assert names(tmp_path / "b")[-1] == "step-00000009"
    resumed, other = fit(tmp_path / "b", model=model(3))
    for name, values in one.history.items():
        np.testing.assert_allclose(other.history[name], values, rtol=1e-4, err_msg=name)
    with pytest.raises(InputError, match="6 is no multiple of steps_per_execution 4"):
        fit(tmp_path / "c", model=model(4))


def test_keras_own_swap_of_averages_is_undone_before_a_signal_saves(tmp_path):
    def model():
        keras.utils.set_random_seed(1)
        one = small_model()
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        one.compile(keras.optimizers.Adam(0.05, use_ema=True, ema_momentum=0.5), loss, metrics=["accuracy"])
        return one

    def swap():
        return [keras.callbacks.SwapEMAWeights()]

    class Terminate(keras.callbacks.Callback):
        def on_test_begin(self, logs=None):
            os.kill(os.getpid(), signal.SIGTERM)

    straight, one = fit(tmp_path / "a", swap(), model=model(), epochs=2)
    with pytest.raises(SystemExit):
        fit(tmp_path / "b", [*swap(), Terminate()], model=model(), epochs=2)
    for path in (tmp_path / "b").glob("step-*/training.json"):
        content = json.loads(path.read_text())
        content["callbacks"].pop()  # the one that sent the signal
        path.write_text(json.dumps(content))
        path.with_name("manifest.json").unlink()
        write_manifest(path.parent)
    resumed, other = fit(tmp_path / "b", swap(), model=model(), epochs=2)
    for name, values in one.history.items():
        np.testing.assert_allclose(other.history[name], values, rtol=1e-4, err_msg=name)


def test_one_object_serves_one_training(tmp_path):
    checkpoint = Checkpoint(tmp_path, every=2)
    model = small_model()
    strike = [*checkpoint.together_with([]), Strike(3)]
    with pytest.raises(Struck):
        model.fit(data(), steps_per_epoch=STEPS, epochs=2, verbose=0, callbacks=strike)
    with pytest.raises(InputError, match="make a new one with resume=True"):
        model.fit(data(checkpoint.step), steps_per_epoch=STEPS, epochs=2, verbose=0, callbacks=[checkpoint])
    checkpoint.close()


def test_without_validation_the_newest_weights_are_what_is_left(tmp_path):
    model = small_model()
    with Checkpoint(tmp_path) as checkpoint:
        model.fit(data(), steps_per_epoch=STEPS, epochs=2, verbose=0, callbacks=checkpoint.together_with([]))
    again = small_model()
    with Checkpoint(tmp_path, resume=True) as checkpoint:
        assert checkpoint.finished and checkpoint.epoch == 2
        checkpoint.restore_weights(again)
    for one, other in zip(model.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_by_default_saving_takes_at_most_two_percent_of_the_time(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("kerasllm.training.checkpoint.time.monotonic", lambda: now[0])
    with Checkpoint(tmp_path) as checkpoint:
        checkpoint.set_model(small_model())
        written = []
        monkeypatch.setattr(checkpoint_files, "write", lambda *_: (written.append(now[0]), tick(3.0), tmp_path)[-1])

        def tick(seconds):
            now[0] += seconds

        monkeypatch.setattr("kerasllm.training.checkpoint.take", lambda *_: checkpoint_files.Snapshot({}, {}))
        checkpoint._steps, checkpoint._saved = 10**6, 0.0
        while now[0] < 1000:
            tick(1.0)
            checkpoint.on_train_batch_end(0)
    assert written[0] == 31
    assert all(later - earlier > 150 for earlier, later in zip(written, written[1:], strict=False))
    assert len(written) == 7


def test_entries_of_steps_that_are_done_again_vanish_from_tensorboard(tmp_path):
    logs = tmp_path / "logs"
    with pytest.raises(Struck):
        fit(tmp_path / "c", [TensorBoard(logs, update_freq=1, write_graph=False)], every=4, strike=6 + 3)
    fit(tmp_path / "c", [TensorBoard(logs, update_freq=1, write_graph=False)], every=4)
    reader = EventAccumulator(str(logs / "train"), tensor_size_guidance={"steps": 0})  # what TensorBoard itself uses
    reader.Reload()
    assert [entry.step for entry in reader.Tensors("steps/loss")] == list(range(1, 25))
    assert [entry.step for entry in reader.Tensors("epochs/loss")] == [1, 2, 3, 4]


def test_numbers_survive_json():
    value = {"a": [1.5, math.inf, -math.inf, None], "b": np.float32(2.5), "c": {"d": np.int64(3)}, "e": "x"}
    assert from_json(json.loads(json.dumps(to_json(value), allow_nan=False))) == {**value, "b": 2.5, "c": {"d": 3}}
    assert math.isnan(from_json(to_json(math.nan)))


def test_validation_sees_the_averages_and_training_the_weights_exactly():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1, use_bias=False)])
    model.compile(keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.5), "mse")
    x, y = np.random.default_rng(0).normal(size=(2, 3)).astype("float32"), np.ones((2, 1), "float32")
    seen = []
    watch = keras.callbacks.LambdaCallback(
        on_test_begin=lambda logs=None: seen.append(model.get_weights()[0]),
        on_epoch_end=lambda epoch, logs: seen.append(model.get_weights()[0]),
    )
    weight = model.get_weights()[0]
    model.fit(x, y, epochs=3, verbose=0, validation_data=(x, y), callbacks=[AveragedWeights(), watch])
    average = None
    for epoch in range(3):
        weight = weight - 0.1 * (x.T @ (x @ weight - y))  # two rows: the factor 2 of the square and the mean cancel
        average = weight if average is None else 0.5 * average + 0.5 * weight
        np.testing.assert_allclose(seen[2 * epoch], average, rtol=1e-5)
        np.testing.assert_allclose(seen[2 * epoch + 1], weight, rtol=1e-5)
    np.testing.assert_allclose(model.get_weights()[0], average, rtol=1e-5)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "step", "constant"])
def test_schedules_rise_and_fall_as_they_say(schedule):
    rate = learning_rate(TrainingOptions(schedule=schedule, learning_rate=2.0, warm_up=0.1), 1000)
    for step in (0, 49, 99):
        assert float(rate(step)) == pytest.approx(2 * (step + 1) / 100)
    for step in (150, 549, 551, 774, 776, 999, 2000):
        part = min((step - 100) / 900, 1)
        expected = {
            "cosine": 0.2 + 0.9 * (1 + math.cos(math.pi * part)),
            "linear": 2 - 1.8 * part,
            "step": 2 if step <= 550 else 0.2 if step <= 775 else 0.02,
            "constant": 2,
        }[schedule]
        assert float(rate(step)) == pytest.approx(expected, rel=1e-4)
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(rate))
    assert float(again(300)) == float(rate(300))


def test_accumulated_gradients_are_those_of_the_larger_batch():
    tokens = np.random.default_rng(0).integers(0, 258, (8, 9))
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    results = []
    for batch, options in ((8, {}), (2, {"gradient_accumulation": 4})):
        model = undropped()
        model.compile(optimizer(TrainingOptions(schedule="constant", warm_up=0.0, learning_rate=0.01, **options), 9))
        model.fit(inputs, targets, batch_size=batch, shuffle=False, verbose=0)
        results.append(model.get_weights())
    for one, other in zip(*results, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)


def undropped():
    from kerasllm.config import TransformerConfig
    from kerasllm.models import TransformerLanguageModel

    keras.utils.set_random_seed(3)
    small = {"num_layers": 1, "num_heads": 2, "hidden_dim": 16, "intermediate_dim": 32, "max_sequence_length": 32}
    return TransformerLanguageModel(TransformerConfig(vocabulary_size=258, **small))


@pytest.mark.parametrize(
    "wrong",
    [{"schedule": "triangle"}, {"warm_up": 1.0}, {"average": -0.1}, {"clip_norm": -1}, {"keep": 0}, {"patience": 0}],
)
def test_wrong_options_are_refused(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        TrainingOptions(**wrong)


def test_a_carried_state_continues_from_batch_to_batch():
    model = make_model("lstm")
    model.build()
    inner = model.get_weights()
    tokens = np.random.default_rng(0).integers(0, 258, (2, 25))
    model.compile(keras.optimizers.SGD(0.0))
    batches = packed_dataset(tokens.reshape(-1), batch_size=2, sequence_length=8, columns=True)
    zeros = model.evaluate(batches, verbose=0)[0]
    model.carry_state(2)
    with pytest.raises(InputError, match="carries the state of 2"):
        model.evaluate(packed_dataset(tokens.reshape(-1), batch_size=3, sequence_length=8, columns=True), verbose=0)
    model.carry_state(2)
    assert len(model.weights) == len(inner)  # the state is no weight
    carried = [model.evaluate(batches, verbose=0)[0] for _ in range(2)]
    assert carried[0] == carried[1]  # each evaluation begins anew
    whole, nll = [], []
    for x, y in batches:
        whole.append(x), nll.append(y)
    logits = keras.ops.convert_to_numpy(model(np.concatenate(whole, axis=1)))
    losses = keras.ops.sparse_categorical_crossentropy(np.concatenate(nll, axis=1), logits, from_logits=True)
    assert carried[0] == pytest.approx(float(np.mean(losses)), rel=1e-5)
    assert abs(carried[0] - zeros) > 1e-6
    model.fit(batches, epochs=2, verbose=0)
    model.carry_state(None)
    assert model.evaluate(batches, verbose=0)[0] == pytest.approx(zeros, rel=1e-6)
