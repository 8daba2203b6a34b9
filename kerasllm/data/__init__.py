"""From raw text to training batches: articles, prepared corpora, packed windows. Importing it imports no TensorFlow."""

import importlib
from typing import TYPE_CHECKING, Any

# Lazy, so that the worker processes that read and encode load no more than they need.
_NAMES = {
    "Article": "sources",
    "Corpus": "corpus",
    "DatasetInfo": "dataset_info",
    "ReadReport": "sources",
    "as_tf_dataset": "datasets",
    "dataset_articles": "datasets",
    "dataset_from_texts": "packing",
    "dataset_names": "dataset_registry",
    "dataset_paths": "datasets",
    "default_corpus": "wikipedia",
    "describe": "dataset_registry",
    "download": "downloads",
    "load_corpus": "corpus",
    "load_dataset": "datasets",
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
    from kerasllm.data.dataset_info import DatasetInfo as DatasetInfo
    from kerasllm.data.dataset_registry import dataset_names as dataset_names
    from kerasllm.data.dataset_registry import describe as describe
    from kerasllm.data.datasets import as_tf_dataset as as_tf_dataset
    from kerasllm.data.datasets import dataset_articles as dataset_articles
    from kerasllm.data.datasets import dataset_paths as dataset_paths
    from kerasllm.data.datasets import load_dataset as load_dataset
    from kerasllm.data.downloads import download as download
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
