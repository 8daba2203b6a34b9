"""Callbacks and curves: on tiny Keras models over integers; event files are read back with TensorBoard's own reader."""

import math

import keras
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from kerasllm.errors import InputError
from kerasllm.folder import read_weights, write_weights
from kerasllm.metrics import Perplexity
from kerasllm.training import StopOnNaN, TensorBoard, plot_curves

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


def test_nan_stops_with_step_and_remedy():
    model = tiny_model(learning_rate=0.01)

    def poison():
        model.weights[0].assign(np.full(model.weights[0].shape, np.nan))

    with pytest.raises(InputError, match=r"loss is nan at step 7 \(epoch 2, batch 3\): lower .* \(now 0.01\)"):
        fit(model, [At(1, 1, poison), StopOnNaN()])


def test_nan_of_validation_alone():
    model = tiny_model()

    def poison():
        model.weights[0].assign(np.full(model.weights[0].shape, np.inf))

    with pytest.raises(InputError, match="val_loss is nan at step 8 .*validation"):
        fit(model, [At(1, 3, poison), StopOnNaN()])


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
