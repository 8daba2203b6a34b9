"""Byte-level BPE from and to the files of others, and what is refused in them."""

import json

import pytest
from byte_pairs import (
    BOS_FIRST,
    BYTE_LEVEL,
    PRE_TOKENIZERS,
    added,
    smollm2_json,
    smollm2_metadata,
    tokenizer_json,
    trained,
)

from kerasllm.errors import InputError
from kerasllm.text import BytePairTokenizer, load_tokenizer
from kerasllm.text.bpe_files import byte_alphabet
from kerasllm.text.pretrained import tokenizer_from_gguf, tokenizer_from_huggingface

TEXTS = ["", "Hello 12 <|endoftext|> x\t\n  isn't <|im_start|>", "WE'LL  12345\n\n數學 <|eot_id|>\n😀", "\0\x1f "]
TOKENS = [*byte_alphabet(), "ab", "abc", "<|endoftext|>"]
MERGES = ["a b", "ab c"]
FILES = json.dumps({token: i for i, token in enumerate(TOKENS)}).encode(), b"#version: 0.2\na b\nab c\n"


def settings_of(tokenizer):
    return tokenizer.bos_id, tokenizer.eos_id, tokenizer.add_bos, tokenizer.stop_ids


# Reading


def test_files():
    tokenizer = BytePairTokenizer.from_files(*FILES)
    assert (tokenizer.tokens, tokenizer.merges) == (TOKENS, MERGES)
    assert settings_of(tokenizer) == (258, 258, False, (258,))
    windows = BytePairTokenizer.from_files(FILES[0], b"a b\r\nab c\r\n", add_bos=True, stop_ids=[7, 258])
    assert windows.merges == MERGES
    assert settings_of(windows) == (258, 258, True, (258, 7))
    more = BytePairTokenizer.from_files(*FILES, added_tokens={"<|im_end|>": 260, "<|endoftext|>": 258})
    assert more.encode("<|im_end|>ab") == [260, 256]
    assert more.decode([259, 260, 256]) == "ab"
    assert settings_of(more) == (258, 258, False, (258, 260))


@pytest.mark.parametrize("kind", PRE_TOKENIZERS)
def test_tokenizer_json(kind):
    content = trained(kind)
    tokenizer = BytePairTokenizer.from_tokenizer_json(content)
    assert (tokenizer.pre_tokenizer, tokenizer._ignore_merges) == (kind, kind == "llama-bpe")
    expected = {
        "gpt-2": (0, 0, False, (0,)),
        "smollm": (0, 0, False, (0, 2)),
        "llama-bpe": (0, 1, True, (1, 2)),
    }
    assert settings_of(tokenizer) == expected[kind]
    older = json.loads(json.dumps(content))
    older["model"]["merges"] = [" ".join(merge) for merge in content["model"]["merges"]]
    assert BytePairTokenizer.from_tokenizer_json(older).fingerprint == tokenizer.fingerprint
    last = tokenizer.tokens[3]
    named = BytePairTokenizer.from_tokenizer_json(content, bos_token=last, eos_token=last, add_bos=False)
    assert settings_of(named)[:3] == (3, 3, False)


def test_gguf_and_tokenizer_json_of_smollm2_are_one():
    metadata = smollm2_metadata()
    one = tokenizer_from_gguf(metadata, vocabulary_size=49_216)
    named = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "chat_template": one.chat_template}
    other = BytePairTokenizer.from_tokenizer_json(smollm2_json(metadata), vocabulary_size=49_216, **named)
    assert one.fingerprint == other.fingerprint


def gguf(kind="smollm", **change):
    vocabulary = trained(kind)["model"]
    tokens = sorted(vocabulary["vocab"], key=vocabulary["vocab"].get)
    metadata = {
        "model": "gpt2",
        "pre": kind,
        "tokens": [*tokens, "[PAD400]", "<user>"],
        "token_type": [3] * 4 + [1] * (len(tokens) - 4) + [5, 4],
        "merges": [" ".join(merge) for merge in vocabulary["merges"]],
        "bos_token_id": 1,
        "eos_token_id": 2,
        **change,
    }
    return {f"tokenizer.ggml.{name}": value for name, value in metadata.items() if value is not None}


def test_gguf_settings():
    tokenizer = BytePairTokenizer.from_gguf(gguf(eot_token_id=3, eom_token_id=2))
    assert settings_of(tokenizer) == (1, 2, False, (2, 0, 3))
    user = tokenizer.encode("<user>")
    assert user == [len(tokenizer.tokens) - 1]
    assert tokenizer.decode([*user, user[0] - 1]) == "<user>"
    llama = BytePairTokenizer.from_gguf(gguf("llama-bpe", bos_token_id=0, eos_token_id=1))
    assert settings_of(llama) == (0, 1, True, (1, 2))
    assert llama._ignore_merges
    assert not BytePairTokenizer.from_gguf(gguf("llama-bpe", pre="llama3", add_bos_token=False)).add_bos
    assert BytePairTokenizer.from_gguf(gguf() | {"tokenizer.chat_template": "{{ x }}"}).chat_template == "{{ x }}"


# Writing


@pytest.mark.parametrize("kind", PRE_TOKENIZERS)
def test_transformers_loads_what_is_written(kind, tmp_path):
    from transformers import AutoTokenizer

    content = trained(kind)
    content["added_tokens"].append(added("<user>", len(content["model"]["vocab"]), special=False))
    tokenizer = BytePairTokenizer.from_tokenizer_json(content, chat_template="{{ messages[0].content }}!")
    for name, data in tokenizer.to_huggingface().items():
        (tmp_path / name).write_bytes(data)
    theirs = AutoTokenizer.from_pretrained(str(tmp_path))
    for text in [*TEXTS, "a<user>b"]:
        assert theirs.encode(text) == tokenizer.prompt_ids(text) if text else tokenizer.encode(text) == []
        assert theirs.encode(text, add_special_tokens=False) == tokenizer.encode(text)
        assert theirs.decode(tokenizer.encode(text), skip_special_tokens=True) == tokenizer.decode(
            tokenizer.encode(text)
        )
    assert (theirs.bos_token_id, theirs.eos_token_id) == (tokenizer.bos_id, tokenizer.eos_id)
    assert theirs.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False) == "Hi!"
    assert tokenizer_from_huggingface(tmp_path).fingerprint == tokenizer.fingerprint


# What is refused


def change(path, value):
    """A `tokenizer.json` with another value at `path`."""
    content = tokenizer_json({token: i for i, token in enumerate(TOKENS)}, MERGES, "gpt-2", {"<|endoftext|>": 258})
    *outer, last = path.split(".")
    place = content
    for name in outer:
        place = place[name]
    place[last] = value
    return content


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("model", None, "model: is no object"),
        ("model.type", "Unigram", "model.type: 'Unigram'"),
        ("model.dropout", 0.1, "model.dropout"),
        ("model.byte_fallback", True, "model.byte_fallback"),
        ("model.end_of_word_suffix", "</w>", "end_of_word_suffix"),
        ("model.ignore_merges", 2, "ignore_merges"),
        ("model.vocab", [], "vocab: is no object"),
        ("model.vocab", {}, "lacks the token for byte 9 and 207 more"),
        ("model.vocab", {"a": 10**12}, "ids must be different"),
        ("model.vocab", {"a": 1, "b": 1}, "ids must be different"),
        ("model.vocab", {"a": True}, "ids must be different"),
        ("model.vocab", {"<|endoftext|>": 5}, "another in the vocabulary"),
        ("model.merges", {}, "model.merges: is no list"),
        ("model.merges", [["a"]], "is no pair"),
        ("model.merges", ["a b c"], "is no pair"),
        ("model.merges", [["a", 1]], "is no pair"),
        ("model.merges", ["a  b"], "is no pair"),
        ("model.merges", ["a x"], "'a x', number 0, needs 'ax', which is no token"),
        ("model.merges", ["数 a"], "needs '数', which is no token"),
        ("model.merges", ["a b", "a b"], "twice"),
        ("normalizer", {"type": "NFC"}, "normalizer: "),
        ("pre_tokenizer", None, "pre_tokenizer: is no object"),
        ("pre_tokenizer", {"type": "Whitespace"}, "not known; known are those of gpt-2"),
        ("pre_tokenizer", {"type": "Sequence", "pretokenizers": 1}, "no list of objects"),
        ("pre_tokenizer", {**BYTE_LEVEL, "add_prefix_space": True}, "not known"),
        ("pre_tokenizer", {"type": "Split", "pattern": {"Regex": "x"}, "behavior": "Isolated"}, "not known"),
        ("post_processor", {"type": "BertProcessing"}, "post_processor: 'BertProcessing'"),
        ("post_processor", {**BOS_FIRST, "single": BOS_FIRST["single"][::-1]}, "post_processor"),
        ("post_processor", 7, "post_processor: 7"),
        ("added_tokens", 7, "added_tokens: is no list"),
        ("added_tokens", [added("<|endoftext|>", 258, lstrip=True)], "strips blanks"),
        ("added_tokens", [added("<x>", 258)], "ids must be different"),
        ("added_tokens", [added("<x>", 259), added("x>y", 260, normalized=True)], "overlap"),
        ("added_tokens", [], "eos_token: the vocabulary has none"),
    ],
)
def test_bad_tokenizer_json(path, value, message, tmp_path):
    content = change(path, value)
    with pytest.raises(InputError, match=message) as caught:
        BytePairTokenizer.from_tokenizer_json(content)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "bert"}, "ggml.model: 'bert'"),
        ({"pre": None}, "ggml.pre: None is none of"),
        ({"pre": "qwen2"}, "ggml.pre: 'qwen2' is none of gpt2"),
        ({"pre": ["smollm"]}, "ggml.pre"),
        ({"tokens": None}, "ggml.tokens: is no list of str"),
        ({"tokens": [1]}, "ggml.tokens: is no list of str"),
        ({"merges": None}, "ggml.merges: is no list"),
        ({"merges": [b"a b"]}, "ggml.merges: is no list of str"),
        ({"merges": ["a b c"]}, "is no pair"),
        ({"merges": ["ab"]}, "is no pair"),
        ({"token_type": [1]}, "has 1 entries for"),
        ({"token_type": 3}, "3 is no list"),
        ({"bos_token_id": 10**6}, "bos_token_id: 1000000"),
        ({"eos_token_id": -1}, "eos_token_id: -1"),
        ({"eot_token_id": "x"}, "eot_token_id: 'x' is no int"),
        ({"add_bos_token": 1}, "add_bos_token: 1 is no bool"),
        ({"tokens": ["a", "a"], "token_type": [1, 1], "bos_token_id": 1, "eos_token_id": 1}, "'a' is token 0 and 1"),
    ],
)
def test_bad_gguf(change, message):
    with pytest.raises(InputError, match=message) as caught:
        BytePairTokenizer.from_gguf(gguf(**change))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("vocabulary", "merges", "message"),
    [
        (b"{", FILES[1], "cannot be read"),
        (b"\xff", FILES[1], "cannot be read"),
        (b"[" * 100_000, FILES[1], "cannot be read"),
        (b"[]", FILES[1], "no object"),
        (FILES[0], b"\xff", "cannot be read"),
        (FILES[0], b"a b c\n", "is no pair"),
        (FILES[0], b"b a\n", "needs 'ba'"),
        (b'{"a": 0, "\\ud800": 1}', b"", "is no text"),
    ],
)
def test_bad_files(vocabulary, merges, message):
    with pytest.raises(InputError, match=message) as caught:
        BytePairTokenizer.from_files(vocabulary, merges)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"add_bos": 1}, "add_bos"),
        ({"ignore_merges": None}, "ignore_merges"),
        ({"pre_tokenizer": "qwen2"}, "pre_tokenizer: 'qwen2'"),
        ({"pre_tokenizer": []}, "pre_tokenizer"),
        ({"chat_template": 1}, "chat_template"),
        ({"vocabulary_size": 258}, "vocabulary_size: 258 must be a number from 259"),
        ({"vocabulary_size": 10**12}, "vocabulary_size"),
        ({"vocabulary_size": 300.0}, "vocabulary_size"),
        ({"stop_ids": [259]}, "stop_ids: 259"),
        ({"stop_ids": ["a"]}, "stop_ids: 'a'"),
        ({"special_tokens": ["<x>"]}, "lacks the token '<x>'"),
        ({"user_tokens": [7]}, "lacks the token 7"),
        ({"bos_token": "<s>"}, "lacks the token '<s>'"),
        ({"eos_token": ["<s>"]}, "lacks the token"),
        ({"x": 1}, "unexpected keyword"),
    ],
)
def test_settings_are_checked(tmp_path, options, message):
    if "x" not in options:
        with pytest.raises(InputError, match=message):
            BytePairTokenizer(TOKENS, MERGES, **{"eos_token": "<|endoftext|>", **options})
    tokenizer = BytePairTokenizer(TOKENS, MERGES, special_tokens=["<|endoftext|>"])
    tokenizer.save(tmp_path)
    description = json.loads((tmp_path / "tokenizer.json").read_text())
    description["settings"] |= options
    (tmp_path / "tokenizer.json").write_text(json.dumps(description))
    with pytest.raises(InputError, match=message) as caught:
        load_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("vocabulary.json", b"{}", "no list of tokens"),
        ("vocabulary.json", b"[", "not a usable BytePairTokenizer"),
        ("vocabulary.json", b"[1]", "is no text"),
        ("merges.txt", b"\xff", "not a usable BytePairTokenizer"),
        ("merges.txt", b"a\n", "is no pair"),
    ],
)
def test_damaged_folder(tmp_path, name, content, message):
    BytePairTokenizer(TOKENS, MERGES, special_tokens=["<|endoftext|>"]).save(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        load_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)
