"""Tiny models of every kind and what is exported from them; each is made once in a test run, when first asked for."""

import functools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

PROMPTS = ("The history of", "In mathematics, a", "我爱北京天安门", "a", "")
"""Five prompts, one of them Chinese, one of a single token and one empty."""

TEXTS = [
    "In mathematics, a set is a collection of things; the history of sets begins with Georg Cantor.\n",
    "数学是利用符号语言研究数量、结构、变化以及空间等概念的一门学科。我爱北京天安门。\n",
    "He was born in 1925 and lived in Paris, where he wrote a history of mathematics in two parts.\n",
]
NEW_TOKENS = 64
CONTEXT = 128
SCORED = 32
"""Inputs in a window of `score`, and the chunk that TFLite files score."""
STRIDE = 16
CHUNKS = (4, 16)
"""Chunks in which TFLite files read a prompt."""

NAMES = ("grouped", "learned", "lstm")
"""Transformer with grouped-query heads and rotary positions; Transformer with learned positions; LSTM of two layers."""

_folder = tempfile.TemporaryDirectory(prefix="kerasllm-test-")


@functools.cache
def sentencepiece():
    """A SentencePiece tokenizer of 340 pieces."""
    from kerasllm.text import SentencePieceTokenizer

    return SentencePieceTokenizer.train(TEXTS * 5, 340)


@functools.cache
def pair(name):
    """A model and its tokenizer."""
    from kerasllm.config import LSTMConfig, TransformerConfig
    from kerasllm.models import LSTMLanguageModel, TransformerLanguageModel
    from kerasllm.text import ByteTokenizer

    tokenizer = ByteTokenizer() if name == "learned" else sentencepiece()
    size = {"vocabulary_size": tokenizer.vocabulary_size}
    transformer = {**size, "num_heads": 4, "hidden_dim": 32, "intermediate_dim": 48, "max_sequence_length": CONTEXT}
    if name == "grouped":
        config = TransformerConfig(**transformer, num_layers=2, num_key_value_heads=2)
    elif name == "learned":
        switches = {"norm": "layer_norm", "activation": "gelu", "use_bias": True, "tie_embeddings": False}
        config = TransformerConfig(**transformer, num_layers=1, positions="learned", **switches)
    else:
        config = LSTMConfig(**size, embedding_dim=24, hidden_dim=40, num_layers=2, tie_embeddings=True)
    cls = LSTMLanguageModel if name == "lstm" else TransformerLanguageModel
    return randomized(cls(config), seed=len(name)), tokenizer


def randomized(model, seed=0):
    """The model, built, with weights so large that its answers differ from place to place."""
    model.build()
    random = np.random.default_rng(seed)
    for weight in model.weights:
        weight.assign(random.normal(weight.numpy().mean(), 0.35, weight.shape).astype("float32"))
    return model


@functools.cache
def saved_model(name):
    """Path of the SavedModel of a pair."""
    from kerasllm.export import export_saved_model

    path = Path(_folder.name) / name / "1"
    return export_saved_model(*pair(name), path, max_new_tokens=NEW_TOKENS, context=SCORED, stride=STRIDE)


@functools.cache
def tflite(name, quantization=None):
    """Path of the TFLite file of a pair, the tokenizer beside it."""
    from kerasllm.export import export_tflite

    model, tokenizer = pair(name)
    path = Path(_folder.name) / f"{name}-{quantization}" / "model.tflite"
    lengths = {"prefill_lengths": CHUNKS, "score_lengths": (SCORED,)}
    return export_tflite(model, path, tokenizer, quantization=quantization, **lengths)


@functools.cache
def greedy(name):
    """Greedy continuations of `PROMPTS` by Keras."""
    from kerasllm import generate

    return generate(*pair(name), PROMPTS, max_new_tokens=NEW_TOKENS)


def documents(tokenizer, texts=TEXTS):
    """The texts as `bos tokens eos`."""
    return [np.array([tokenizer.bos_id, *tokenizer.encode(text), tokenizer.eos_id], "int32") for text in texts]


def run_fresh(code, *arguments):
    """Run a program in a process of its own, outside the checkout; its last line of output is JSON."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    child = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=_folder.name, timeout=300)
    assert child.returncode == 0, child.stderr[-3000:]
    return json.loads(child.stdout.strip().splitlines()[-1])


def one_line(caught):
    """The message of a caught InputError, which must be one line."""
    message = str(caught.value)
    assert message and "\n" not in message, message
    return message


def leftovers(folder):
    """Names in a folder."""
    return sorted(path.name for path in Path(folder).iterdir())
