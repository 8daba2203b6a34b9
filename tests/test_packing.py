"""Every token of the stream comes exactly once per epoch, in an order that depends on the seed and nothing else."""

import itertools

import numpy as np
import pytest

from kerasllm.data import dataset_from_texts, packed_dataset
from kerasllm.errors import InputError
from kerasllm.text import ByteTokenizer

STREAM = np.arange(1003, dtype=np.uint16)


def batches(dataset, count=None):
    return [(x.numpy(), y.numpy()) for x, y in itertools.islice(dataset, count)]


def rows(epoch):
    return np.concatenate([x for x, _ in epoch])


@pytest.mark.parametrize("kind", [{}, {"seed": 3}, {"columns": True}])
@pytest.mark.parametrize(("batch_size", "sequence_length"), [(1, 1), (4, 10), (7, 13), (10, 100), (1, 1002)])
def test_every_token_once_and_targets_are_shifted(kind, batch_size, sequence_length):
    dataset = packed_dataset(STREAM, batch_size=batch_size, sequence_length=sequence_length, **kind)
    epoch = batches(dataset)
    assert len(dataset) == len(epoch)
    for x, y in epoch:
        assert x.dtype == y.dtype == np.int32
        assert x.shape == y.shape
        np.testing.assert_array_equal(y, x + 1)
    seen = np.sort(rows(epoch).ravel())
    assert len(np.unique(seen)) == len(seen)
    if not kind:
        np.testing.assert_array_equal(seen, np.arange(1002 // sequence_length * sequence_length))
        assert all(len(x) == batch_size for x, _ in epoch[:-1])
    else:
        static = (batch_size, sequence_length)
        assert tuple(dataset.element_spec[0].shape) == static == tuple(dataset.element_spec[1].shape)
        left_out = 1002 - len(seen)
        assert left_out < sequence_length * batch_size + batch_size
        assert kind != {"seed": 3} or len(seen) == 1002 // sequence_length // batch_size * batch_size * sequence_length


def test_shuffled_epochs_differ_and_repeat_themselves():
    def make(seed=5):
        return packed_dataset(STREAM, batch_size=3, sequence_length=10, seed=seed)

    dataset = make()
    first, second = rows(batches(dataset)), rows(batches(dataset))
    assert (first != second).any()
    again = make()
    np.testing.assert_array_equal(rows(batches(again)), first)
    np.testing.assert_array_equal(rows(batches(again)), second)
    assert (rows(batches(make(6))) != first).any()
    assert (rows(batches(make(-5))) != first).any()
    # 100 windows make 33 batches of 3: the one left out is not always the same.
    missing = {999 * 1000 // 2 - rows(batches(dataset)).sum() for _ in range(5)}
    assert len(missing) > 1


def test_order_is_pinned():
    """A trained model must be reproducible with every later version of NumPy and of this package."""
    dataset = packed_dataset(np.arange(9), batch_size=8, sequence_length=1, seed=0)
    assert rows(batches(dataset)).ravel().tolist() == [0, 3, 7, 5, 1, 2, 6, 4]


def test_repeat_goes_through_the_same_epochs():
    dataset = packed_dataset(STREAM, batch_size=7, sequence_length=10, seed=1)
    both = rows([*batches(dataset), *batches(dataset)])
    endless = packed_dataset(STREAM, batch_size=7, sequence_length=10, seed=1, repeat=True)
    import tensorflow as tf

    assert endless.cardinality() == tf.data.INFINITE_CARDINALITY
    np.testing.assert_array_equal(rows(batches(endless, 28)), both)


@pytest.mark.parametrize("kind", [{}, {"seed": 3}, {"columns": True}])
@pytest.mark.parametrize("start", [1, 13, 14, 15, 40])
def test_start_continues_exactly(kind, start):
    def make(**more):
        return packed_dataset(STREAM, batch_size=7, sequence_length=10, repeat=True, **kind, **more)

    whole = batches(make(), start + 20)[start:]
    for (x, y), (u, v) in zip(batches(make(start=start), 20), whole, strict=True):
        np.testing.assert_array_equal(x, u)
        np.testing.assert_array_equal(y, v)


def test_columns_continue_each_other():
    epoch = batches(packed_dataset(STREAM, batch_size=4, sequence_length=25, columns=True))
    assert len(epoch) == 10
    for (_, y), (x, _) in itertools.pairwise(epoch):
        np.testing.assert_array_equal(y[:, -1], x[:, 0])
    np.testing.assert_array_equal(epoch[0][0][:, 0], [0, 250, 500, 750])


def test_large_ids_survive():
    x, y = batches(packed_dataset(np.array([0, 2**20, 65_535], "<u4"), batch_size=1, sequence_length=2))[0]
    assert (x.tolist(), y.tolist()) == ([[0, 2**20]], [[2**20, 65_535]])


@pytest.mark.parametrize(
    ("count", "arguments", "message"),
    [
        (10, {"batch_size": 1, "sequence_length": 10}, r"10 tokens do not fill 1 windows of 10 \(that takes 11\)"),
        (0, {"batch_size": 1, "sequence_length": 1}, "0 tokens"),
        (20, {"batch_size": 2, "sequence_length": 10, "seed": 0}, r"2 windows of 10 \(that takes 21\)"),
        (20, {"batch_size": 2, "sequence_length": 10, "columns": True}, r"\(that takes 21\)"),
        (99, {"batch_size": 2, "sequence_length": 10, "columns": True, "seed": 1}, "cannot be shuffled"),
        (99, {"batch_size": 2, "sequence_length": 10, "start": 1}, "repeat=True"),
        (99, {"batch_size": 0, "sequence_length": 10}, "too small"),
        (99, {"batch_size": 1, "sequence_length": 0}, "too small"),
    ],
)
def test_bad_arguments(count, arguments, message):
    with pytest.raises(InputError, match=message) as caught:
        packed_dataset(np.zeros(count, np.uint16), **arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("more", [{}, {"seed": 0}, {"columns": True}])
def test_the_stated_number_of_tokens_suffices(more):
    assert len(packed_dataset(np.zeros(21, np.uint16), batch_size=2, sequence_length=10, **more)) == 1


def test_small_split_is_evaluated_whole():
    dataset = packed_dataset(np.arange(26), batch_size=64, sequence_length=5)
    assert [x.shape for x, _ in batches(dataset)] == [(5, 5)]


def test_dataset_from_texts():
    tokenizer = ByteTokenizer()
    dataset = dataset_from_texts(["ab", "", "数"], tokenizer, batch_size=2, sequence_length=3)
    stream = np.concatenate([rows(batches(dataset)).ravel()])
    assert stream.tolist() == [256, 97, 98, 257, 256, 257, 256, 0xE6, 0x95]
    with pytest.raises(InputError, match="the texts: 0 tokens"):
        dataset_from_texts([], tokenizer, batch_size=2, sequence_length=3)


def test_keras_fits_on_it():
    import keras

    model = keras.Sequential([keras.layers.Embedding(1003, 4), keras.layers.Dense(1003)])
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    dataset = packed_dataset(STREAM, batch_size=20, sequence_length=10, seed=0)
    history = model.fit(dataset, epochs=2, verbose=0, shuffle=False)
    assert len(history.epoch) == 2
    assert np.isfinite(history.history["loss"]).all()
