"""One harness for every Keras layer: what a user may expect of any layer, checked on a layer described by a `Case`."""

import dataclasses
import inspect
import re
from typing import Any

import keras
import numpy as np
import pytest

BATCH = 4
POLICIES = ("float32", "mixed_float16", "mixed_bfloat16")


@dataclasses.dataclass(frozen=True)
class Case:
    """A layer to check.

    `shapes` names the call's tensors without their batch axis, `variables` are the paths below the layer's name (a
    public contract), `bad` are constructor arguments that must be refused, each with the value the message must name.
    """

    layer: type[keras.layers.Layer]
    arguments: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    variables: tuple[str, ...] = ()
    bad: tuple[tuple[dict[str, Any], str], ...] = ()

    @property
    def id(self):
        return "-".join([self.layer.__name__, *(f"{k}={v}" for k, v in self.arguments.items())])

    def make(self, **more):
        return self.layer(**{**self.arguments, "name": "subject", **more})

    def inputs(self, seed=0, batch=BATCH):
        rng = np.random.default_rng(seed)
        return {name: rng.normal(size=(batch, *shape)).astype("float32") for name, shape in self.shapes.items()}

    def symbols(self, batch=None):
        return {n: keras.Input(s, batch_size=batch, dtype="float32", name=n) for n, s in self.shapes.items()}

    def model(self, **more):
        """A Functional model in which the layer sits before a dense one, which pools to 3 numbers."""
        symbols, layer = self.symbols(), self.make(**more)
        pooled = keras.layers.Flatten()(layer(**symbols))
        return keras.Model(symbols, keras.layers.Dense(3, dtype="float32", name="after")(pooled)), layer


@keras.saving.register_keras_serializable(package="kerasllm_tests")
class SignDescent(keras.optimizers.Optimizer):
    """A custom optimizer: a fixed step against the sign of the gradient, so that every gradient shows."""

    def update_step(self, gradient, variable, learning_rate):
        self.assign_sub(variable, learning_rate * keras.ops.sign(keras.ops.cast(gradient, variable.dtype)))


def numbers(values):
    return [np.array(value) for value in values]


def check_config(case):
    layer = case.make()
    config = layer.get_config()
    again = case.layer.from_config(config)
    assert again.get_config() == config
    for name, value in case.arguments.items():
        if name.endswith("initializer"):
            assert config[name]["class_name"] == type(keras.initializers.get(value)).__name__
        else:
            assert config[name] == value, name
    constructor = set(inspect.signature(case.layer.__init__).parameters) - {"self", "kwargs"}
    assert constructor <= set(config), f"get_config lacks {constructor - set(config)}"
    # As a file would: everything must be JSON, and the class must be found by its registered name.
    restored = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    assert type(restored) is case.layer
    assert restored.get_config() == config


def check_build(case):
    layer = case.make()
    assert not layer.built
    layer(**case.inputs())
    assert layer.built
    by_call = sorted((v.path, tuple(v.shape)) for v in layer.weights)
    layer = case.make()
    layer.build(*[(None, *shape) for shape in case.shapes.values()])
    assert sorted((v.path, tuple(v.shape)) for v in layer.weights) == by_call
    layer(**case.inputs())
    assert sorted((v.path, tuple(v.shape)) for v in layer.weights) == by_call


def check_symbolic(case):
    layer = case.make()
    eager = layer(**case.inputs())
    symbolic = case.make()(**case.symbols(batch=BATCH))
    assert isinstance(symbolic, keras.KerasTensor)
    assert symbolic.shape == tuple(eager.shape)
    assert symbolic.dtype == keras.backend.standardize_dtype(eager.dtype)
    first = next(iter(case.shapes.values()))
    assert tuple(layer.compute_output_shape((BATCH, *first))) == tuple(eager.shape)
    symbols = case.symbols()
    functional = keras.Model(symbols, layer(**symbols))
    np.testing.assert_allclose(functional(case.inputs()), eager, atol=1e-5)
    # Any batch size and any length.
    if len(case.shapes) == 1:
        (name, shape), *_ = case.shapes.items()
        layer = case.make()
        sequential = keras.Sequential([keras.Input((*shape[:-2], None, shape[-1])), layer])
        assert sequential.output_shape[:-1] == (None, *shape[:-2], None)
        inputs = case.inputs(batch=2)
        assert sequential(inputs[name]).shape == (2, *shape[:-1], eager.shape[-1])
        assert sequential(inputs[name][..., :2, :]).shape == (2, *shape[:-2], 2, eager.shape[-1])


def check_fit(case):
    """A weight of zero for every example changes nothing; else every variable learns."""
    model, layer = case.model()
    model.compile(SignDescent(0.125), "mse", jit_compile=False)
    targets = np.random.default_rng(1).normal(size=(BATCH, 3)).astype("float32")
    before = numbers(v.value for v in layer.trainable_variables)
    for weight in (np.zeros(BATCH), np.arange(BATCH) + 1.0):
        logs = model.fit(case.inputs(), targets, sample_weight=weight, batch_size=BATCH, verbose=0).history
        assert np.isfinite(logs["loss"][0])
        assert (logs["loss"][0] > 0) == bool(weight.any())
        for variable, old in zip(layer.trainable_variables, before, strict=True):
            # A key bias adds the same to every score of a query: the softmax takes it away.
            if "key/bias" not in variable.path:
                assert np.any(np.array(variable.value) != old) == bool(weight.any()), variable.path
                assert np.abs(np.array(variable.value) - old).max() in (0, pytest.approx(0.125, rel=1e-5))


def check_policy(case, policy):
    """Outputs in the compute dtype and near those of float32; variables in float32."""
    reference = case.make()
    expected = np.array(reference(**case.inputs()))
    layer = case.make(dtype=policy)
    layer(**case.inputs())
    layer.set_weights(reference.get_weights())
    outputs = layer(**case.inputs())
    assert keras.backend.standardize_dtype(outputs.dtype) == keras.DTypePolicy(policy).compute_dtype
    assert {v.dtype for v in layer.trainable_variables} <= {"float32"}
    values = np.array(keras.ops.cast(outputs, "float32"))
    assert np.isfinite(values).all()
    scale = np.abs(expected).max()
    tolerance = {"float32": 1e-6, "mixed_float16": 5e-3, "mixed_bfloat16": 4e-2}[policy]
    np.testing.assert_allclose(values, expected, atol=tolerance * scale)
    assert case.layer.from_config(layer.get_config()).dtype_policy.name == policy


def check_file(case, folder):
    model, _ = case.model()
    for variable in model.trainable_variables:  # zeros and ones of fresh biases and norms would hide a mix-up
        variable.assign(np.random.default_rng(len(variable.path)).normal(size=variable.shape) / 3)
    expected = np.array(model(case.inputs()))
    model.save(folder / "model.keras")
    again = keras.saving.load_model(folder / "model.keras")
    assert again is not model
    np.testing.assert_allclose(again(case.inputs()), expected, rtol=1e-6)


def check_paths(case):
    """Paths depend on nothing but the layer's name: they are what weights are saved and sharded by."""
    found = []
    for _ in range(2):
        layer = case.make()
        layer(**case.inputs())
        found.append([variable.path for variable in layer.weights])
    assert found[0] == found[1]
    assert len(set(found[0])) == len(found[0])
    assert sorted(path.removeprefix("subject/") for path in found[0]) == sorted(case.variables)


def check_masking(case):
    """A masked sequence goes through: no error, no warning (an error in these tests), the mask still there behind."""
    layer = case.make()
    assert layer.supports_masking
    inputs = {name: keras.layers.Masking()(value) for name, value in case.inputs().items()}
    outputs = layer(**inputs)
    first = next(iter(inputs.values()))
    assert keras.backend.standardize_dtype(outputs._keras_mask.dtype) == "bool"
    assert outputs._keras_mask.shape == first._keras_mask.shape


def check_refusals(case):
    for arguments, value in case.bad:
        with pytest.raises(ValueError, match=rf"{re.escape(value)}\D*$"):
            case.layer(**{**case.arguments, **arguments})


def check_docstring(case):
    text = inspect.getdoc(case.layer)
    for section in ("Args:", "Call arguments:", "Returns:"):
        assert re.search(rf"^{section}$", text, re.MULTILINE), f"no {section}"
    for function in (case.layer.__init__, case.layer.call):
        for name in set(inspect.signature(function).parameters) - {"self", "kwargs", "training"}:
            assert re.search(rf"^    {name}: ", text, re.MULTILINE), f"{name} is not explained"
