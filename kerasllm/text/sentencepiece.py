"""Subword pieces: models of the SentencePiece library (Kudo and Richardson, arXiv:1808.06226)."""

import functools
import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Self

import sentencepiece

from kerasllm.errors import InputError
from kerasllm.text.sentencepiece_model import Blanks, assemble, blanks
from kerasllm.text.sentencepiece_training import train_model
from kerasllm.text.tokenizer import Tokenizer, valid_unicode

if TYPE_CHECKING:
    import tensorflow as tf

# SentencePiece writes blanks as this character, so a literal one would come back as a blank.
_BLANK = "▁"
_MODEL = "tokenizer.model"


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model; lossless if `train` made it.

    `train` switches off everything that changes text (normalisation, the blank in front, the removal of blanks), and
    byte fallback gives every character an encoding. What remains is U+2581, which SentencePiece uses for a blank:
    both faces spell it in bytes, and any SentencePiece library decodes that rightly. So a phone with nothing but
    `tokenizer.model` encodes all text without that character, and decodes all ids, as this class does. A program that
    loads a SavedModel with this tokenizer needs `import tensorflow_text`.
    """

    file_names = (_MODEL,)

    def __init__(
        self,
        model: bytes,
        *,
        add_bos: bool = True,
        chat_template: str | None = None,
        stop_ids: Sequence[int] = (),
        spell_blank: bool = False,
        vocabulary_size: int | None = None,
    ) -> None:
        """Use a serialised model, be it of `train` or of somebody else.

        Args:
            model: Content of a `.model` file.
            add_bos: Whether a prompt starts with bos.
            chat_template: The Jinja template of a model that was trained on conversations.
            stop_ids: More tokens, beside eos, that generation stops at.
            spell_blank: Spell U+2581 in bytes, as llama2.c does, although the model would take it for a blank.
            vocabulary_size: Number of ids, if a language model has more than there are pieces.

        Raises:
            InputError: It is not a SentencePiece model, or has no bos or eos, or a setting is impossible.
        """
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
            self._processor.decode(list(range(self._processor.vocab_size())))  # each piece must be UTF-8
        except (RuntimeError, UnicodeDecodeError):
            raise InputError("not a SentencePiece model; give the content of a .model file") from None
        self._model = model
        self._pieces = self._processor.vocab_size()
        self.bos_id, self.eos_id = self._processor.bos_id(), self._processor.eos_id()
        if not self._pieces or min(self.bos_id, self.eos_id) < 0:
            raise InputError("the SentencePiece model has no bos or no eos piece; train one with both")
        self.vocabulary_size = self._pieces if vocabulary_size is None else vocabulary_size
        self.add_bos, self.chat_template = add_bos, chat_template
        self._stop_ids = tuple(i for i in dict.fromkeys(stop_ids) if i != self.eos_id)
        fallback = sum(map(self._processor.is_byte, range(self._pieces))) == 256
        self.unk_id = None if fallback else self._processor.unk_id()
        self._spell_blank = spell_blank
        self._check(fallback)
        # The model file does not say in one place what it does to text, so ask it.
        faithful = fallback and all(
            self._processor.decode(self._processor.encode(text)) == text for text in ("  a  b \n", "ﬁ ①\t\u3000e\u0301")
        )
        # Llama's models put a blank in front of a text, and then cannot encode it in parts.
        self.lossless = faithful and (spell_blank or _BLANK not in self._processor.normalize("a"))
        self._blank_ids = [self._processor.piece_to_id(f"<0x{byte:02X}>") for byte in _BLANK.encode()]

    def _check(self, fallback: bool) -> None:
        size, template = self.vocabulary_size, self.chat_template
        if type(size) is not int or size < self._pieces:
            raise InputError(f"vocabulary_size: {size!r:.50} is less than the {self._pieces} pieces")
        if not isinstance(self.add_bos, bool) or not isinstance(self._spell_blank, bool):
            raise InputError("add_bos and spell_blank must be true or false")
        if template is not None and not isinstance(template, str):
            raise InputError("chat_template must be a string")
        for i in self._stop_ids:
            if type(i) is not int or not 0 <= i < size:
                raise InputError(f"stop_ids: {i!r:.50} is not one of the {size} ids")
        if self._spell_blank and not fallback:
            raise InputError("spell_blank: the SentencePiece model has no pieces for bytes")

    @classmethod
    def from_pieces(
        cls,
        pieces: Sequence[str],
        scores: Sequence[float],
        kinds: Sequence[int],
        *,
        bos_id: int,
        eos_id: int,
        dummy_prefix: bool = True,
        **settings: Any,
    ) -> Self:
        """Make a BPE model out of its parts, as GGUF and llama2.c files hold them; it leaves text as it is.

        Args:
            pieces: The piece of each id, U+2581 for a blank.
            scores: Of each; the pair whose union scores highest is merged first.
            kinds: Of each: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte.
            bos_id: Starts a document.
            eos_id: Ends one.
            dummy_prefix: Put a blank in front of a text.
            settings: See the class.

        Returns:
            The tokenizer.

        Raises:
            InputError: The parts do not make a model; the message says why.
        """
        return cls(assemble(pieces, scores, kinds, bos_id, eos_id, dummy_prefix), **settings)

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        vocabulary_size: int,
        *,
        model_type: str = "unigram",
        character_coverage: float | None = None,
        sample_bytes: int = 2**25,
        seed: int = 0,
    ) -> Self:
        """Train a model; the same texts and arguments give the same model, whatever the number of cores.

        Args:
            texts: Read once. Every line of each is a training sentence, long ones in pieces.
            vocabulary_size: Number of ids, among them 256 bytes, unk, bos, eos and the newline.
            model_type: "unigram", "bpe", or "char": the most frequent characters, the rest spelt in bytes.
            character_coverage: Part of the characters of the text (0.98 to 1) that get a piece of their own; the rest
                is spelt in bytes. None means 0.9995, or less where the characters would crowd out longer pieces. For
                "char" the vocabulary size alone decides.
            sample_bytes: Train on a uniform sample of lines of about this size, which bounds memory and time.
            seed: Of the sample.

        Returns:
            The tokenizer.

        Raises:
            InputError: The texts do not allow this vocabulary size; the message says which they do.
        """
        return cls(
            train_model(
                texts,
                vocabulary_size,
                model_type=model_type,
                character_coverage=character_coverage,
                sample_bytes=sample_bytes,
                seed=seed,
            )
        )

    def encode(self, text: str) -> list[int]:
        """See `Tokenizer.encode`."""
        text = valid_unicode(text)
        if not (self.lossless or self._spell_blank) or _BLANK not in text:
            return self._processor.encode(text)
        processor, prefix = self._parts
        first, *rest = text.split(_BLANK)
        ids = processor.encode(prefix + first)
        for part in rest:
            ids += self._blank_ids + processor.encode(part)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """See `Tokenizer.decode`."""
        # bos decodes to nothing.
        known = [int(i) if 0 <= i < self._pieces else self.bos_id for i in ids]
        return self._processor.decode(known)

    def tokenize(self, texts: "tf.Tensor") -> "tf.RaggedTensor":
        """See `Tokenizer.tokenize`."""
        import tensorflow as tf

        with tf.device("/CPU:0"):
            if not (self.lossless or self._spell_blank):
                return self._op.tokenize(texts)
            if self._blanks.prefix:
                texts = tf.where(texts == "", "", self._blanks.prefix + texts)
            parts = tf.strings.split(texts, _BLANK)
            ids = self._plain_op.tokenize(parts.values)
            blanks = tf.tile(tf.constant([self._blank_ids], tf.int32), [ids.nrows(), 1])
            spelt = parts.with_values(tf.concat([ids, blanks], axis=1))
            return spelt.merge_dims(1, 2)[:, : -len(self._blank_ids)]

    def detokenize(self, ids: "tf.RaggedTensor") -> "tf.Tensor":
        """See `Tokenizer.detokenize`."""
        import tensorflow as tf

        with tf.device("/CPU:0"):
            flat = ids.flat_values
            known = tf.where((flat >= 0) & (flat < self._pieces), flat, self.bos_id)
            ids = ids.with_flat_values(known)
            if not self._blanks.prefix or self._blanks.removes:
                return self._op.detokenize(ids)
            # The library takes away one blank, the op all of them.
            silent, blank = self._surfaces
            first = tf.ragged.boolean_mask(ids, ~tf.gather(silent, ids))[:, :1].to_tensor(self.bos_id, shape=(None, 1))
            texts = self._plain_op.detokenize(ids)
            return tf.where(tf.gather(blank, first[:, 0]), tf.strings.regex_replace(texts, "^ ", ""), texts)

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """See `Tokenizer.stop_ids`."""
        return (self.eos_id, *self._stop_ids)

    def trackables(self) -> list[Any]:
        """See `Tokenizer.trackables`."""
        return [self._op, self._plain_op]

    def to_huggingface(self) -> dict[str, bytes]:
        """Files, by name, from which `transformers.AutoTokenizer` makes a LlamaTokenizer.

        It differs from the SentencePiece library in two things: it puts no blank in front of a text that starts with
        one, and takes special tokens out of a text.
        """
        processor = self._processor
        names = {"bos_token": self.bos_id, "eos_token": self.eos_id, "unk_token": processor.unk_id()}
        config: dict[str, Any] = {"tokenizer_class": "LlamaTokenizer"}
        config |= {name: processor.id_to_piece(i) for name, i in names.items() if i >= 0}
        config |= {"add_bos_token": self.add_bos, "add_eos_token": False, "clean_up_tokenization_spaces": False}
        config |= {"add_prefix_space": self._blanks.prefix != "", "legacy": False}
        if self.chat_template is not None:
            config["chat_template"] = self.chat_template
        files = {"tokenizer_config.json": config}
        if self._stop_ids:
            files["generation_config.json"] = {"bos_token_id": self.bos_id, "eos_token_id": list(self.stop_ids)}
        written = {name: json.dumps(value, ensure_ascii=False, indent=2).encode() for name, value in files.items()}
        return {_MODEL: self._model, **written}

    @functools.cached_property
    def _blanks(self) -> Blanks:
        return blanks(self._model)

    @functools.cached_property
    def _parts(self) -> tuple[sentencepiece.SentencePieceProcessor, str]:
        """What encodes the parts of a text that is cut at U+2581, and what is to be put in front of the first."""
        if not self._spell_blank:
            return self._processor, ""
        return sentencepiece.SentencePieceProcessor(model_proto=self._blanks.model), self._blanks.prefix

    @functools.cached_property
    def _op(self) -> Any:
        return _operation(self._model)

    @functools.cached_property
    def _plain_op(self) -> Any:
        """The op of the model that adds no blank."""
        return _operation(self._blanks.model) if self._blanks.prefix else self._op

    @functools.cached_property
    def _surfaces(self) -> "tuple[tf.Tensor, tf.Tensor]":
        """Which pieces decode to nothing, and which to a blank first."""
        import tensorflow as tf

        processor, ids = self._processor, range(self._pieces)
        nothing = not processor.decode([processor.unk_id()])
        silent = [processor.is_control(i) or (nothing and processor.is_unknown(i)) for i in ids]
        blank = [processor.id_to_piece(i).startswith(_BLANK) and not processor.is_control(i) for i in ids]
        with tf.init_scope(), tf.device("/CPU:0"):
            return tf.constant(silent), tf.constant(blank)

    def _settings(self) -> dict[str, Any]:
        """Only what is not usual, so that the fingerprint of a tokenizer without settings stays what it was."""
        settings: dict[str, Any] = {} if self.add_bos else {"add_bos": False}
        settings |= {} if self.chat_template is None else {"chat_template": self.chat_template}
        settings |= {"stop_ids": list(self._stop_ids)} if self._stop_ids else {}
        settings |= {"spell_blank": True} if self._spell_blank else {}
        if self.vocabulary_size != self._pieces:
            settings["vocabulary_size"] = self.vocabulary_size
        return settings

    def _files(self) -> dict[str, bytes]:
        return {_MODEL: self._model}

    @classmethod
    def _restore(cls, settings: dict[str, Any], files: dict[str, bytes]) -> Self:
        return cls(files[_MODEL], **settings)


def _operation(model: bytes) -> Any:
    """The op; a name of its own, for a loaded SavedModel takes two ops of one name for the same tokenizer."""
    import tensorflow as tf
    import tensorflow_text

    name = f"sentencepiece_{hashlib.sha256(model).hexdigest()[:16]}"
    with tf.init_scope(), tf.device("/CPU:0"):
        return tensorflow_text.SentencepieceTokenizer(model=model, out_type=tf.int32, name=name)
