"""One or two texts as a row of BERT, cut to a length: the arithmetic that lists and tensors share."""

from typing import Any

from kerasllm.errors import InputError


def room_for_text(max_length: int, pair: bool) -> int:
    """How many tokens fit beside the special ones.

    Args:
        max_length: Of the whole row.
        pair: Whether there are two texts (and three special tokens instead of two).

    Returns:
        At least 0.

    Raises:
        InputError: Not even the special tokens fit.
    """
    special = 3 if pair else 2
    if type(max_length) is not int or max_length < special:
        raise InputError(f"max_length: {max_length!r} has no room for the {special} special tokens; give more")
    return max_length - special


def longest_first(first: Any, second: Any, room: int, ops: Any) -> tuple[Any, Any]:
    """How much of two texts to keep, as the `tokenizers` library decides: the longer one loses first.

    Args:
        first: Length of the first text, an integer or a tensor of them.
        second: Length of the second one.
        room: Tokens that fit.
        ops: Has `minimum`, `maximum` and `where`: numpy or TensorFlow.

    Returns:
        The most to keep of each (the text may be shorter).
    """
    short, long = ops.minimum(first, second), ops.maximum(first, second)
    long = ops.where(short > room, short, ops.maximum(short, room - short))
    over = short + long > room
    short, long = ops.where(over, room // 2, short), ops.where(over, room // 2 + room % 2, long)
    return ops.where(first > second, long, short), ops.where(first > second, short, long)
