"""What every tokenizer is, and how one is saved and loaded."""

import abc
import functools
import hashlib
import importlib
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from kerasllm.errors import InputError
from kerasllm.files import atomic_file, read_json, write_json

if TYPE_CHECKING:
    import tensorflow as tf

# The closed registry: a name in a file selects one of these, and never an import of the file's choosing.
_CLASSES = {
    "BytePairTokenizer": "kerasllm.text.bpe",
    "ByteTokenizer": "kerasllm.text.bytes",
    "JiebaTokenizer": "kerasllm.text.segmentation",
    "SentencePieceTokenizer": "kerasllm.text.sentencepiece",
    "WordPieceTokenizer": "kerasllm.text.wordpiece",
    "WordTokenizer": "kerasllm.text.words",
}
_DESCRIPTION = "tokenizer.json"
_FORMAT = 1


class Tokenizer(abc.ABC):
    """Text to token ids and back, in Python and inside a TensorFlow graph.

    The Python face (`encode`, `decode`) never imports TensorFlow; the graph face (`tokenize`, `detokenize`) does on
    first use, keeps its string ops on the CPU, and gives the same results.

    Attributes:
        vocabulary_size: Number of ids; they are 0 .. `vocabulary_size - 1`.
        bos_id: Starts every document, and every prompt where `add_bos` is true.
        eos_id: Ends every document; generation stops at it.
        add_bos: Whether a prompt starts with `bos_id`; checkpoints such as GPT-2 were trained without it.
        stop_ids: Every token that generation stops at, `eos_id` first.
        chat_template: The Jinja template of a model that was trained on conversations; None for all others.
        unk_id: Stands for what has no encoding; None where every text has one.
        lossless: Whether `decode(encode(text)) == text` for every valid Unicode string.
    """

    vocabulary_size: int
    bos_id: int
    eos_id: int
    unk_id: int | None
    lossless: bool
    add_bos: bool = True
    chat_template: str | None = None

    file_names: ClassVar[tuple[str, ...]] = ()
    """Names of the files that `save` writes beside `tokenizer.json`."""

    @abc.abstractmethod
    def encode(self, text: str) -> list[int]:
        """Turn a text into ids, without bos and eos.

        Args:
            text: Any string. Lone surrogates, which are not valid Unicode, count as U+FFFD.

        Returns:
            The ids.
        """

    @abc.abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """Turn ids into text; never raises.

        Args:
            ids: Any integers. bos, eos and ids outside of the vocabulary vanish; invalid UTF-8 becomes U+FFFD.

        Returns:
            The text.
        """

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Every token that generation stops at, `eos_id` first."""
        return (self.eos_id,)

    def prompt_ids(self, text: str) -> list[int]:
        """Ids of a text that is to be continued: `encode`, with bos in front where it belongs.

        Args:
            text: Any string.

        Returns:
            The ids, at least one: an empty prompt is bos alone, whatever `add_bos`.
        """
        ids = self.encode(text)
        return [self.bos_id, *ids] if self.add_bos or not ids else ids

    @abc.abstractmethod
    def tokenize(self, texts: "tf.Tensor") -> "tf.RaggedTensor":
        """`encode` as TensorFlow ops.

        Args:
            texts: UTF-8 strings, (batch,).

        Returns:
            Ids, int32 (batch, None).
        """

    @abc.abstractmethod
    def detokenize(self, ids: "tf.RaggedTensor") -> "tf.Tensor":
        """`decode` as TensorFlow ops.

        Args:
            ids: int32 (batch, None).

        Returns:
            UTF-8 strings, (batch,).
        """

    def tokenize_prompts(self, texts: "tf.Tensor") -> "tf.RaggedTensor":
        """`prompt_ids` as TensorFlow ops.

        Args:
            texts: UTF-8 strings, (batch,).

        Returns:
            Ids, int32 (batch, None).
        """
        import tensorflow as tf

        with tf.device("/CPU:0"):
            ids = self.tokenize(texts)
            missing = tf.ones_like(ids.row_lengths()) if self.add_bos else tf.cast(ids.row_lengths() == 0, tf.int64)
            bos = tf.fill([tf.reduce_sum(missing)], tf.constant(self.bos_id, tf.int32))
            return tf.concat([tf.RaggedTensor.from_row_lengths(bos, missing), ids], axis=1)

    def trackables(self) -> list[Any]:
        """TensorFlow objects that a `tf.Module` must hold for its SavedModel to contain this tokenizer."""
        return []

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write `tokenizer.json` and the files it needs into `folder`, which is created if necessary."""
        folder = Path(folder)
        for name, content in self._files().items():
            with atomic_file(folder / name) as file:
                file.write(content)
        write_json(folder / _DESCRIPTION, self._description())

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 over class, settings and files: two tokenizers agree exactly when their fingerprints do."""
        digest = hashlib.sha256(json.dumps(self._description(), sort_keys=True).encode())
        for name, content in sorted(self._files().items()):
            digest.update(f"\n{name} {len(content)}\n".encode())
            digest.update(content)
        return digest.hexdigest()

    def _description(self) -> dict[str, Any]:
        return {"format": _FORMAT, "class": type(self).__name__, "settings": self._settings()}

    def _settings(self) -> dict[str, Any]:
        """What `_restore` needs beyond the files, as JSON."""
        return {}

    def _files(self) -> dict[str, bytes]:
        """Content by name, for each of `file_names`."""
        return {}

    @classmethod
    @abc.abstractmethod
    def _restore(cls, settings: dict[str, Any], files: dict[str, bytes]) -> Self:
        """Undo `_settings` and `_files`; raise InputError, TypeError or ValueError where they cannot be right."""


def load_tokenizer(folder: str | os.PathLike[str]) -> Tokenizer:
    """Load what `Tokenizer.save` wrote.

    Args:
        folder: Holds `tokenizer.json`.

    Returns:
        The tokenizer; its fingerprint equals that of the saved one.

    Raises:
        InputError: A file is missing or broken, or its class or format is unknown.
    """
    folder = Path(folder)
    path = folder / _DESCRIPTION
    content = read_json(path)
    content = content if isinstance(content, dict) else {}
    if content.get("format") != _FORMAT:
        raise InputError(f"{path}: format {content.get('format')!r} is not {_FORMAT}; save the tokenizer anew")
    name, settings = content.get("class"), content.get("settings")
    if not isinstance(name, str) or name not in _CLASSES:
        raise InputError(f"{path}: unknown tokenizer class {name!r}; known are {', '.join(_CLASSES)}")
    cls: type[Tokenizer] = getattr(importlib.import_module(_CLASSES[name]), name)
    try:
        files = {file: (folder / file).read_bytes() for file in cls.file_names}
    except OSError as error:
        raise InputError(f"{error.filename}: cannot be read ({error.strerror}); {path} needs it") from None
    if not isinstance(settings, dict):
        raise InputError(f"{path}: settings must be an object; save the tokenizer anew")
    try:
        return cls._restore(settings, files)
    except (TypeError, ValueError) as error:
        raise InputError(f"{folder}: not a usable {name} ({error}); save the tokenizer anew") from None


def valid_unicode(text: str) -> str:
    """`text` with every lone surrogate, which UTF-8 cannot hold, replaced by U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return re.sub("[\ud800-\udfff]", "\ufffd", text)
    return text
