"""Training a prepared corpus into a folder: what an earlier training left there never counts."""

import dataclasses
import json

import pytest
from artefacts import one_line
from model_cases import LSTMS, TRANSFORMERS, make

from kerasllm import folder
from kerasllm.data import prepare
from kerasllm.errors import InputError
from kerasllm.files import write_json
from kerasllm.training import job
from kerasllm.training.fit import TrainingOptions, _continued, train

TINY = {"epochs": 0.01, "batch_size": 2, "sequence_length": 16, "evaluations": 1}
LSTM = {"class": "LSTMLanguageModel", "config": {"embedding_dim": 4, "hidden_dim": 4, "tie_embeddings": True}}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("training")
    articles = ({"title": f"{n}", "text": f"The history of the city of {n}.\n" * 9} for n in range(40))
    (path / "a.jsonl").write_text("\n".join(map(json.dumps, articles)))
    return prepare(path / "a.jsonl", path / "corpus", tokenizer="byte", validation=0.2, test=0.2, progress=False)


def byte_model(config, **changes):
    return make(dataclasses.replace(config, vocabulary_size=258, num_layers=1, **changes))


def test_ctrl_c_before_the_first_validation_keeps_the_model_of_an_earlier_training(corpus, tmp_path, monkeypatch):
    write_json(tmp_path / "lstm.json", LSTM)
    out, arguments = tmp_path / "run", (corpus.folder, tmp_path / "lstm.json")
    model = job.train_to_folder(arguments[0], str(arguments[1]), out, **TINY)
    before = {path.name: path.read_bytes() for path in model.iterdir()}
    events = {path.name for path in (out / "logs").rglob("*events*")}

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("kerasllm.models.LanguageModel.fit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        job.train_to_folder(arguments[0], str(arguments[1]), out, overwrite=True, **TINY)
    assert {path.name: path.read_bytes() for path in model.iterdir()} == before
    assert events and not events & {path.name for path in out.rglob("*events*")}
    monkeypatch.setattr(job, "train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        job.train_to_folder(arguments[0], str(arguments[1]), out, overwrite=True, **TINY)
    assert {path.name: path.read_bytes() for path in model.iterdir()} == before
    assert folder.load(out)


@pytest.mark.parametrize("length", [1, 2, 24])
def test_samples_fit_the_context(corpus, length):
    model = byte_model(TRANSFORMERS["gpt2"], max_sequence_length=length)
    samples = _continued(model, corpus.tokenizer, ["数学是利用符号语言研究", "The history"])
    assert list(samples) == {1: [], 2: [""], 24: ["数学", "The history"]}[length]
    assert len(_continued(byte_model(LSTMS["lstm"]), corpus.tokenizer, ["x" * 99], 2)) == 1


def test_a_bidirectional_model_is_refused(corpus, tmp_path):
    with pytest.raises(InputError) as caught:
        train(byte_model(TRANSFORMERS["llama"], causal=False), corpus, tmp_path, TrainingOptions(**TINY))
    assert "bidirectional" in one_line(caught)
    assert not any(tmp_path.iterdir())
