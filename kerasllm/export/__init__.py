"""Models as files that run without Keras: SavedModel for servers, TFLite (LiteRT) for phones."""

from typing import Any

_NAMES = {"export_saved_model": "saved_model", "export_tflite": "tflite"}

__all__ = list(_NAMES)


def __getattr__(name: str) -> Any:
    import importlib

    if name in _NAMES:
        return getattr(importlib.import_module(f"kerasllm.export.{_NAMES[name]}"), name)
    raise AttributeError(f"module 'kerasllm.export' has no attribute {name!r}")
