"""One measurement in a process of its own: `python benchmarks/speed_peer.py PEER KIND`, see speed.py."""

import importlib
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

BATCH, LENGTH, STEPS = 16, 128, 40
PROMPT, NEW = 32, 64
THREADS = 2


def config(kind: str) -> dict[str, Any]:
    """The quickstart preset."""
    from kerasllm.presets import PRESETS

    return PRESETS[f"{kind}_quickstart"]["config"]


def batches(vocabulary_size: int) -> Any:
    """Random tokens: speed does not depend on them."""
    tokens = np.random.default_rng(0).integers(3, vocabulary_size, (STEPS * BATCH, LENGTH + 1)).astype("int32")
    return tokens[:, :-1], tokens[:, 1:]


def median_seconds(function: Callable[[], Any], runs: int = 3) -> float:
    """Median time of a call, after one that does not count."""
    function()
    times = []
    for _ in range(runs):
        started = time.perf_counter()
        function()
        times.append(time.perf_counter() - started)
    return sorted(times)[runs // 2]


def keras_fit_speed(model: Any, vocabulary_size: int, inputs: Callable[[Any], Any] = lambda x: x) -> float:
    """Tokens a second of `fit`, compilation not counted."""
    import tensorflow as tf

    x, y = batches(vocabulary_size)
    data = tf.data.Dataset.from_tensor_slices((inputs(x), y)).batch(BATCH, drop_remainder=True)
    model.fit(data.take(3), verbose=0)
    return STEPS * BATCH * LENGTH / median_seconds(lambda: model.fit(data, verbose=0), 1)


def measure_kerasllm(kind: str) -> dict[str, float]:
    """Ours: `fit` and `generate`."""
    from kerasllm import generate
    from kerasllm.text import ByteTokenizer
    from kerasllm.training.job import make_model

    values = config(kind)
    model = make_model(f"{kind}_quickstart", values["vocabulary_size"])
    model.compile()
    result = {"train": keras_fit_speed(model, values["vocabulary_size"])}

    class Codec(ByteTokenizer):
        """Bytes as ids of a larger vocabulary, so that no text model is needed; the end token is never drawn."""

        vocabulary_size = values["vocabulary_size"]
        eos_id = values["vocabulary_size"] - 1

    model.output_bias.assign(
        np.where(np.arange(Codec.vocabulary_size) == Codec.eos_id, -1e9, 0)
    ) if kind == "lstm" else 0
    for batch in (1, 8):
        prompts = ["x" * (PROMPT - 1)] * batch
        seconds = median_seconds(lambda prompts=prompts: generate(model, Codec(), prompts, max_new_tokens=NEW))
        result[f"generate_{batch}"] = batch * NEW / seconds
    return {**result, "parameters": model.count_params()}


def measure_keras(kind: str) -> dict[str, float]:
    """KerasHub's Llama for the Transformer; for the LSTM, which it lacks, plain Keras as in every tutorial."""
    import keras
    import keras_hub

    values = config(kind)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    if kind == "lstm":
        size, width = values["vocabulary_size"], values["embedding_dim"]
        embedding = keras.layers.ReversibleEmbedding(size, width)
        tokens = keras.Input((None,), dtype="int32")
        hidden = keras.layers.LSTM(width, return_sequences=True)(embedding(tokens))
        model = keras.Model(tokens, embedding(hidden, reverse=True))
        model.compile(keras.optimizers.AdamW(1e-3, global_clipnorm=1.0), loss, jit_compile=False)
        return {"train": keras_fit_speed(model, size), "parameters": model.count_params()}
    backbone = keras_hub.models.LlamaBackbone(
        vocabulary_size=values["vocabulary_size"],
        num_layers=values["num_layers"],
        num_query_heads=values["num_heads"],
        num_key_value_heads=values["num_heads"],
        hidden_dim=values["hidden_dim"],
        intermediate_dim=values["intermediate_dim"],
        tie_word_embeddings=True,
    )
    model = keras_hub.models.LlamaCausalLM(backbone)
    # Without XLA, as ours; KerasHub's `generate` then does without it too, which may not be its best.
    model.compile(keras.optimizers.AdamW(1e-3, global_clipnorm=1.0), loss, sampler="greedy", jit_compile=False)

    def with_mask(tokens: np.ndarray) -> dict[str, np.ndarray]:
        return {"token_ids": tokens, "padding_mask": np.ones_like(tokens)}

    result = {"train": keras_fit_speed(model, values["vocabulary_size"], with_mask)}
    for batch in (1, 8):
        tokens = np.zeros((batch, PROMPT + NEW), "int32")
        mask = np.zeros_like(tokens)
        tokens[:, :PROMPT], mask[:, :PROMPT] = 5, 1
        inputs = {"token_ids": tokens, "padding_mask": mask}
        seconds = median_seconds(lambda inputs=inputs: model.generate(inputs, stop_token_ids=None))
        result[f"generate_{batch}"] = batch * NEW / seconds
    return {**result, "parameters": model.count_params()}


def measure_torch(kind: str) -> dict[str, float]:
    """Plain PyTorch, eager."""
    import torch
    from torch_models import LSTM, Transformer

    torch.set_num_threads(THREADS)
    values = config(kind)
    size = values["vocabulary_size"]
    if kind == "lstm":
        model: Any = LSTM(size, values["embedding_dim"], 0.0)
    else:
        names = ("hidden_dim", "num_layers", "num_heads", "intermediate_dim")
        model = Transformer(size, *(values[name] for name in names), 0.0)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    x, y = (torch.from_numpy(part.astype("int64")) for part in batches(size))

    def train(steps: int) -> None:
        model.train()
        for step in range(steps):
            rows = slice(step * BATCH, (step + 1) * BATCH)
            optimizer.zero_grad()
            logits = model(x[rows])[0]
            torch.nn.functional.cross_entropy(logits.flatten(0, 1), y[rows].flatten()).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()

    def generate(batch: int) -> None:
        model.eval()
        with torch.inference_mode():
            logits, state = model(torch.full((batch, PROMPT), 5))
            for _ in range(NEW - 1):
                logits, state = model(logits[:, -1:].argmax(-1), state)

    train(3)
    result = {"train": STEPS * BATCH * LENGTH / median_seconds(lambda: train(STEPS), 1)}
    for batch in (1, 8):
        result[f"generate_{batch}"] = batch * NEW / median_seconds(lambda batch=batch: generate(batch))
    return {**result, "parameters": sum(p.numel() for p in model.parameters())}


IMPORTS = {"kerasllm": ("tensorflow", "kerasllm.models"), "keras": ("tensorflow", "keras_hub"), "torch": ("torch",)}


def megabytes() -> float:
    """Most memory this process has had so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    peer, kind = sys.argv[1:]
    for name in IMPORTS[peer]:
        importlib.import_module(name)
    imported = megabytes()
    measured = {"kerasllm": measure_kerasllm, "keras": measure_keras, "torch": measure_torch}[peer](kind)
    measured |= {"peak_megabytes": megabytes(), "peak_megabytes_above_imports": megabytes() - imported}
    print(json.dumps(measured))
