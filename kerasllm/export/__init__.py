"""Models as files that run without Keras: SavedModel for servers, TFLite (LiteRT) for phones."""

from typing import TYPE_CHECKING, Any

_NAMES = {"export_saved_model": "saved_model", "export_tflite": "tflite"}

__all__ = list(_NAMES)

if TYPE_CHECKING:
    # What the lazy index hides from type checkers.
    from kerasllm.export.saved_model import export_saved_model as export_saved_model
    from kerasllm.export.tflite import export_tflite as export_tflite


def __getattr__(name: str) -> Any:
    import importlib

    if name in _NAMES:
        return getattr(importlib.import_module(f"kerasllm.export.{_NAMES[name]}"), name)
    raise AttributeError(f"module 'kerasllm.export' has no attribute {name!r}")
