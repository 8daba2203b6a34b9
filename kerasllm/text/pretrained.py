"""Tokenizers of published checkpoints: Hugging Face folders, GGUF metadata and llama2.c files."""

import math
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kerasllm.errors import InputError
from kerasllm.files import read_json
from kerasllm.text.sentencepiece import SentencePieceTokenizer
from kerasllm.text.tokenizer import Tokenizer, load_tokenizer

_MOST_BYTES = 2**28  # no tokenizer is larger; one of 256,000 tokens has 35 MB
_LLAMA2C_MOST = 2**16  # bytes of one token
_LLAMA2C_SPECIALS = ["<unk>", "<s>", "</s>"]


def tokenizer_from_huggingface(folder: str | os.PathLike[str], *, vocabulary_size: int | None = None) -> Tokenizer:
    """The tokenizer of a Hugging Face folder.

    `tokenizer.json` decides what it is, or else `vocab.json` with `merges.txt` (byte-level BPE), `vocab.txt` (word
    pieces) or `tokenizer.model` (SentencePiece); `tokenizer_config.json`, `special_tokens_map.json`,
    `generation_config.json` and `chat_template.jinja` say the rest, where they are.

    Args:
        folder: Holds the files.
        vocabulary_size: Of the model, which may have more ids than there are tokens.

    Returns:
        The tokenizer.

    Raises:
        InputError: A file is missing or broken, it is a kind of tokenizer that is not known, or it has more tokens
            than the model.
    """
    folder = Path(folder)
    settings: dict[str, Any] = {} if vocabulary_size is None else {"vocabulary_size": vocabulary_size}
    files = _Files(folder)
    try:
        if (folder / "tokenizer.json").is_file():
            content = files.json("tokenizer.json")
            if content.get("class") and content.get("format"):
                return _fitting(load_tokenizer(folder), vocabulary_size)
            kind = _kind(content)
            if kind == "WordPiece":
                return files.word_pieces(content, settings)
            if kind == "ByteLevel":
                return files.byte_pairs(content, settings)
            if not (folder / "tokenizer.model").is_file():
                raise InputError(
                    f"tokenizer.json: {kind} is not known; put the SentencePiece tokenizer.model beside it"
                )
        elif (folder / "vocab.json").is_file() or (folder / "merges.txt").is_file():
            return files.byte_pairs(None, settings)
        elif (folder / "vocab.txt").is_file():
            return files.word_pieces(None, settings)
        elif not (folder / "tokenizer.model").is_file():
            names = "tokenizer.json, vocab.json with merges.txt, vocab.txt or tokenizer.model"
            raise InputError(f"has no tokenizer; put {names} there")
        return files.sentence_pieces(settings)
    except InputError as error:
        raise error if str(error).startswith(str(folder)) else InputError(f"{folder}: {error}") from None


def tokenizer_from_gguf(metadata: Mapping[str, Any], *, vocabulary_size: int | None = None) -> Tokenizer:
    """The tokenizer in the metadata of a GGUF file.

    Args:
        metadata: Values by key, of which those that start with `tokenizer.` count.
        vocabulary_size: Of the model, which may have more ids than there are tokens.

    Returns:
        The tokenizer.

    Raises:
        InputError: It is not known, or a part is missing or impossible.
    """
    kind = metadata.get("tokenizer.ggml.model")
    settings: dict[str, Any] = {} if vocabulary_size is None else {"vocabulary_size": vocabulary_size}
    if kind == "gpt2":
        from kerasllm.text.bpe import BytePairTokenizer

        return BytePairTokenizer.from_gguf(metadata, **settings)
    if kind != "llama":
        raise InputError(
            f"tokenizer.ggml.model: {kind!r:.50} is neither 'llama' nor 'gpt2'; use a file with one of them"
        )

    def part(name: str, default: Any = None) -> Any:
        value = metadata.get(f"tokenizer.ggml.{name}", default)
        if default is not None and not isinstance(value, type(default)):
            raise InputError(f"tokenizer.ggml.{name}: {value!r:.50} is no {type(default).__name__}; get the file anew")
        return value

    lists = [part(name) for name in ("tokens", "scores", "token_type")]
    if not all(isinstance(values, list) for values in lists):
        raise InputError("tokenizer.ggml: tokens, scores and token_type must all be there; get the file anew")
    for name in ("eot", "eom"):
        if (i := part(f"{name}_token_id")) is not None:
            if type(i) is not int:
                raise InputError(f"tokenizer.ggml.{name}_token_id: {i!r:.50} is no id; get the file anew")
            settings.setdefault("stop_ids", []).append(i)
    try:
        return SentencePieceTokenizer.from_pieces(
            *lists,
            bos_id=part("bos_token_id", 1),
            eos_id=part("eos_token_id", 2),
            dummy_prefix=part("add_space_prefix", True),
            add_bos=part("add_bos_token", True),
            chat_template=metadata.get("tokenizer.chat_template"),
            **settings,
        )
    except InputError as error:
        raise InputError(f"tokenizer.ggml: {error}") from None


def tokenizer_from_llama2c(
    path: str | os.PathLike[str], *, vocabulary_size: int | None = None
) -> SentencePieceTokenizer:
    """The tokenizer of llama2.c: `tokenizer.bin`, `tok512.bin`.

    The file holds the longest length (int32), then for each token its score (float32), length (int32) and bytes.
    Ids 0 to 2 are unk, bos and eos, 3 to 258 the bytes. Ids are those that llama2.c makes of a text.

    Args:
        path: The file.
        vocabulary_size: Of the model, which may have more ids than there are tokens.

    Returns:
        The tokenizer.

    Raises:
        InputError: The file is missing, damaged, or another model's.
    """
    path = Path(path)
    pieces, scores = _read_llama2c(path)
    for i, byte in enumerate(pieces[3:259]):
        if byte != f"<0x{i:02X}>":
            raise InputError(f"{path}: token {i + 3} is {byte!r:.50}, not byte {i}; give the tokenizer.bin of llama2.c")
    if len(pieces) < 259:
        raise InputError(
            f"{path}: {len(pieces)} tokens are less than the bytes alone; give the tokenizer.bin of llama2.c"
        )
    pieces = [*_LLAMA2C_SPECIALS, *pieces[3:259], *(piece.replace(" ", "▁") for piece in pieces[259:])]
    kinds = [2, 3, 3] + [6] * 256 + [1] * (len(pieces) - 259)
    size: dict[str, Any] = {} if vocabulary_size is None else {"vocabulary_size": vocabulary_size}
    try:
        return SentencePieceTokenizer.from_pieces(pieces, scores, kinds, bos_id=1, eos_id=2, spell_blank=True, **size)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def huggingface_files(tokenizer: Tokenizer) -> dict[str, bytes]:
    """Files with which `transformers.AutoTokenizer` makes the same tokenizer.

    Args:
        tokenizer: Byte-level BPE, word pieces or SentencePiece.

    Returns:
        Content by name.

    Raises:
        InputError: `transformers` has no such tokenizer.
    """
    write = getattr(tokenizer, "to_huggingface", None)
    if write is None:
        raise InputError(
            f"tokenizer: transformers has none like {type(tokenizer).__name__}; write the model without it"
        )
    return write()


class _Files:
    """The files of a folder, read as they are needed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def data(self, name: str) -> bytes:
        path = self.folder / name
        try:
            if (size := path.stat().st_size) > _MOST_BYTES:
                raise InputError(f"{path}: {size} bytes are too many for a tokenizer; get it anew")
            return path.read_bytes()
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror}); put it there") from None

    def json(self, name: str) -> dict[str, Any]:
        """The object in a file; empty where there is no file."""
        path = self.folder / name
        if not path.is_file():
            return {}
        if (size := path.stat().st_size) > _MOST_BYTES:
            raise InputError(f"{path}: {size} bytes are too many for a tokenizer; get it anew")
        content = read_json(path)
        if not isinstance(content, dict):
            raise InputError(f"{path}: is no object; get it anew")
        return content

    def config(self) -> dict[str, Any]:
        """`tokenizer_config.json`, completed by `special_tokens_map.json`; tokens as plain strings."""
        config: dict[str, Any] = {}
        for file in ("special_tokens_map.json", "tokenizer_config.json"):
            for name, value in self.json(file).items():
                if name.endswith("_token") and isinstance(value, dict):
                    value = value.get("content")
                if value is not None:
                    config[name] = value
        return config

    def chat_template(self, config: dict[str, Any]) -> str | None:
        """The template, or the default one of several."""
        if (self.folder / "chat_template.jinja").is_file():
            try:
                return self.data("chat_template.jinja").decode()
            except UnicodeDecodeError:
                raise InputError("chat_template.jinja: is not UTF-8; get it anew") from None
        found = config.get("chat_template")
        if isinstance(found, list):
            named = {entry.get("name"): entry.get("template") for entry in found if isinstance(entry, dict)}
            found = named.get("default")
        if found is not None and not isinstance(found, str):
            raise InputError("tokenizer_config.json: chat_template is no string; get it anew")
        return found

    def stop_ids(self) -> list[int]:
        """What `generation_config.json` (or else `config.json`) ends at."""
        for name in ("generation_config.json", "config.json"):
            found = self.json(name).get("eos_token_id")
            if found is not None:
                ids = found if isinstance(found, list) else [found]
                if not all(type(i) is int and i >= 0 for i in ids):
                    raise InputError(f"{name}: eos_token_id {found!r:.50} are no token ids; get it anew")
                return ids
        return []

    def word_pieces(self, content: dict[str, Any] | None, settings: dict[str, Any]) -> Tokenizer:
        from kerasllm.text.wordpiece import WordPieceTokenizer
        from kerasllm.text.wordpiece_json import SPECIALS

        config = self.config()
        special = {name: config[f"{name}_token"] for name in SPECIALS if f"{name}_token" in config}
        settings = {**settings, "special_tokens": special}
        for name, theirs in (
            ("lowercase", "do_lower_case"),
            ("strip_accents", "strip_accents"),
            ("chinese_characters", "tokenize_chinese_chars"),
        ):
            if theirs in config:
                settings[name] = config[theirs]
        if content is not None:
            return WordPieceTokenizer.from_tokenizer_json(content, **settings)
        return WordPieceTokenizer.from_vocabulary(self.data("vocab.txt"), **settings)

    def byte_pairs(self, content: dict[str, Any] | None, settings: dict[str, Any]) -> Tokenizer:
        from kerasllm.text.bpe import BytePairTokenizer

        config = self.config()
        settings = {
            **settings,
            "bos_token": config.get("bos_token"),
            "eos_token": config.get("eos_token"),
            "add_bos": config.get("add_bos_token"),
            "chat_template": self.chat_template(config),
            "stop_ids": self.stop_ids(),
        }
        if content is not None:
            return BytePairTokenizer.from_tokenizer_json(content, **settings)
        files = self.data("vocab.json"), self.data("merges.txt")
        return BytePairTokenizer.from_files(*files, added_tokens=self.added_tokens(config), **settings)

    def sentence_pieces(self, settings: dict[str, Any]) -> Tokenizer:
        config = self.config()
        model = self.data("tokenizer.model")
        plain = SentencePieceTokenizer(model)
        self._refuse_added(plain, config)
        add_bos = config.get("add_bos_token", True)
        return SentencePieceTokenizer(
            model, add_bos=add_bos, chat_template=self.chat_template(config), stop_ids=self.stop_ids(), **settings
        )

    def added_tokens(self, config: dict[str, Any]) -> dict[str, int]:
        """Ids of the tokens that were added to a vocabulary, from `added_tokens.json` and `tokenizer_config.json`."""
        added = dict(self.json("added_tokens.json"))
        decoder = config.get("added_tokens_decoder")
        for i, token in decoder.items() if isinstance(decoder, dict) else ():
            if isinstance(token, dict) and i.isdecimal() and len(i) < 10:
                added[str(token.get("content"))] = int(i)
        for token, i in added.items():
            if type(i) is not int:
                raise InputError(f"added_tokens.json: {token!r:.50} has id {i!r:.50}; get it anew")
        return added

    def _refuse_added(self, plain: SentencePieceTokenizer, config: dict[str, Any]) -> None:
        """Tokens beside the SentencePiece model would silently be spelt in pieces; only padding does not matter."""
        for token, i in self.added_tokens(config).items():
            if i >= plain.vocabulary_size and token != config.get("pad_token"):
                raise InputError(f"added token {token!r:.50} is not in tokenizer.model, and is not known without it")


def _kind(content: dict[str, Any]) -> str:
    """What is in a `tokenizer.json`: "WordPiece", "ByteLevel", or else the name of its model."""
    model = content.get("model")
    if not isinstance(model, dict):
        raise InputError("tokenizer.json: has no model; get it anew")
    kind = model.get("type") or ("BPE" if "merges" in model else "WordPiece" if "unk_token" in model else None)
    steps = [content.get("pre_tokenizer"), content.get("decoder")]
    inner = steps[0].get("pretokenizers") if isinstance(steps[0], dict) else None
    steps += inner if isinstance(inner, list) else []
    if kind == "BPE" and any(isinstance(step, dict) and step.get("type") == "ByteLevel" for step in steps):
        return "ByteLevel"
    return f"{kind!s:.50}"


def _fitting(tokenizer: Tokenizer, vocabulary_size: int | None) -> Tokenizer:
    if vocabulary_size is not None and tokenizer.vocabulary_size > vocabulary_size:
        raise InputError(f"the tokenizer has {tokenizer.vocabulary_size} tokens, the model {vocabulary_size}")
    return tokenizer


def _read_llama2c(path: Path) -> tuple[list[str], list[float]]:
    """Pieces and scores of a `tokenizer.bin`."""
    remedy = "give the tokenizer.bin of llama2.c"
    try:
        size = path.stat().st_size
        if not 4 <= size <= _MOST_BYTES:
            raise InputError(f"{path}: {size} bytes cannot be a tokenizer; {remedy}")
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); {remedy}") from None
    (longest,) = struct.unpack_from("<i", data)
    if not 0 < longest <= _LLAMA2C_MOST:
        raise InputError(f"{path}: says that tokens have up to {longest} bytes; {remedy}")
    pieces: list[str] = []
    scores: list[float] = []
    at = 4
    while at < len(data):
        place = f"token {len(pieces)} at byte {at}"
        if at + 8 > len(data):
            raise InputError(f"{path}: ends within {place}; {remedy}")
        score, length = struct.unpack_from("<fi", data, at)
        at += 8
        if not math.isfinite(score) or not 0 < length <= longest or at + length > len(data):
            raise InputError(f"{path}: {place} has score {score} and {length} bytes; {remedy}")
        try:
            pieces.append(data[at : at + length].decode())
        except UnicodeDecodeError:
            raise InputError(f"{path}: {place} is not UTF-8; {remedy}") from None
        scores.append(score)
        at += length
    return pieces, scores
