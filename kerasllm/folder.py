"""The model folder: one format for runs, checkpoints and published models. JSON and safetensors, never code.

```
config.json         format, class (from a closed registry) and config
model.safetensors   every weight under its variable path
tokenizer.json ...  the tokenizer's files
manifest.json       SHA-256 and size of every other file
```
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kerasllm.errors import InputError
from kerasllm.files import atomic_file, atomic_folder, read_json, sha256, write_json

if TYPE_CHECKING:
    import keras

    from kerasllm.models import LanguageModel
    from kerasllm.text import Tokenizer

SAVED_MODEL_EXTRA = "assets.extra"
"""Folder inside a SavedModel, ignored by TensorFlow, where config and tokenizer lie."""

CARD = "card.json"
MODEL = "model"
"""Name of the model folder inside the folder of a training."""

WEIGHTS = "model.safetensors"
_CONFIG = "config.json"
_MANIFEST = "manifest.json"
_FORMAT = 1
_SAVED_MODEL = "saved_model.pb"
_PUBLISHED = Path(__file__).parent.parent / "saved_models"


def description(model: "LanguageModel") -> dict[str, Any]:
    """What `config.json` says of a model: format, class and config."""
    return {"format": _FORMAT, "class": type(model).__name__, "config": model.config.to_dict()}


def save(
    model: "LanguageModel", tokenizer: "Tokenizer", folder: str | os.PathLike[str], *, overwrite: bool = False
) -> Path:
    """Write a model folder.

    Args:
        model: A language model; built here where it is not.
        tokenizer: Its tokenizer.
        folder: Where to write.
        overwrite: Replace what is there.

    Returns:
        The folder.

    Raises:
        InputError: The folder exists.
    """
    if not model.built:
        model.build()
    with atomic_folder(folder, overwrite=overwrite) as target:
        write_json(target / _CONFIG, description(model))
        write_weights(model, target / WEIGHTS)
        tokenizer.save(target)
        files = {path.name: {"sha256": sha256(path), "bytes": path.stat().st_size} for path in sorted(target.iterdir())}
        write_json(target / _MANIFEST, {"format": _FORMAT, "files": files})
    return Path(folder)


def load(path_or_name: str | os.PathLike[str], *, dtype: str | None = None) -> tuple["LanguageModel", "Tokenizer"]:
    """Load a Keras model and its tokenizer.

    Args:
        path_or_name: A model folder or a training's folder with one, a SavedModel that kerasllm exported, a folder
            that holds one as `1/`, or the name of a model under `saved_models/` of a checkout.
        dtype: Dtype policy of the model, such as `"mixed_bfloat16"`; Keras' default where `None`.

    Returns:
        The model and its tokenizer.

    Raises:
        InputError: There is nothing of that name, or a file is missing, changed or not a model of this library.
    """
    folder = find(path_or_name)
    if (folder / "1" / _SAVED_MODEL).is_file():
        folder = folder / "1"
    if (folder / _SAVED_MODEL).is_file():
        return _load_saved_model(folder, dtype)
    if (folder / MODEL / _CONFIG).is_file():
        folder = folder / MODEL
    if not (folder / _CONFIG).is_file():
        raise InputError(f"{folder}: has neither {_CONFIG} nor {_SAVED_MODEL}; give a model folder or a SavedModel")
    _verify(folder)
    model = _make(folder / _CONFIG, dtype)
    read_weights(model, folder / WEIGHTS)
    return model, _tokenizer(folder, model)


def find(path_or_name: str | os.PathLike[str]) -> Path:
    """The path that a path or the name of a published model means.

    Raises:
        InputError: There is nothing there.
    """
    path = Path(path_or_name)
    if path.exists():
        return path
    if len(path.parts) == 1:
        published = _PUBLISHED / path
        if (published / CARD).is_file():
            return published
        names = sorted(card.parent.name for card in _PUBLISHED.glob(f"*/{CARD}"))
        where = (
            f"this checkout has {', '.join(names)}"
            if names
            else (
                "published models come with a checkout of the repository, not with the package: "
                "clone it, or train your own with `kerasllm quickstart`"
            )
        )
        raise InputError(f"{path}: no such folder or published model; {where}")
    raise InputError(f"{path}: no such folder")


def write_weights(model: "keras.Model", path: str | os.PathLike[str], metadata: dict[str, str] | None = None) -> None:
    """Write a model's weights as one safetensors file, atomically.

    Args:
        model: A built model; its variable paths must differ from each other.
        path: The file; replaced if it exists.
        metadata: What to record in the file's header.

    Raises:
        InputError: Two variables have the same path.
    """
    import safetensors.numpy

    tensors: dict[str, np.ndarray] = {}
    for weight in model.weights:
        name = _name(weight, model)
        if name in tensors:
            raise InputError(f"{path}: the model has two variables with path {name}; name its layers differently")
        tensors[name] = np.asarray(weight.numpy(), order="C")
    with atomic_file(path) as file:
        file.write(safetensors.numpy.save(tensors, metadata))


def read_weights(model: "keras.Model", path: str | os.PathLike[str]) -> None:
    """Set a model's weights from a file of `write_weights`; all of them or, if one does not fit, none.

    Args:
        model: A built model.
        path: The file.

    Raises:
        InputError: The file is missing or broken, or its names or shapes are not those of the model.
    """
    import safetensors

    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except safetensors.SafetensorError as error:
        raise InputError(f"{path}: is not a safetensors file ({error}); write it anew") from None
    _assign(model, tensors, path)


def _assign(model: "keras.Model", tensors: dict[str, np.ndarray], path: str | os.PathLike[str]) -> None:
    weights = {_name(weight, model): weight for weight in model.weights}
    if different := sorted(weights.keys() ^ tensors.keys()):
        raise InputError(f"{path}: variable {different[0]} is not in both file and model; use the model that wrote it")
    for name, weight in weights.items():
        if tuple(weight.shape) != tuple(tensors[name].shape):
            raise InputError(
                f"{path}: {name} has shape {tensors[name].shape}, the model's {tuple(weight.shape)}; use its own config"
            )
    for name, weight in weights.items():
        weight.assign(tensors[name])


def _name(weight: "keras.Variable", model: "keras.Model") -> str:
    """Path without the model's name, which Keras makes up anew for each model of a process."""
    return weight.path.removeprefix(f"{model.name}/")


def _verify(folder: Path) -> None:
    """Refuse a folder whose files are not those of its manifest, before anything in them is parsed."""
    path = folder / _MANIFEST
    manifest = read_json(path)
    files = manifest.get("files") if isinstance(manifest, dict) and manifest.get("format") == _FORMAT else None
    if not isinstance(files, dict):
        raise InputError(f"{path}: is not a manifest of format {_FORMAT}; save the model anew")
    tokenizer = [file.name for pattern in ("tokenizer*", "vocabulary*") for file in folder.glob(pattern)]
    needed = {_CONFIG, WEIGHTS, "tokenizer.json", *tokenizer}
    if lacking := sorted(needed - files.keys()):
        raise InputError(f"{path}: says nothing of {lacking[0]}; save the model anew")
    for name, expected in files.items():
        file = folder / name
        if Path(name).name != name or not isinstance(expected, dict):
            raise InputError(f"{path}: names {name!r}, which is no file of this folder; save the model anew")
        if not file.is_file():
            raise InputError(f"{file}: is missing; copy the whole folder again")
        if file.stat().st_size != expected.get("bytes") or sha256(file) != expected.get("sha256"):
            raise InputError(f"{file}: is not what {_MANIFEST} says it is; copy the whole folder again")


def _make(config: Path, dtype: str | None) -> "LanguageModel":
    """A built model with initial weights, from its description."""
    from kerasllm.models import REGISTRY

    content = read_json(config)
    content = content if isinstance(content, dict) else {}
    cls = REGISTRY.get(str(content.get("class")))
    if content.get("format") != _FORMAT or cls is None or not isinstance(content.get("config"), dict):
        raise InputError(
            f"{config}: is not format {_FORMAT} of a known class ({', '.join(REGISTRY)}); "
            "it was written by something else or by a newer kerasllm"
        )
    try:
        model = cls(cls.config_class.from_dict(content["config"]), dtype=dtype)
    except InputError as error:
        raise InputError(f"{config}: {error}") from None
    model.build()
    return model


def _tokenizer(folder: Path, model: "LanguageModel") -> "Tokenizer":
    from kerasllm.text import load_tokenizer

    tokenizer = load_tokenizer(folder)
    if tokenizer.vocabulary_size != model.config.vocabulary_size:
        raise InputError(
            f"{folder}: the tokenizer has {tokenizer.vocabulary_size} tokens but the model "
            f"{model.config.vocabulary_size}; copy the whole folder again"
        )
    return tokenizer


def _load_saved_model(folder: Path, dtype: str | None) -> tuple["LanguageModel", "Tokenizer"]:
    """Take the weights out of a SavedModel's variables, where they lie under their variable paths."""
    import tensorflow as tf

    extra = folder / SAVED_MODEL_EXTRA
    if not (extra / _CONFIG).is_file():
        raise InputError(
            f"{folder}: is a SavedModel that kerasllm did not export ({SAVED_MODEL_EXTRA} lacks {_CONFIG})"
        )
    model = _make(extra / _CONFIG, dtype)
    try:
        checkpoint = tf.train.load_checkpoint(str(folder / "variables" / "variables"))
        # TensorFlow's checkpoint keys write "." as ".." and "/" as ".S".
        keys = {
            _name(w, model): "weights/"
            + _name(w, model).replace(".", "..").replace("/", ".S")
            + "/.ATTRIBUTES/VARIABLE_VALUE"
            for w in model.weights
        }
        tensors = {name: checkpoint.get_tensor(key) for name, key in keys.items()}
    except (tf.errors.OpError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{folder}: its variables cannot be read ({str(error).splitlines()[0]}); export it anew"
        ) from None
    _assign(model, tensors, folder)
    return model, _tokenizer(extra, model)
