"""A model folder comes back as it was, and a folder that was changed is refused in one line, before it is parsed."""

import hashlib
import json
import shutil
import struct
import tracemalloc

import numpy as np
import pytest
from artefacts import NAMES, NEW_TOKENS, PROMPTS, greedy, leftovers, one_line, pair, run_fresh, saved_model

import kerasllm
from kerasllm import folder as folders
from kerasllm.errors import InputError
from kerasllm.models import LSTMLanguageModel
from kerasllm.text import ByteTokenizer

FRESH = """
import json, sys
import kerasllm
model, tokenizer = kerasllm.load(sys.argv[1])
texts = kerasllm.generate(model, tokenizer, json.loads(sys.argv[2]), max_new_tokens=int(sys.argv[3]))
print(json.dumps(texts))
"""
TINY = {"vocabulary_size": 258, "embedding_dim": 4, "hidden_dim": 4}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A model folder for each name."""
    parent = tmp_path_factory.mktemp("folders")
    return {name: kerasllm.save(*pair(name), parent / name) for name in NAMES}


@pytest.fixture
def tiny(tmp_path):
    """A model folder to spoil."""
    model = LSTMLanguageModel(TINY)
    model.build()
    return kerasllm.save(model, ByteTokenizer(), tmp_path / "m")


def replace(folder, name, content):
    """Write a file of a model folder and put it down in the manifest, as an attacker would."""
    (folder / name).write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    manifest = json.loads((folder / "manifest.json").read_text())
    data = (folder / name).read_bytes()
    manifest["files"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def refused(folder, **options):
    """The message with which a folder is refused."""
    with pytest.raises(InputError) as caught:
        kerasllm.load(folder, **options)
    return one_line(caught)


@pytest.mark.parametrize("name", NAMES)
def test_a_model_comes_back_as_it_was(saved, name):
    model, tokenizer = kerasllm.load(saved[name])
    expected, tokens = pair(name)[0], np.array([[1, 2, 3]])
    assert model.config == expected.config and type(model) is type(expected)
    for loaded, weight in zip(model.weights, expected.weights, strict=True):
        np.testing.assert_array_equal(loaded.numpy(), weight.numpy())
    np.testing.assert_array_equal(np.array(model(tokens)), np.array(expected(tokens)))
    assert tokenizer.fingerprint == pair(name)[1].fingerprint


def test_a_fresh_process_continues_as_this_one(saved):
    assert run_fresh(FRESH, saved["lstm"], json.dumps(PROMPTS), NEW_TOKENS) == greedy("lstm")


def test_a_model_loads_in_the_dtype_asked_for(saved):
    model, _ = kerasllm.load(saved["lstm"], dtype="mixed_bfloat16")
    assert model.compute_dtype == "bfloat16" and model.weights[0].dtype == "float32"


def test_the_folder_holds_data_and_no_code(saved):
    names = ["config.json", "manifest.json", "model.safetensors", "tokenizer.json", "tokenizer.model"]
    assert leftovers(saved["lstm"]) == names


def test_a_model_that_was_never_called_is_built_and_saved(tmp_path):
    model = LSTMLanguageModel(TINY)
    loaded, _ = kerasllm.load(kerasllm.save(model, ByteTokenizer(), tmp_path / "m"))
    assert model.weights
    for ours, theirs in zip(model.weights, loaded.weights, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_an_existing_folder_is_refused_unless_it_may_be_replaced(tiny):
    model, tokenizer = kerasllm.load(tiny)
    with pytest.raises(InputError) as caught:
        kerasllm.save(model, tokenizer, tiny)
    assert "exists already" in one_line(caught)
    assert kerasllm.save(model, tokenizer, tiny, overwrite=True) == tiny
    assert leftovers(tiny.parent) == ["m"]


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "tokenizer.model"])
def test_a_flipped_byte_is_refused_before_the_file_is_parsed(saved, tmp_path, monkeypatch, name):
    folder = shutil.copytree(saved["lstm"], tmp_path / "m")
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)

    def parse(*_, **__):
        raise AssertionError("parsed")

    for function in ("_make", "read_weights", "_tokenizer"):
        monkeypatch.setattr(folders, function, parse)
    message = refused(folder)
    assert str(folder / name) in message and "manifest.json" in message


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json", "manifest.json"])
def test_a_missing_file_is_named(tiny, name):
    (tiny / name).unlink()
    assert name in refused(tiny)


@pytest.mark.parametrize("name", ["../../etc/passwd", "a/b", "..", ".", "", "/etc/passwd", "a\0b"])
def test_a_manifest_cannot_point_outside_its_folder(tiny, name):
    manifest = json.loads((tiny / "manifest.json").read_text())
    manifest["files"] = {name: {"sha256": "0" * 64, "bytes": 1}, **manifest["files"]}
    (tiny / "manifest.json").write_text(json.dumps(manifest))
    message = refused(tiny)
    assert "no file of this folder" in message or "is missing" in message


@pytest.mark.parametrize(
    "manifest",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"{}",
        b"\xff\xfe",
        b'{"format": 2, "files": {}}',
        b'{"format": 1, "files": []}',
    ],
)
def test_what_is_no_manifest_is_refused(tiny, manifest):
    (tiny / "manifest.json").write_bytes(manifest)
    assert "manifest.json" in refused(tiny)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "tokenizer.model"])
def test_a_manifest_must_cover_every_file_that_is_read(saved, tmp_path, name):
    folder = shutil.copytree(saved["lstm"], tmp_path / "m")
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["files"][name]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert f"says nothing of {name}" in refused(folder)


@pytest.mark.parametrize(
    "content",
    [
        {"format": 1, "class": "os.system", "config": TINY},
        {"format": 1, "class": "LanguageModel", "config": TINY},
        {"format": 1, "class": ["LSTMLanguageModel"], "config": TINY},
        {"format": 2, "class": "LSTMLanguageModel", "config": TINY},
        {"format": 1, "class": "LSTMLanguageModel", "config": {**TINY, "invented": 1}},
        {"format": 1, "class": "LSTMLanguageModel", "config": {"hidden_dim": 4}},
        {"format": 1, "class": "LSTMLanguageModel", "config": {**TINY, "hidden_dim": -4}},
        {"format": 1, "class": "LSTMLanguageModel", "config": {**TINY, "hidden_dim": "4"}},
        {"format": 1, "class": "LSTMLanguageModel", "config": {**TINY, "dropout": "much"}},
        {"format": 1, "class": "LSTMLanguageModel", "config": []},
        {"format": 1, "class": "TransformerLanguageModel", "config": TINY},
        {"format": 1},
        [],
        None,
        b"no json",
    ],
)
def test_a_config_of_something_else_is_refused(tiny, content):
    replace(tiny, "config.json", content)
    assert "config.json" in refused(tiny)


def header(content):
    text = json.dumps(content).encode()
    return struct.pack("<Q", len(text)) + text


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x01",
        struct.pack("<Q", 1 << 62) + b"{}",
        struct.pack("<Q", 10**8) + b"{}",
        header({"w": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 4]}}) + bytes(4),
        header({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 1 << 60]}}) + bytes(4),
        header({"w": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}) + bytes(4),
        header({"w": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}) + bytes(4),
        header({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}) + bytes(4),
        header({"w": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}) + bytes(4),
        header({}),
        struct.pack("<Q", 2) + b"[]",
        b"\x80\x04\x95pickle",
    ],
)
def test_weights_that_are_none_are_refused(tiny, content):
    replace(tiny, "model.safetensors", content)
    assert "model.safetensors" in refused(tiny)


def test_truncated_weights_are_refused(tiny):
    replace(tiny, "model.safetensors", (tiny / "model.safetensors").read_bytes()[:-1])
    assert "model.safetensors" in refused(tiny)


def test_weights_of_another_model_change_nothing(tiny, tmp_path):
    model = LSTMLanguageModel({**TINY, "hidden_dim": 5})
    model.build()
    before = [weight.numpy() for weight in model.weights]
    with pytest.raises(InputError) as caught:
        folders.read_weights(model, tiny / "model.safetensors")
    assert "shape" in one_line(caught)
    for weight, value in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(weight.numpy(), value)
    deeper = LSTMLanguageModel({**TINY, "num_layers": 2})
    deeper.build()
    with pytest.raises(InputError) as caught:
        folders.read_weights(deeper, tiny / "model.safetensors")
    assert "lstm_1" in one_line(caught)
    with pytest.raises(InputError) as caught:
        folders.read_weights(model, tmp_path / "absent.safetensors")
    assert "no such file" in one_line(caught)


@pytest.fixture
def unread(monkeypatch):
    """Whoever reads a weight fails."""

    def fail(*_):
        raise AssertionError("weights were read")

    monkeypatch.setattr("kerasllm.convert.safetensors_folder.SafetensorsFolder.read", fail)
    monkeypatch.setattr("tensorflow.train.load_checkpoint", fail)


def test_the_tokenizer_of_another_model_is_refused_before_weights_are_read(saved, tmp_path, unread):
    folder = shutil.copytree(saved["lstm"], tmp_path / "m")
    replace(folder, "tokenizer.json", (saved["learned"] / "tokenizer.json").read_bytes())
    exported = shutil.copytree(saved_model("lstm"), tmp_path / "s")
    shutil.copy(saved["learned"] / "tokenizer.json", exported / folders.SAVED_MODEL_EXTRA)
    for path in (folder, exported):
        message = refused(path)
        assert "258" in message and "340" in message


def test_a_model_larger_than_memory_is_refused_before_weights_are_read(saved, monkeypatch, unread):
    monkeypatch.setattr("kerasllm.convert.memory.available_memory", lambda: 1000)
    for path in (saved["lstm"], saved_model("lstm")):
        message = refused(path)
        assert str(path) in message and "of memory" in message


def test_a_folder_without_a_model_and_a_path_to_nothing_are_refused(tmp_path):
    assert "neither config.json nor saved_model.pb" in refused(tmp_path)
    assert "no such folder" in refused(tmp_path / "absent")


def test_a_name_finds_a_published_model(tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "_PUBLISHED", tmp_path)
    shutil.copytree(saved_model("lstm"), tmp_path / "wiki-lstm" / "1")
    (tmp_path / "wiki-lstm" / "card.json").write_text("{}")
    model, _ = kerasllm.load("wiki-lstm")
    assert model.config == pair("lstm")[0].config
    assert "this checkout has wiki-lstm" in refused("absent")


def test_a_name_without_published_models_says_where_to_get_them(tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "_PUBLISHED", tmp_path / "absent")
    message = refused("wiki-lstm")
    assert "clone" in message and "kerasllm quickstart" in message


def test_a_saved_model_of_somebody_else_is_refused(tmp_path):
    folder = shutil.copytree(saved_model("lstm"), tmp_path / "m")
    shutil.rmtree(folder / "assets.extra")
    assert "kerasllm did not export" in refused(folder)


def test_a_saved_model_without_its_variables_is_refused(tmp_path):
    folder = shutil.copytree(saved_model("lstm"), tmp_path / "m")
    (folder / "variables" / "variables.index").write_bytes(b"broken")
    assert str(folder) in refused(folder)
    shutil.rmtree(folder / "variables")
    assert str(folder) in refused(folder)


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_weights_are_written_whole_or_not_at_all(tmp_path, monkeypatch, error):
    model = LSTMLanguageModel(TINY)
    model.build()
    path = tmp_path / "w.safetensors"
    folders.write_weights(model, path, {"epoch": "1"})
    before = path.read_bytes()

    def fail(*_):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr("kerasllm.files.os.fsync", fail)
        with pytest.raises(type(error)):
            folders.write_weights(model, path)
        with pytest.raises(type(error)):
            kerasllm.save(model, ByteTokenizer(), tmp_path / "m")
    assert path.read_bytes() == before
    assert leftovers(tmp_path) == ["w.safetensors"]
    folders.read_weights(model, path)


def test_writing_weights_takes_no_memory_for_a_second_copy(tmp_path):
    model = LSTMLanguageModel({**TINY, "hidden_dim": 256, "num_layers": 3})
    model.build()
    size = sum(weight.numpy().nbytes for weight in model.weights)
    tracemalloc.start()
    try:
        folders.write_weights(model, tmp_path / "w.safetensors")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < size / 2, (peak, size)
    folders.read_weights(model, tmp_path / "w.safetensors")


def test_two_variables_of_one_path_are_refused(tmp_path):
    model = LSTMLanguageModel(TINY)
    model.build()
    model.weights[0]._path = model.weights[1].path
    with pytest.raises(InputError) as caught:
        folders.write_weights(model, tmp_path / "w.safetensors")
    assert "two variables" in one_line(caught)
    assert leftovers(tmp_path) == []
