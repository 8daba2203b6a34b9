"""Hugging Face folders: `config.json` and safetensors, read and written."""

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING

from kerasllm.convert.build import build_model
from kerasllm.convert.hf_config import FAMILIES, read_config, write_config
from kerasllm.convert.safetensors_folder import SafetensorsFolder, write_safetensors_folder
from kerasllm.convert.weights import written_weights
from kerasllm.errors import InputError
from kerasllm.files import atomic_file, atomic_folder, read_json, write_json
from kerasllm.models import LanguageModel, TransformerLanguageModel

if TYPE_CHECKING:
    from kerasllm.text import Tokenizer

_CONFIG = "config.json"


def is_huggingface(folder: Path) -> bool:
    """Whether a folder's `config.json` is one of Hugging Face's, which has a `model_type`."""
    if not (folder / _CONFIG).is_file():
        return False
    content = read_json(folder / _CONFIG)
    return isinstance(content, dict) and "model_type" in content


def from_huggingface(folder: str | os.PathLike[str], *, dtype: str | None = None) -> tuple[LanguageModel, "Tokenizer"]:
    """Load a LLaMA, GPT-2 or BERT from a Hugging Face folder.

    Args:
        folder: Holds `config.json`, `model.safetensors` (or shards and their index) and the tokenizer's files.
        dtype: Dtype policy of the model; Keras' default where `None`.

    Returns:
        The model and its tokenizer.

    Raises:
        InputError: A file is missing or damaged, the architecture or a key of the config is unknown, a tensor is
            missing, surplus or of another shape, or the tokenizer does not fit the model.
    """
    from kerasllm.text.pretrained import tokenizer_from_huggingface

    model = read_huggingface_model(folder, dtype=dtype)
    return model, tokenizer_from_huggingface(folder, vocabulary_size=model.config.vocabulary_size)


def read_huggingface_model(folder: str | os.PathLike[str], *, dtype: str | None = None) -> LanguageModel:
    """The model of a Hugging Face folder, without a tokenizer; see `from_huggingface`."""
    folder = Path(folder)
    path = folder / _CONFIG
    content = read_json(path)
    try:
        family, config = read_config(content)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    source = SafetensorsFolder(folder)
    if family == "bert" and any(name.endswith("pooler.dense.weight") for name in source.tensors):
        config = dataclasses.replace(config, pooler=True)
    return build_model(TransformerLanguageModel, config, source, FAMILIES[family].table, dtype=dtype)


def to_huggingface(
    model: LanguageModel,
    folder: str | os.PathLike[str],
    tokenizer: "Tokenizer | None" = None,
    *,
    max_shard_bytes: int = 5_000_000_000,
    overwrite: bool = False,
) -> Path:
    """Write a folder that `transformers` loads.

    Args:
        model: A built Transformer that LLaMA, GPT-2 or BERT can express.
        folder: Where to write.
        tokenizer: Its tokenizer, written in Hugging Face's format where given.
        max_shard_bytes: Size above which the weights are written in several files with an index.
        overwrite: Replace what is there.

    Returns:
        The folder.

    Raises:
        InputError: The folder exists, or `transformers` has no such model or tokenizer.
    """
    if not isinstance(model, TransformerLanguageModel):
        raise InputError(f"{type(model).__name__} has no counterpart in transformers; only Transformers can be written")
    family, content = write_config(model.config)
    files = {}
    if tokenizer is not None:
        from kerasllm.text.pretrained import huggingface_files

        files = huggingface_files(tokenizer)
    with atomic_folder(folder, overwrite=overwrite) as target:
        content["dtype"] = content["torch_dtype"] = model.variable_dtype
        if tokenizer is not None:
            content |= {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id}
        write_json(target / _CONFIG, content)
        for name, data in files.items():
            with atomic_file(target / name) as file:
                file.write(data)
        tensors = written_weights(model, FAMILIES[family].table)
        write_safetensors_folder(target, tensors, max_shard_bytes=max_shard_bytes)
    return Path(folder)
