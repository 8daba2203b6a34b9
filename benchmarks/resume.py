"""A training killed with -9 ten times at random moments, beside one that nobody touched; and what checkpoints cost.

    python benchmarks/resume.py

One part is what a user does: `kerasllm train ... --deterministic --resume`, killed and started again, compared file by
file; the same without --deterministic, whose figures agree but for rounding. The other times `fit` with and without the
checkpoint callback at its default interval, in turns, and going on. Writes benchmarks/results/resume.json.
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from kerasllm.data import default_corpus, load_corpus, prepare
from kerasllm.files import read_json, write_json
from kerasllm.quickstart import commit, device

OPTIONS = ["--deterministic", "--save-every", "25", "--evaluations", "4", "--patience", "9", "--seed", "3"]
RUNS = {
    "lstm": ["--model", "lstm_quickstart", "--epochs", "0.5", "--sequence-length", "64", "--carry-state"],
    "transformer": ["--model", "transformer_quickstart", "--epochs", "0.4", "--precision", "mixed_bfloat16"],
}


def command(name: str, corpus: Path, out: Path, fast: bool = False) -> list[str]:
    """The training of a model."""
    return [
        sys.executable,
        "-m",
        "kerasllm.cli",
        "train",
        str(corpus),
        *RUNS[name],
        *OPTIONS[fast:],
        "--out",
        str(out),
        "--resume",
    ]


def killed(name: str, corpus: Path, out: Path, kills: int, longest: float, fast: bool = False) -> dict[str, Any]:
    """Run to the end in spite of kills at random moments; what happened."""
    chooser, steps, waits = random.Random(0), [], []
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    for _ in range(kills):
        wait = chooser.uniform(2, longest)
        process = subprocess.Popen(command(name, corpus, out, fast), **quiet)
        try:
            process.wait(wait)
            raise SystemExit(f"{name}: ended by itself after {wait:.0f} s; train longer")
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
        found = sorted((out / "checkpoints").glob("step-*"))
        steps.append(int(found[-1].name.removeprefix("step-")) if found else 0)
        waits.append(round(wait, 1))
        print(f"{name}: killed after {wait:.1f} s; newest checkpoint: step {steps[-1]}", flush=True)
    subprocess.run(command(name, corpus, out, fast), check=True, **quiet)
    return {"killed_after_seconds": waits, "newest_checkpoint_at_each_kill": steps}


def fingerprints(out: Path) -> dict[str, str]:
    """SHA-256 of the files that must be equal: model, all of the last checkpoint, figures of every validation."""
    last = sorted((out / "checkpoints").glob("step-*"))[-1]
    paths = [out / "model" / "model.safetensors", last / "model.safetensors", last / "training.safetensors"]
    found = {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
    history = json.loads((out / "history.json").read_text())["history"]
    return {**found, "history": hashlib.sha256(json.dumps(history).encode()).hexdigest()}


def survival(corpus: Path, folder: Path, kills: int) -> dict[str, Any]:
    """Both models, straight and killed."""
    results = {}
    for name in RUNS:
        started = time.perf_counter()
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        subprocess.run(command(name, corpus, folder / f"{name}-straight"), check=True, **quiet)
        seconds = time.perf_counter() - started
        story = killed(name, corpus, folder / f"{name}-killed", kills, longest=min(30.0, seconds / 2))
        one, other = fingerprints(folder / f"{name}-straight"), fingerprints(folder / f"{name}-killed")
        results[name] = {"seconds_straight": round(seconds, 1), **story, "equal": one == other, "sha256": one}
        print(f"{name}: equal bit for bit: {one == other}", flush=True)
    return results


def fast_mode(corpus: Path, folder: Path) -> dict[str, Any]:
    """Validation losses without --deterministic: twice straight, once killed three times."""
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    losses = {}
    for run in ("straight", "straight again", "killed"):
        out = folder / f"fast-{run.replace(' ', '-')}"
        if run == "killed":
            killed("transformer", corpus, out, 3, longest=20.0, fast=True)
        else:
            subprocess.run(command("transformer", corpus, out, fast=True), check=True, **quiet)
        losses[run] = json.loads((out / "history.json").read_text())["history"]["val_loss"]
        print(f"fast mode, {run}: {losses[run]}", flush=True)
    return losses


def overhead(corpus: Path, folder: Path, rounds: int, seconds: float) -> dict[str, Any]:
    """Time of `fit` with and without checkpoints, in turns; and how long saving and resuming take."""
    from kerasllm.training import TrainingOptions, make_model
    from kerasllm.training.options import optimizer

    prepared = load_corpus(corpus)
    model = make_model("transformer_quickstart", prepared.tokenizer.vocabulary_size)
    model.build()
    model.compile(optimizer(TrainingOptions(), 10_000))
    batches = {"batch_size": 16, "sequence_length": 128, "seed": 0, "repeat": True}
    fit: dict[str, Any] = {"verbose": 0}
    model.fit(prepared.dataset("train", **batches), steps_per_epoch=5, **fit)  # compiles
    started = time.perf_counter()
    model.fit(prepared.dataset("train", **batches), steps_per_epoch=20, **fit)
    steps = max(20, round(seconds / (time.perf_counter() - started) * 20))
    times: dict[str, list[float]] = {"without": [], "with": []}
    saves, costs = [], []
    for _ in range(rounds):
        for kind, taken in times.items():
            callbacks = []
            if kind == "with":
                shutil.rmtree(folder / "c", ignore_errors=True)
                checkpoint = Timed(folder / "c", tokenizer=prepared.tokenizer)
                callbacks = checkpoint.together_with([])
            started = time.perf_counter()
            model.fit(prepared.dataset("train", **batches), steps_per_epoch=steps, callbacks=callbacks, **fit)
            taken.append(time.perf_counter() - started)
        saves.append(len(checkpoint.costs))
        costs += checkpoint.costs
        print({kind: round(taken[-1], 1) for kind, taken in times.items()}, "saves", saves[-1], flush=True)
    verify, restore = resume_seconds(model, prepared, folder / "r", steps, batches)
    with_, without = (statistics.median(times[kind]) for kind in ("with", "without"))
    return {
        "model": "transformer_quickstart",
        "parameters": model.count_params(),
        "checkpoint_bytes": sum(path.stat().st_size for path in checkpoint.newest.iterdir()),
        "steps": steps,
        "seconds": {kind: [round(value, 2) for value in taken] for kind, taken in times.items()},
        "ratio_of_medians": round(with_ / without, 4),
        "saves_in_each_round": saves,
        "seconds_of_a_save": round(statistics.median(costs), 3),
        "share_of_time_spent_saving": round(sum(costs) / sum(times["with"]), 4),
        "seconds_to_find_and_verify_the_newest": round(verify, 3),
        "seconds_to_put_its_state_back": round(restore, 3),
    }


def resume_seconds(model: Any, corpus: Any, folder: Path, steps: int, batches: dict[str, Any]) -> tuple[float, float]:
    """Seconds to open the newest checkpoint, and to put it into a model that `fit` has compiled."""
    import keras

    from kerasllm.training import Checkpoint

    class Stop(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
            if batch == 6:
                raise KeyboardInterrupt

    first = Checkpoint(folder, every=5, tokenizer=corpus.tokenizer)
    with contextlib.suppress(KeyboardInterrupt), first:
        callbacks = [*first.together_with([]), Stop()]
        model.fit(corpus.dataset("train", **batches), steps_per_epoch=steps, verbose=0, callbacks=callbacks)
    started = time.perf_counter()
    checkpoint = Checkpoint(folder, resume=True, tokenizer=corpus.tokenizer)
    opened = time.perf_counter()
    times = [opened]

    class Clock(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            times.append(time.perf_counter())

        def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
            times.append(time.perf_counter())
            raise KeyboardInterrupt

    data = corpus.dataset("train", **batches, start=checkpoint.step)
    try:
        callbacks = [Clock(), *checkpoint.together_with([])]
        model.fit(data, steps_per_epoch=steps, epochs=checkpoint.epoch + 1, verbose=0, callbacks=callbacks)
    except KeyboardInterrupt:
        checkpoint.close()
    return opened - started, times[2] - times[1]


def Timed(*args: Any, **kwargs: Any) -> Any:  # noqa: N802
    """A checkpoint callback that notes what each save costs."""
    from kerasllm.training import Checkpoint

    class Timed(Checkpoint):
        def save(self) -> Path:
            started = time.perf_counter()
            path = super().save()
            self.costs.append(time.perf_counter() - started)
            return path

    checkpoint = Timed(*args, **kwargs)
    checkpoint.costs = []
    return checkpoint


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=60.0, help="of each round")
    parser.add_argument("--parts", nargs="*", default=["overhead", "killed", "fast"], help="others stay in the file")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "resume.json")
    args = parser.parse_args()
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    content: dict[str, Any] = read_json(args.out) if args.out.exists() else {}
    content |= {"command": "python benchmarks/resume.py", "device": device()}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        corpus = folder / "corpus"
        prepare(default_corpus(), corpus, vocabulary_size=1024, validation=0.03, progress=False)
        for part in args.parts:
            if part == "overhead":
                figures = overhead(corpus, folder, args.rounds, args.seconds)
            elif part == "killed":
                figures = survival(corpus, folder, args.kills)
            else:
                figures = {"validation_losses": fast_mode(corpus, folder)}
            content[part] = {"commit": commit(), **figures}
            write_json(args.out, content)


if __name__ == "__main__":
    main()
