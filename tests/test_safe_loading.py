"""Whatever a stranger's file holds, loading it runs no code, allocates nothing absurd, and is refused in one line."""

import copy
import json
import pickle
import tracemalloc

import keras
import numpy as np
import pytest
import trainings
from artefacts import one_line
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import kerasllm
from kerasllm.data import load_corpus
from kerasllm.errors import InputError
from kerasllm.files import sha256
from kerasllm.models import LSTMLanguageModel
from kerasllm.text import ByteTokenizer, load_tokenizer
from kerasllm.training import Checkpoint, StopOnNaN, checkpoint_files
from kerasllm.training.state import put


class Evil:
    def __reduce__(self):
        return (pytest.fail, ("code of a pickle was run",))


def strangers(folder):
    """Files of formats that can hold code."""
    model = keras.Sequential([keras.Input((2,)), keras.layers.Lambda(lambda x: x + 1)])
    model.save(folder / "lambda.keras")
    model.save(folder / "lambda.h5")
    (folder / "renamed.bin").write_bytes((folder / "lambda.keras").read_bytes())
    (folder / "renamed.gguf2").write_bytes((folder / "lambda.h5").read_bytes())
    (folder / "evil.pkl").write_bytes(pickle.dumps(Evil()))
    (folder / "evil.bin").write_bytes(pickle.dumps(Evil()))
    (folder / "evil.pt").write_bytes(pickle.dumps(Evil(), protocol=2))
    return sorted(path.name for path in folder.iterdir())


def test_keras_files_and_pickles_are_refused_with_advice(tmp_path):
    names = strangers(tmp_path)
    assert len(names) == 7
    for name in names:
        with pytest.raises(InputError) as caught:
            kerasllm.load(tmp_path / name)
        said = one_line(caught)
        assert str(tmp_path / name) in said
        assert "is never" in said and ("save" in said), said


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A model folder, a corpus and a checkpoint."""
    folder = tmp_path_factory.mktemp("safe")
    model = LSTMLanguageModel({"vocabulary_size": 258, "embedding_dim": 4, "hidden_dim": 4})
    kerasllm.save(model, ByteTokenizer(), folder / "model")
    trainings.make_corpus(folder)
    with Checkpoint(folder / "checkpoints") as checkpoint:
        model, callbacks = trained(checkpoint)
        model.fit(np.ones((18, 2)), np.ones((18, 1)), batch_size=2, steps_per_epoch=9, verbose=0, callbacks=callbacks)
    return folder


def trained(checkpoint):
    """A model and callbacks that remember something."""
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, name="dense")])
    model.compile("adam", "mse")
    watching = [
        StopOnNaN(),
        keras.callbacks.EarlyStopping("loss", mode="min", restore_best_weights=True),
        keras.callbacks.ReduceLROnPlateau("loss", mode="min"),
    ]
    return model, checkpoint.together_with(watching)


def load_model(folder):
    kerasllm.load(folder / "model")


def open_corpus(folder):
    load_corpus(folder / "corpus")


def read_tokenizer(folder):
    load_tokenizer(folder / "model")


def resume(folder):
    with Checkpoint(folder / "checkpoints", resume=True) as checkpoint:
        model, callbacks = trained(checkpoint)
        path = checkpoint_files.checkpoints(folder / "checkpoints")[-1]
        put(model, callbacks[:-1], checkpoint_files.read(path), str(path))


READERS = {
    "model/config.json": load_model,
    "model/manifest.json": load_model,
    "model/tokenizer.json": read_tokenizer,
    "corpus/manifest.json": open_corpus,
    "checkpoints/step-00000009/training.json": resume,
    "checkpoints/step-00000009/manifest.json": resume,
}
ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False),
    st.text(max_size=9),
    st.just("../../etc/passwd"),
    st.lists(st.integers(), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)


def places(value, path=()):
    """Every place inside a piece of JSON."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in items:
        yield from places(part, (*path, key))


def changed(value, path, new, remove):
    if not path:
        return new
    value = copy.deepcopy(value)
    inner = value
    for key in path[:-1]:
        inner = inner[key]
    if remove:
        del inner[path[-1]]
    else:
        inner[path[-1]] = new
    return value


@pytest.mark.parametrize("name", READERS)
def test_no_json_does_more_than_be_refused(name, world):
    path = world / name
    original = path.read_bytes()
    value = json.loads(original)
    manifest = path.with_name("manifest.json")
    signed = manifest.read_bytes()

    @settings(max_examples=120, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.sampled_from(list(places(value))), ODD, st.booleans(), st.sampled_from([-1, -1, -1, 0, 10, 49]))
    def spoil(place, new, remove, cut):
        content = json.dumps(changed(value, place, new, remove)).encode()
        content = content if cut < 0 else content[: len(content) * cut // 50]
        path.write_bytes(content)
        if path != manifest:  # as an attacker would
            said = json.loads(signed)
            if path.name in said["files"]:
                said["files"][path.name] = {"sha256": sha256(path), "bytes": len(content)}
            manifest.write_text(json.dumps(said))
        tracemalloc.start()
        try:
            READERS[name](world)
        except InputError as error:
            assert "\n" not in str(error)
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            aside = world / "checkpoints" / "damaged-step-00000009"
            if aside.exists():
                aside.replace(world / "checkpoints" / "step-00000009")
        assert peak < 200_000_000

    try:
        spoil()
    finally:
        path.write_bytes(original)
        manifest.write_bytes(signed)
    READERS[name](world)
