"""One side of benchmarks/generate.py: makes its model, warms up, then generates whenever a line asks it to.

    python benchmarks/generate_worker.py SIDE DTYPE BATCH MODE

All sides have SmolLM2-135M's shape with random weights and read the same 128 token ids; none stops early.
"""

import os
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

PROMPT, NEW, VOCABULARY = 128, 64, 49_152
SIZES = {"num_layers": 30, "hidden_dim": 576, "intermediate_dim": 1536}


def prompts(batch: int) -> np.ndarray:
    """Token ids, int32 `(batch, 128)`."""
    return np.random.default_rng(0).integers(3, VOCABULARY - 1, (batch, PROMPT)).astype("int32")


def ours(dtype: str, batch: int, mode: str) -> Callable[[], Any]:
    """`kerasllm.generate`, with or without XLA."""
    from kerasllm.generation import generate
    from kerasllm.models import TransformerLanguageModel

    class Codec:
        """Ids as they are; no token stops."""

        vocabulary_size, eos_id, stop_ids = VOCABULARY, -1, (-1,)

        def decode(self, ids: Any) -> str:
            assert len(ids) == NEW
            return ""

    model = TransformerLanguageModel.from_preset("smollm2_135m", dtype=dtype)
    model.build()
    rows = prompts(batch).tolist()
    return lambda: generate(model, Codec(), rows, max_new_tokens=NEW, jit_compile=mode == "xla")  # type: ignore


def keras_hub(dtype: str, batch: int, mode: str) -> Callable[[], Any]:
    """`LlamaCausalLM.generate`, compiled with or without XLA."""
    import keras_hub

    backbone = keras_hub.models.Llama3Backbone(
        vocabulary_size=VOCABULARY,
        num_query_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
        dtype=dtype,
        **SIZES,
    )
    model = keras_hub.models.Llama3CausalLM(backbone, preprocessor=None)
    model.compile(sampler="greedy", jit_compile=mode == "xla")
    tokens = np.zeros((batch, PROMPT + NEW), "int32")
    tokens[:, :PROMPT] = prompts(batch)
    mask = np.arange(PROMPT + NEW)[None, :].repeat(batch, 0) < PROMPT
    inputs = {"token_ids": tokens, "padding_mask": mask.astype("int32")}
    return lambda: np.array(model.generate(inputs, stop_token_ids=None)["token_ids"])


def transformers(dtype: str, batch: int, mode: str) -> Callable[[], Any]:
    """`LlamaForCausalLM.generate`, eager or with `torch.compile` and a static cache."""
    import torch
    import transformers as hf

    torch.set_num_threads(2)
    config = hf.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
    )
    model = hf.LlamaForCausalLM(config).to(getattr(torch, dtype)).eval()
    tokens = torch.tensor(prompts(batch).astype("int64"))
    options: dict[str, Any] = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False, "pad_token_id": 0}
    if mode == "compile":
        model.forward = torch.compile(model.forward)
        options["cache_implementation"] = "static"

    def run() -> Any:
        with torch.inference_mode():
            rows = model.generate(tokens, attention_mask=torch.ones_like(tokens), **options)
        assert rows.shape == (batch, PROMPT + NEW)
        return rows

    return run


def main() -> None:
    """Say `ready SECONDS` after two runs for warming up; then a line of seconds for each line that is read."""
    side, dtype, batch, mode = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if side != "transformers" and os.environ.get("KERAS_BACKEND", "tensorflow") == "tensorflow":
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(2)
    run = {"ours": ours, "keras_hub": keras_hub, "transformers": transformers}[side](dtype, batch, mode)
    started = time.perf_counter()
    for _ in range(2):
        run()
    print(f"ready {time.perf_counter() - started:.2f}", flush=True)
    for _ in sys.stdin:
        started = time.perf_counter()
        run()
        print(f"{time.perf_counter() - started:.5f}", flush=True)


if __name__ == "__main__":
    main()
