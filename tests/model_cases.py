"""The model configurations that the tests of models, generation and backends go through."""

import numpy as np

from kerasllm.config import LSTMConfig, RotaryScaling, TransformerConfig
from kerasllm.models import LSTMLanguageModel, TransformerLanguageModel

VOCABULARY = 19
_SMALL = {"vocabulary_size": VOCABULARY, "num_layers": 2, "num_heads": 4, "hidden_dim": 16, "intermediate_dim": 24}

TRANSFORMERS = {
    "llama": TransformerConfig(**_SMALL, max_sequence_length=32),
    "gpt2": TransformerConfig(
        **_SMALL,
        max_sequence_length=24,
        positions="learned",
        norm="layer_norm",
        activation="gelu_approximate",
        use_bias=True,
    ),
    "vaswani": TransformerConfig(
        **_SMALL, positions="sine", norm="layer_norm", norm_first=False, activation="relu", use_bias=True
    ),
    "grouped": TransformerConfig(
        **_SMALL, num_key_value_heads=2, rotary_base=100.0, norm_epsilon=1e-2, tie_embeddings=False, use_bias=True
    ),
    "llama3": TransformerConfig(
        **_SMALL,
        num_key_value_heads=2,
        rotary_scaling=RotaryScaling(8.0, 1.0, 4.0, 16),
        rotary_base=50.0,
        attention_bias=True,
    ),
    "pytorch": TransformerConfig(
        **_SMALL,
        positions="sine",
        norm="layer_norm",
        norm_first=False,
        activation="relu",
        use_bias=True,
        tie_embeddings=False,
        embedding_scale=True,
        output_bias=True,
        initializer="uniform",
        final_norm=True,
    ),
    "multi_query": TransformerConfig(
        **_SMALL, num_key_value_heads=1, norm_first=False, activation="gelu", dropout=0.4, norm="layer_norm"
    ),
}
BIDIRECTIONAL = {
    "bidirectional": TransformerConfig(**_SMALL, causal=False),
    "bert": TransformerConfig(
        **_SMALL,
        causal=False,
        positions="learned",
        norm="layer_norm",
        norm_first=False,
        activation="gelu",
        use_bias=True,
        num_segments=2,
        embedding_norm=True,
        pooler=True,
    ),
    "bidirectional_learned": TransformerConfig(
        **_SMALL, causal=False, positions="learned", num_key_value_heads=2, norm_first=False
    ),
}
LSTMS = {
    "lstm": LSTMConfig(VOCABULARY, 8, 12),
    "lstm_stack": LSTMConfig(
        VOCABULARY, embedding_dim=8, hidden_dim=12, num_layers=3, tie_embeddings=True, dropout=0.4
    ),
    "gru": LSTMConfig(VOCABULARY, 8, 12, num_layers=2, cell="gru"),
    "rnn": LSTMConfig(VOCABULARY, 8, 12, cell="rnn", tie_embeddings=True),
}
BIDIRECTIONAL |= {
    "bidirectional_lstm": LSTMConfig(VOCABULARY, 8, 6, num_layers=2, bidirectional=True),
    "bidirectional_gru": LSTMConfig(VOCABULARY, 8, 6, cell="gru", bidirectional=True),
}
CAUSAL = {**TRANSFORMERS, **LSTMS}
ALL = {**CAUSAL, **BIDIRECTIONAL}


def model_class(config):
    return TransformerLanguageModel if isinstance(config, TransformerConfig) else LSTMLanguageModel


def make(config, seed=0, scale=0.4, **arguments):
    """A model with weights so large that every token matters (fresh models are nearly constant)."""
    model = model_class(config)(config, **arguments)
    model.build()
    rng = np.random.default_rng(seed)
    for variable in model.trainable_variables:
        centre = 1.0 if variable.path.endswith(("scale", "gamma")) else 0.0
        variable.assign(centre + rng.normal(size=variable.shape) * scale)
    return model


def tokens(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, VOCABULARY, shape).astype("int32")
