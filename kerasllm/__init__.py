"""kerasllm: from raw Wikipedia text to language models on GPU servers and phones, without leaving TensorFlow.

The public index is lazy (PEP 562): `import kerasllm` imports neither TensorFlow nor Keras; the first use of a name
does.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_MODULES = (
    "chat",
    "convert",
    "data",
    "edge",
    "evaluation",
    "export",
    "generation",
    "layers",
    "metrics",
    "models",
    "plan",
    "presets",
    "serving",
    "text",
    "training",
)
_NAMES = {
    "InputError": "errors",
    "LSTMConfig": "config",
    "LSTMEncoderDecoderConfig": "config",
    "TransformerConfig": "config",
    "TransformerSeq2SeqConfig": "config",
    "export_saved_model": "export",
    "export_tflite": "export",
    "generate": "generation",
    "load": "folder",
    "save": "folder",
    "stream": "generation",
    "translate": "generation",
}

__all__ = ["__version__", *_MODULES, *_NAMES]

if TYPE_CHECKING:
    # What the lazy index hides from type checkers.
    from kerasllm import chat as chat
    from kerasllm import convert as convert
    from kerasllm import data as data
    from kerasllm import edge as edge
    from kerasllm import evaluation as evaluation
    from kerasllm import export as export
    from kerasllm import generation as generation
    from kerasllm import layers as layers
    from kerasllm import metrics as metrics
    from kerasllm import models as models
    from kerasllm import plan as plan
    from kerasllm import presets as presets
    from kerasllm import serving as serving
    from kerasllm import text as text
    from kerasllm import training as training
    from kerasllm.config import LSTMConfig as LSTMConfig
    from kerasllm.config import LSTMEncoderDecoderConfig as LSTMEncoderDecoderConfig
    from kerasllm.config import TransformerConfig as TransformerConfig
    from kerasllm.config import TransformerSeq2SeqConfig as TransformerSeq2SeqConfig
    from kerasllm.errors import InputError as InputError
    from kerasllm.export import export_saved_model as export_saved_model
    from kerasllm.export import export_tflite as export_tflite
    from kerasllm.folder import load as load
    from kerasllm.folder import save as save
    from kerasllm.generation import generate as generate
    from kerasllm.generation import stream as stream
    from kerasllm.generation import translate as translate


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"kerasllm.{name}")
    if name in _NAMES:
        return getattr(importlib.import_module(f"kerasllm.{_NAMES[name]}"), name)
    raise AttributeError(f"module 'kerasllm' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
