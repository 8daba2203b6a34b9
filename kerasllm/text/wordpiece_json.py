"""BERT tokenizers as the `tokenizers` library writes them: what is in a `tokenizer.json`, and whether it is known."""

from collections.abc import Mapping
from typing import Any

from kerasllm.errors import InputError

LARGEST = 2**22
"""More tokens than this the op of TensorFlow Text does not take."""
SPECIALS = {"unk": "[UNK]", "sep": "[SEP]", "pad": "[PAD]", "cls": "[CLS]", "mask": "[MASK]"}
"""BERT's special tokens."""

_PREFIX = "##"


def read_tokenizer_json(content: Mapping[str, Any]) -> tuple[list[str], dict[str, Any]]:
    """What `WordPieceTokenizer` needs.

    Args:
        content: The parsed file.

    Returns:
        The tokens, and the settings that the file has; "extra_special_tokens" are all of them.

    Raises:
        InputError: It is not BERT's kind of tokenizer; the message says what differs.
    """
    model, normalizer = (json_object(content, name) for name in ("model", "normalizer"))
    for place, found, wanted in (
        ("model.type", model.get("type", "WordPiece"), "WordPiece"),
        ("model.continuing_subword_prefix", model.get("continuing_subword_prefix", _PREFIX), _PREFIX),
        ("normalizer.type", normalizer.get("type"), "BertNormalizer"),
        ("pre_tokenizer.type", json_object(content, "pre_tokenizer").get("type"), "BertPreTokenizer"),
    ):
        if found != wanted:
            raise InputError(f"{place}: {found!r:.50} is not {wanted!r}; only BERT's way to make word pieces is known")
    added = _added_tokens(content)
    settings: dict[str, Any] = {"special_tokens": {"unk": model.get("unk_token", SPECIALS["unk"])}}
    settings["extra_special_tokens"] = list(added)
    for name, source, theirs in (
        ("lowercase", normalizer, "lowercase"),
        ("strip_accents", normalizer, "strip_accents"),
        ("clean_text", normalizer, "clean_text"),
        ("chinese_characters", normalizer, "handle_chinese_chars"),
        ("max_word_length", model, "max_input_chars_per_word"),
    ):
        if theirs in source:
            settings[name] = source[theirs]
    return _by_id({**json_object(model, "vocab"), **added}), settings


def json_object(content: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The object `content[name]`; empty where there is none.

    Raises:
        InputError: It is something else.
    """
    value = content.get(name) or {}
    if not isinstance(value, dict):
        raise InputError(f"{name}: is no object; make the tokenizer anew")
    return value


def _added_tokens(content: Mapping[str, Any]) -> dict[str, Any]:
    """Id by special token; others, which are looked for in cleaned text, are refused."""
    added = content.get("added_tokens") or []
    if not isinstance(added, list) or not all(isinstance(token, dict) for token in added):
        raise InputError("added_tokens: is no list of objects; make the tokenizer anew")
    for token in added:
        name, plain = token.get("content"), not any(token.get(key) for key in ("lstrip", "rstrip", "single_word"))
        if not isinstance(name, str) or not token.get("special") or token.get("normalized") or not plain:
            raise InputError(f"added_tokens: {name!r:.50} is not a plain special token; only those are known")
    return {token["content"]: token.get("id") for token in added}


def _by_id(ids: Mapping[str, Any]) -> list[str]:
    """Tokens in the order of their ids; an id that is missing becomes an empty string."""
    numbers = list(ids.values())
    if not all(type(i) is int and 0 <= i < LARGEST for i in numbers) or len(set(numbers)) != len(numbers):
        raise InputError(f"vocabulary: the ids must be different, and 0 to {LARGEST - 1}; make the tokenizer anew")
    tokens = [""] * (max(numbers, default=-1) + 1)
    for token, i in ids.items():
        tokens[i] = token
    return tokens
