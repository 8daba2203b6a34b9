"""Tokenizers with two faces that agree: Python (no TensorFlow) and TensorFlow graph."""

from kerasllm.text.bpe import BytePairTokenizer
from kerasllm.text.bytes import ByteTokenizer
from kerasllm.text.segmentation import JiebaTokenizer
from kerasllm.text.sentencepiece import SentencePieceTokenizer
from kerasllm.text.tokenizer import Tokenizer, load_tokenizer
from kerasllm.text.wordpiece import WordPieceTokenizer
from kerasllm.text.words import WordTokenizer

__all__ = [
    "BytePairTokenizer",
    "ByteTokenizer",
    "JiebaTokenizer",
    "SentencePieceTokenizer",
    "Tokenizer",
    "WordPieceTokenizer",
    "WordTokenizer",
    "load_tokenizer",
]
