"""Adapters: the base stays bitwise as it was, a file of adapters is small and strict, merging changes no answer."""

import json

import keras
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from artefacts import one_line, run_fresh
from model_cases import ALL, make, tokens

import kerasllm
from kerasllm.edge import EdgeModel
from kerasllm.errors import InputError
from kerasllm.models import (
    SequenceClassifier,
    TransformerLanguageModel,
    enable_lora,
    load_adapters,
    merged,
    save_adapters,
    variable_name,
)
from kerasllm.text import ByteTokenizer

CONFIG = {
    "vocabulary_size": 258,
    "num_layers": 2,
    "num_heads": 4,
    "hidden_dim": 32,
    "intermediate_dim": 48,
    "num_key_value_heads": 2,
    "max_sequence_length": 64,
}
FRESH = """
import json, sys
import numpy as np
import kerasllm
from kerasllm.models import load_adapters
model, tokenizer = kerasllm.load(sys.argv[1])
load_adapters(model, sys.argv[2])
print(json.dumps(np.array(model(np.array([[1, 2, 3, 4]]))).tolist()))
"""


def base(seed=0, **arguments):
    keras.utils.set_random_seed(seed)
    model = TransformerLanguageModel(CONFIG, **arguments)
    model.build()
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        weight.assign(np.array(weight.value) + rng.normal(size=weight.shape) * 0.2)
    return model


def train(model, steps=4):
    text = np.random.default_rng(0).integers(0, 258, (4, 12)).astype("int32")
    model.compile(keras.optimizers.Adam(0.05))
    return model.fit(text[:, :-1], text[:, 1:], epochs=steps, verbose=0).history["loss"]


def weights(model):
    return {variable_name(v): np.array(v.value) for v in model.weights if "lora" not in v.path}


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16", "bfloat16"])
def test_training_moves_adapters_and_nothing_else(dtype):
    model = base(dtype=dtype)
    before = weights(model)
    expected = np.array(model(np.array([[1, 2, 3]])))
    assert enable_lora(model, rank=3) is model
    np.testing.assert_allclose(
        np.array(model(np.array([[1, 2, 3]]))), expected, atol=1e-5 if dtype == "float32" else 0.1
    )
    names = [variable_name(v) for v in model.trainable_variables]
    assert len(names) == 2 * 2 * 2 and all("lora_kernel_" in name for name in names)
    losses = train(model)
    assert losses[-1] < losses[0]
    after = weights(model)
    assert all((before[name] == after[name]).all() for name in before)


def test_a_file_of_adapters_is_small_and_goes_with_its_model_only(tmp_path):
    folder = kerasllm.save(base(), ByteTokenizer(), tmp_path / "base")
    model = enable_lora(base(), rank=2, alpha=6, targets=("attention/query", "feedforward/down"))
    train(model)
    path = save_adapters(model, tmp_path / "adapters.safetensors")
    assert path.stat().st_size < (folder / "model.safetensors").stat().st_size / 10
    assert all("lora_kernel_" in name for name in safetensors.numpy.load_file(path))
    fresh = np.array(run_fresh(FRESH, folder, path))
    np.testing.assert_allclose(fresh, np.array(model(np.array([[1, 2, 3, 4]]))), atol=1e-5)
    again = load_adapters(load_adapters(base(), path), path)  # a second time into the same adapters
    np.testing.assert_allclose(np.array(again(np.array([[1, 2, 3, 4]]))), fresh, atol=1e-5)
    with pytest.raises(InputError) as error:
        load_adapters(base(seed=1), path)
    assert "other weights" in one_line(error)
    with pytest.raises(InputError) as error:
        load_adapters(enable_lora(base(), rank=5, targets=("attention/query", "feedforward/down")), path)
    assert "shape" in one_line(error)
    with pytest.raises(InputError) as error:
        load_adapters(enable_lora(base(), rank=2), path)
    assert "not in both" in one_line(error)


def test_merged_weights_are_the_papers_sum_and_answer_alike():
    model = enable_lora(base(), rank=4, alpha=2.0)
    train(model)
    plain = merged(model)
    assert plain is not model and merged(plain) is plain
    assert not any("lora" in weight.path for weight in plain.weights)
    text = np.array([[5, 6, 7, 8]])
    np.testing.assert_allclose(np.array(plain(text)), np.array(model(text)), atol=1e-5)
    values = {variable_name(v): np.array(v.value, "float64") for v in model.weights}
    name = "block_1/attention/value"
    change = values[f"{name}/lora_kernel_a"] @ values[f"{name}/lora_kernel_b"] * 2.0 / 4
    np.testing.assert_allclose(weights(plain)[f"{name}/kernel"], values[f"{name}/kernel"] + change, atol=1e-6)


def test_whatever_is_written_is_merged(tmp_path):
    model = enable_lora(base(), rank=2)
    train(model)
    tokenizer = ByteTokenizer()
    expected = kerasllm.generate(model, tokenizer, "abc", max_new_tokens=8)
    folder = kerasllm.save(model, tokenizer, tmp_path / "m")
    assert kerasllm.generate(*kerasllm.load(folder), "abc", max_new_tokens=8) == expected
    saved = kerasllm.export_saved_model(model, tokenizer, tmp_path / "1")
    assert kerasllm.generate(*kerasllm.load(saved), "abc", max_new_tokens=8) == expected
    file = kerasllm.export_tflite(
        model, tmp_path / "edge" / "m.tflite", tokenizer, prefill_lengths=(), score_lengths=()
    )
    assert EdgeModel(file).generate("abc", max_new_tokens=8) == expected
    from kerasllm.convert.huggingface import read_huggingface_model, to_huggingface

    written = read_huggingface_model(to_huggingface(model, tmp_path / "hf"))
    text = np.array([[1, 2, 3]])
    np.testing.assert_allclose(np.array(written(text)), np.array(model(text)), atol=1e-5)


def test_the_head_of_a_task_learns_beside_the_adapters(tmp_path):
    def classifier():
        keras.utils.set_random_seed(0)
        return SequenceClassifier.from_backbone(make(ALL["bert"]), num_classes=2, pooling="mean")

    model = enable_lora(classifier(), rank=2)
    before = weights(model)
    text, labels = tokens(8, 6), np.arange(8) % 2
    model.compile(keras.optimizers.Adam(0.02))
    losses = model.fit(text, labels, epochs=10, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    moved = {name for name, value in weights(model).items() if (value != before[name]).any()}
    assert moved == {"classifier/kernel", "classifier/bias"}
    path = save_adapters(model, tmp_path / "task.safetensors")
    again = load_adapters(classifier(), path)
    np.testing.assert_allclose(np.array(again(text)), np.array(model(text)), atol=1e-6)
    np.testing.assert_allclose(np.array(merged(model)(text)), np.array(model(text)), atol=1e-5)


def test_a_head_and_keras_hub_take_adapters_over_merged():
    from kerasllm.convert.keras_hub import to_keras_hub

    text = np.arange(12, dtype="int32").reshape(2, 6)
    model = enable_lora(base(), rank=2)
    train(model)
    expected = np.array(model.encode(text))
    assert np.abs(expected - np.array(base().encode(text))).max() > 0.01  # the adapters say something
    classifier = SequenceClassifier.from_backbone(model, num_classes=2, pooling="mean")
    np.testing.assert_allclose(np.array(classifier.backbone.encode(text)), expected, atol=1e-4)
    theirs = to_keras_hub(model)
    hub = theirs({"token_ids": text, "padding_mask": np.ones_like(text)})
    np.testing.assert_allclose(np.array(hub), expected, atol=1e-4)
    # And adapters under a head, of which the backbone or the whole is given on.
    adapted = enable_lora(SequenceClassifier.from_backbone(base(), num_classes=2, pooling="mean"), rank=2)
    for variable in adapted.backbone.trainable_variables:
        variable.assign(np.random.default_rng(2).normal(size=variable.shape) * 0.2)
    expected = np.array(adapted.backbone.encode(text))
    for source in (adapted, adapted.backbone):
        again = SequenceClassifier.from_backbone(source, num_classes=3, pooling="last")
        np.testing.assert_allclose(np.array(again.backbone.encode(text)), expected, atol=1e-4)


def test_what_cannot_be_is_refused(tmp_path):
    model = base()
    for arguments, word in (
        ({"rank": 0}, "rank must be at least 1"),
        *(({"alpha": alpha}, "alpha must be") for alpha in (0, -1.0, float("nan"), float("inf"))),
        ({"targets": ()}, "targets must name layers"),
        ({"targets": ("attention/qeury",)}, "known are attention/key, attention/output"),
    ):
        with pytest.raises(InputError) as error:
            enable_lora(model, **arguments)
        assert word in one_line(error)
        assert not any("lora" in weight.path for weight in model.weights) and all(v.trainable for v in model.weights)
    assert len(enable_lora(base(), rank=1, targets="attention/key").trainable_variables) == 4
    with pytest.raises(InputError, match="has no adapters"):
        save_adapters(model, tmp_path / "a.safetensors")
    with pytest.raises(InputError, match="no weights yet"):
        enable_lora(TransformerLanguageModel(CONFIG))
    with pytest.raises(InputError, match="adapters already"):
        enable_lora(enable_lora(base()))
    with pytest.raises(InputError, match="no such file"):
        load_adapters(model, tmp_path / "absent.safetensors")
    path = tmp_path / "b.safetensors"
    for content in (b"", b"text", safetensors.numpy.save({"a": np.zeros(2)})):
        path.write_bytes(content)
        with pytest.raises(InputError) as error:
            load_adapters(model, path)
        assert str(path) in one_line(error)
    for settings in ({"format": 2}, {"format": 1, "rank": "8"}, [], "x"):
        path.write_bytes(safetensors.numpy.save({"a": np.zeros(2)}, {"kerasllm_adapters": json.dumps(settings)}))
        with pytest.raises(InputError) as error:
            load_adapters(model, path)
        assert str(path) in one_line(error)


def test_a_file_that_does_not_fit_leaves_the_model_as_it_was(tmp_path):
    model = enable_lora(base(), rank=2, alpha=16)
    train(model, steps=1)
    path = save_adapters(model, tmp_path / "a.safetensors")
    with safetensors.safe_open(path, "numpy") as file:
        settings = json.loads(file.metadata()["kerasllm_adapters"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118

    def refuse(settings, tensors, word, model):
        path.write_bytes(safetensors.numpy.save(tensors, {"kerasllm_adapters": json.dumps(settings)}))
        count = len(model.trainable_variables)
        with pytest.raises(InputError) as error:
            load_adapters(model, path)
        assert word in one_line(error)
        assert len(model.trainable_variables) == count

    first = sorted(tensors)[0]
    refuse(settings, {n: t for n, t in tensors.items() if n != first}, "not in both", base())
    refuse(settings, {**tensors, first: tensors[first].astype("int32")}, "real numbers", base())
    refuse({**settings, "rank": 3_000_000}, tensors, "shape", base())  # and nothing is allocated for it
    refuse({**settings, "alpha": float("nan")}, tensors, "alpha nan", base())
    refuse({**settings, "rank": 0}, tensors, "rank 0", base())
    refuse({**settings, "targets": [1]}, tensors, "targets are damaged", base())
    refuse({**settings, "targets": ["nothing"]}, tensors, "no layers of the model", base())
    refuse(settings, tensors, "alpha 16", enable_lora(base(), rank=2, alpha=1))
