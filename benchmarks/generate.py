"""Generation beside KerasHub (TensorFlow, JAX) and transformers: SmolLM2-135M's shape, prompt 128, 64 new tokens.

    python benchmarks/generate.py

Every side is a process that has warmed up and waits; they run one after the other, round after round, so that what else
happens on the machine happens to all. Two threads each. A side's figure is the median of its rounds; every side is
measured in each mode it has, and the table names the best. Writes benchmarks/results/generate.json.
"""

import argparse
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from kerasllm.files import write_json
from kerasllm.quickstart import commit, device

WORKER = Path(__file__).with_name("generate_worker.py")
NEW = 64
WEIGHT_BYTES = {"float32": 4 * 134_515_008, "bfloat16": 2 * 134_515_008}
# name of the side: script's side, KERAS_BACKEND, modes
SIDES: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "kerasllm, TensorFlow": ("ours", "tensorflow", ("plain", "xla")),
    "kerasllm, JAX": ("ours", "jax", ("plain",)),
    "KerasHub, TensorFlow": ("keras_hub", "tensorflow", ("plain", "xla")),
    "KerasHub, JAX": ("keras_hub", "jax", ("xla",)),
    "transformers": ("transformers", "", ("eager", "compile")),
}


class Worker:
    """A side in one mode, as a process that waits for its turns."""

    def __init__(self, name: str, dtype: str, batch: int, mode: str) -> None:
        side, backend, _ = SIDES[name]
        self.name, self.mode, self.seconds = name, mode, list[float]()
        environment = {
            **os.environ,
            "KERAS_BACKEND": backend or "tensorflow",
            "CUDA_VISIBLE_DEVICES": "",
            "OMP_NUM_THREADS": "2",
            "TF_CPP_MIN_LOG_LEVEL": "3",
        }
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        command = [sys.executable, str(WORKER), side, dtype, str(batch), mode]
        self.process = subprocess.Popen(command, text=True, env=environment, **pipes)
        first = self._line().split()
        self.warm_up = float(first[1]) if first[:1] == ["ready"] else None

    def _line(self) -> str:
        return self.process.stdout.readline() if self.process.stdout else ""

    def turn(self) -> None:
        """Generate once and note the seconds."""
        if self.warm_up is not None and self.process.stdin:
            self.process.stdin.write("go\n")
            self.process.stdin.flush()
            self.seconds.append(float(self._line()))

    def end(self, batch: int) -> dict[str, Any]:
        """Stop; what was measured."""
        self.process.kill()
        self.process.wait()
        if not self.seconds:
            return {"side": self.name, "mode": self.mode, "failed": True}
        rates = [batch * NEW / seconds for seconds in self.seconds]
        return {
            "side": self.name,
            "mode": self.mode,
            "tokens_per_second": round(statistics.median(rates), 2),
            "lowest": round(min(rates), 2),
            "highest": round(max(rates), 2),
            "warm_up_seconds": self.warm_up,
        }


def bandwidth() -> float:
    """GB/s at which two threads read memory, best of several."""
    import concurrent.futures
    import time

    halves = np.ones((2, 100_000_000), "float32")
    best = 0.0
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        for _ in range(5):
            started = time.perf_counter()
            list(pool.map(np.sum, halves))
            best = max(best, halves.nbytes / 1e9 / (time.perf_counter() - started))
    return round(best, 1)


def case(dtype: str, batch: int, rounds: int) -> dict[str, Any]:
    """All sides in all modes, round after round."""
    workers = [Worker(name, dtype, batch, mode) for name, (_, _, modes) in SIDES.items() for mode in modes]
    for _ in range(rounds):
        for worker in workers:
            worker.turn()
    rows = [worker.end(batch) for worker in workers]
    done = [row for row in rows if not row.get("failed")]
    best = {name: max((r["tokens_per_second"] for r in done if r["side"] == name), default=0.0) for name in SIDES}
    peers = max(rate for name, rate in best.items() if not name.startswith("kerasllm"))
    ratio = round(best["kerasllm, TensorFlow"] / peers, 2)
    for row in rows:
        print(dtype, batch, row, flush=True)
    print(dtype, batch, f"kerasllm on TensorFlow over the best peer: {ratio}", flush=True)
    return {"dtype": dtype, "batch": batch, "rounds": rounds, "rows": rows, "over_the_best_peer": ratio}


def main() -> None:
    """Measure and store."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtypes", nargs="*", default=["float32", "bfloat16"])
    parser.add_argument("--batches", nargs="*", type=int, default=[1, 8])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "generate.json")
    args = parser.parse_args()
    read = bandwidth()
    content: dict[str, Any] = {
        "command": "python benchmarks/generate.py",
        "commit": commit(),
        "device": device(),
        "memory_read_gigabytes_per_second": read,
        "decode_steps_per_second_at_that_bandwidth": {
            dtype: round(read * 1e9 / size, 1) for dtype, size in WEIGHT_BYTES.items()
        },
        "cases": [],
    }
    for dtype in args.dtypes:
        for batch in args.batches:
            content["cases"].append(case(dtype, batch, args.rounds))
            write_json(args.out, content)  # after each case: they take minutes


if __name__ == "__main__":
    main()
