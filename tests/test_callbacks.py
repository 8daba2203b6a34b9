"""Callbacks and curves: on tiny Keras models over integers; event files are read back with TensorBoard's own reader."""

import math
import os
import signal
import time

import keras
import numpy as np
import pytest
import safetensors.numpy
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from kerasllm.errors import InputError
from kerasllm.metrics import Perplexity
from kerasllm.training import BestWeights, StopOnNaN, TensorBoard, plot_curves
from kerasllm.training.callbacks import read_weights, write_weights

SIZE = 11


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.embedding = keras.layers.Embedding(SIZE, 6)
        self.dense = keras.layers.Dense(SIZE)

    def call(self, tokens):
        return self.dense(self.embedding(tokens))


def tiny_model(learning_rate=0.01, subclassed=False, metrics=True):
    keras.utils.set_random_seed(1)
    layers = [
        keras.Input((None,), dtype="int32"),
        keras.layers.Embedding(SIZE, 6, name="embedding"),
        keras.layers.Dense(SIZE, name="dense"),
    ]
    model = Subclassed() if subclassed else keras.Sequential(layers)
    model.compile(
        keras.optimizers.Adam(learning_rate),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=[Perplexity()] if metrics else None,
    )
    return model


def data(seed=0, rows=24):
    x = np.random.default_rng(seed).integers(0, SIZE, (rows, 8)).astype("int32")
    return x, (x + 1) % SIZE


class At(keras.callbacks.Callback):
    """Do something at the end of a batch of an epoch (both from 0)."""

    def __init__(self, epoch, batch, action):
        super().__init__()
        self.epoch, self.batch, self.action, self.now = epoch, batch, action, -1

    def on_epoch_begin(self, epoch, logs=None):
        self.now = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.now, batch) == (self.epoch, self.batch):
            self.action()


def fit(model, callbacks, epochs=3, **options):
    return model.fit(
        *data(), batch_size=6, epochs=epochs, validation_data=data(1, 12), verbose=0, callbacks=callbacks, **options
    )


def values(model):
    return {weight.path.removeprefix(f"{model.name}/"): keras.ops.convert_to_numpy(weight) for weight in model.weights}


def events(folder):
    reader = EventAccumulator(str(folder), size_guidance={"tensors": 0})
    reader.Reload()
    return reader


def scalars(reader, tag):
    """Steps and values of one chart."""
    entries = reader.Tensors(tag)
    return [e.step for e in entries], [float(np.ravel(_array(e))[0]) for e in entries]


def _array(entry):
    from tensorboard.util.tensor_util import make_ndarray

    return make_ndarray(entry.tensor_proto)


def test_tensorboard_scalars(tmp_path):
    schedule = keras.optimizers.schedules.PolynomialDecay(0.02, decay_steps=12, end_learning_rate=0.002)
    model = tiny_model(schedule)
    steps = []

    def record():
        steps.append([float(model.metrics[0].total), float(model.metrics[0].count)])

    record_all = [At(epoch, batch, record) for epoch in range(3) for batch in range(4)]
    history = fit(model, [*record_all, TensorBoard(tmp_path, update_freq=1)]).history
    training, validation = events(tmp_path / "train"), events(tmp_path / "validation")

    at, loss = scalars(training, "steps/loss")
    assert at == list(range(1, 13))
    sums = np.array(steps).reshape(3, 4, 2)
    each = np.diff(np.concatenate([np.zeros((3, 1, 2)), sums], axis=1), axis=1)
    np.testing.assert_allclose(loss, (each[..., 0] / each[..., 1]).ravel(), rtol=1e-5)
    np.testing.assert_allclose(scalars(training, "steps/perplexity")[1], np.exp(loss), rtol=1e-5)
    at, rate = scalars(training, "steps/learning_rate")
    np.testing.assert_allclose(rate, [float(schedule(step)) for step in at], rtol=1e-6)
    at, speed = scalars(training, "steps/tokens_per_second")
    assert at == list(range(2, 13))  # the first step compiles
    assert min(speed) > 0

    for name in ("loss", "perplexity"):
        assert scalars(training, f"epochs/{name}")[0] == [1, 2, 3]
        np.testing.assert_allclose(scalars(training, f"epochs/{name}")[1], history[name], rtol=1e-6)
        np.testing.assert_allclose(scalars(validation, f"epochs/{name}")[1], history[f"val_{name}"], rtol=1e-6)
        assert scalars(validation, f"steps/{name}")[0] == [4, 8, 12]
    np.testing.assert_allclose(history["val_perplexity"], np.exp(history["val_loss"]), rtol=1e-5)


def test_tensorboard_every_few_steps(tmp_path):
    fit(tiny_model(), [TensorBoard(tmp_path, update_freq=3)])
    assert scalars(events(tmp_path / "train"), "steps/loss")[0] == [1, 4, 7, 11]


def test_tensorboard_without_perplexity_metric_or_validation(tmp_path):
    model = tiny_model(metrics=False)
    model.fit(*data(), verbose=0, callbacks=[TensorBoard(tmp_path)])
    tags = events(tmp_path / "train").Tags()["tensors"]
    assert set(tags) == {"steps/loss", "steps/learning_rate", "epochs/loss"}
    assert not (tmp_path / "validation").exists()


def test_tensorboard_samples_are_text_as_written(tmp_path):
    model = tiny_model()
    fit(model, [TensorBoard(tmp_path, sample=lambda: {"The *": " end\n# <b>", "中文": "维基"})], epochs=2)
    reader = events(tmp_path / "train")
    assert "samples" in reader.PluginTagToContent("text")
    entries = reader.Tensors("samples")
    assert [entry.step for entry in entries] == [1, 2]
    text = _array(entries[0]).item().decode()
    assert text == "**The \\*** end  \n\\# &lt;b&gt;\n\n---\n\n**中文**维基"


@pytest.mark.parametrize("subclassed", [False, True])
def test_tensorboard_graph(tmp_path, subclassed):
    fit(tiny_model(subclassed=subclassed), [TensorBoard(tmp_path)], epochs=1)
    reader = events(tmp_path / "train")
    assert reader.Tags()["graph"]
    names = [node.name for node in reader.Graph().node]
    assert any("embedding" in name for name in names)
    assert any("dense" in name and name.endswith("MatMul") for name in names)


def test_tensorboard_graph_of_other_inputs_is_a_warning(tmp_path):
    model = tiny_model(subclassed=True)
    with pytest.warns(UserWarning, match="pass inputs="):
        fit(model, [TensorBoard(tmp_path, inputs="nothing")], epochs=1)
    assert scalars(events(tmp_path / "train"), "steps/loss")[0]


def test_best_weights_keeps_and_restores_the_best(tmp_path):
    path = tmp_path / "runs" / "best.safetensors"
    model, seen = tiny_model(learning_rate=0.5), []
    record = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append(values(model)))
    best = BestWeights(path)
    losses = fit(model, [record, best], epochs=12).history["val_loss"]
    index = int(np.argmin(losses))
    assert best.best_epoch == index + 1
    assert best.best == losses[index]
    stored = safetensors.numpy.load_file(path)
    assert stored.keys() == values(model).keys()
    for name, value in values(model).items():
        np.testing.assert_array_equal(value, seen[index][name])
        np.testing.assert_array_equal(value, stored[name])
    assert [file.name for file in path.parent.iterdir()] == ["best.safetensors"]


def test_best_weights_resumes_its_record(tmp_path):
    path = tmp_path / "best.safetensors"
    fit(tiny_model(), [BestWeights(path)])
    content = path.read_bytes()
    worse = BestWeights(path, resume=True)
    fit(tiny_model(learning_rate=0.0), [worse], epochs=1)
    assert path.read_bytes() == content
    assert worse.best_epoch == 3
    with pytest.raises(InputError, match="records no loss"):
        fit(tiny_model(), [BestWeights(path, "loss", resume=True)])


def test_best_weights_names_what_can_be_monitored(tmp_path):
    with pytest.raises(InputError, match="val_loss: .*loss, perplexity.* pass validation_data"):
        tiny_model().fit(*data(), verbose=0, callbacks=[BestWeights(tmp_path / "best.safetensors")])


@pytest.mark.parametrize("really", [False, True], ids=["raised", "signal"])
def test_ctrl_c_keeps_the_best_weights_and_says_where(tmp_path, capsys, really):
    path, model, seen = tmp_path / "best.safetensors", tiny_model(), []

    def interrupt():
        seen.append(path.read_bytes())
        if really:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.1)  # Python runs the handler at the next instruction
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), BestWeights(path) as best:
        fit(model, [best, At(2, 1, interrupt)], epochs=5)
    assert best.best_epoch == 2
    assert path.read_bytes() == seen[0]
    for name, value in safetensors.numpy.load_file(path).items():
        np.testing.assert_array_equal(value, values(model)[name])
    message = capsys.readouterr().err
    assert str(path) in message
    assert f"val_loss {best.best:.4f}, epoch 2" in message


def test_ctrl_c_in_the_first_epoch(tmp_path, capsys):
    def interrupt():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), BestWeights(tmp_path / "best.safetensors") as best:
        fit(tiny_model(), [best, At(0, 1, interrupt)])
    assert "no weights were written" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


def test_nan_stops_with_step_and_remedy(tmp_path):
    path, model = tmp_path / "best.safetensors", tiny_model(learning_rate=0.01)

    def poison():
        model.weights[0].assign(np.full(model.weights[0].shape, np.nan))

    best = BestWeights(path)
    with pytest.raises(InputError, match=r"loss is nan at step 7 \(epoch 2, batch 3\): lower .* \(now 0.01\)"):
        fit(model, [best, At(1, 1, poison), StopOnNaN()])
    assert best.best_epoch == 1
    assert all(np.isfinite(value).all() for value in safetensors.numpy.load_file(path).values())


def test_nan_of_validation_alone(tmp_path):
    model = tiny_model()

    def poison():
        model.weights[0].assign(np.full(model.weights[0].shape, np.inf))

    best = BestWeights(tmp_path / "best.safetensors")
    with pytest.raises(InputError, match="val_loss is nan at step 8 .*validation"):
        fit(model, [best, At(1, 3, poison), StopOnNaN()])
    assert best.best_epoch == 1


def test_early_stopping_works_beside_them(tmp_path):
    best = BestWeights(tmp_path / "best.safetensors")
    stopping = keras.callbacks.EarlyStopping("val_loss", patience=2)
    history = fit(tiny_model(learning_rate=1.0), [StopOnNaN(), best, stopping], epochs=60).history
    assert len(history["loss"]) == best.best_epoch + 2 < 60


def test_weights_in_bfloat16_and_scalars(tmp_path):
    path = tmp_path / "w.safetensors"
    layers = [keras.Input((3,)), keras.layers.Dense(2, dtype="bfloat16"), keras.layers.Normalization()]
    model = keras.Sequential(layers)
    before = values(model)
    write_weights(model, path)
    for weight in model.weights:
        weight.assign(keras.ops.zeros_like(weight))
    read_weights(model, path)
    for name, value in values(model).items():
        assert value.dtype == before[name].dtype
        np.testing.assert_array_equal(value, before[name])


def test_weights_that_do_not_fit(tmp_path):
    path = tmp_path / "w.safetensors"
    with pytest.raises(InputError, match="no such file"):
        read_weights(tiny_model(), path)
    path.write_bytes(b"not safetensors at all")
    with pytest.raises(InputError, match="is no safetensors file"):
        read_weights(tiny_model(), path)
    small = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, name="same")], name="m")
    large = keras.Sequential([keras.Input((2,)), keras.layers.Dense(4, name="same")], name="m")
    write_weights(small, path)
    with pytest.raises(InputError, match="same/kernel has shape"):
        read_weights(large, path)
    with pytest.raises(InputError, match="not in both"):
        read_weights(tiny_model(), path)
    twins = Subclassed()
    twins(np.zeros((1, 2)))
    for layer in (twins.embedding, twins.dense):
        layer.weights[0]._path = "same"
    with pytest.raises(InputError, match="two variables with path"):
        write_weights(twins, path)


def test_curves(tmp_path):
    history = {"loss": [3.0, 2.0], "val_loss": [3.1, math.nan]}
    plot_curves({"a": history, "b": {"loss": [2.0]}}, tmp_path / "epochs.png", title="Two models")
    plot_curves({"a": {**history, "tokens": [1e6, 2e6]}}, tmp_path / "tokens.png")
    contents = [(tmp_path / name).read_bytes() for name in ("epochs.png", "tokens.png")]
    assert all(content.startswith(b"\x89PNG") for content in contents)
    assert contents[0] != contents[1]
    with pytest.raises(InputError, match="empty"):
        plot_curves({}, tmp_path / "no.png")
    with pytest.raises(InputError, match="has no 'loss'"):
        plot_curves({"a": {}}, tmp_path / "no.png")
    assert not (tmp_path / "no.png").exists()
