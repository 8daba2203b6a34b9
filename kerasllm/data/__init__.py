"""From raw text to training batches: articles, prepared corpora, packed windows. Importing it imports no TensorFlow."""

import importlib
from typing import Any

# Lazy, so that the worker processes that read and encode load no more than they need.
_NAMES = {
    "Article": "sources",
    "Corpus": "corpus",
    "ReadReport": "sources",
    "dataset_from_texts": "packing",
    "default_corpus": "wikipedia",
    "load_corpus": "corpus",
    "packed_dataset": "packing",
    "prepare": "corpus",
    "read_articles": "sources",
}

__all__ = [*_NAMES]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(importlib.import_module(f"kerasllm.data.{_NAMES[name]}"), name)
    raise AttributeError(f"module 'kerasllm.data' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
