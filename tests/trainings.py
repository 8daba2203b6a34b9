"""Tiny trainings that are interrupted: a corpus, models, and callbacks that strike at a given step."""

import contextlib
import json
import os

import keras
import numpy as np
import pytest

from kerasllm.config import LSTMConfig, TransformerConfig
from kerasllm.data import prepare
from kerasllm.models import LSTMLanguageModel, TransformerLanguageModel
from kerasllm.training import TrainingOptions, train

OPTIONS = {"batch_size": 4, "sequence_length": 16, "epochs": 0.12, "evaluations": 3, "patience": 9, "save_every": 5}
"""36 steps in three epochs of twelve."""
EVERYTHING = {"average": 0.9, "gradient_accumulation": 2, "skip_nonfinite": 2, "schedule": "linear"}


class Struck(Exception):  # noqa: N818
    """The process is no more."""


def write_articles(folder):
    articles = (
        {"title": f"{n}", "text": f"The history of the city of {n} and its {n * n} towns.\n" * 9} for n in range(60)
    )
    (folder / "articles.jsonl").write_text("\n".join(map(json.dumps, articles)))
    return folder / "articles.jsonl"


def make_corpus(folder):
    source = write_articles(folder)
    return prepare(source, folder / "corpus", tokenizer="byte", validation=0.1, test=0.1, progress=False)


def make_model(kind, dtype="float32", seed=3, **changes):
    keras.utils.set_random_seed(seed)
    if kind == "lstm":
        config = {"embedding_dim": 16, "hidden_dim": 16, "num_layers": 2, "tie_embeddings": True}
        return LSTMLanguageModel(LSTMConfig(vocabulary_size=258, dropout=0.2, **{**config, **changes}), dtype=dtype)
    config = {"num_layers": 1, "num_heads": 2, "hidden_dim": 16, "intermediate_dim": 32, "max_sequence_length": 32}
    return TransformerLanguageModel(
        TransformerConfig(vocabulary_size=258, dropout=0.2, **{**config, **changes}), dtype=dtype
    )


def run(kind, corpus, folder, dtype="float32", resume=False, seed=3, **options):
    """Train; returns model and history. A resumed run gets other random weights and seeds, which must not matter."""
    model = make_model(kind, dtype, seed=99 if resume and any(folder.glob("checkpoints/step-*")) else seed)
    options = {**OPTIONS, "seed": 1, "carry_state": kind == "lstm", **options}
    return model, train(model, corpus, folder, TrainingOptions(**options), resume=resume, verbose=0)


def values(model):
    """Weights and optimizer variables."""
    return [np.array(keras.ops.convert_to_numpy(v)) for v in [*model.weights, *model.optimizer.variables]]


def assert_same_bits(one, other):
    for a, b in zip(values(one), values(other), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


class At(keras.callbacks.Callback):
    """Call `action` when a hook of a checkpoint is reached the n-th time, just before it or just after."""

    def __init__(self, monkeypatch, hook, count, action, before=False):
        super().__init__()
        from kerasllm.training import Checkpoint

        original = getattr(Checkpoint, hook)
        self.calls = 0

        def struck(checkpoint, *args, **kwargs):
            self.calls += 1
            if before and self.calls == count:
                action(checkpoint)
            result = original(checkpoint, *args, **kwargs)
            if not before and self.calls == count:
                action(checkpoint)
            return result

        monkeypatch.setattr(Checkpoint, hook, struck)


def strike(checkpoint=None):
    raise Struck


def interrupted(kind, corpus, folder, hook, count, action=strike, before=False, expect=Struck, **options):
    """Begin a training and interrupt it in a hook of its checkpoint."""
    with pytest.MonkeyPatch.context() as patch:
        At(patch, hook, count, action, before)
        with pytest.raises(expect) as caught:
            run(kind, corpus, folder, **options)
    return caught


def in_a_child(action):
    """Run in a fork that never comes back by itself; returns how it ended."""
    child = os.fork()
    if not child:
        with contextlib.suppress(BaseException):
            action()
        os._exit(0)
    return os.waitpid(child, 0)[1]
