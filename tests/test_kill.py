"""A command that is killed with -9 and started again gives the same files as one that nobody touched."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import trainings

OPTIONS = ["--epochs", "0.2", "--evaluations", "3", "--batch-size", "4", "--sequence-length", "16", "--patience", "9"]
LSTM = {"class": "LSTMLanguageModel", "config": {"embedding_dim": 12, "hidden_dim": 12, "dropout": 0.1}}


def command(folder, out, *options):
    arguments = ["train", folder / "corpus", "--model", folder / "lstm.json", "--out", out, *OPTIONS, *options]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    args = [sys.executable, "-m", "kerasllm.cli", *map(str, arguments)]
    return {"args": args, "env": environment, "stdout": subprocess.DEVNULL}


def hashes(out):
    last = max((out / "checkpoints").glob("step-*"))
    paths = [out / "model" / "model.safetensors", last / "model.safetensors", last / "training.safetensors"]
    history = json.loads((out / "history.json").read_text())["history"]
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths], last.name, history


@pytest.mark.slow
def test_kill_9_and_resume_give_the_same_files(tmp_path):
    trainings.make_corpus(tmp_path)
    (tmp_path / "lstm.json").write_text(json.dumps(LSTM))
    every = ["--deterministic", "--carry-state", "--save-every", "4", "--seed", "5"]
    subprocess.run(**command(tmp_path, tmp_path / "straight", *every), check=True)
    killed = tmp_path / "killed"
    for count in (1, 3):
        with subprocess.Popen(**command(tmp_path, killed, *every, "--resume")) as process:
            limit, seen = time.monotonic() + 120, set()
            while len(seen) < count and process.poll() is None and time.monotonic() < limit:
                seen |= {path.name for path in (killed / "checkpoints").glob("step-*")}
                time.sleep(0.001)
            process.send_signal(signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL
        assert not (killed / "model").exists()
    subprocess.run(**command(tmp_path, killed, *every, "--resume"), check=True)
    assert hashes(killed) == hashes(tmp_path / "straight")
