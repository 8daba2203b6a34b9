"""Generating and scoring text with any model of the zoo."""

from kerasllm.generation.decoding import Decoding, Sampling, decode, prefill
from kerasllm.generation.loop import generate, generate_tokens, left_pad, stream
from kerasllm.generation.sampling import greedy, penalize_repetition, sample
from kerasllm.generation.scoring import score_tokens, score_windows

__all__ = [
    "Decoding",
    "Sampling",
    "decode",
    "generate",
    "generate_tokens",
    "greedy",
    "left_pad",
    "penalize_repetition",
    "prefill",
    "sample",
    "score_tokens",
    "score_windows",
    "stream",
]
