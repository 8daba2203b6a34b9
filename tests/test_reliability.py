"""The promises of docs/reliability.md: what happens when a training is killed, interrupted, damaged or diverges."""

import json
import os
import signal

import numpy as np
import pytest
import trainings
from artefacts import one_line
from trainings import assert_same_bits, in_a_child, interrupted, make_model, run

from kerasllm.data import load_corpus, prepare
from kerasllm.errors import InputError
from kerasllm.training import Checkpoint, TrainingOptions, checkpoint_files, train


@pytest.fixture(scope="module", autouse=True)
def deterministic():
    import tensorflow as tf
    from tensorflow.python.framework import config

    tf.config.experimental.enable_op_determinism()
    yield
    config.disable_op_determinism()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return trainings.make_corpus(tmp_path_factory.mktemp("reliability"))


@pytest.fixture(scope="module")
def straight(corpus, tmp_path_factory):
    """Uninterrupted trainings, each run once."""
    done = {}

    def get(kind, dtype="float32", **options):
        key = (kind, dtype, *options)
        if key not in done:
            done[key] = run(kind, corpus, tmp_path_factory.mktemp("straight"), dtype, **options)
        return done[key]

    return get


def checkpoints(folder):
    return [path.name for path in checkpoint_files.checkpoints(folder / "checkpoints")]


# Killed -----------------------------------------------------------------------------------------------------------


CASES = [
    pytest.param(kind, dtype, options, id=f"{kind}-{dtype}-{name}", marks=marks)
    for kind, dtype, name, options, marks in [
        ("lstm", "float32", "plain", {}, ()),
        ("lstm", "mixed_bfloat16", "everything", trainings.EVERYTHING, ()),
        ("transformer", "float32", "everything", trainings.EVERYTHING, ()),
        ("transformer", "mixed_bfloat16", "plain", {}, ()),
        ("lstm", "float32", "everything", trainings.EVERYTHING, pytest.mark.slow),
        ("lstm", "mixed_bfloat16", "plain", {}, pytest.mark.slow),
        ("transformer", "float32", "plain", {}, pytest.mark.slow),
        ("transformer", "mixed_bfloat16", "everything", trainings.EVERYTHING, pytest.mark.slow),
    ]
]


@pytest.mark.parametrize(("kind", "dtype", "options"), CASES)
def test_a_resumed_training_equals_an_uninterrupted_one_bit_for_bit(kind, dtype, options, corpus, straight, tmp_path):
    model, history = straight(kind, dtype, **options)
    interrupted(kind, corpus, tmp_path, "on_train_batch_end", 18, dtype=dtype, **options)  # in the second epoch
    assert checkpoints(tmp_path)[-1] == "step-00000015"
    again, resumed = run(kind, corpus, tmp_path, dtype, resume=True, **options)
    assert resumed == history
    assert_same_bits(again, model)


@pytest.mark.parametrize(
    ("hook", "count", "before"),
    [
        ("on_train_batch_end", 12, False),  # the epoch's last step, before its validation
        ("on_test_begin", 2, False),
        ("on_epoch_end", 2, True),  # after a validation, before its checkpoint
        ("on_epoch_end", 2, False),
        ("on_train_batch_end", 1, False),  # before there is a checkpoint
        ("on_train_end", 1, True),  # all is done but putting the best weights back
    ],
)
def test_it_does_not_matter_where_the_training_was_killed(hook, count, before, corpus, straight, tmp_path):
    model, history = straight("transformer")
    interrupted("transformer", corpus, tmp_path, hook, count, before=before)
    again, resumed = run("transformer", corpus, tmp_path, resume=True)
    assert resumed == history
    for a, b in zip(again.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_training_killed_several_times_is_still_the_same(corpus, straight, tmp_path):
    model, history = straight("lstm")
    for count in (7, 4, 9, 6):
        interrupted("lstm", corpus, tmp_path, "on_train_batch_end", count, resume=True)
    again, resumed = run("lstm", corpus, tmp_path, resume=True)
    assert resumed == history
    assert_same_bits(again, model)


# Interrupted ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "expect"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
@pytest.mark.parametrize(("hook", "count", "step"), [("on_train_batch_end", 17, 17), ("on_test_batch_end", 1, 12)])
def test_ctrl_c_and_sigterm_save_and_end(number, expect, hook, count, step, corpus, straight, tmp_path, capsys):
    def kill(checkpoint):
        os.kill(os.getpid(), number)

    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        options = trainings.EVERYTHING
        caught = interrupted("transformer", corpus, tmp_path, hook, count, kill, before=True, expect=expect, **options)
    finally:
        signal.signal(signal.SIGINT, handler)
    assert number == signal.SIGINT or caught.value.code == 143
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert checkpoints(tmp_path)[-1] == f"step-{step:08}"
    assert f"Training stopped at step {step}; " in capsys.readouterr().err
    again, resumed = run("transformer", corpus, tmp_path, resume=True, **options)
    model, history = straight("transformer", **options)
    assert resumed == history
    assert_same_bits(again, model)


def test_two_trainings_in_one_folder_are_refused(tmp_path):
    with Checkpoint(tmp_path):
        with pytest.raises(InputError, match="another training is running here"):
            Checkpoint(tmp_path)
        code = f"from kerasllm.training import Checkpoint; Checkpoint({str(tmp_path)!r})"
        assert in_a_child(lambda: exec(code)) == 0
    Checkpoint(tmp_path).close()


# Damaged ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def half(corpus, tmp_path_factory):
    """A training that was killed, with two checkpoints."""
    folder = tmp_path_factory.mktemp("half")
    interrupted("transformer", corpus, folder, "on_train_batch_end", 11)
    return folder


@pytest.fixture
def copied(half, tmp_path):
    import shutil

    shutil.copytree(half, tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize("name", ["model.safetensors", "training.safetensors", "training.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["flipped", "truncated", "missing"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(name, damage, copied, capsys):
    path = copied / "checkpoints" / "step-00000010" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 8
    path.unlink()
    if damage != "missing":
        path.write_bytes(content if damage == "flipped" else content[:-1])
    with Checkpoint(copied / "checkpoints", resume=True, identity=identity(copied)) as checkpoint:
        assert checkpoint.step == 5
    said = capsys.readouterr().err
    assert str(path.parent) in said and "Going on from step-00000005" in said
    assert checkpoints(copied) == ["step-00000005"]
    assert (copied / "checkpoints" / "damaged-step-00000010").is_dir()


def identity(folder):
    path = folder / "checkpoints" / "step-00000005" / "training.json"
    return json.loads(path.read_text())["identity"]


def test_a_training_goes_on_from_the_checkpoint_before_the_damaged_one(corpus, copied, straight):
    path = copied / "checkpoints" / "step-00000010" / "training.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    model, history = straight("transformer")
    again, resumed = run("transformer", corpus, copied, resume=True)
    assert resumed == history
    assert_same_bits(again, model)


def test_without_a_whole_checkpoint_nothing_is_resumed_and_nothing_removed(copied):
    for path in (copied / "checkpoints").glob("step-*/manifest.json"):
        path.unlink()
    with pytest.raises(InputError) as caught:
        Checkpoint(copied / "checkpoints", resume=True)
    assert "nor is another checkpoint whole" in one_line(caught)
    assert checkpoints(copied) == ["step-00000005", "step-00000010"]


def test_an_earlier_training_is_not_overwritten_unless_asked(copied):
    with pytest.raises(InputError) as caught:
        Checkpoint(copied / "checkpoints")
    assert "--resume" in one_line(caught)
    assert len(checkpoints(copied)) == 2
    Checkpoint(copied / "checkpoints", overwrite=True).close()
    assert checkpoints(copied) == []


@pytest.mark.parametrize(
    ("kind", "changes", "difference"),
    [
        ("options", {"learning_rate": 0.1}, "options.learning_rate: 0.003 -> 0.1"),
        ("options", {"batch_size": 2}, "options.batch_size: 4 -> 2"),
        ("model", {"intermediate_dim": 24}, "config.intermediate_dim: 32 -> 24"),
        ("model", {"dtype": "mixed_bfloat16"}, "dtype: 'float32' -> 'mixed_bfloat16'"),
        ("data", {}, "data.train.tokens: "),
        ("tokenizer", {}, "data.tokenizer: "),
    ],
)
def test_what_was_changed_is_refused_with_the_difference(kind, changes, difference, corpus, copied, tmp_path):
    options = TrainingOptions(**{**trainings.OPTIONS, "seed": 1, **(changes if kind == "options" else {})})
    model = make_model("transformer", **(changes if kind == "model" else {}))
    if kind in ("data", "tokenizer"):
        articles = corpus.articles("train") if kind == "tokenizer" else list(corpus.articles("train"))[1:]
        source = {split: corpus.articles(split) for split in ("validation", "test")}
        tokenizer = {"data": "byte", "tokenizer": "sentencepiece"}[kind]
        how = {"tokenizer": tokenizer, "vocabulary_size": 258 if kind == "data" else 300, "progress": False}
        corpus = prepare({"train": articles, **source}, tmp_path / "changed", **how)
        model = make_model("transformer") if kind == "data" else vocabulary_of(corpus)
    before = checkpoints(copied)
    with pytest.raises(InputError) as caught:
        train(model, corpus, copied, options, resume=True, verbose=0)
    assert difference in one_line(caught)
    assert checkpoints(copied) == before


def vocabulary_of(corpus):
    from kerasllm.config import TransformerConfig
    from kerasllm.models import TransformerLanguageModel

    size = corpus.tokenizer.vocabulary_size
    small = {"num_layers": 1, "num_heads": 2, "hidden_dim": 16, "intermediate_dim": 32, "max_sequence_length": 32}
    return TransformerLanguageModel(TransformerConfig(vocabulary_size=size, **small))


def test_a_corrupt_record_in_the_tokens_and_a_missing_part_of_the_corpus_are_named(tmp_path):
    corpus = trainings.make_corpus(tmp_path)
    path = corpus.folder / "train.tokens"
    content = bytearray(path.read_bytes())
    content[100] ^= 255
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        load_corpus(corpus.folder, verify=True)
    assert str(path) in one_line(caught)
    path.unlink()
    with pytest.raises(InputError) as caught:
        load_corpus(corpus.folder)
    assert f"{path}: is missing" in one_line(caught)


def test_a_damaged_best_checkpoint_does_not_keep_a_training_from_its_end(corpus, tmp_path, capsys):
    interrupted("transformer", corpus, tmp_path, "on_train_batch_end", 27)
    folder = tmp_path / "checkpoints"
    best = json.loads((folder / "step-00000025" / "training.json").read_text())["best"]["step"]
    assert best == 24
    (folder / f"step-{best:08}" / "model.safetensors").unlink()
    _, history = run("transformer", corpus, tmp_path, resume=True)
    assert len(history["loss"]) == 3
    assert "The best epoch from now on is kept" in capsys.readouterr().err


def test_a_finished_training_is_not_taken_for_another_model(corpus, tmp_path):
    run("transformer", corpus, tmp_path, evaluations=1, epochs=0.01)
    options = TrainingOptions(**{**trainings.OPTIONS, "seed": 1, "evaluations": 1, "epochs": 0.01})
    with pytest.raises(InputError) as caught:
        train(make_model("transformer", num_heads=4), corpus, tmp_path, options, resume=True, verbose=0)
    assert "model.config.num_heads: 2 -> 4" in one_line(caught)
    before = checkpoints(tmp_path)
    with pytest.raises(InputError, match="has no state to carry"):
        wrong = TrainingOptions(**trainings.OPTIONS, carry_state=True)
        train(make_model("transformer"), corpus, tmp_path, wrong, overwrite=True, verbose=0)
    with pytest.raises(InputError, match="--resume"):
        train(make_model("transformer"), corpus, tmp_path, options, verbose=0)
    assert checkpoints(tmp_path) == before


# Full disk --------------------------------------------------------------------------------------------------------


def test_a_full_disk_is_one_line_and_the_last_checkpoint_stays(corpus, straight, tmp_path):
    def fill(checkpoint):
        import errno

        def full(*_):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        patch.setattr("kerasllm.files.os.fsync", full)

    with pytest.MonkeyPatch.context() as patch:
        caught = interrupted("transformer", corpus, tmp_path, "on_train_batch_end", 8, fill, expect=InputError)
    said = one_line(caught)
    assert "no checkpoint could be written at step 10 (No space left on device)" in said
    assert "step-00000005 is complete" in said and "free" in said
    assert checkpoints(tmp_path) == ["step-00000005"]
    assert not [path for path in (tmp_path / "checkpoints").iterdir() if path.suffix in (".tmp", ".old")]
    again, resumed = run("transformer", corpus, tmp_path, resume=True)
    assert resumed == straight("transformer")[1]
