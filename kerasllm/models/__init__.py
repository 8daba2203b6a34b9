"""Subclassed Keras models of the zoo."""

from kerasllm.models.answers import best_spans, predicted_labels
from kerasllm.models.base import LanguageModel, variable_name
from kerasllm.models.encoder_decoder import SEQ2SEQ, EncoderDecoder, LSTMEncoderDecoder, TransformerSeq2Seq
from kerasllm.models.head_configs import (
    HeadConfig,
    MaskedLanguageModelConfig,
    SentenceEmbedderConfig,
    SequenceClassifierConfig,
    SpanExtractorConfig,
    TokenClassifierConfig,
)
from kerasllm.models.heads import (
    BACKBONES,
    HEADS,
    Head,
    MaskedLanguageModel,
    SentenceEmbedder,
    SequenceClassifier,
    SpanExtractor,
    TokenClassifier,
)
from kerasllm.models.lora import enable_lora, load_adapters, merged, save_adapters
from kerasllm.models.lstm import LSTMLanguageModel
from kerasllm.models.transformer import TransformerLanguageModel

REGISTRY = BACKBONES
"""The closed list of language models that a model folder or a training may name: loading never imports by string."""

__all__ = [
    "HEADS",
    "REGISTRY",
    "SEQ2SEQ",
    "EncoderDecoder",
    "Head",
    "HeadConfig",
    "LSTMEncoderDecoder",
    "LSTMLanguageModel",
    "LanguageModel",
    "MaskedLanguageModel",
    "MaskedLanguageModelConfig",
    "SentenceEmbedder",
    "SentenceEmbedderConfig",
    "SequenceClassifier",
    "SequenceClassifierConfig",
    "SpanExtractor",
    "SpanExtractorConfig",
    "TokenClassifier",
    "TokenClassifierConfig",
    "TransformerLanguageModel",
    "TransformerSeq2Seq",
    "best_spans",
    "enable_lora",
    "load_adapters",
    "merged",
    "predicted_labels",
    "save_adapters",
    "variable_name",
]
