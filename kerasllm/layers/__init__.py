"""Reusable Keras layers, each usable alone in a Sequential or Functional model."""

from kerasllm.layers.attention import MultiHeadAttention, token_positions
from kerasllm.layers.feedforward import FeedForward
from kerasllm.layers.masks import attention_mask
from kerasllm.layers.positions import LearnedPositionEmbedding, RotaryEmbedding, SinePositionEncoding
from kerasllm.layers.recurrent import GlobalAttention, LSTMStack
from kerasllm.layers.transformer import TransformerBlock, make_norm

__all__ = [
    "FeedForward",
    "GlobalAttention",
    "LSTMStack",
    "LearnedPositionEmbedding",
    "MultiHeadAttention",
    "RotaryEmbedding",
    "SinePositionEncoding",
    "TransformerBlock",
    "attention_mask",
    "make_norm",
    "token_positions",
]
