"""Generating and scoring text with any model of the zoo."""

from kerasllm.generation.beam import Hypotheses, beam_search
from kerasllm.generation.continuations import Prompt, TextCodec, left_pad, source_ids
from kerasllm.generation.decoding import Decoding, Sampling, Tracing, decode, prefill
from kerasllm.generation.loop import generate, generate_tokens, stream
from kerasllm.generation.sampling import greedy, penalize_repetition, sample
from kerasllm.generation.scoring import score_tokens, score_windows
from kerasllm.generation.sequences import Continuation, generate_sequences
from kerasllm.generation.translation import translate

__all__ = [
    "Continuation",
    "Decoding",
    "Hypotheses",
    "Prompt",
    "Sampling",
    "TextCodec",
    "Tracing",
    "beam_search",
    "decode",
    "generate",
    "generate_sequences",
    "generate_tokens",
    "greedy",
    "left_pad",
    "penalize_repetition",
    "prefill",
    "sample",
    "score_tokens",
    "score_windows",
    "source_ids",
    "stream",
    "translate",
]
