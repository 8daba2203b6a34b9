"""Tokenizers with two faces that agree: Python (no TensorFlow) and TensorFlow graph."""

from kerasllm.text.bytes import ByteTokenizer
from kerasllm.text.sentencepiece import SentencePieceTokenizer
from kerasllm.text.tokenizer import Tokenizer, load_tokenizer
from kerasllm.text.words import WordTokenizer

__all__ = ["ByteTokenizer", "SentencePieceTokenizer", "Tokenizer", "WordTokenizer", "load_tokenizer"]
