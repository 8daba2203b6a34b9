"""Which axis of which variable is split over a mesh of devices: tables over variable paths, as data.

Each row is a regular expression for the end of a variable's path and the mesh axis for each of its axes, as
`keras.distribution.LayoutMap` takes them; what no row names is replicated. `docs/planning.md` shows the use.
"""

import re

Layout = tuple[tuple[str, tuple[str | None, ...]], ...]

TENSOR_PARALLEL: Layout = (
    # Query, key, value, gate and up are split by their outputs (heads, inner units), output and down by their inputs: a
    # block then needs one sum over devices after attention and one after the feed-forward layer (Shoeybi et al. 2019,
    # Megatron-LM, arXiv:1909.08053, section 3). Heads stay whole where `model` divides the key-value heads.
    (r"attention/(query|key|value)/kernel", (None, "model")),
    (r"attention/(query|key|value)/bias", ("model",)),
    (r"attention/output/kernel", ("model", None)),
    (r"feedforward/(gate|up)/kernel", (None, "model")),
    (r"feedforward/(gate|up)/bias", ("model",)),
    (r"feedforward/down/kernel", ("model", None)),
    (r"embedding/embeddings", (None, "model")),
    (r"embedding/reverse_embeddings", (None, "model")),
)
"""Splits each block over the mesh axis `model`."""

FULLY_SHARDED: Layout = (
    # A slice of every matrix, and of what the optimizer keeps of it, on each device; gathered layer by layer:
    # Rajbhandari et al. 2020 (ZeRO, arXiv:1910.02054), stage 3.
    (r"(attention/(query|key|value|output)|feedforward/(gate|up|down))/kernel", ("batch", None)),
    (r"embedding/embeddings", (None, "batch")),
    (r"embedding/reverse_embeddings", ("batch", None)),
)
"""Splits the weights over the mesh axis `batch`, over which the batch is split too."""


def layout_of(path: str, table: Layout) -> tuple[str | None, ...] | None:
    """Mesh axes of a variable; `None` where it is replicated.

    Args:
        path: The variable's path.
        table: `TENSOR_PARALLEL`, `FULLY_SHARDED` or one like them.
    """
    for pattern, axes in table:
        if re.search(rf"(^|/){pattern}$", path):
            return axes
    return None
