"""The examples run as a reader runs them: each in a process of its own, on a tiny corpus where they train a model."""

import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

import kerasllm

EXAMPLES = Path(__file__).parent.parent / "examples"
WORDS = "the a history of music science city river king war people language number theory year world large"
TRAINING = "--vocabulary-size 300 --epochs 1 --batch-size 4 --sequence-length 32 --out run"


def run(name, *arguments, cwd, code=0):
    """Output of an example, standard output and standard error, after it has ended with an exit code."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, str(EXAMPLES / name), *arguments]
    child = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, timeout=600)
    assert child.returncode == code, child.stderr[-3000:]
    return child.stdout, child.stderr


@pytest.fixture
def corpus(tmp_path):
    """A file of articles that need no minute to learn from."""
    chooser = random.Random(0)
    articles = ({"title": f"{i}", "text": " ".join(chooser.choices(WORDS.split(), k=60))} for i in range(30))
    path = tmp_path / "articles.jsonl"
    path.write_text("\n".join(map(json.dumps, articles)))
    return path


def test_every_example_says_how_it_is_run_and_is_tested():
    tested = Path(__file__).read_text(encoding="utf-8")
    for path in EXAMPLES.glob("*.py"):
        docstring = path.read_text(encoding="utf-8").split('"""')[1]
        assert f"python examples/{path.name}" in docstring
        assert f'"{path.name}"' in tested


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("train_lstm_lm.py", "--embedding-dim 12 --hidden-dim 16 --num-layers 2 --precision mixed_bfloat16"),
        ("train_transformer_lm.py", "--num-layers 2 --num-heads 4 --num-key-value-heads 2 --hidden-dim 16"),
    ],
)
def test_training_a_language_model(name, size, corpus, tmp_path):
    output, _ = run(name, "--corpus", str(corpus), *TRAINING.split(), *size.split(), cwd=tmp_path)
    bits = float(re.search(r"bits per byte +([\d.]+)", output)[1])
    assert 1 < bits < 5
    assert re.search(r"context 256, stride 128$", output, re.MULTILINE)
    out = tmp_path / "run"
    for artefact in ("1/saved_model.pb", "1/assets.extra/config.json", "model.tflite", "tokenizer.json"):
        assert (out / artefact).is_file(), artefact
    assert (out / "model.tflite").read_bytes()[4:8] == b"TFL3"
    assert list((out / "logs").glob("*/events.out.tfevents.*"))
    assert kerasllm.load(max((out / "checkpoints").glob("step-*")))
    again, _ = run(name, "--corpus", str(corpus), *TRAINING.split(), *size.split(), "--resume", cwd=tmp_path)
    assert "val_loss" in output and "val_loss" not in again  # there is nothing left to train
    assert re.search(r"bits per byte +([\d.]+)", again)[1] == re.search(r"bits per byte +([\d.]+)", output)[1]
    saved_model, tflite = (re.search(rf"^{kind}: +(.+)$", output, re.MULTILINE)[1] for kind in ("SavedModel", "TFLite"))
    assert saved_model == tflite or "bfloat16" in size


def accuracies(output):
    return [
        float(value) for value in re.findall(r"^(?:classifier|reverser): .*accuracy ([\d.]+)", output, re.MULTILINE)
    ]


def test_custom_model_runs(tmp_path):
    output, _ = run("custom_model.py", "--steps", "3", cwd=tmp_path)
    assert len(accuracies(output)) == 2
    assert "TransformerBlock" in output and "LSTMStack" in output


@pytest.mark.slow
def test_custom_models_learn(tmp_path):
    output, _ = run("custom_model.py", cwd=tmp_path)
    assert min(accuracies(output)) > 0.9, output[-300:]


def test_a_tiny_llama_is_planned_and_trained(corpus, tmp_path):
    options = "--vocabulary-size 300 --steps 12 --batch-size 4 --sequence-length 32 --accumulate 2 --recompute"
    output, _ = run("train_7b.py", "--corpus", str(corpus), *options.split(), "--out", "run", cwd=tmp_path)
    before, after = (float(re.search(rf"{word}\D*([\d.]+)", output)[1]) for word in ("before", "after"))
    assert after < before
    output, errors = run("train_7b.py", "--preset", "llama_7b", "--memory", "16", cwd=tmp_path, code=2)
    assert "6,738,415,616" in output
    assert errors.splitlines()[-1].startswith("train_7b: llama_7b needs")


def test_stories_are_the_same_in_every_runtime(data_dir, tmp_path):
    checkpoint = data_dir / "checkpoints" / "stories260K.bin"
    output, _ = run("stories260k.py", "--model", str(checkpoint), "--out", "run", cwd=tmp_path)
    assert output.count("Once upon a time, there was a little girl named Lily.") == 3


def test_sentiment_is_fine_tuned(data_dir, tmp_path):
    options = "--limit 400 --seeds 0 --epochs 1 --length 24 --batch-size 12 --out run --json result.json"
    output, _ = run("finetune_minilm_sentiment.py", *options.split(), cwd=tmp_path)
    assert re.search(r"seed 0: test accuracy [\d.]+%", output)
    result = json.loads((tmp_path / "result.json").read_text())
    assert 0.6 < result["mean"] <= 1  # of 80 sentences, half of them positive
    assert result["command"].startswith("python examples/finetune_minilm_sentiment.py")
    assert (tmp_path / "run" / "model" / "model.safetensors").stat().st_size > 80e6


@pytest.mark.slow
def test_adapters_are_trained_and_merged(data_dir, tmp_path):
    options = "--steps 3 --dialogues 20 --batch-size 2 --length 48 --max-new-tokens 8 --out run"
    output, _ = run("lora_finetune.py", *options.split(), cwd=tmp_path)
    before, after = (float(re.search(rf"{word} ([\d.]+)", output)[1]) for word in ("before", "after"))
    assert after < before
    adapted, alone = (re.search(rf"^{word}: (.*)$", output, re.MULTILINE)[1] for word in ("adapted", "merged"))
    assert adapted == alone
    assert (tmp_path / "run" / "adapters.safetensors").stat().st_size < 3e6


@pytest.mark.slow
def test_a_chat_knows_the_capital_of_france(tmp_path):
    output, _ = run("chat_smollm2.py", "--ask", "What is the capital of France?", cwd=tmp_path)
    assert "Paris" in output


@pytest.mark.parametrize("name", ["chat_smollm2.py", "stories260k.py"])
def test_a_model_that_is_not_there_is_one_line_and_exit_code_2(name, tmp_path):
    _, errors = run(name, "--model", "absent.bin", cwd=tmp_path, code=2)
    line = errors.splitlines()[-1]
    assert line.startswith(f"{name.removesuffix('.py')}: absent.bin: no such") and "Traceback" not in errors
    assert not list(tmp_path.iterdir())


def test_gpu_smoke_says_that_there_is_no_gpu(tmp_path):
    output, errors = run("gpu_smoke.py", cwd=tmp_path, code=2)
    assert output == ""
    assert errors.splitlines()[-1] == "gpu_smoke: TensorFlow sees no GPU here; nothing was tested"
    assert "NOT RUN IN CI" in (EXAMPLES / "gpu_smoke.py").read_text(encoding="utf-8").split('"""')[1].splitlines()[0]


@pytest.mark.gpu
def test_gpu_smoke_passes_on_a_gpu(tmp_path):
    command = [sys.executable, str(EXAMPLES / "gpu_smoke.py")]
    child = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=900)
    assert child.returncode == 0, child.stderr[-3000:]
    assert child.stdout.splitlines()[-1] == "GPU smoke test passed"
