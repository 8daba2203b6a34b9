"""From raw text to training batches: articles, prepared corpora, packed windows. Importing it imports no TensorFlow."""

import importlib
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    # What the lazy index hides from type checkers.
    from kerasllm.data.corpus import Corpus as Corpus
    from kerasllm.data.corpus import load_corpus as load_corpus
    from kerasllm.data.corpus import prepare as prepare
    from kerasllm.data.packing import dataset_from_texts as dataset_from_texts
    from kerasllm.data.packing import packed_dataset as packed_dataset
    from kerasllm.data.sources import Article as Article
    from kerasllm.data.sources import ReadReport as ReadReport
    from kerasllm.data.sources import read_articles as read_articles
    from kerasllm.data.wikipedia import default_corpus as default_corpus


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(importlib.import_module(f"kerasllm.data.{_NAMES[name]}"), name)
    raise AttributeError(f"module 'kerasllm.data' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
