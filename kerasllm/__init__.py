"""kerasllm: from raw Wikipedia text to language models on GPU servers and phones, without leaving TensorFlow.

The public index is lazy (PEP 562): `import kerasllm` imports neither TensorFlow nor Keras; the first use of a name
does.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_MODULES = ("data", "edge", "evaluation", "export", "generation", "layers", "models", "presets", "text", "training")
_NAMES = {
    "InputError": "errors",
    "LSTMConfig": "config",
    "TransformerConfig": "config",
    "export_saved_model": "export",
    "export_tflite": "export",
    "generate": "generation",
    "load": "folder",
    "save": "folder",
    "stream": "generation",
}

__all__ = ["__version__", *_MODULES, *_NAMES]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"kerasllm.{name}")
    if name in _NAMES:
        return getattr(importlib.import_module(f"kerasllm.{_NAMES[name]}"), name)
    raise AttributeError(f"module 'kerasllm' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
