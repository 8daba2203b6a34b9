"""Every layer of `kerasllm.layers` through the same harness, found by looking: a layer without a case fails."""

import inspect

import keras
import numpy as np
import pytest

import kerasllm.layers
from kerasllm.layers import (
    FeedForward,
    GlobalAttention,
    LearnedPositionEmbedding,
    LSTMStack,
    MultiHeadAttention,
    RotaryEmbedding,
    SinePositionEncoding,
    TransformerBlock,
)

pytest.register_assert_rewrite("layer_harness")
import layer_harness as harness  # noqa: E402
from layer_harness import Case  # noqa: E402

pytestmark = pytest.mark.filterwarnings("error::UserWarning")


def dense(*names, bias=True):
    return tuple(f"{name}/{part}" for name in names for part in (("kernel", "bias") if bias else ("kernel",)))


def norms(*names, offset=True):
    return tuple(f"{name}/{part}" for name in names for part in (("gamma", "beta") if offset else ("scale",)))


def within(name, paths):
    return tuple(f"{name}/{path}" for path in paths)


def cells(*names):
    return tuple(f"{name}/{part}" for name in names for part in ("kernel", "recurrent_kernel", "bias"))


SEQUENCE = {"inputs": (5, 8)}
TWO_SEQUENCES = {"inputs": (5, 8), "context": (3, 6)}
ATTENTION = ("query", "key", "value", "output")
UNIT_RATES = (({"dropout": -0.5}, "-0.5"), ({"dropout": 1.5}, "1.5"))
BAD_HEADS = (
    ({"num_heads": 0}, "0"),
    ({"num_heads": -2}, "-2"),
    ({"num_heads": 4, "num_key_value_heads": 3}, "3"),
    ({"num_key_value_heads": 0}, "0"),
    ({"rotary_base": -1.0}, "-1.0"),
)

CASES = [
    Case(
        FeedForward,
        {"intermediate_dim": 12},
        SEQUENCE,
        dense("up", "down"),
        (({"intermediate_dim": 0}, "0"), ({"activation": "tanh"}, "'tanh'"), ({"activation": None}, "None")),
    ),
    Case(FeedForward, {"intermediate_dim": 12, "activation": "relu"}, SEQUENCE, dense("up", "down")),
    Case(FeedForward, {"intermediate_dim": 12, "activation": "gelu_approximate"}, SEQUENCE, dense("up", "down")),
    Case(
        FeedForward,
        {"intermediate_dim": 12, "activation": "swiglu", "use_bias": False, "kernel_initializer": "he_normal"},
        SEQUENCE,
        dense("up", "down", "gate", bias=False),
    ),
    Case(
        LSTMStack,
        {"units": [6, 4], "dropout": 0.25},
        SEQUENCE,
        cells("lstm_0/lstm_cell", "lstm_1/lstm_cell"),
        (({"units": []}, "[]"), ({"units": [3, 0]}, "0"), ({"cell": "elman"}, "'elman'"), *UNIT_RATES),
    ),
    Case(LSTMStack, {"units": [6, 4], "cell": "gru"}, SEQUENCE, cells("gru_0/gru_cell", "gru_1/gru_cell")),
    Case(LSTMStack, {"units": [6], "cell": "rnn"}, SEQUENCE, cells("rnn_0/simple_rnn_cell")),
    *(
        Case(
            LSTMStack,
            {"units": [3, 4], "cell": cell, "bidirectional": True},
            SEQUENCE,
            cells(*(f"{way}{cell}_{i}/{name}" for i in (0, 1) for way in ("", "backward_"))),
        )
        for cell, name in (("lstm", "lstm_cell"), ("rnn", "simple_rnn_cell"))
    ),
    Case(
        GlobalAttention,
        {"alignment": "general"},
        TWO_SEQUENCES,
        dense("key", "output", bias=False),
        (({"alignment": "dot"}, "'dot'"),),
    ),
    Case(
        GlobalAttention,
        {"alignment": "additive"},
        TWO_SEQUENCES,
        dense("query", "key", "score", "output", bias=False),
    ),
    Case(
        LearnedPositionEmbedding,
        {"max_sequence_length": 7},
        SEQUENCE,
        ("embeddings",),
        (({"max_sequence_length": 0}, "0"),),
    ),
    Case(RotaryEmbedding, {"base": 500.0}, {"inputs": (2, 5, 8)}, (), (({"base": 0}, "0"), ({"base": -3.0}, "-3.0"))),
    Case(SinePositionEncoding, {"max_wavelength": 500.0}, SEQUENCE, (), (({"max_wavelength": 0.5}, "0.5"),)),
    Case(MultiHeadAttention, {"num_heads": 2}, SEQUENCE, dense(*ATTENTION), (*BAD_HEADS, *UNIT_RATES)),
    Case(
        MultiHeadAttention,
        {
            "num_heads": 4,
            "num_key_value_heads": 2,
            "causal": True,
            "rotary_base": 100.0,
            "use_bias": False,
            "dropout": 0.1,
            "kernel_initializer": "he_normal",
        },
        SEQUENCE,
        dense(*ATTENTION, bias=False),
    ),
    Case(MultiHeadAttention, {"num_heads": 2}, TWO_SEQUENCES, dense(*ATTENTION)),
    Case(
        TransformerBlock,
        {"num_heads": 2, "intermediate_dim": 12},
        SEQUENCE,
        within("attention", dense(*ATTENTION))
        + within("feedforward", dense("up", "down"))
        + norms("attention_norm", "feedforward_norm"),
        (
            *BAD_HEADS,
            *UNIT_RATES,
            ({"intermediate_dim": -1}, "-1"),
            ({"norm": "batch_norm"}, "'batch_norm'"),
            ({"norm_epsilon": -1e-3}, "-0.001"),
            ({"activation": "tanh"}, "'tanh'"),
        ),
    ),
    Case(
        TransformerBlock,
        {
            "num_heads": 4,
            "intermediate_dim": 12,
            "num_key_value_heads": 2,
            "causal": True,
            "rotary_base": 100.0,
            "norm": "rms_norm",
            "norm_first": False,
            "norm_epsilon": 1e-4,
            "activation": "swiglu",
            "use_bias": False,
            "dropout": 0.1,
        },
        SEQUENCE,
        within("attention", dense(*ATTENTION, bias=False))
        + within("feedforward", dense("up", "down", "gate", bias=False))
        + norms("attention_norm", "feedforward_norm", offset=False),
    ),
    Case(
        TransformerBlock,
        {"num_heads": 2, "intermediate_dim": 12, "cross_attention": True},
        TWO_SEQUENCES,
        within("attention", dense(*ATTENTION))
        + within("cross_attention", dense(*ATTENTION))
        + within("feedforward", dense("up", "down"))
        + norms("attention_norm", "cross_attention_norm", "feedforward_norm"),
    ),
]


@pytest.fixture(params=CASES, ids=lambda case: case.id)
def case(request):
    return request.param


def test_every_public_layer_has_a_case():
    public = {
        value
        for name, value in vars(kerasllm.layers).items()
        if not name.startswith("_") and inspect.isclass(value) and issubclass(value, keras.layers.Layer)
    }
    assert public == {case.layer for case in CASES}
    assert {layer.__name__ for layer in public} <= set(kerasllm.layers.__all__)


def test_config_makes_the_same_layer_again(case):
    harness.check_config(case)


def test_a_call_builds_what_build_builds(case):
    harness.check_build(case)


def test_symbolic_shapes_are_eager_shapes(case):
    harness.check_symbolic(case)


def test_fit_with_sample_weight_and_own_optimizer_reaches_every_variable(case):
    harness.check_fit(case)


@pytest.mark.parametrize("policy", harness.POLICIES)
def test_dtype_policies_agree(case, policy):
    harness.check_policy(case, policy)


def test_a_keras_file_gives_the_same_outputs(case, tmp_path):
    harness.check_file(case, tmp_path)


def test_variable_paths_are_the_contract(case):
    harness.check_paths(case)


def test_keras_masks_go_through(case):
    harness.check_masking(case)


@pytest.mark.parametrize("case", [case for case in CASES if case.bad], ids=lambda case: case.id)
def test_bad_values_are_refused_and_named(case):
    harness.check_refusals(case)


@pytest.mark.parametrize("case", {case.layer: case for case in CASES}.values(), ids=lambda case: case.layer.__name__)
def test_docstring_explains_every_argument(case):
    harness.check_docstring(case)


def test_shapes_that_cannot_work_are_refused_and_named():
    with pytest.raises(ValueError, match=r"num_heads 3 must divide the width of the input, 8"):
        MultiHeadAttention(3)(np.zeros((1, 2, 8)))
    with pytest.raises(ValueError, match=r"even head_dim, received 5"):
        RotaryEmbedding()(np.zeros((1, 1, 2, 5)))
    with pytest.raises(ValueError, match=r"4 positions, more than max_sequence_length 3"):
        LearnedPositionEmbedding(3)(np.zeros((1, 4, 2)))
    x = np.zeros((1, 2, 8), "float32")
    with pytest.raises(ValueError, match="pass context to a block with cross_attention=True"):
        TransformerBlock(2, 8)(x, context=x)
    with pytest.raises(ValueError, match="pass context to a block with cross_attention=True"):
        TransformerBlock(2, 8, cross_attention=True)(x)


@pytest.mark.parametrize("layer", [MultiHeadAttention(2), TransformerBlock(2, 8)], ids=lambda layer: layer.name)
def test_a_cache_without_causal_attention_is_refused(layer):
    cache = np.zeros((2, 1, 2, 4, 4), "float32")
    with pytest.raises(ValueError, match=r"a cache needs causal=True"):
        layer(np.zeros((1, 1, 8), "float32"), cache=(cache[0], cache[1]))


@pytest.mark.parametrize("layer", [MultiHeadAttention(2), TransformerBlock(2, 8)], ids=lambda layer: layer.name)
def test_attention_scores_are_a_symbolic_output_too(layer):
    symbols = keras.Input((5, 8))
    outputs = layer(symbols, return_attention_scores=True)
    assert [output.shape for output in outputs] == [(None, 5, 8), (None, 2, 5, 5)]
    scores = keras.Model(symbols, outputs[1])(np.random.default_rng(0).normal(size=(3, 5, 8)))
    np.testing.assert_allclose(np.sum(scores, -1), 1, rtol=1e-5)


def test_two_kernels_of_a_layer_start_different():
    for layer in (FeedForward(8, activation="swiglu"), TransformerBlock(2, 8, activation="swiglu")):
        layer.build((None, None, 8))
        kernels = [np.array(v.value) for v in layer.trainable_variables if v.path.endswith("/kernel")]
        assert len({kernel.tobytes() for kernel in kernels}) == len(kernels)
