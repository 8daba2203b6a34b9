"""The encoder-decoder configurations that the tests of models, generation and export go through."""

import numpy as np
from model_cases import VOCABULARY

from kerasllm.config import LSTMEncoderDecoderConfig, TransformerConfig, TransformerSeq2SeqConfig
from kerasllm.models import SEQ2SEQ

SOURCE_VOCABULARY = 23
_SMALL = {"vocabulary_size": VOCABULARY, "num_layers": 2, "num_heads": 4, "hidden_dim": 16, "intermediate_dim": 24}
_VASWANI = {"positions": "sine", "norm": "layer_norm", "norm_first": False, "activation": "relu", "use_bias": True}

SEQ2SEQS = {
    "vaswani": TransformerSeq2SeqConfig(**_SMALL, **_VASWANI, embedding_scale=True),
    "learned": TransformerSeq2SeqConfig(
        **{**_SMALL, "num_layers": 1},
        positions="learned",
        max_sequence_length=40,
        num_encoder_layers=2,
        source_vocabulary_size=SOURCE_VOCABULARY,
        tie_embeddings=False,
        output_bias=True,
    ),
    "grouped": TransformerSeq2SeqConfig(**{**_SMALL, "num_layers": 1}, num_key_value_heads=2, dropout=0.3),
    "luong": LSTMEncoderDecoderConfig(VOCABULARY, 8, 12, num_layers=2, bidirectional_encoder=True, dropout=0.3),
    "bahdanau": LSTMEncoderDecoderConfig(
        VOCABULARY, 8, 12, attention="additive", cell="gru", source_vocabulary_size=SOURCE_VOCABULARY
    ),
    "plain": LSTMEncoderDecoderConfig(VOCABULARY, 8, 12, attention=None, tie_embeddings=True),
}


def make(config, seed=0, scale=0.4, **arguments):
    """A model with weights so large that every token matters."""
    cls = "TransformerSeq2Seq" if isinstance(config, TransformerConfig) else "LSTMEncoderDecoder"
    model = SEQ2SEQ[cls](config, **arguments)
    model.build()
    rng = np.random.default_rng(seed)
    for variable in model.trainable_variables:
        centre = 1.0 if variable.path.endswith(("scale", "gamma")) else 0.0
        variable.assign(centre + rng.normal(size=variable.shape) * scale)
    return model


def tokens(*shape, seed=0):
    """Tokens that are in both vocabularies."""
    return np.random.default_rng(seed).integers(0, VOCABULARY, shape).astype("int32")


def mask_of(lengths, width):
    """True where a source of a length is real."""
    return np.arange(width)[None, :] < np.array(lengths)[:, None]
