"""Who may see whom: attention masks."""

from typing import Any

from keras import ops


def attention_mask(
    query_length: Any,
    key_length: Any,
    *,
    causal: bool,
    position: Any = 0,
    left_padding: Any = None,
    key_mask: Any = None,
) -> Any:
    """Which key each query may see.

    Query `i` stands in slot `position + i`, key `j` in slot `j`. A causal query sees keys in its own slot and before;
    `left_padding` hides the first slots of a row, `key_mask` any others.

    Args:
        query_length: Number of queries.
        key_length: Number of keys (the cache's length when there is a cache).
        causal: Whether later slots are hidden.
        position: Slot of the first query, an integer or `()` int32.
        left_padding: Optional `(batch,)` int32, empty slots at the start of each row.
        key_mask: Optional `(batch, key_length)` boolean, true where a key is real.

    Returns:
        Boolean, broadcastable to `(batch, heads, query_length, key_length)`, or `None` when all see all.
    """
    visible = None
    keys = ops.arange(key_length, dtype="int32")
    if causal:
        queries = position + ops.arange(query_length, dtype="int32")
        visible = (keys[None, :] <= queries[:, None])[None, None]
    if left_padding is not None:
        visible = _both(visible, (keys[None, :] >= left_padding[:, None])[:, None, None])
    if key_mask is not None:
        visible = _both(visible, ops.cast(key_mask, "bool")[:, None, None])
    return visible


def _both(first: Any, second: Any) -> Any:
    return second if first is None else ops.logical_and(first, second)
