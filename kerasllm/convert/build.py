"""A model out of a config, a checkpoint and a table, without ever holding random weights."""

from typing import Any, TypeVar

from kerasllm import backend
from kerasllm.convert.readers import TensorSource
from kerasllm.convert.weights import Table, read_weights
from kerasllm.errors import InputError
from kerasllm.models import Head, LanguageModel

Model = TypeVar("Model", LanguageModel, Head)

_LEAST_TENSORS_IN_BLOCK = 4


def build_model(
    cls: type[Model],
    config: Any,
    source: TensorSource,
    table: Table,
    *,
    dtype: str | None = None,
    also_unused: tuple[str, ...] = (),
) -> Model:
    """Make a model and read its weights.

    Args:
        cls: Class of the model.
        config: Its config.
        source: The checkpoint.
        table: How its tensors are named.
        dtype: Dtype policy; Keras' default where `None`. With `"bfloat16"` and `"float16"` the weights are so, too.
        also_unused: Patterns of tensors that this model has no use for.

    Returns:
        The built model.

    Raises:
        InputError: The weights do not fit the config, or the machine's memory.
    """
    layers = getattr(getattr(config, "backbone", config), "num_layers", 1)
    if layers * _LEAST_TENSORS_IN_BLOCK > len(source.tensors):
        raise InputError(
            f"{source.path}: has {len(source.tensors)} tensors, too few for a model of {layers} layers; "
            "the file and its configuration are not of the same model"
        )
    with backend.deferred():
        model = cls(config, dtype=dtype)
        model.build()
    read_weights(model, source, table, also_unused=also_unused)
    return model
