"""The one place where a backend is special-cased. Each special case has a plain `keras.ops` twin and a test that both agree."""

import weakref
from collections.abc import Callable
from typing import Any

import keras
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


def compiled(model: keras.Model, function: Callable[..., Any], *key: Any) -> Callable[..., Any]:
    """A compiled version of a pure function of tensors that reads a model's variables.

    Compiled functions are kept with the model, so that a second call with the same `key` traces nothing.

    Args:
        model: The model whose variables `function` reads.
        function: Takes and returns nested structures of tensors; must not keep a reference to `model`'s values.
        key: What distinguishes this function from others of the same model: its name and every Python value it closes over.

    Returns:
        A callable with the arguments of `function`.
    """
    functions = _COMPILED.setdefault(model, {})
    key = (*key, model.dtype_policy.name)
    if key not in functions:
        functions[key] = _compile(weakref.proxy(model), function)
    return functions[key]


_COMPILED: weakref.WeakKeyDictionary[keras.Model, dict[Any, Callable[..., Any]]] = weakref.WeakKeyDictionary()


def _compile(model: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    name = keras.backend.backend()
    if name == "tensorflow":
        import tensorflow as tf

        return tf.function(function, reduce_retracing=True)
    if name == "jax":
        import jax

        @jax.jit
        def pure(values: Any, *arguments: Any) -> Any:
            with keras.StatelessScope(state_mapping=zip(model.variables, values, strict=True)):
                return function(*arguments)

        return lambda *arguments: pure([variable.value for variable in model.variables], *arguments)
    return function
