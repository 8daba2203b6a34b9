"""Low-rank adapters: fine-tune a model by a few small matrices beside its kernels, and merge them before it leaves.

Hu et al. 2021, arXiv:2106.09685: a frozen kernel W is used as `W + alpha / rank * A B`, with A (in, rank) random and
B (rank, out) zero at first, so that training begins with the model as it was. The layers are Keras' own.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import keras
import numpy as np
from keras import ops

from kerasllm import backend
from kerasllm.errors import InputError
from kerasllm.files import atomic_file
from kerasllm.models.base import variable_name

Model = TypeVar("Model", bound=keras.Model)

TARGETS = ("attention/query", "attention/value")
"""What the paper adapts in its section 4.2."""

_FORMAT = 1
_BACKBONE = "backbone/"


def enable_lora(
    model: keras.Model, rank: int = 8, *, alpha: float | None = None, targets: Sequence[str] = TARGETS
) -> keras.Model:
    """Put adapters beside kernels and freeze all else; a task's head goes on learning. Then compile and fit as usual.

    Args:
        model: A built language model, or a head on one.
        rank: Width of an adapter.
        alpha: Scale of all adapters is `alpha / rank`; `rank` by default.
        targets: Ends of the paths of dense layers in the Transformer blocks: `"attention/query"`, `"attention/key"`,
            `"attention/value"`, `"attention/output"`, `"feedforward/up"`, `"feedforward/gate"`, `"feedforward/down"`.

    Returns:
        The model itself.

    Raises:
        InputError: Rank or alpha is not positive, there are no targets or one names no layer, or the model has
            adapters or is not built.
    """
    if not model.built:
        raise InputError("the model has no weights yet; build or load it before enable_lora")
    if rank < 1:
        raise InputError(f"rank must be at least 1, received {rank}")
    scale = rank if alpha is None else alpha
    if not 0 < scale < float("inf"):
        raise InputError(f"alpha must be a positive number, received {alpha}")
    targets = (targets,) if isinstance(targets, str) else tuple(targets)
    if not targets:
        raise InputError(f"targets must name layers to adapt, such as {', '.join(TARGETS)}")
    if _adapted(model):
        raise InputError("the model has adapters already; save it without them, or go on training these")
    layers = {path: layer for path, layer in _dense_layers(model).items() if path.endswith(targets)}
    for target in targets:
        if not any(path.endswith(target) for path in layers):
            names = sorted({path.split("/", 1)[1] for path in _dense_layers(model)})
            raise InputError(
                f"targets: {target!r} is no dense layer of the model's blocks; known are {', '.join(names)}"
            )
    # A head's own layers have no block in their path, and stay trainable.
    language_model = getattr(model, "backbone", model)
    for variable in language_model.trainable_variables:
        variable.trainable = False
    for layer in layers.values():
        layer.enable_lora(rank, lora_alpha=scale)
    return model


def save_adapters(model: keras.Model, path: str | os.PathLike[str]) -> Path:
    """Write what training has changed, adapters and a task's head, as one safetensors file.

    Args:
        model: A model with adapters.
        path: The file; replaced if it exists.

    Returns:
        The path.

    Raises:
        InputError: The model has no adapters.
    """
    import safetensors.numpy

    layers = _adapted(model)
    if not layers:
        raise InputError("the model has no adapters; call enable_lora before training")
    first = next(iter(layers.values()))
    settings = {
        "format": _FORMAT,
        "rank": first.lora_rank,
        "alpha": first.lora_alpha,
        "targets": sorted({name.split("/", 1)[1] for name in layers}),
        "base": _fingerprint(model),
    }
    tensors = {name: ops.convert_to_numpy(weight.value) for name, weight in _trained(model).items()}
    with atomic_file(path) as file:
        file.write(safetensors.numpy.save(tensors, {"kerasllm_adapters": json.dumps(settings)}))
    return Path(path)


def load_adapters(model: keras.Model, path: str | os.PathLike[str]) -> keras.Model:
    """Put the adapters of a file into the model they were trained on.

    Args:
        model: The built base model, loaded in the dtype it was trained in, with or without adapters of the same shape.
        path: A file of `save_adapters`.

    Returns:
        The model itself.

    Raises:
        InputError: The file is missing, damaged or holds no adapters, or they are another model's.
    """
    settings, tensors = _read(Path(path))
    if _fingerprint(model) != settings["base"]:
        raise InputError(f"{path}: the adapters were trained on other weights; load the model they belong to")
    _check_settings(settings, path)
    expected = _expected(model, settings, path)
    if different := sorted(expected.keys() ^ tensors.keys()):
        raise InputError(f"{path}: {different[0]} is not in both file and model; load the model they were trained on")
    for name, shape in expected.items():
        if tensors[name].shape != shape or not np.issubdtype(tensors[name].dtype, np.floating):
            raise InputError(
                f"{path}: {name} is {tensors[name].dtype} of shape {tensors[name].shape}, the model needs real "
                f"numbers {shape}; load the model they were trained on"
            )
    for layer in _adapted(model).values():
        if layer.lora_alpha != settings["alpha"]:
            raise InputError(
                f"{path}: has alpha {settings['alpha']}, the model's adapters {layer.lora_alpha}; "
                "enable_lora with the file's settings"
            )
    if not _adapted(model):  # only now: a file that does not fit leaves the model as it was
        enable_lora(model, settings["rank"], alpha=settings["alpha"], targets=settings["targets"])
    trained = _trained(model)
    for name, weight in trained.items():
        weight.assign(tensors[name])
    return model


def _check_settings(settings: dict[str, Any], path: str | os.PathLike[str]) -> None:
    """Refuse settings that cannot be."""
    rank, alpha, targets = settings["rank"], settings["alpha"], settings["targets"]
    if not (rank > 0 and 0 < alpha < float("inf") and targets and all(isinstance(name, str) for name in targets)):
        raise InputError(f"{path}: rank {rank}, alpha {alpha} or its targets are damaged; save the adapters anew")


def _expected(model: keras.Model, settings: dict[str, Any], path: str | os.PathLike[str]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors that a file for the model has, before anything is made for them."""
    if _adapted(model):
        return {name: tuple(weight.shape) for name, weight in _trained(model).items()}
    ends = tuple(settings["targets"])
    layers = [layer for name, layer in _dense_layers(model).items() if name.endswith(ends)]
    shapes = {}
    for name, weight in _trained(model).items():
        if hasattr(model, "backbone") and not name.startswith(_BACKBONE):
            shapes[name] = tuple(weight.shape)
    for layer in layers:
        name, (wide, high) = variable_name(layer._kernel).removesuffix("kernel"), layer._kernel.shape
        shapes[f"{name}lora_kernel_a"], shapes[f"{name}lora_kernel_b"] = (
            (wide, settings["rank"]),
            (settings["rank"], high),
        )
    if not layers:
        raise InputError(f"{path}: its targets are no layers of the model; load the model they were trained on")
    return shapes


def merged(model: Model) -> Model:
    """The same model without adapters: each kernel is `W + alpha / rank * A B`, computed in float32.

    Args:
        model: A built model.

    Returns:
        A plain copy; the model itself where it has no adapters.
    """
    layers = _adapted(model)
    if not layers:
        return model
    with backend.deferred():
        copy = type(model)(model.config, dtype=model.dtype_policy)
        copy.build()
    inside = "" if hasattr(model, "backbone") else _BACKBONE  # of a head that is not a part of the copy
    values = {variable_name(weight).removeprefix(inside): weight.value for weight in model.weights}
    for path, layer in layers.items():
        change = ops.matmul(layer.lora_kernel_a.value, layer.lora_kernel_b.value)
        name = next(name for name in values if name.endswith(f"{path}/kernel"))
        wide = ops.cast(layer._kernel.value, "float32") + layer.lora_alpha / layer.lora_rank * change
        values[name] = ops.cast(wide, layer._kernel.dtype)
    for weight in copy.weights:
        backend.set_value(weight, values[variable_name(weight)])
    backend.initialize_rest(copy)
    return copy


def _dense_layers(model: keras.Model) -> dict[str, keras.layers.Dense]:
    """Dense layers of the blocks by path: `block_0/attention/query`, `encoder/block_0/attention/query`."""
    found = {}
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.Dense) and layer.built:
            name = variable_name(layer._kernel).removeprefix(_BACKBONE).removesuffix("/kernel")
            if name.startswith(("block_", "encoder/block_")):
                found[name] = layer
    return found


def _adapted(model: keras.Model) -> dict[str, Any]:
    return {name: layer for name, layer in _dense_layers(model).items() if layer.lora_enabled}


def _trained(model: keras.Model) -> dict[str, keras.Variable]:
    """What a file of adapters holds: all that is trainable."""
    return {variable_name(weight): weight for weight in model.trainable_variables}


def _fingerprint(model: keras.Model) -> str:
    """SHA-256 over the language model under the adapters: config, names and values of its weights."""
    language_model = getattr(model, "backbone", model)
    digest = hashlib.sha256(json.dumps(language_model.config.to_dict(), sort_keys=True).encode())
    for weight in language_model.weights:
        name = variable_name(weight).removeprefix(_BACKBONE)
        if "/lora_kernel_" not in name:
            digest.update(f"\n{name} {weight.dtype}\n".encode())
            digest.update(np.ascontiguousarray(ops.convert_to_numpy(weight.value)).tobytes())
    return digest.hexdigest()


def _read(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    import safetensors

    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            settings = json.loads((file.metadata() or {}).get("kerasllm_adapters", "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (safetensors.SafetensorError, ValueError) as error:
        raise InputError(f"{path}: is no file of adapters ({error}); save them anew") from None
    kinds: dict[str, Any] = {"rank": int, "alpha": (int, float), "targets": list, "base": str}
    if not isinstance(settings, dict) or settings.get("format") != _FORMAT:
        raise InputError(f"{path}: holds no adapters of format {_FORMAT}; give a file of save_adapters")
    for name, kind in kinds.items():
        if not isinstance(settings.get(name), kind):
            raise InputError(f"{path}: its {name} is {settings.get(name)!r}; save the adapters anew")
    return settings, tensors
