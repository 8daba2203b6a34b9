"""Does it work on a GPU? NOT RUN IN CI, where there is none: run it once on every kind of GPU machine you deploy to.

    python examples/gpu_smoke.py

It trains an LSTM language model with cuDNN, continues prompts of unequal length, exports with the GPU in sight, and
loads both exports in a process that sees none. It ends with "GPU smoke test passed" and exit code 0, with an assertion
that says what is wrong, or, where TensorFlow sees no GPU, with one line and exit code 2.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf

import kerasllm
from kerasllm.data import dataset_from_texts
from kerasllm.models import LSTMLanguageModel
from kerasllm.text import ByteTokenizer

PROMPTS = ["The cat", "The cat sat on the mat and", "猫"]
_ON_CPU = """
import json, sys
import tensorflow as tf
from kerasllm.edge import EdgeModel
from kerasllm.serving import ServedModel
assert not tf.config.list_physical_devices("GPU"), "the child must not see the GPU"
folder, prompts = sys.argv[1], json.loads(sys.argv[2])
runners = ServedModel(folder + "/1"), EdgeModel(folder + "/model.tflite")
print(json.dumps([runner.generate(prompts, max_new_tokens=24) for runner in runners]))
"""


def main() -> None:
    """Train, generate and export on the GPU, run on the CPU."""
    gpus = tf.config.list_physical_devices("GPU")
    if not gpus:
        print("gpu_smoke: TensorFlow sees no GPU here; nothing was tested", file=sys.stderr)
        sys.exit(2)
    print(f"{len(gpus)} x {tf.config.experimental.get_device_details(gpus[0]).get('device_name', 'GPU')}")
    keras.utils.set_random_seed(0)
    model, tokenizer = train()
    assert "CudnnRNNV3" in operations(model), "training without a mask does not use cuDNN"
    check_generation(model, tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        check_export(model, tokenizer, Path(folder))
    print("GPU smoke test passed")


def train() -> tuple[LSTMLanguageModel, ByteTokenizer]:
    """A model that has learnt one sentence by heart."""
    tokenizer = ByteTokenizer()
    texts = ["The cat sat on the mat and looked at the moon. " * 40] * 20
    data = dataset_from_texts(texts, tokenizer, batch_size=16, sequence_length=64, seed=0, repeat=True)
    size = {"embedding_dim": 64, "hidden_dim": 128, "num_layers": 2}
    model = LSTMLanguageModel(kerasllm.LSTMConfig(tokenizer.vocabulary_size, **size))
    model.compile(optimizer=keras.optimizers.Adam(5e-3))
    losses = model.fit(data, epochs=4, steps_per_epoch=100, verbose=2).history["loss"]
    assert losses[-1] < 0.5 * losses[0], f"the loss does not fall: {losses}"
    return model, tokenizer


def operations(model: LSTMLanguageModel) -> set[str]:
    """Kinds of TensorFlow operations in the model's forward pass in training."""
    function = tf.function(lambda tokens: model(tokens, training=True))
    graph = function.get_concrete_function(tf.TensorSpec((16, 64), tf.int32)).graph.as_graph_def()
    nodes = [*graph.node, *(node for inner in graph.library.function for node in inner.node_def)]
    return {node.op for node in nodes}


def check_generation(model: LSTMLanguageModel, tokenizer: ByteTokenizer) -> None:
    """A batch of unequal prompts equals each prompt alone."""
    together = kerasllm.generate(model, tokenizer, PROMPTS, max_new_tokens=24)
    alone = [kerasllm.generate(model, tokenizer, prompt, max_new_tokens=24) for prompt in PROMPTS]
    assert together == alone, f"a batch differs from its prompts alone: {together} and {alone}"
    print(f"continued: {together[0]!r}")


def check_export(model: LSTMLanguageModel, tokenizer: ByteTokenizer, folder: Path) -> None:
    """What is exported where a GPU is visible runs, alike, where none is."""
    kerasllm.export_saved_model(model, tokenizer, folder / "1")
    kerasllm.export_tflite(model, folder / "model.tflite", tokenizer)
    assert b"CudnnRNN" not in (folder / "1" / "saved_model.pb").read_bytes(), "the SavedModel needs cuDNN"
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1"}
    command = [sys.executable, "-c", _ON_CPU, str(folder), json.dumps(PROMPTS)]
    child = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert child.returncode == 0, f"the exports do not run on a CPU:\n{child.stderr[-2000:]}"
    expected = kerasllm.generate(model, tokenizer, PROMPTS, max_new_tokens=24)
    for kind, texts in zip(("SavedModel", "TFLite"), json.loads(child.stdout.splitlines()[-1]), strict=True):
        equal = int(np.sum(np.array(texts) == np.array(expected)))
        assert equal == len(PROMPTS), f"{kind} on the CPU: {len(PROMPTS) - equal} continuations differ: {texts}"
        print(f"{kind} exported on the GPU answers the same on the CPU")


if __name__ == "__main__":
    main()
