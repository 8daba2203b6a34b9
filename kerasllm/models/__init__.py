"""Subclassed Keras models of the zoo."""

from kerasllm.models.base import LanguageModel, variable_name
from kerasllm.models.lstm import LSTMLanguageModel
from kerasllm.models.transformer import TransformerLanguageModel

REGISTRY: dict[str, type[LanguageModel]] = {
    model.__name__: model for model in (LSTMLanguageModel, TransformerLanguageModel)
}
"""The closed list of classes that a model folder may name: loading never imports by string."""

__all__ = ["REGISTRY", "LSTMLanguageModel", "LanguageModel", "TransformerLanguageModel", "variable_name"]
