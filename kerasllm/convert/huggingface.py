"""Hugging Face folders: `config.json` and safetensors, read and written."""

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from kerasllm.config import TransformerConfig
from kerasllm.convert import tables
from kerasllm.convert.build import build_model
from kerasllm.convert.hf_config import FAMILIES, read_config, write_config
from kerasllm.convert.readers import about
from kerasllm.convert.safetensors_folder import SafetensorsFolder, write_safetensors_folder
from kerasllm.convert.weights import Table, written_weights
from kerasllm.errors import InputError
from kerasllm.files import atomic_file, atomic_folder, read_json, write_json
from kerasllm.models import (
    Head,
    HeadConfig,
    LanguageModel,
    MaskedLanguageModel,
    SequenceClassifier,
    SpanExtractor,
    TokenClassifier,
    TransformerLanguageModel,
    merged,
)

if TYPE_CHECKING:
    from kerasllm.text import Tokenizer

_CONFIG = "config.json"

Model: TypeAlias = LanguageModel | Head

_HEADS: dict[str, tuple[type[Head], Table]] = {
    "BertForSequenceClassification": (SequenceClassifier, tables.HF_BERT_CLASSIFIER),
    "BertForTokenClassification": (TokenClassifier, tables.HF_BERT_TOKENS),
    "BertForQuestionAnswering": (SpanExtractor, tables.HF_BERT_SPANS),
    "BertForMaskedLM": (MaskedLanguageModel, tables.HF_BERT_MASKED),
    # Whose next-sentence part nobody uses.
    "BertForPreTraining": (MaskedLanguageModel, tables.HF_BERT_MASKED),
}
"""Architecture in `config.json` to head and table; in writing the first one of a head counts."""


def is_huggingface(folder: Path) -> bool:
    """Whether a folder's `config.json` is one of Hugging Face's, which has a `model_type`."""
    if not (folder / _CONFIG).is_file():
        return False
    content = read_json(folder / _CONFIG)
    return isinstance(content, dict) and "model_type" in content


def from_huggingface(folder: str | os.PathLike[str], *, dtype: str | None = None) -> tuple[Any, "Tokenizer"]:
    """Load a LLaMA, GPT-2 or BERT, or a BERT with the head of a task, from a Hugging Face folder.

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

    cls, config, source, table = _plan(Path(folder))
    # Before the weights, which may take minutes.
    tokenizer = tokenizer_from_huggingface(folder, vocabulary_size=config.vocabulary_size)
    return build_model(cls, config, source, table, dtype=dtype), tokenizer


def read_huggingface_model(folder: str | os.PathLike[str], *, dtype: str | None = None) -> Any:
    """The model of a Hugging Face folder, without a tokenizer; see `from_huggingface`."""
    cls, config, source, table = _plan(Path(folder))
    return build_model(cls, config, source, table, dtype=dtype)


def _plan(folder: Path) -> tuple[type[Any], Any, SafetensorsFolder, Table]:
    """Class, config, weights and table of a folder's model, of which nothing but config and headers is read."""
    path = folder / _CONFIG
    content = read_json(path)
    with _about(path):
        family, config = read_config(content)
        architecture = _architecture(content)
    source = SafetensorsFolder(folder)
    pooler = family == "bert" and any(name.endswith("pooler.dense.weight") for name in source.tensors)
    config = dataclasses.replace(config, pooler=pooler)
    if architecture not in _HEADS:
        return TransformerLanguageModel, config, source, FAMILIES[family].table
    head, table = _HEADS[architecture]
    with _about(path):
        if family != "bert":
            raise InputError(f"architecture {architecture} is BERT's, model_type {family}; copy the file again")
        return head, _head_config(head, config, content), source, table


@contextlib.contextmanager
def _about(path: Path) -> Iterator[None]:
    """Name the file in an error about its content."""
    try:
        yield
    except InputError as error:
        raise about(path, error) from None


def _architecture(content: dict[str, Any]) -> str:
    """The class of `transformers` that wrote a file; empty where it does not say."""
    names = content.get("architectures") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(f"architectures is {names!r:.80}, no list of names of classes; copy the file again")
    return names[0] if names else ""


def _head_config(head: type[Head], backbone: TransformerConfig, content: dict[str, Any]) -> HeadConfig:
    """Config of a head, with the labels of `config.json`."""
    pooler = backbone.pooler or head is SequenceClassifier
    settings: dict[str, Any] = {"backbone": dataclasses.replace(backbone, pooler=pooler)}
    if head in (SequenceClassifier, TokenClassifier):
        labels = content.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}
        try:
            names = [str(labels[str(index)]) for index in range(len(labels))]
        except (KeyError, TypeError):
            raise InputError("id2label does not number its labels from 0; put them right") from None
        settings |= {"num_classes": len(names), "labels": tuple(names)}
    rate = content.get("classifier_dropout")
    return head.config_class(**settings, dropout=backbone.dropout if rate is None else rate)


def to_huggingface(
    model: Model,
    folder: str | os.PathLike[str],
    tokenizer: "Tokenizer | None" = None,
    *,
    max_shard_bytes: int = 5_000_000_000,
    overwrite: bool = False,
) -> Path:
    """Write a folder that `transformers` loads.

    Args:
        model: A built Transformer that LLaMA, GPT-2 or BERT can express, or a head of BERT's; adapters are merged.
        folder: Where to write.
        tokenizer: Its tokenizer, written in Hugging Face's format where given.
        max_shard_bytes: Size above which the weights are written in several files with an index.
        overwrite: Replace what is there.

    Returns:
        The folder.

    Raises:
        InputError: The folder exists, or `transformers` has no such model or tokenizer.
    """
    model = merged(model)
    content, table = _describe(model)
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
        tensors = written_weights(model, table)
        write_safetensors_folder(target, tensors, max_shard_bytes=max_shard_bytes)
    return Path(folder)


def _describe(model: Model) -> tuple[dict[str, Any], Table]:
    """Content of `config.json` and table of weights."""
    if isinstance(model, TransformerLanguageModel):
        family, content = write_config(model.config)
        return content, FAMILIES[family].table
    kinds = [(name, table) for name, (head, table) in _HEADS.items() if type(model) is head]
    if not kinds or not isinstance(model.config.backbone, TransformerConfig):
        raise InputError(f"{type(model).__name__} has no counterpart in transformers; only Transformers can be written")
    architecture, table = kinds[0]
    family, content = write_config(model.config.backbone)
    if family != "bert" or (isinstance(model, SequenceClassifier) and model.config.pooling != "pooler"):
        raise InputError(f"transformers has no {type(model).__name__} like this one; only BERT's, with its pooler")
    content |= {"architectures": [architecture], "classifier_dropout": model.config.dropout}
    if isinstance(model, SequenceClassifier | TokenClassifier):
        labels = model.config.labels or [f"LABEL_{index}" for index in range(model.config.num_classes)]
        content["id2label"] = {str(index): label for index, label in enumerate(labels)}
        content["label2id"] = {label: index for index, label in enumerate(labels)}
    return content, table
