"""Every byte of the UTF-8 text is a token: nothing to train, nothing out of vocabulary."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

from kerasllm.text.tokenizer import Tokenizer, valid_unicode

if TYPE_CHECKING:
    import tensorflow as tf

_BYTES = 256


class ByteTokenizer(Tokenizer):
    """Ids 0 to 255 are the bytes, 256 is bos and 257 eos; lossless."""

    vocabulary_size = _BYTES + 2
    bos_id = _BYTES
    eos_id = _BYTES + 1
    unk_id = None
    lossless = True

    def encode(self, text: str) -> list[int]:
        """See `Tokenizer.encode`."""
        return list(valid_unicode(text).encode())

    def decode(self, ids: Sequence[int]) -> str:
        """See `Tokenizer.decode`."""
        return bytes(int(i) for i in ids if 0 <= i < _BYTES).decode(errors="replace")

    def tokenize(self, texts: "tf.Tensor") -> "tf.RaggedTensor":
        """See `Tokenizer.tokenize`."""
        import tensorflow as tf

        with tf.device("/CPU:0"):
            characters = tf.strings.bytes_split(texts)
            codes = tf.reshape(tf.io.decode_raw(characters.flat_values, tf.uint8), [-1])
            return characters.with_flat_values(tf.cast(codes, tf.int32))

    def detokenize(self, ids: "tf.RaggedTensor") -> "tf.Tensor":
        """See `Tokenizer.detokenize`."""
        import tensorflow as tf

        with tf.device("/CPU:0"):
            ids = tf.ragged.boolean_mask(ids, (ids >= 0) & (ids < _BYTES))
            table = tf.constant([bytes([code]) for code in range(_BYTES)])
            joined = tf.strings.reduce_join(ids.with_flat_values(tf.gather(table, ids.flat_values)), axis=-1)
            # Its idea of how many U+FFFD a broken sequence makes is Python's (a test compares them).
            return tf.strings.unicode_transcode(joined, "UTF-8", "UTF-8", errors="replace")

    @classmethod
    def _restore(cls, settings: dict[str, Any], files: dict[str, bytes]) -> Self:
        return cls(**settings)
