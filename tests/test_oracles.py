"""Layers, loss and perplexity against short numpy references written from the papers' formulas."""

import math

import keras
import numpy as np
import pytest

from kerasllm.layers import (
    FeedForward,
    GlobalAttention,
    LearnedPositionEmbedding,
    LSTMStack,
    MultiHeadAttention,
    RotaryEmbedding,
    SinePositionEncoding,
    TransformerBlock,
    attention_mask,
    token_positions,
)
from kerasllm.metrics import Perplexity

pytest.register_assert_rewrite("oracles")
from oracles import (  # noqa: E402
    attention,
    close,
    feedforward,
    global_attention,
    normal,
    normalize,
    recurrent_stack,
    rotate,
    sine_positions,
    softmax,
    weights,
)

# Attention (Vaswani et al. 2017, equation 1 and 3.2.2; Ainslie et al. 2023)


@pytest.mark.parametrize("groups", [4, 2, 1])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_the_formula(groups, causal, masked):
    x = normal(1, 2, 5, 16)
    layer = MultiHeadAttention(4, num_key_value_heads=groups, causal=causal)
    layer.build(x.shape)
    w = weights(layer)
    key_mask = np.array([[1, 1, 0, 1, 0], [1, 0, 0, 0, 1]], bool) if masked else np.ones((2, 5), bool)
    visible = key_mask[:, None, :] & (np.tril(np.ones((5, 5), bool)) if causal else True) & np.ones((5, 1), bool)
    outputs, scores = layer(x, key_mask=key_mask if masked else None, return_attention_scores=True)
    expected, expected_scores = attention(w, x, x, 4, groups, visible)
    close(outputs, expected)
    close(scores, expected_scores)
    close(np.sum(scores, -1), 1)


@pytest.mark.parametrize("groups", [4, 2])
def test_cross_attention_is_the_formula(groups):
    x, context = normal(1, 2, 3, 16), normal(2, 2, 6, 10)
    mask = np.array([[1, 1, 1, 0, 0, 0], [0, 1, 0, 1, 0, 1]], bool)
    layer = MultiHeadAttention(4, num_key_value_heads=groups, use_bias=False)
    layer.build(x.shape, context.shape)
    expected, expected_scores = attention(weights(layer), x, context, 4, groups, np.repeat(mask[:, None], 3, 1))
    outputs, scores = layer(x, context=context, key_mask=mask, return_attention_scores=True)
    close(outputs, expected)
    close(scores, expected_scores)


@pytest.mark.parametrize("groups", [4, 2])
def test_a_cached_context_is_the_context(groups):
    x, context = normal(1, 2, 3, 16), normal(2, 2, 6, 10)
    mask = np.array([[1, 1, 1, 0, 0, 0], [0, 1, 0, 1, 0, 1]], bool)
    layer = TransformerBlock(4, 12, num_key_value_heads=groups, causal=True, cross_attention=True)
    layer.build(x.shape, context.shape)
    weights(layer)
    cached = layer.cache_context(context)
    assert [tuple(part.shape) for part in cached] == [(2, groups, 6, 4)] * 2
    close(layer(x, context_cache=cached, context_mask=mask), layer(x, context=context, context_mask=mask))


def test_rotary_attention_is_the_formula_with_rotated_queries_and_keys():
    x = normal(1, 2, 5, 16)
    layer = MultiHeadAttention(2, causal=True, rotary_base=50.0)
    layer.build(x.shape)
    visible = np.broadcast_to(np.tril(np.ones((5, 5), bool)), (2, 5, 5))
    expected, _ = attention(weights(layer), x, x, 2, 2, visible, rotate=lambda q: rotate(q, np.arange(5), 50.0))
    close(layer(x), expected)


def test_a_row_that_sees_nothing_is_finite():
    x = normal(1, 1, 3, 8)
    outputs, scores = MultiHeadAttention(2)(x, key_mask=np.zeros((1, 3), bool), return_attention_scores=True)
    assert np.isfinite(outputs).all()
    close(np.sum(scores, -1), 1)


def test_attention_mask_hides_what_it_says():
    cases = [
        (3, 5, False, 0, None, None),
        (3, 3, True, 0, None, None),
        (2, 7, True, 4, None, None),
        (3, 5, True, 2, [1, 3], None),
        (3, 5, False, 0, [1, 3], None),
        (3, 5, False, 0, None, [[1, 0, 1, 1, 0], [0, 1, 1, 1, 1]]),
        (3, 5, True, 1, [0, 2], [[1, 0, 1, 1, 0], [0, 1, 1, 1, 1]]),
    ]
    for queries, keys, causal, position, padding, mask in cases:
        arrays = [None if v is None else np.array(v, t) for v, t in ((padding, "int32"), (mask, "bool"))]
        visible = attention_mask(
            queries, keys, causal=causal, position=position, left_padding=arrays[0], key_mask=arrays[1]
        )
        if not causal and padding is None and mask is None:
            assert visible is None
            continue
        visible = np.broadcast_to(np.array(visible), (2, 1, queries, keys))
        for row, i, j in np.ndindex(2, queries, keys):
            hidden = causal and j > position + i
            hidden |= padding is not None and j < padding[row]
            hidden |= mask is not None and not mask[row][j]
            assert visible[row, 0, i, j] != hidden


# Positions


def test_sine_positions_are_vaswani_section_3_5():
    for dim in (8, 7):
        expected = sine_positions(600, dim)
        close(SinePositionEncoding()(np.zeros((1, 600, dim), "float32"))[0], expected, 2e-4)
        x = normal(0, 2, 2, dim)
        close(SinePositionEncoding()(x, positions=np.array([[5, 599], [0, 1]])), x + expected[[[5, 599], [0, 1]]], 2e-4)


def test_learned_positions_are_rows_of_the_table():
    x, layer = normal(0, 2, 3, 4), LearnedPositionEmbedding(9)
    layer.build(x.shape)
    table = weights(layer)["embeddings"]
    close(layer(x), x + table[:3])
    close(layer(x, positions=np.array([[8, 0, 1], [2, 2, 7]])), x + table[[[8, 0, 1], [2, 2, 7]]])


def test_rotary_is_a_complex_rotation():
    x = normal(0, 2, 3, 5, 8)
    close(RotaryEmbedding(100.0)(x), rotate(x, np.arange(5), 100.0))
    positions = np.array([[3, 1, 4, 1, 5], [900, 2, 6, 5, 3]])
    close(RotaryEmbedding(100.0)(x, positions=positions), rotate(x, positions[:, None], 100.0), 1e-3)


def test_rotary_scores_depend_on_the_distance_only():
    q, k = (np.broadcast_to(normal(i, 1, 1, 1, 16), (1, 1, 40, 16)) for i in range(2))
    layer = RotaryEmbedding()
    scores = np.array(layer(q)[0, 0]) @ np.array(layer(k)[0, 0]).T
    for distance in (-39, -7, 0, 1, 20):
        close(np.diag(scores, distance), np.diag(scores, distance)[0], 1e-4)
    assert np.std(scores[0]) > 0.1
    shifted = np.array(layer(q, np.arange(40) + 1000)[0, 0]) @ np.array(layer(k, np.arange(40) + 1000)[0, 0]).T
    close(shifted, scores, 2e-3)


def test_token_positions_count_from_the_first_real_token():
    assert np.array(token_positions(3, 2, None)).tolist() == [2, 3, 4]
    assert np.array(token_positions(4, 1, np.array([0, 3]))).tolist() == [[1, 2, 3, 4], [0, 0, 0, 1]]


# Feed-forward (Vaswani et al. 2017, equation 2; Shazeer 2020, equation 6) and the block


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("activation", ["relu", "gelu", "gelu_approximate", "swiglu"])
def test_feedforward_is_the_formula(activation, use_bias):
    x, layer = normal(0, 2, 3, 8), FeedForward(12, activation=activation, use_bias=use_bias)
    layer.build(x.shape)
    w = weights(layer)
    close(layer(x), feedforward(w, activation, x))


@pytest.mark.parametrize("cross", [False, True])
@pytest.mark.parametrize("norm", ["layer_norm", "rms_norm"])
@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("use_bias", [True, False])
def test_block_is_its_equations(norm, norm_first, use_bias, cross):
    x, context = normal(0, 2, 4, 8), normal(1, 2, 3, 6)
    layer = TransformerBlock(
        2,
        12,
        norm=norm,
        norm_first=norm_first,
        norm_epsilon=0.01,
        use_bias=use_bias,
        causal=True,
        cross_attention=cross,
    )
    layer.build(x.shape, context.shape if cross else None)
    w = weights(layer)
    causal = np.broadcast_to(np.tril(np.ones((4, 4), bool)), (2, 4, 4))
    sublayers = [
        ("attention", lambda v: attention(w, v, v, 2, 2, causal, "attention/")[0]),
        ("cross_attention", lambda v: attention(w, v, context, 2, 2, np.ones((2, 4, 3)), "cross_attention/")[0]),
        ("feedforward", lambda v: feedforward(w, "gelu", v, "feedforward/")),
    ]
    expected = x
    for name, sublayer in sublayers:
        if name == "cross_attention" and not cross:
            continue
        if norm_first:
            expected = expected + sublayer(normalize(w, f"{name}_norm", expected, norm, 0.01))
        else:
            expected = normalize(w, f"{name}_norm", expected + sublayer(expected), norm, 0.01)
    close(layer(x, context=context) if cross else layer(x), expected, 1e-4)


# Recurrent layers (Hochreiter and Schmidhuber 1997, with the forget gate; Cho et al. 2014; Elman 1990), locked dropout


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
@pytest.mark.parametrize("units", [(6,), (6, 4, 5)])
@pytest.mark.parametrize("masked", [False, True])
def test_recurrent_layers_are_their_equations(units, masked, cell, both):
    x = normal(0, 2, 5, 3)
    layer = LSTMStack(units, cell=cell, bidirectional=both)
    layer.build(x.shape)
    w = weights(layer)
    mask = np.array([[0, 0, 1, 1, 1], [1, 1, 1, 1, 0]], bool) if masked else None
    ways = 2 if both else 1
    state = [tuple(normal(i + 9 * k, 2, ways * n) for k, _ in enumerate(layer.parts)) for i, n in enumerate(units)]
    for start in (None, state):
        expected, finals = recurrent_stack(w, cell, len(units), x, mask=mask, states=start, both=both)
        outputs = layer(x, initial_state=start, padding_mask=mask)
        if start is not None:
            outputs, found = outputs
            assert [len(final) for final in found] == [len(layer.parts)] * len(units)
            for part, final in zip(sum(map(list, found), []), sum(finals, []), strict=True):
                close(part, final)
        real = slice(None) if mask is None else mask  # what comes out at padding does not matter
        close(np.array(outputs)[real], expected[real])


@pytest.mark.parametrize("alignment", ["general", "additive"])
@pytest.mark.parametrize("masked", [False, True])
def test_global_attention_is_its_equations(alignment, masked):
    x, context = normal(0, 2, 3, 8), normal(1, 2, 5, 6)
    mask = np.array([[1, 1, 0, 1, 0], [1, 0, 0, 0, 0]], bool) if masked else np.ones((2, 5), bool)
    layer = GlobalAttention(alignment)
    layer.build(x.shape, context.shape)
    expected, expected_scores = global_attention(weights(layer), alignment, x, context, mask)
    given = mask if masked else None
    outputs, scores = layer(x, context=context, context_mask=given, return_attention_scores=True)
    close(outputs, expected)
    close(scores, expected_scores)
    close(layer(x, context_cache=layer.cache_context(context), context_mask=given), expected)


def test_locked_dropout_drops_a_feature_at_all_steps_or_none():
    keras.utils.set_random_seed(0)
    layer, x = LSTMStack([64], dropout=0.25), normal(0, 8, 6, 3)
    plain, dropped = np.array(layer(x, training=False)), np.array(layer(x, training=True))
    gone = dropped == 0
    assert (gone.all(axis=1) == gone.any(axis=1)).all()
    close(dropped[~gone], plain[~gone] / 0.75)
    share = gone[:, 0].mean()
    assert 0.15 < share < 0.35
    assert len({row.tobytes() for row in gone[:, 0]}) == 8  # each sequence its own features


# Loss and perplexity


def test_cross_entropy_and_perplexity_are_their_definitions():
    logits, targets = normal(0, 3, 5, 11) * 3, np.random.default_rng(0).integers(0, 11, (3, 5))
    weight = np.random.default_rng(1).integers(0, 2, (3, 5))
    nll = -np.log(np.take_along_axis(softmax(logits.astype("float64")), targets[..., None], -1)[..., 0])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    assert float(loss(targets, logits)) == pytest.approx(nll.mean(), rel=1e-5)
    metric = Perplexity()
    metric.update_state(targets[:1], logits[:1], weight[:1])
    metric.update_state(targets[1:], logits[1:], weight[1:])
    assert float(metric.result()) == pytest.approx(math.exp((nll * weight).sum() / weight.sum()), rel=1e-5)
