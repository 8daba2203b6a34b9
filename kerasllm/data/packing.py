"""A stream of tokens as `tf.data` batches of full windows: nothing is padded, nothing is read twice in an epoch."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from kerasllm.errors import InputError
from kerasllm.text import Tokenizer

if TYPE_CHECKING:
    import tensorflow as tf

Batch = tuple[np.ndarray, np.ndarray]


def packed_dataset(
    tokens: np.ndarray,
    *,
    batch_size: int,
    sequence_length: int,
    seed: int | None = None,
    repeat: bool = False,
    start: int = 0,
    columns: bool = False,
    name: str = "the tokens",
) -> "tf.data.Dataset":
    """Cut a stream of tokens into batches of (inputs, targets), targets being inputs one token later.

    Window `w` begins at token `w * sequence_length`; the tail that fills no window is left out. Three ways to go on:

    * For evaluation, `seed=None`: windows in order, all of them, so the last batch may be smaller.
    * For training, with a seed: windows in an order that depends on seed and epoch only, every batch full; the few
      windows that would fill no batch are others in each epoch. Iterating again gives the next epoch (so does a look
      at the first batch, which Keras takes to build a model; with `repeat` every iterator begins at `start`).
    * For recurrent models, `columns=True`: the stream is cut into `batch_size` columns, and row `r` of each batch
      continues row `r` of the batch before, so that the state may be carried. Every batch is full.

    Args:
        tokens: Ids, (n,), any integer type; a `np.memmap` is read in place, one batch at a time.
        batch_size: Windows in a batch.
        sequence_length: Tokens in a window.
        seed: Shuffles the windows.
        repeat: Never end; epoch follows epoch.
        start: Batches to skip, without cost; needs `repeat`. Batch k of `start=0` is batch 0 of `start=k`, so that an
            interrupted training goes on exactly where it was.
        columns: Batches that continue each other; excludes `seed`.
        name: What the error messages call the tokens.

    Returns:
        Dataset of (inputs, targets), each int32 (batch_size, sequence_length), of known (or infinite) cardinality.

    Raises:
        InputError: There are too few tokens, or the arguments contradict each other.
    """
    _check(batch_size, sequence_length, seed, repeat, start, columns)
    kind = _columns(tokens, batch_size, sequence_length) if columns else None
    batches, epoch_of = kind or _windows(tokens, batch_size, sequence_length, seed)
    full = columns or seed is not None
    if batches < 1:
        rows = batch_size if full else 1
        raise InputError(
            f"{name}: {len(tokens)} tokens do not fill {rows} windows of {sequence_length} (that takes "
            f"{rows * sequence_length + 1}); choose a smaller batch_size or sequence_length, or more text"
        )
    return _as_dataset(batches, epoch_of, (batch_size if full else None, sequence_length), repeat, start)


def dataset_from_texts(
    texts: Iterable[str],
    tokenizer: Tokenizer,
    *,
    batch_size: int,
    sequence_length: int,
    seed: int | None = None,
    repeat: bool = False,
    columns: bool = False,
) -> "tf.data.Dataset":
    """`packed_dataset` of texts held in memory, each as bos, its tokens, eos.

    Args:
        texts: The documents.
        tokenizer: Encodes them.
        batch_size: See `packed_dataset`.
        sequence_length: See `packed_dataset`.
        seed: See `packed_dataset`.
        repeat: See `packed_dataset`.
        columns: See `packed_dataset`.

    Returns:
        See `packed_dataset`.

    Raises:
        InputError: See `packed_dataset`.
    """
    documents = [np.array([tokenizer.bos_id, *tokenizer.encode(text), tokenizer.eos_id], np.int32) for text in texts]
    return packed_dataset(
        np.concatenate([np.zeros(0, np.int32), *documents]),
        batch_size=batch_size,
        sequence_length=sequence_length,
        seed=seed,
        repeat=repeat,
        columns=columns,
        name="the texts",
    )


# Both kinds return the number of batches in an epoch and a function (epoch, batches to skip) -> its batches.
_Kind = tuple[int, Callable[[int, int], Iterator[Batch]]]


def _check(batch_size: int, sequence_length: int, seed: int | None, repeat: bool, start: int, columns: bool) -> None:
    if batch_size < 1 or sequence_length < 1 or start < 0:
        raise InputError(f"batch_size {batch_size}, sequence_length {sequence_length}, start {start}: too small")
    if start and not repeat:
        raise InputError("start: batches can be skipped only with repeat=True")
    if columns and seed is not None:
        raise InputError("seed: columns follow the text and cannot be shuffled; pass seed=None")


def _as_dataset(
    batches: int,
    epoch_of: Callable[[int, int], Iterator[Batch]],
    shape: tuple[int | None, int],
    repeat: bool,
    start: int,
) -> "tf.data.Dataset":
    """Epochs of `batches` batches as a dataset that knows its size; each iterator of a finite one is another epoch."""
    import tensorflow as tf

    epochs = itertools.count()

    def finite() -> Iterator[Batch]:
        yield from epoch_of(next(epochs), 0)

    def infinite() -> Iterator[Batch]:
        first, skip = divmod(start, batches)
        for epoch in itertools.count(first):
            yield from epoch_of(epoch, skip)
            skip = 0

    spec = tf.TensorSpec(shape, tf.int32)
    dataset = tf.data.Dataset.from_generator(infinite if repeat else finite, output_signature=(spec, spec))
    cardinality = tf.data.INFINITE_CARDINALITY if repeat else batches
    return dataset.apply(tf.data.experimental.assert_cardinality(cardinality)).prefetch(tf.data.AUTOTUNE)


def _windows(tokens: np.ndarray, batch_size: int, length: int, seed: int | None) -> _Kind:
    count = (len(tokens) - 1) // length
    batches = count // batch_size if seed is not None else -(-count // batch_size)

    def epoch_of(epoch: int, skip: int) -> Iterator[Batch]:
        order = np.arange(count) if seed is None else _permutation(count, seed, epoch)
        for batch in range(skip, batches):
            starts = order[batch * batch_size : (batch + 1) * batch_size].astype(np.int64) * length
            yield _gather(tokens, starts, length)

    return batches, epoch_of


def _columns(tokens: np.ndarray, batch_size: int, length: int) -> _Kind:
    height = (len(tokens) - 1) // batch_size
    batches = height // length
    tops = np.arange(batch_size, dtype=np.int64) * height

    def epoch_of(epoch: int, skip: int) -> Iterator[Batch]:
        for batch in range(skip, batches):
            yield _gather(tokens, tops + batch * length, length)

    return batches, epoch_of


def _gather(tokens: np.ndarray, starts: np.ndarray, length: int) -> Batch:
    rows = tokens[starts[:, None] + np.arange(length + 1)].astype(np.int32)
    return rows[:, :-1], rows[:, 1:]


def _permutation(count: int, seed: int, epoch: int) -> np.ndarray:
    """Random order of 0 .. count - 1, uint32.

    It sorts raw random bits, because NumPy promises those to be the same in every version; `permutation` it does not.
    """
    bits = np.random.Philox(np.random.SeedSequence([abs(seed), int(seed < 0), epoch])).random_raw(count)
    return np.argsort(bits, kind="stable").astype(np.uint32)
