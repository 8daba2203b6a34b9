"""Where a backend is special-cased, it equals its plain twin; and JAX runs the models that TensorFlow saved."""

import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import seq2seq_cases
from model_cases import LSTMS, TRANSFORMERS, make
from seq2seq_cases import SEQ2SEQS

from kerasllm import backend, folder
from kerasllm.generation import generate_sequences, generate_tokens
from kerasllm.models import SEQ2SEQ, EncoderDecoder
from kerasllm.text import ByteTokenizer

PROMPTS = ["The quick brown fox", "a"]
MODELS = {
    "transformer": {**TRANSFORMERS["grouped"].to_dict(), "vocabulary_size": 258, "num_layers": 1},
    "lstm": {**LSTMS["lstm_stack"].to_dict(), "vocabulary_size": 258, "num_layers": 2, "dropout": 0.0},
    "seq2seq": {**SEQ2SEQS["grouped"].to_dict(), "vocabulary_size": 258, "dropout": 0.0},
    "lstm_seq2seq": {**SEQ2SEQS["luong"].to_dict(), "vocabulary_size": 258, "dropout": 0.0},
}


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


@pytest.mark.parametrize(
    "shapes", [((3, 4), (5, 4)), ((2, 3, 1, 4), (2, 3, 7, 4)), ((1, 2, 6, 8), (1, 2, 6, 8))], ids=str
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_matmul_transposed_is_its_plain_twin(shapes, dtype):
    a, b = (keras.ops.cast(normal(seed, *shape), dtype) for seed, shape in enumerate(shapes))
    found, twin = backend.matmul_transposed(a, b), backend.plain_matmul_transposed(a, b)
    assert found.dtype == twin.dtype == a.dtype
    np.testing.assert_allclose(
        *(np.array(keras.ops.cast(x, "float32")) for x in (found, twin)), rtol=1e-2 if dtype == "bfloat16" else 1e-6
    )
    if dtype == "float32":
        np.testing.assert_allclose(found, normal(0, *shapes[0]) @ np.swapaxes(normal(1, *shapes[1]), -1, -2), rtol=1e-4)


def test_write_cache_is_assignment():
    old, new = normal(0, 2, 3, 7, 4), normal(1, 2, 3, 2, 4)
    for position in (0, 3, 5):
        expected = old.copy()
        expected[:, :, position : position + 2] = new
        for given in (position, keras.ops.convert_to_tensor(position, "int32")):
            np.testing.assert_array_equal(np.array(backend.write_cache(old, new, given)), expected)
    low = backend.write_cache(keras.ops.cast(old, "bfloat16"), new, 1)
    assert keras.backend.standardize_dtype(low.dtype) == "bfloat16"


def test_a_compiled_function_is_kept_for_its_key_and_equals_the_plain_one():
    model = make(LSTMS["lstm"])

    def logits(model, tokens):
        return model(tokens)

    tokens = np.array([[1, 2, 3]], "int32")
    compiled = backend.compiled(model, logits, "logits")
    np.testing.assert_allclose(compiled(tokens), logits(model, tokens), atol=1e-6)
    assert backend.compiled(model, logits, "logits") is compiled
    assert backend.compiled(model, logits, "logits", 2) is not compiled
    assert backend.compiled(make(LSTMS["lstm"]), logits, "logits") is not compiled


def text_and_targets():
    text = np.random.default_rng(5).integers(0, 258, (4, 13)).astype("int32")
    return text[:, :-1], text[:, 1:]


def observe(model, tokenizer):
    """Everything the two backends must agree on, as plain numbers."""
    inputs, targets = text_and_targets()
    mask = np.arange(12)[None] < np.array([[12], [7], [1], [12]])
    padding = np.array([0, 5, 11, 2], "int32")
    if isinstance(model, EncoderDecoder):
        source = np.flip(inputs, 1)
        padded, _ = model(inputs, state=model.encode_source(source, mask, length=12, padding=padding))
        masked = model({"source": source, "target": inputs, "source_padding_mask": mask})
        read = {"sources": PROMPTS, "num_beams": 3, "max_new_tokens": 32}
        tokens = [list(row[0].tokens) for row in generate_sequences(model, tokenizer, ["", ""], **read)]
        inputs = {"source": source, "target": inputs}
    else:
        padded, _ = model(inputs, state=model.initial_state(4, 12, padding))
        masked = np.array(model(inputs, mask)) * mask[..., None]
        tokens = np.array(generate_tokens(model, tokenizer, PROMPTS, max_new_tokens=32)).tolist()
    seen = {
        "backend": keras.backend.backend(),
        "logits": np.array(model(inputs)).tolist(),
        "masked": np.array(masked).tolist(),
        "padded": np.array(padded)[:, -1].tolist(),
        "tokens": tokens,
    }
    model.compile(keras.optimizers.SGD(0.1))
    logs = [model.fit(inputs, targets, verbose=0).history for _ in range(2)]
    seen["losses"] = [log["loss"][0] for log in logs]
    seen["perplexities"] = [log["perplexity"][0] for log in logs]
    seen["trained"] = np.array(model(inputs)).tolist()
    return seen


def main(root):
    """What the JAX process does: load each model folder, look, train, look again, and write down what it saw."""
    for path in sorted(Path(root).iterdir()):
        if path.is_dir():
            path.with_suffix(".json").write_text(json.dumps(observe(*folder.load(path))))


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    root, ours = tmp_path_factory.mktemp("models"), {}
    from kerasllm.models import REGISTRY

    for name, values in MODELS.items():
        if name in ("lstm", "transformer"):
            cls = REGISTRY["LSTMLanguageModel" if name == "lstm" else "TransformerLanguageModel"]
            model = make(cls.config_class.from_dict(values), scale=0.8)
        else:
            config = SEQ2SEQ["LSTMEncoderDecoder" if name == "lstm_seq2seq" else "TransformerSeq2Seq"].config_class
            # Larger weights would make a Transformer of this kind chaotic in two steps of training.
            model = seq2seq_cases.make(config.from_dict(values), scale=0.4 if name == "seq2seq" else 0.8)
        folder.save(model, ByteTokenizer(), root / name)
        ours[name] = observe(model, ByteTokenizer())
    environment = {**os.environ, "KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"}
    run = [sys.executable, __file__, str(root)]
    result = subprocess.run(run, env=environment, capture_output=True, text=True, cwd=Path(__file__).parent.parent)
    assert result.returncode == 0, result.stderr
    return {name: (ours[name], json.loads((root / f"{name}.json").read_text())) for name in MODELS}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_jax_sees_the_logits_that_tensorflow_sees(seen, name):
    ours, theirs = seen[name]
    assert (ours["backend"], theirs["backend"]) == ("tensorflow", "jax")
    for key in ("logits", "masked", "padded"):
        np.testing.assert_allclose(theirs[key], ours[key], atol=1e-4, err_msg=key)
        assert np.std(ours[key]) > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_jax_generates_what_tensorflow_generates(seen, name):
    ours, theirs = seen[name]
    assert np.shape(ours["tokens"]) == (2, 32) or "seq2seq" in name
    assert len({token for row in ours["tokens"] for token in row}) > 4
    assert theirs["tokens"] == ours["tokens"]


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_jax_trains_as_tensorflow_trains(seen, name):
    ours, theirs = seen[name]
    assert ours["losses"][1] < ours["losses"][0]
    assert theirs["losses"] == pytest.approx(ours["losses"], rel=1e-4)
    assert theirs["perplexities"] == pytest.approx(ours["perplexities"], rel=1e-3)
    np.testing.assert_allclose(theirs["trained"], ours["trained"], atol=1e-3)
    assert np.abs(np.subtract(ours["trained"], ours["logits"])).max() > 1e-2


if __name__ == "__main__":
    main(sys.argv[1])
