"""What a plan calls sharded and recomputing, done: the same losses, a share of the memory."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from kerasllm import backend
from kerasllm import plan as planning
from kerasllm.config import TransformerConfig
from kerasllm.errors import InputError
from kerasllm.models import TransformerLanguageModel
from kerasllm.plan import memory

ROOT = Path(__file__).parent.parent
_WIDE = {"vocabulary_size": 96, "num_layers": 2, "num_heads": 4, "hidden_dim": 64, "intermediate_dim": 160}
CONFIG = TransformerConfig(**_WIDE, num_key_value_heads=2, use_bias=True, tie_embeddings=False)
DROPPING = TransformerConfig(
    **_WIDE, positions="learned", norm="layer_norm", use_bias=True, activation="gelu_approximate", dropout=0.1
)


def test_the_recomputing_block_of_the_example_trains_alike_and_keeps_less():
    path = ROOT / "examples" / "train_7b.py"
    spec = importlib.util.spec_from_file_location("train_7b", path)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    text = np.random.default_rng(0).integers(0, 96, (4, 17)).astype("int32")
    losses, calls = [], []
    for recompute in (False, True):
        keras.utils.set_random_seed(0)
        model = TransformerLanguageModel(CONFIG)
        model.build()
        inner = model.blocks[0].feedforward.call
        model.blocks[0].feedforward.call = lambda x, inner=inner, again=recompute: calls.append(again) or inner(x)
        for block in model.blocks if recompute else ():
            example.recompute(block)
        model.compile(keras.optimizers.AdamW(1e-2))
        losses.append(model.fit(text[:, :-1], text[:, 1:], epochs=3, shuffle=False, verbose=0).history["loss"])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert losses[0][-1] < losses[0][0]
    assert calls.count(True) > calls.count(False)  # traced again for the backward pass
    with pytest.raises(InputError, match="choose a preset without dropout"):
        example.recompute(TransformerLanguageModel(DROPPING).blocks[0])


def test_layout_tables_name_every_matrix_once():
    for table in (planning.TENSOR_PARALLEL, planning.FULLY_SHARDED):
        for config in (CONFIG, DROPPING):
            with backend.deferred():
                model = TransformerLanguageModel(config)
                model.build()
            for variable in model.variables:
                axes = planning.layout_of(variable.path, table)
                assert axes is None or len(axes) == len(variable.shape)
                if variable.path.endswith(("/kernel", "embedding/embeddings", "reverse_embeddings")):
                    assert axes is not None and any(axes), variable.path
                if variable.path.endswith(("gamma", "scale", "beta", "positions/embeddings")):
                    assert axes is None, variable.path


@pytest.mark.slow
def test_sharded_training_is_the_same_training_with_a_share_of_the_memory():
    flags = "--xla_force_host_platform_device_count=4"
    environment = {**os.environ, "KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    child = subprocess.run(
        [sys.executable, __file__], capture_output=True, text=True, cwd=ROOT, env=environment, timeout=300
    )
    assert child.returncode == 0, child.stderr[-3000:]
    alone, *sharded = json.loads(child.stdout.splitlines()[-1])
    assert alone["loss"][-1] < 0.9 * alone["loss"][0]
    for seen in sharded:
        assert seen["loss"] == pytest.approx(alone["loss"], rel=1e-4)
    fully = memory.training_memory(CONFIG, "float32", 8, 16, 4, sharded=True)
    assert alone["weights"] == memory.weight_bytes(CONFIG, "float32")
    # Biases and norms stay whole on each device.
    assert sharded[2]["weights"] == pytest.approx(fully.weights, rel=0.15)
    assert sharded[2]["optimizer"] == pytest.approx(fully.optimizer, rel=0.15)
    assert sharded[0]["weights"] < 0.6 * alone["weights"]
    assert sharded[1]["weights"] < 0.6 * alone["weights"]


def train_on(table, shape):
    """What a JAX process with four devices sees of four steps: losses, and bytes on the first device."""
    keras.distribution.set_distribution(None)
    if table is not None:
        mesh = keras.distribution.DeviceMesh(shape, ("batch", "model"), keras.distribution.list_devices("cpu"))
        layout_map = keras.distribution.LayoutMap(mesh)
        for pattern, axes in table:
            layout_map[f".*/{pattern}"] = axes
        keras.distribution.set_distribution(
            keras.distribution.ModelParallel(layout_map=layout_map, batch_dim_name="batch")
        )
    keras.utils.set_random_seed(0)
    model = TransformerLanguageModel(CONFIG)
    model.build()
    model.compile(keras.optimizers.AdamW(1e-2))
    text = np.random.default_rng(0).integers(0, 96, (8, 17)).astype("int32")
    history = model.fit(text[:, :-1], text[:, 1:], batch_size=8, epochs=6, shuffle=False, verbose=0).history

    def on_first(variables):
        return sum(v.value.addressable_shards[0].data.nbytes for v in variables)

    return {
        "loss": history["loss"],
        "weights": on_first(model.variables),
        "optimizer": on_first(model.optimizer.variables),
    }


if __name__ == "__main__":
    tensor, full = planning.TENSOR_PARALLEL, planning.FULLY_SHARDED
    ways = ((None, None), (tensor, (2, 2)), (tensor, (1, 4)), (full, (4, 1)))
    print(json.dumps([train_on(*way) for way in ways]))
