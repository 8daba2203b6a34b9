"""Byte-level BPE as others store it: `tokenizer.json`, `vocab.json` with `merges.txt`, metadata of GGUF files."""

import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers

from kerasllm.errors import InputError

LARGEST = 2**22
"""No vocabulary has more ids."""
ENDS = ("<|im_end|>", "<|endoftext|>", "<|end_of_text|>", "<|eot_id|>", "<|eom_id|>")
"""Special tokens at which a text or a turn of a conversation ends."""
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PRE_TOKENIZERS = ("gpt-2", "smollm", "llama-bpe")
"""Ways to split a text into words, by llama.cpp's names: GPT-2's, the same with single digits, and Llama 3's."""

_GGUF_NAMES = {"gpt2": "gpt-2", "llama3": "llama-bpe", "llama-v3": "llama-bpe", **{n: n for n in PRE_TOKENIZERS}}
_GGUF_CONTROL, _GGUF_USER, _GGUF_UNUSED = 3, 4, 5
_REMEDY = "get the tokenizer anew"


class Parts(NamedTuple):
    """What a file holds.

    Attributes:
        tokens: The token of each id; an empty string is an id without a token.
        merges: Two tokens a string, a blank between them, the most important one first.
        settings: Of `BytePairTokenizer`.
    """

    tokens: list[str]
    merges: list[str]
    settings: dict[str, Any]


@functools.cache
def byte_alphabet() -> list[str]:
    """The character that stands for each of the 256 bytes in a token (Radford et al., 2019)."""
    shown = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = iter(range(256, 512))
    return [chr(byte if byte in shown else next(hidden)) for byte in range(256)]


def token_bytes(token: str) -> bytes:
    """The bytes that a token stands for; one that is not in the alphabet stands for itself, as in the library."""
    codes = _codes()
    if all(character in codes for character in token):
        return bytes(codes[character] for character in token)
    return token.encode()


@functools.cache
def _codes() -> dict[str, int]:
    return {character: byte for byte, character in enumerate(byte_alphabet())}


def library_tokenizer(
    tokens: Sequence[str],
    merges: Sequence[str],
    special: Sequence[str],
    user: Sequence[str],
    pre_tokenizer: str,
    ignore_merges: bool,
) -> tokenizers.Tokenizer:
    """The same tokenizer made with the `tokenizers` library.

    Args:
        tokens: See `Parts`.
        merges: See `Parts`.
        special: Tokens that are found in a text and vanish in decoding.
        user: Tokens that are found in a text.
        pre_tokenizer: One of `PRE_TOKENIZERS`.
        ignore_merges: Whether a word that is a token needs no merges.

    Returns:
        It.
    """
    ids = {token: i for i, token in enumerate(tokens) if token}
    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
    tokenizer = tokenizers.Tokenizer(models.BPE(ids, pairs, ignore_merges=ignore_merges))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pre_tokenizer != "llama-bpe")
    before: dict[str, Any] = {
        "smollm": pre_tokenizers.Digits(individual_digits=True),
        "llama-bpe": pre_tokenizers.Split(Regex(LLAMA3), "isolated"),
    }
    first = before.get(pre_tokenizer)
    tokenizer.pre_tokenizer = byte_level if first is None else pre_tokenizers.Sequence([first, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in special])
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in user])
    return tokenizer


def read_files(vocabulary: bytes, merges: bytes, added: Mapping[str, int]) -> Parts:
    """Read `vocab.json` and `merges.txt`.

    Args:
        vocabulary: An object of ids by token.
        merges: Two tokens a line, after a first line with the version.
        added: Ids of special tokens that may be missing from the vocabulary.

    Returns:
        The parts; special are `added` and what ends a text.

    Raises:
        InputError: A file is broken.
    """
    try:
        ids = json.loads(vocabulary)
        lines = merges.decode().split("\n")
    except (ValueError, RecursionError) as error:
        raise InputError(f"vocabulary or merges: cannot be read ({error}); {_REMEDY}") from None
    if not isinstance(ids, dict):
        raise InputError(f"vocabulary: is no object of ids by token; {_REMEDY}")
    special = [*added, *(token for token in ENDS if token in ids and token not in added)]
    lines = [line.removesuffix("\r") for line in lines[lines[0].startswith("#version") :]]
    return Parts(_by_id(ids, added), [line for line in lines if line], {"special_tokens": special})


def read_tokenizer_json(content: Mapping[str, Any]) -> Parts:
    """Read the `tokenizer.json` of the `tokenizers` library.

    Args:
        content: The parsed file.

    Returns:
        The parts.

    Raises:
        InputError: It is no byte-level BPE of a kind that is known; the message says what differs.
    """
    model = _object(content, "model")
    if content.get("normalizer") is not None:
        raise InputError(f"normalizer: {content['normalizer']!r:.50} is not known; only tokenizers without one are")
    for name, allowed in (
        ("type", ("BPE", None)),
        ("dropout", (None, 0.0)),
        ("continuing_subword_prefix", (None, "")),
        ("end_of_word_suffix", (None, "")),
        ("byte_fallback", (None, False)),
        ("ignore_merges", (None, False, True)),
    ):
        if not any(model.get(name) is value or model.get(name) == value for value in allowed):
            raise InputError(f"model.{name}: {model.get(name)!r:.50} is not known; only byte-level BPE is")
    special, user = _added_tokens(content)
    settings: dict[str, Any] = {
        "pre_tokenizer": _pre_tokenizer(content),
        "special_tokens": list(special),
        "user_tokens": list(user),
        "ignore_merges": bool(model.get("ignore_merges")),
    }
    bos = _starts_with(content.get("post_processor"))
    if bos is not None:
        settings |= {"add_bos": True, "bos_token": bos}
    return Parts(_by_id(_object(model, "vocab"), {**special, **user}), _merges(model.get("merges")), settings)


def read_gguf(metadata: Mapping[str, Any]) -> Parts:
    """Read the metadata of a GGUF file, keys `tokenizer.*`.

    Args:
        metadata: Values by key.

    Returns:
        The parts.

    Raises:
        InputError: A key is missing or broken, or the way to split words is not known.
    """

    def part(name: str, kind: type, default: Any = None) -> Any:
        value = metadata.get(f"tokenizer.ggml.{name}", default)
        if type(value) is not kind and value is not default:
            raise InputError(f"tokenizer.ggml.{name}: {value!r:.50} is no {kind.__name__}; {_REMEDY}")
        return value

    for name, wanted in (("model", ("gpt2",)), ("pre", tuple(_GGUF_NAMES))):
        if (found := metadata.get(f"tokenizer.ggml.{name}")) not in wanted:
            raise InputError(f"tokenizer.ggml.{name}: {found!r:.50} is none of {', '.join(wanted)}")
    tokens, merges, kinds = (part(name, list) for name in ("tokens", "merges", "token_type"))
    for name, values, kind in (("tokens", tokens, str), ("merges", merges, str), ("token_type", kinds, int)):
        if values is None or not all(type(value) is kind for value in values):
            raise InputError(f"tokenizer.ggml.{name}: is no list of {kind.__name__}; {_REMEDY}")
    if len(kinds) != len(tokens):
        raise InputError(f"tokenizer.ggml.token_type: has {len(kinds)} entries for {len(tokens)} tokens; {_REMEDY}")
    pre_tokenizer = _GGUF_NAMES[metadata["tokenizer.ggml.pre"]]
    settings: dict[str, Any] = {
        "pre_tokenizer": pre_tokenizer,
        "special_tokens": [token for token, kind in zip(tokens, kinds, strict=True) if kind == _GGUF_CONTROL],
        "user_tokens": [token for token, kind in zip(tokens, kinds, strict=True) if kind == _GGUF_USER],
        "ignore_merges": pre_tokenizer == "llama-bpe",
        "add_bos": part("add_bos_token", bool, pre_tokenizer == "llama-bpe"),
        "chat_template": metadata.get("tokenizer.chat_template"),
    }
    for name, setting in (("bos", "bos_token"), ("eos", "eos_token"), ("eot", ""), ("eom", "")):
        i = part(f"{name}_token_id", int)
        if i is not None and not 0 <= i < len(tokens):
            raise InputError(f"tokenizer.ggml.{name}_token_id: {i} is not one of the {len(tokens)} tokens; {_REMEDY}")
        if i is not None and setting:
            settings[setting] = tokens[i]
        elif i is not None:
            settings.setdefault("stop_ids", []).append(i)
    used = ["" if kind == _GGUF_UNUSED else token for token, kind in zip(tokens, kinds, strict=True)]
    return Parts(used, merges, settings)


def _object(content: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = content.get(name)
    if not isinstance(value, dict):
        raise InputError(f"{name}: is no object; {_REMEDY}")
    return value


def _merges(found: Any) -> list[str]:
    """Older files have "a b", newer ones ["a", "b"]."""
    if not isinstance(found, list):
        raise InputError(f"model.merges: is no list; {_REMEDY}")
    for merge in found:
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(token, str) for token in pair):
            raise InputError(f"model.merges: {merge!r:.50} is no pair of tokens; {_REMEDY}")
    return [merge if isinstance(merge, str) else " ".join(merge) for merge in found]


def _by_id(vocabulary: Mapping[str, Any], added: Mapping[str, Any]) -> list[str]:
    """Tokens in the order of their ids; an id that is missing becomes an empty string."""
    for token, i in added.items():
        if vocabulary.get(token, i) != i:
            raise InputError(
                f"added token {token!r:.50}: has id {i!r:.20} here and another in the vocabulary; {_REMEDY}"
            )
    ids = {**vocabulary, **added}
    if not all(type(i) is int and 0 <= i < LARGEST for i in ids.values()) or len(set(ids.values())) != len(ids):
        raise InputError(f"vocabulary: the ids must be different, and 0 to {LARGEST - 1}; {_REMEDY}")
    tokens = [""] * (max(ids.values(), default=-1) + 1)
    for token, i in ids.items():
        tokens[i] = token
    return tokens


def _added_tokens(content: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Ids of special and of other added tokens."""
    added = content.get("added_tokens") or []
    if not isinstance(added, list) or not all(isinstance(token, dict) for token in added):
        raise InputError(f"added_tokens: is no list of objects; {_REMEDY}")
    for token in added:
        name = token.get("content")
        if not isinstance(name, str) or any(token.get(key) for key in ("lstrip", "rstrip", "single_word")):
            raise InputError(f"added_tokens: {name!r:.50} strips blanks or wants words; only plain tokens are known")
    # The library looks for tokens with "normalized" only in what the others leave. Without a normalizer that matters
    # where such tokens overlap alone.
    first, second = ([t["content"] for t in added if bool(t.get("normalized")) is later] for later in (False, True))
    for one in first:
        for other in second:
            if _overlap(one, other) or _overlap(other, one):
                raise InputError(
                    f"added_tokens: {one!r:.50} and {other!r:.50} overlap; give both the same 'normalized'"
                )
    special, user = ({t["content"]: t.get("id") for t in added if bool(t.get("special")) is s} for s in (True, False))
    return special, user


def _overlap(one: str, other: str) -> bool:
    """Whether `other` can begin within `one`."""
    return any(other.startswith(one[i:]) or one.startswith(other, i) for i in range(len(one)))


def _pre_tokenizer(content: Mapping[str, Any]) -> str:
    """The name of the way to split words."""
    found = _object(content, "pre_tokenizer")
    steps = found.get("pretokenizers") if found.get("type") == "Sequence" else [found]
    if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
        raise InputError(f"pre_tokenizer: is no list of objects; {_REMEDY}")
    shown = [(step.get("type"), *_essence(step)) for step in steps]
    for name, wanted in (
        ("gpt-2", [("ByteLevel", False, True)]),
        ("smollm", [("Digits", True), ("ByteLevel", False, True)]),
        ("llama-bpe", [("Split", LLAMA3, "isolated", False), ("ByteLevel", False, False)]),
    ):
        if shown == wanted:
            return name
    raise InputError(
        f"pre_tokenizer: {shown!r:.150} splits words in a way that is not known; known are "
        f"those of {', '.join(PRE_TOKENIZERS)}"
    )


def _essence(step: Mapping[str, Any]) -> tuple[Any, ...]:
    """The settings of a step that change what it does."""
    if step.get("type") == "ByteLevel":
        return step.get("add_prefix_space", True), step.get("use_regex", True)
    if step.get("type") == "Digits":
        return (step.get("individual_digits", False),)
    pattern = step.get("pattern")
    pattern = pattern.get("Regex") if isinstance(pattern, dict) else pattern
    return pattern, str(step.get("behavior")).lower(), step.get("invert", False)


def _starts_with(processor: Any) -> str | None:
    """The token that a post-processor puts in front of a text."""
    if processor is None:
        return None
    kind = processor.get("type") if isinstance(processor, dict) else processor
    if kind == "ByteLevel":
        return None
    inner = processor.get("processors") if kind == "Sequence" else None
    if isinstance(inner, list):
        found = [token for token in map(_starts_with, inner) if token is not None]
        return found[0] if found else None
    template = processor.get("single") if kind == "TemplateProcessing" else None
    try:
        names = [next(iter(piece.values()))["id"] if "Sequence" not in piece else None for piece in template or ()]
    except (AttributeError, KeyError, TypeError, StopIteration):
        names = []
    if names[-1:] != [None] or len(names) > 2 or not all(isinstance(name, str) for name in names[:-1]):
        raise InputError(f"post_processor: {kind!r:.50} does more than to put a token in front; that is not known")
    return names[0]
