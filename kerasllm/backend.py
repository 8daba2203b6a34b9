"""The one place where a backend is special-cased.

Each special case has a plain `keras.ops` twin, and a test that both agree.
"""

import contextlib
import functools
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
from keras import ops


def matmul_transposed(a: Any, b: Any) -> Any:
    """`a @ transpose(b)` over the last two axes.

    TensorFlow is told to transpose inside its kernel: a transposed copy of a KV cache would be made at each step.

    Args:
        a: `(..., m, k)`.
        b: `(..., n, k)`.

    Returns:
        `(..., m, n)`.
    """
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.matmul(a, b, transpose_b=True)
    return plain_matmul_transposed(a, b)


def plain_matmul_transposed(a: Any, b: Any) -> Any:
    """Twin of `matmul_transposed` in `keras.ops`."""
    return ops.matmul(a, ops.swapaxes(b, -1, -2))


def write_cache(cache: Any, new: Any, position: Any) -> Any:
    """Write `new` into `cache` along its length axis, from slot `position` on.

    Args:
        cache: `(batch, heads, length, head_dim)`.
        new: `(batch, heads, new_length, head_dim)` with `position + new_length <= length`.
        position: An integer or `()` int32.

    Returns:
        The new cache, same shape.
    """
    zero = ops.zeros((), "int32")
    start = ops.stack([zero, zero, ops.cast(position, "int32"), zero])
    return ops.slice_update(cache, start, ops.cast(new, cache.dtype))


def synchronize(model: keras.Model) -> None:
    """Let a model's variables have their newest values: on JAX `fit` keeps these to itself until asked.

    Args:
        model: A model in `fit`, between two steps.
    """
    if hasattr(model, "jax_state_sync"):
        model.jax_state_sync()


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Inside, layers are built without memory: variables have a path, a shape and a dtype, but no value.

    `set_value` gives a variable its value. A model that gets none can be counted and laid out, whatever its size.
    """
    from keras.src.backend.common import global_state

    waiting = global_state.get_global_attribute("uninitialized_variables", [], set_to_default=True)
    before = len(waiting)
    try:
        with keras.StatelessScope(initialize_variables=False):
            yield
    finally:
        # Keras notes them for the end of its next scope, which would give all of them random values.
        del waiting[before:]


def set_value(variable: keras.Variable, value: Any) -> None:
    """Give a variable a value, be it its first one after `deferred` or a new one.

    Keras has no public way to make a variable from a value that comes later; this is the step in which it initializes
    its own deferred variables.

    Args:
        variable: The variable.
        value: Array or variable of the variable's shape; cast to its dtype. It is copied: models that shared memory
            would be trained together, and JAX would give it away.
    """
    if not isinstance(value, np.ndarray):
        value = np.array(ops.convert_to_numpy(value))
    value = ops.cast(value, variable.dtype)
    if variable._value is None:
        variable._initialize(value)
    else:
        variable.assign(value)


def initialize_rest(model: keras.Model) -> None:
    """Let what is still without a value after `deferred`, such as random generators, initialize itself.

    Args:
        model: A built model.
    """
    for variable in model.variables:
        if variable._value is None:
            variable._deferred_initialize()


def compiled(
    model: keras.Model, function: Callable[..., Any], *key: Any, jit_compile: bool = False
) -> Callable[..., Any]:
    """A compiled version of a pure function of a model and tensors.

    Compiled functions are kept as long as the model, so that a second call with the same `key` traces nothing.

    Args:
        model: The model.
        function: Called as `function(model, *tensors)`; takes and returns nested structures of tensors.
        key: What distinguishes this function from others of the same model: its name and every Python value it closes
            over.
        jit_compile: Whether to compile with XLA on TensorFlow; JAX always does.

    Returns:
        A callable that takes the tensors.
    """
    functions = _COMPILED.setdefault(model, {})
    key = (*key, jit_compile)
    if key not in functions:
        # The cache must not keep the model alive.
        functions[key] = _compile(weakref.proxy(model), function, jit_compile)
    return functions[key]


_COMPILED: weakref.WeakKeyDictionary[keras.Model, dict[Any, Callable[..., Any]]] = weakref.WeakKeyDictionary()


def _compile(model: Any, function: Callable[..., Any], jit_compile: bool) -> Callable[..., Any]:
    name = keras.backend.backend()
    if name == "tensorflow":
        import tensorflow as tf

        # A partial and no lambda: TensorFlow takes all functions of one code for one, and would warn of its retracing.
        # XLA needs to know every length, which retracing keeps.
        bound = functools.partial(function, model)
        return tf.function(bound, reduce_retracing=not jit_compile, jit_compile=jit_compile or None)
    if name == "jax":
        import jax

        @jax.jit
        def pure(values: Any, *tensors: Any) -> Any:
            with keras.StatelessScope(state_mapping=zip(model.variables, values, strict=True)):
                return function(model, *tensors)

        return lambda *tensors: pure([variable.value for variable in model.variables], *tensors)
    return lambda *tensors: function(model, *tensors)
