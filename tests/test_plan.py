"""The arithmetic of plans, against real variables, traced steps and published figures."""

import dataclasses
import itertools
import json
import re
import subprocess
import sys
from pathlib import Path

import keras
import pytest
import tensorflow as tf
from model_cases import ALL, make, model_class

from kerasllm import backend
from kerasllm import plan as planning
from kerasllm.config import LSTMConfig, TransformerConfig
from kerasllm.errors import InputError
from kerasllm.plan import memory
from kerasllm.plan.summary import duration, quantity
from kerasllm.state import carried

ROOT = Path(__file__).parent.parent
_SMALL = {"vocabulary_size": 40, "num_layers": 2, "num_heads": 4, "hidden_dim": 16, "intermediate_dim": 24}
_GPT2 = {"positions": "learned", "norm": "layer_norm", "use_bias": True}
SWITCHES = {
    "attention_bias": (None, True, False),
    "use_bias": (True, False),
    "num_segments": (0, 2),
    "embedding_norm": (True, False),
    "pooler": (True, False),
    "tie_embeddings": (True, False),
    "norm_first": (True, False),
    "norm": ("layer_norm", "rms_norm"),
    "activation": ("swiglu", "gelu"),
    "positions": ("learned", "rotary"),
    "num_key_value_heads": (None, 2),
}
"""Every fifteenth of their 3,072 combinations is compared with a model: all pairs of values occur."""


def deferred(config, dtype="float32"):
    with backend.deferred():
        model = model_class(config)(config, dtype=dtype)
        model.build()
    return model


def _size(variable):
    count = 1
    for axis in variable.shape:
        count *= axis
    return count * tf.as_dtype(variable.dtype).size


def test_the_count_is_that_of_the_model_for_every_switch():
    combinations = list(itertools.product(*SWITCHES.values()))[::15]
    for (first, a), (second, b) in itertools.combinations(enumerate(SWITCHES.values()), 2):
        assert {(values[first], values[second]) for values in combinations} == set(itertools.product(a, b))
    for values in combinations:
        config = TransformerConfig(**_SMALL, **dict(zip(SWITCHES, values, strict=True)))
        assert planning.parameter_count(config) == deferred(config).count_params(), config


@pytest.mark.parametrize("name", ALL)
def test_the_count_is_that_of_real_models(name):
    assert planning.parameter_count(ALL[name]) == make(ALL[name]).count_params()
    assert all(count > 0 for count in planning.parameter_table(ALL[name]).values())


MEASURED = {
    "llama": TransformerConfig(**_SMALL, tie_embeddings=False),
    "gpt2": TransformerConfig(**_SMALL, **_GPT2, activation="gelu_approximate"),
    "lstm": LSTMConfig(40, 8, 12, num_layers=2),
    "lstm_tied": LSTMConfig(40, 8, 12, num_layers=2, tie_embeddings=True),
}
# TensorFlow has no QR decomposition in bfloat16, with which Keras initializes an LSTM.
REAL = [(name, dtype) for name in MEASURED for dtype in memory.DTYPES if (name[:4], dtype) != ("lstm", "bfloat16")]


@pytest.mark.parametrize(("name", "dtype"), REAL)
def test_weights_gradients_and_moments_are_those_of_keras(name, dtype):
    config = MEASURED[name]
    model = model_class(config)(config, dtype=dtype)
    model.build()
    optimizer = keras.optimizers.AdamW(gradient_accumulation_steps=2)
    optimizer.build(model.trainable_variables)
    moments = [v for v in optimizer.variables if v.path.endswith(("_momentum", "_velocity"))]
    accumulators = [v for v in optimizer.variables if "gradient_accumulator" in v.path]
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(model(tf.zeros((2, 3), tf.int32)))
    gradients = tape.gradient(loss, [v.value for v in model.trainable_variables])
    dense = [tf.convert_to_tensor(gradient) for gradient in gradients]
    size = sum(gradient.shape.num_elements() * gradient.dtype.size for gradient in dense)
    used = memory.training_memory(config, dtype, 2, 3, accumulate=True)
    assert used.weights == sum(map(_size, model.weights))
    assert used.optimizer == sum(map(_size, moments))
    assert used.gradients == size + sum(map(_size, accumulators))
    assert len(moments) == 2 * len(accumulators) == 2 * len(model.weights)
    plain = planning.plan(config, dtype=dtype)
    assert (plain.weight_bytes, 2 * plain.gradient_bytes) == (used.weights, used.gradients)


@pytest.mark.parametrize(("name", "dtype"), [*REAL, ("grouped", "float32"), ("grouped", "bfloat16")])
def test_the_cache_is_the_decode_state(name, dtype):
    config = MEASURED.get(name) or ALL[name]
    model = model_class(config)(config, dtype=dtype)
    model.build()
    state = carried(model.initial_state(3, 24))
    made = planning.plan(config, dtype=dtype, batch_size=3, length=24)
    assert made.cache_bytes == sum(_size(value) for value in state.values())
    if isinstance(config, TransformerConfig):
        assert made.cache_bytes == 3 * 24 * made.cache_bytes_per_token


_SHAPE = (4, 64)  # rows and tokens of the traced steps below
_WIDE = {"vocabulary_size": 96, "num_layers": 2, "num_heads": 4, "hidden_dim": 64, "intermediate_dim": 160}
TRACED = {
    "llama": TransformerConfig(**_WIDE, tie_embeddings=False),
    "grouped": TransformerConfig(**_WIDE, num_key_value_heads=2),
    "gpt2": TransformerConfig(**_WIDE, **_GPT2, activation="gelu_approximate", dropout=0.1),
    "bert": TransformerConfig(
        **_WIDE, **_GPT2, activation="gelu", norm_first=False, embedding_norm=True, num_segments=2, causal=False
    ),
    "relu": TransformerConfig(**_WIDE, activation="relu"),
}


def traced_step(config, dtype):
    """Graph of a forward and backward pass over `_SHAPE`."""
    model = model_class(config)(config, dtype=dtype)
    model.build()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    @tf.function(input_signature=[tf.TensorSpec(_SHAPE, tf.int32)] * 2)
    def step(tokens, targets):
        with tf.GradientTape() as tape:
            value = loss(targets, model(tokens, training=True))
        return tape.gradient(value, model.trainable_variables)

    return step.get_concrete_function().graph


def is_backward(op):
    return op.name.startswith(("gradient_tape", "AddN"))


_VIEWS = {"Reshape", "Identity", "IdentityN", "ExpandDims", "Squeeze", "StopGradient"}


def kept(graph):
    """Bytes of what a forward pass made and its backward pass reads: each buffer once, weights left out."""
    buffers = {}
    for op in graph.get_operations():
        for tensor in () if is_backward(op) else op.outputs:
            if tensor.dtype in (tf.resource, tf.variant) or not any(map(is_backward, tensor.consumers())):
                continue
            while tensor.op.type in _VIEWS:
                tensor = tensor.op.inputs[tensor.value_index if tensor.op.type == "IdentityN" else 0]
            if tensor.op.type not in ("ReadVariableOp", "Const", "Placeholder"):
                buffers[tensor.name] = tensor.shape.num_elements() * tensor.dtype.size
    return sum(buffers.values())


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16", "bfloat16"])
@pytest.mark.parametrize("name", TRACED)
def test_activations_are_what_tensorflow_keeps_for_the_backward_pass(name, dtype):
    config = TRACED[name]
    used = memory.training_memory(config, dtype, *_SHAPE)
    # The gradient of the logits is there already: TensorFlow's loss computes it in the forward pass.
    expected = used.activations + used.logits // 2 + used.copies
    assert kept(traced_step(config, dtype)) == pytest.approx(expected, rel=0.02)


def products(graph, backward):
    """Floating-point operations of the matrix products of a graph's forward or backward pass."""
    total = 0
    for op in graph.get_operations():
        if op.type in ("MatMul", "BatchMatMulV2") and is_backward(op) == backward:
            turned = op.get_attr("transpose_a" if op.type == "MatMul" else "adj_x")
            inner = op.inputs[0].shape[-2 if turned else -1]
            total += 2 * op.outputs[0].shape.num_elements() * inner
    return total


@pytest.mark.parametrize("name", TRACED)
def test_flops_are_those_of_the_matrix_products_of_a_step(name):
    config, tokens = TRACED[name], _SHAPE[0] * _SHAPE[1]
    graph = traced_step(config, "float32")
    made = planning.plan(config, length=_SHAPE[1])
    assert products(graph, False) == tokens * made.forward_flops_per_token
    both = products(graph, False) + products(graph, True)
    assert both == tokens * made.training_flops_per_token


def test_flops_by_hand():
    config = TransformerConfig(10, num_layers=3, num_heads=2, hidden_dim=8, intermediate_dim=12, num_key_value_heads=1)
    # two square projections, two half as wide, three of the feed-forward layer; scores and mixing over 5 keys
    layer = 2 * (2 * 8 * 8 + 2 * 8 * 4 + 3 * 8 * 12) + 2 * (2 * 8 * 5)
    assert planning.forward_flops(config, 5) == 3 * layer + 2 * 8 * 10
    assert planning.training_flops(config, 5) == 3 * planning.forward_flops(config, 5)
    lstm = LSTMConfig(10, 6, 7)
    assert planning.forward_flops(lstm, 99) == 2 * (4 * 7 * (6 + 7) + 7 * 10)


def test_llama_7b_took_the_published_hours():
    """Touvron et al. 2023, tables 2 and 15: 1.0T tokens in 82,432 hours of A100-80GB, which is 46% of the peak rate."""
    made = planning.plan_model("llama_7b", dtype="mixed_bfloat16", device="a100-80", tokens=10**12, utilization=0.462)
    assert made.training_seconds / 3600 == pytest.approx(82_432, rel=0.05)
    # Rajbhandari et al. 2020, section 3.1: 16 bytes of state for a parameter; Keras keeps the gradient in float32 too
    assert made.weight_bytes + made.gradient_bytes + made.optimizer_bytes == 16 * made.parameters
    assert made.training_flops_per_token == pytest.approx(6 * made.parameters, rel=0.1)


def test_devices_share_time_memory_and_batch():
    options = {"dtype": "mixed_bfloat16", "device": "a100-80", "batch_size": 16}
    one, eight = (planning.plan_model("llama_7b", **options, devices=devices) for devices in (1, 8))
    assert one.training_seconds == pytest.approx(8 * eight.training_seconds)
    assert [s.label for s in one.scenarios] == ["training", "training, recomputing", "serving"]
    by_label = {s.label: s.memory for s in eight.scenarios}
    replicated, sharded = by_label["training"], by_label["training, sharded"]
    assert replicated.weights == one.weight_bytes
    for use in ("weights", "gradients", "optimizer"):
        assert getattr(sharded, use) == pytest.approx(getattr(replicated, use) / 8, abs=1)
    assert sharded.activations == replicated.activations == one.activation_bytes // 8
    assert one.fitting("training") is None
    assert eight.fitting("training").sharded
    assert by_label["training, recomputing"].activations < replicated.activations / 10


def test_advice_is_true():
    made = planning.plan_model("llama_7b", dtype="mixed_bfloat16", batch_size=4, device="a100-40")
    assert made.fitting("training") is None and made.fitting("serving") is None
    lines = "\n".join(made.advice)
    devices = int(re.search(r"training fits with (\d+) devices", lines)[1])
    options = {"dtype": "mixed_bfloat16", "batch_size": 4, "device": "a100-40"}
    assert planning.plan_model("llama_7b", **options, devices=devices).fitting("training")
    assert not planning.plan_model("llama_7b", **options, devices=devices // 2).fitting("training")
    assert "serving fits with dtype bfloat16" in lines
    assert planning.plan_model("llama_7b", **{**options, "dtype": "bfloat16"}).fitting("serving")
    small = planning.plan_model("gpt2_base", device="t4", batch_size=4096)
    rows = int(re.search(r"training fits with batch (\d+)", "\n".join(small.advice))[1])
    assert planning.plan_model("gpt2_base", device="t4", batch_size=rows).fitting("training")
    assert not planning.plan_model("gpt2_base", device="t4", batch_size=2 * rows).fitting("training")
    assert planning.plan_model("gpt2_base", device="t4").advice == ()
    hopeless = planning.plan_model("llama_13b", device="cpu", memory=1e-3)
    assert hopeless.advice[0] == "training fits with no single change; choose a larger device or a smaller model"


def test_decoding_is_bound_by_bandwidth_and_then_by_the_products():
    options = {"dtype": "bfloat16", "device": "a100-80", "length": 2048}
    one = planning.plan_model("llama_7b", **options)
    read = 2 * (one.parameters - 32_000 * 4096 - 65 * 4096) + one.cache_bytes  # all but the look-up and the norms
    assert one.decode_tokens_per_second == pytest.approx(2039e9 / read)
    lstm = planning.plan_model("lstm_small", device="cpu", memory=1, bandwidth=1e3, peak=1e-3)
    assert lstm.decode_tokens_per_second == pytest.approx(1e9 / lstm.forward_flops_per_token)
    assert planning.plan_model("bert_base", device="t4").decode_tokens_per_second is None
    assert planning.plan_model("bert_base", device="t4").cache_bytes == 0


def test_an_encoder_with_a_pooler_makes_no_logits():
    """It stands under the head of a task; pretraining by masked words, without a pooler, does make them."""
    made = planning.plan_model("minilm_l6", batch_size=64, length=128)
    assert made.logits_bytes == 0 and all(s.memory.logits == 0 for s in made.scenarios)
    config = dataclasses.replace(planning.read_config("minilm_l6"), pooler=False)
    masked = planning.plan(config, batch_size=64, length=128)
    assert masked.logits_bytes == 4 * 64 * 128 * 30_522
    table = 30_522 * 384
    assert masked.forward_flops_per_token - made.forward_flops_per_token == 2 * table
    for with_logits, without in zip(masked.scenarios, made.scenarios, strict=True):
        assert with_logits.memory.copies - without.memory.copies == 4 * table


def test_files_and_bad_input(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"class": "LSTMLanguageModel", "config": {"embedding_dim": 8, "hidden_dim": 12}}))
    made = planning.plan_model(str(path), vocabulary_size=40)
    assert made.parameters == planning.parameter_count(LSTMConfig(40, 8, 12))
    for name, options, message in (
        (str(path), {}, "mine.json: LSTMConfig: missing vocabulary_size"),
        ("llama_8b", {}, "model 'llama_8b' is unknown; give a JSON file or one of"),
        ("llama_7b", {"dtype": "int8"}, "dtype 'int8' is unknown; choose one of float32"),
        ("llama_7b", {"device": "abacus"}, "device 'abacus' is unknown; choose one of a100-40"),
        ("llama_7b", {"device": "cpu"}, "needs its memory"),
        (
            "llama_7b",
            {"device": "cpu", "memory": -1},
            "memory must be a positive number, received -1",
        ),
        ("llama_7b", {"length": 4096}, "length 4096 is more than the model's max_sequence_length 2048"),
        ("llama_7b", {"batch_size": 0}, "batch_size must be a positive integer, received 0"),
        ("llama_7b", {"devices": 1.5}, "devices must be a positive integer, received 1.5"),
        ("llama_7b", {"utilization": 1.1}, "utilization must be more than 0 and at most 1, received 1.1"),
    ):
        with pytest.raises(InputError, match=re.escape(message)) as error:
            planning.plan_model(name, **options)
        assert "\n" not in str(error.value)
    path.write_text('{"class": "os.system", "config": {}}')
    with pytest.raises(InputError, match="needs `config` and `class`, one of LSTMLanguageModel"):
        planning.plan_model(str(path))


def test_a_plan_is_printed_and_is_json():
    made = planning.plan_model("gpt2_base", device="t4", batch_size=8)
    assert json.loads(json.dumps(made.to_dict(), allow_nan=False))["fits_training"] is True
    assert made.to_dict()["scenarios"][0]["memory"]["total"] == made.scenarios[0].memory.total
    text = made.summary()
    for part in ("124,439,808", "498 MB", "996 MB", "1 x t4", "device hours", "73,728 B for each token", "yes"):
        assert part in text, part
    assert "Name a device" in planning.plan_model("gpt2_base").summary()
    assert planning.plan_model("gpt2_base").to_dict()["fits_serving"] is None
    changed = planning.plan_model("gpt2_base", device="t4", memory=1, peak=2).device
    assert (changed.memory, changed.bandwidth, changed.float32) == (1e9, 300e9, 2e12)
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.tokens = 1
    numbers = {0: "0 B", 999: "999 B", 999.6: "1.00 kB", 1234: "1.23 kB", 99_960_000: "100 MB", 13.5e9: "13.5 GB"}
    assert {number: quantity(number, "B") for number in numbers} == numbers
    assert [duration(s) for s in (3, 150, 7200, 1e6, 1e9)] == [
        "3.0 seconds", "2.5 minutes", "2.0 hours", "11.6 days", "31.7 years"
    ]  # fmt: skip


def test_planning_imports_neither_keras_nor_numpy():
    program = (
        "import sys; from kerasllm.plan import plan_model; plan_model('llama_7b', device='h100').summary(); "
        "sys.exit(bool({'keras', 'tensorflow', 'numpy', 'jax'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, timeout=60).returncode == 0
