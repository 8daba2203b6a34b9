"""Everything a training is made of besides its data, as arrays and plain JSON: taken out of `fit`, and put back."""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np

from kerasllm.backend import synchronize
from kerasllm.errors import InputError
from kerasllm.folder import assign_weights, weight_arrays, weight_name
from kerasllm.training.averages import averaged

_KERAS_CALLBACKS: dict[type, tuple[str, ...]] = {
    keras.callbacks.EarlyStopping: ("wait", "best", "best_epoch", "best_weights", "stopped_epoch"),
    keras.callbacks.ReduceLROnPlateau: ("wait", "best", "cooldown_counter"),
    keras.callbacks.ModelCheckpoint: ("best", "_last_batch_seen", "_batches_seen_since_last_saving"),
}
"""What Keras' own callbacks remember; those that are not here remember nothing that changes a training."""


@dataclass
class Snapshot:
    """A training at one moment.

    Attributes:
        weights: The model's weights by variable path, as they are to be used: averages where the optimizer averages.
        arrays: Optimizer, metrics, random generators and what callbacks hold in arrays, by name.
        content: The rest, as plain JSON.
    """

    weights: dict[str, np.ndarray]
    arrays: dict[str, np.ndarray]
    content: dict[str, Any] = field(default_factory=dict)


def take(model: keras.Model, callbacks: Sequence[keras.callbacks.Callback]) -> Snapshot:
    """Take a training's state; call it between two steps of `fit`.

    Args:
        model: A compiled model.
        callbacks: Those whose state belongs to the training.
    """
    synchronize(model)
    weights = weight_arrays(model)
    arrays = {name: _array(variable) for name, variable in _variables(model).items()}
    for weight, average in averaged(model):
        name = weight_name(weight, model)
        arrays[_TRAINED + name], weights[name] = weights[name], _array(average)
    arrays |= _random_state()
    states = []
    for index, callback in enumerate(callbacks):
        plain = {}
        for name, value in _callback_state(callback).items():
            if _is_arrays(value):
                arrays |= {f"callback/{index}/{name}/{i:04}": np.asarray(part) for i, part in enumerate(value)}
                plain[name] = {"arrays": len(value)}
            else:
                plain[name] = to_json(value)
        states.append({"class": type(callback).__name__, "state": plain})
    return Snapshot(weights, arrays, {"callbacks": states})


def put(model: keras.Model, callbacks: Sequence[keras.callbacks.Callback], snapshot: Snapshot, source: str) -> None:
    """Put a training's state back, all but the metrics; everything or, if something does not fit, nothing.

    Args:
        model: A model compiled as it was.
        callbacks: As they were for `take`.
        snapshot: What `take` gave.
        source: Where it comes from, for messages.

    Raises:
        InputError: Model, optimizer, metrics or callbacks are not those of the snapshot.
    """
    synchronize(model)
    if not model.optimizer.built:
        model.optimizer.build(model.trainable_variables)
    variables = {name: v for name, v in _variables(model).items() if not name.startswith(_METRIC)}
    stored = _fitting(variables, snapshot, source, _OPTIMIZER, _OTHER)
    states = snapshot.content["callbacks"]
    names, were = [type(callback).__name__ for callback in callbacks], [state["class"] for state in states]
    if names != were:
        raise InputError(f"{source}: was written with the callbacks {were}, not {names}; pass the same ones")
    if lacking := [name for name in _random_state() if name not in snapshot.arrays]:
        raise InputError(f"{source}: has no {lacking[0]}; it is not a whole checkpoint")
    trained = {n.removeprefix(_TRAINED): a for n, a in snapshot.arrays.items() if n.startswith(_TRAINED)}
    assign_weights(model, {**snapshot.weights, **trained}, source)
    for name, variable in variables.items():
        variable.assign(stored[name])
    try:
        _set_random_state(snapshot.arrays)
        for index, (callback, state) in enumerate(zip(callbacks, states, strict=True)):
            _set_callback_state(callback, _unpacked(state["state"], snapshot.arrays, f"callback/{index}"))
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise InputError(f"{source}: holds a state that is none ({error!r}); go on from another checkpoint") from None


def put_metrics(model: keras.Model, snapshot: Snapshot, source: str, *, skip: bool = False) -> None:
    """Put the metrics' state back: those of the epoch so far.

    TensorFlow's `fit` makes the variables of compiled metrics when it first sees a batch. Where they are not there yet,
    this waits until then.

    Args:
        model: In `fit`, before a step.
        snapshot: What `take` gave.
        source: Where it comes from, for messages.
        skip: Leave the next step out: all steps of the epoch are done. On TensorFlow only, for elsewhere its batch has
            been drawn already.

    Raises:
        InputError: The metrics are not those of the snapshot.
    """

    def put_now() -> None:
        variables = {name: v for name, v in _variables(model).items() if name.startswith(_METRIC)}
        stored = _fitting(variables, snapshot, source, _METRIC)
        for name, variable in variables.items():
            variable.assign(stored[name])

    built = model._compile_metrics is None or model._compile_metrics.built
    if built and not skip:
        put_now()
        return
    step = model.train_function

    def first_step(iterator: Any) -> Any:
        model.train_function = step
        model._symbolic_build(data_batch=iterator.element_spec)
        put_now()
        return model.get_metrics_result() if skip else step(iterator)

    model.train_function = first_step


def _fitting(variables: Mapping[str, Any], snapshot: Snapshot, source: str, *kinds: str) -> dict[str, np.ndarray]:
    """The stored values of variables, if there is one of the right shape for each, and no more."""
    stored = {name: array for name, array in snapshot.arrays.items() if name.startswith(kinds)}
    for name in sorted(variables.keys() | stored.keys()):
        here = tuple(variables[name].shape) if name in variables else "none"
        there = stored[name].shape if name in stored else "none"
        if here != there:
            raise InputError(
                f"{source}: variable {name} had shape {there} and has {here}; compile the model as it was compiled"
            )
    return stored


_OPTIMIZER, _METRIC, _OTHER = "optimizer/", "metric/", "other/"
_TRAINED = "trained/"
"""Weights of which the averages take the place in `Snapshot.weights`."""


def _variables(model: keras.Model) -> dict[str, Any]:
    """Variables that are no weights: by kind and place, for Keras makes up names anew in each process."""
    weights = {id(weight) for weight in model.weights}
    kinds = {
        _OPTIMIZER: model.optimizer.variables,
        _METRIC: model.metrics_variables,
        # generators of dropout, states carried from batch to batch
        _OTHER: [variable for variable in model.variables if id(variable) not in weights],
    }
    return {f"{kind}{index:04}": variable for kind, some in kinds.items() for index, variable in enumerate(some)}


def _array(variable: Any) -> np.ndarray:
    return np.array(keras.ops.convert_to_numpy(variable), order="C")


def _random_state() -> dict[str, np.ndarray]:
    """Generators of Python, NumPy and Keras that whatever runs between two steps may draw from."""
    generator = _keras_generator()  # first: Keras makes it when asked, with a seed from Python's generator
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "random/python": np.array([version, *words], np.uint64),
        "random/python_gauss": np.array([math.nan if gauss is None else gauss]),
        "random/numpy": np.array([*keys, position, has_gauss], np.uint64),
        "random/numpy_gauss": np.array([cached]),
        "random/keras": _array(generator.state),
    }


def _set_random_state(arrays: Mapping[str, np.ndarray]) -> None:
    _keras_generator().state.assign(arrays["random/keras"])
    version, *words = (int(word) for word in arrays["random/python"])
    gauss = float(arrays["random/python_gauss"][0])
    random.setstate((version, tuple(words), None if math.isnan(gauss) else gauss))
    *keys, position, has_gauss = (int(word) for word in arrays["random/numpy"])
    np.random.set_state(
        ("MT19937", np.array(keys, np.uint32), position, has_gauss, float(arrays["random/numpy_gauss"][0]))
    )


def _keras_generator() -> Any:
    """Keras' generator for whoever names no seed; there is no public way to it."""
    from keras.src.random.seed_generator import global_seed_generator

    return global_seed_generator()


def _callback_state(callback: keras.callbacks.Callback) -> dict[str, Any]:
    if hasattr(callback, "get_state"):
        return callback.get_state()
    return {name: getattr(callback, name) for name in _remembered(callback) if hasattr(callback, name)}


def _set_callback_state(callback: keras.callbacks.Callback, state: dict[str, Any]) -> None:
    if hasattr(callback, "set_state"):
        callback.set_state(state)
        return
    if surplus := state.keys() - set(_remembered(callback)):
        raise KeyError(*surplus)
    for name, value in state.items():
        setattr(callback, name, value)


def _remembered(callback: keras.callbacks.Callback) -> tuple[str, ...]:
    return next((names for cls, names in _KERAS_CALLBACKS.items() if isinstance(callback, cls)), ())


def _is_arrays(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(part, np.ndarray) for part in value)


def _unpacked(state: Mapping[str, Any], arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, Any]:
    return {
        name: [arrays[f"{prefix}/{name}/{i:04}"] for i in range(value["arrays"])]
        if isinstance(value, dict) and value.keys() == {"arrays"}
        else from_json(value)
        for name, value in state.items()
    }


def to_json(value: Any) -> Any:
    """`value` as plain JSON: numbers of NumPy as Python's, and NaN and infinities, which JSON lacks, as text."""
    if isinstance(value, Mapping):
        return {str(name): to_json(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(part) for part in value]
    if isinstance(value, np.generic) or (hasattr(value, "shape") and value.shape == ()):
        value = np.asarray(value).item()
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": repr(value)}
    return value


def from_json(value: Any) -> Any:
    """The value that `to_json` was given."""
    if isinstance(value, dict):
        if value.keys() == {"float"}:
            return float(value["float"])
        return {name: from_json(part) for name, part in value.items()}
    if isinstance(value, list):
        return [from_json(part) for part in value]
    return value
