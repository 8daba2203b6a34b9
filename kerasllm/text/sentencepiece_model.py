"""What is inside of a SentencePiece model: making one of pieces and scores, and changing one."""

import importlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from kerasllm.errors import InputError
from kerasllm.text.tokenizer import valid_unicode

_MOST_PIECES = 2**22


def assemble(
    pieces: Sequence[str], scores: Sequence[float], kinds: Sequence[int], bos_id: int, eos_id: int, dummy_prefix: bool
) -> bytes:
    """Make a BPE model of parts; it leaves text as it is.

    Args:
        pieces: The piece of each id, U+2581 for a blank.
        scores: Of each; the pair whose union scores highest is merged first.
        kinds: Of each: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte.
        bos_id: Starts a document.
        eos_id: Ends one.
        dummy_prefix: Put a blank in front of a text.

    Returns:
        The content of a `.model` file.

    Raises:
        InputError: The parts do not make a model; the message says why.
    """
    if not len(pieces) == len(scores) == len(kinds) <= _MOST_PIECES:
        raise InputError(f"{len(pieces)} tokens have {len(scores)} scores and {len(kinds)} types")
    for name, i in (("bos", bos_id), ("eos", eos_id)):
        if type(i) is not int or not 0 <= i < len(pieces) or kinds[i] != 3:
            raise InputError(f"{name}: {i!r:.50} is not the id of a control token")
    if list(kinds).count(2) != 1:
        raise InputError(f"{list(kinds).count(2)} tokens are of type 2, unknown; exactly one must be")
    seen: set[str] = set()
    for i, (piece, score, kind) in enumerate(zip(pieces, scores, kinds, strict=True)):
        if not isinstance(piece, str) or not piece or piece in seen or valid_unicode(piece) != piece:
            raise InputError(f"token {i}: {piece!r:.50} is empty, not Unicode, or there already")
        if not isinstance(score, float | int) or not abs(score) < 1e30 or kind not in range(1, 7):
            raise InputError(f"token {i}: score {score!r:.50} or type {kind!r:.50} is impossible")
        seen.add(piece)
    protocol: Any = _protocol()
    model = protocol.ModelProto()
    for piece, score, kind in zip(pieces, scores, kinds, strict=True):
        model.pieces.add(piece=piece, score=score, type=kind)
    model.trainer_spec.model_type = protocol.TrainerSpec.BPE
    model.trainer_spec.vocab_size = len(pieces)
    model.trainer_spec.byte_fallback = 6 in kinds
    model.trainer_spec.unk_surface = ""
    model.trainer_spec.bos_id, model.trainer_spec.bos_piece = bos_id, pieces[bos_id]
    model.trainer_spec.eos_id, model.trainer_spec.eos_piece = eos_id, pieces[eos_id]
    unk_id = list(kinds).index(2)
    model.trainer_spec.unk_id, model.trainer_spec.unk_piece = unk_id, pieces[unk_id]
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = dummy_prefix
    model.normalizer_spec.remove_extra_whitespaces = False
    return model.SerializeToString(deterministic=True)


def segmenter(words: Mapping[str, float]) -> bytes:
    """Make a unigram model that cuts text into the words whose probabilities have the greatest product.

    Args:
        words: Log probability of each.

    Returns:
        The content of a `.model` file, which has no bos and no eos; id 0 is what no word spells.
    """
    protocol: Any = _protocol()
    model = protocol.ModelProto()
    model.pieces.add(piece="<unk>", score=0.0, type=2)
    for word, score in words.items():
        model.pieces.add(piece=word, score=score, type=1)
    model.trainer_spec.model_type = protocol.TrainerSpec.UNIGRAM
    model.trainer_spec.vocab_size = len(model.pieces)
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = False
    model.normalizer_spec.remove_extra_whitespaces = False
    return model.SerializeToString(deterministic=True)


class Blanks(NamedTuple):
    """What a model does to blanks.

    Attributes:
        model: The same model, but one that adds no blank.
        prefix: The blank it adds in front of a text, or an empty string.
        removes: Whether it removes blanks at the ends and repeated ones.
    """

    model: bytes
    prefix: str
    removes: bool


def blanks(model: bytes) -> Blanks:
    """Read from a model what it does to blanks.

    Args:
        model: Content of a `.model` file.

    Returns:
        See the class.
    """
    content = _protocol().ModelProto.FromString(model)
    normalizer = content.normalizer_spec
    prefix, removes = " " if normalizer.add_dummy_prefix else "", normalizer.remove_extra_whitespaces
    normalizer.add_dummy_prefix = False
    return Blanks(content.SerializeToString(deterministic=True) if prefix else model, prefix, removes)


def _protocol() -> Any:
    return importlib.import_module("sentencepiece.sentencepiece_model_pb2")
