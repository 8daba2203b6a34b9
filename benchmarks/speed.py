"""Training and generation speed of the quickstart models beside KerasHub / plain Keras and plain PyTorch.

    pip install torch && python benchmarks/speed.py

Each measurement runs in a process of its own; the peers take turns, several rounds in one run, and medians are stored
in benchmarks/results/speed.json with commit and device. Memory is given for the whole process and above its imports.
Keras and kerasllm run without XLA and PyTorch eagerly: no peer was tried in its other modes.
"""

import argparse
import datetime
import json
import statistics
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from kerasllm.files import write_json
from kerasllm.quickstart import commit, device

HERE = Path(__file__).parent
PEERS = ("kerasllm", "keras", "torch")


def main() -> None:
    """Measure, print, store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    results: dict[str, dict[str, dict[str, float]]] = {}
    for kind in ("lstm", "transformer"):
        runs: dict[str, list[dict[str, float]]] = {peer: [] for peer in PEERS}
        for _ in range(rounds):
            for peer in PEERS:
                command = [sys.executable, str(HERE / "speed_peer.py"), peer, kind]
                done = subprocess.run(command, capture_output=True, text=True)
                if done.returncode:
                    sys.exit(f"{peer} {kind} failed:\n{done.stderr[-2000:]}")
                runs[peer].append(json.loads(done.stdout.strip().splitlines()[-1]))
                print(kind, peer, {name: round(value) for name, value in runs[peer][-1].items()}, flush=True)
        results[kind] = {
            peer: {name: statistics.median(run[name] for run in measured) for name in measured[0]}
            for peer, measured in runs.items()
        }
    content = {
        "command": f"python benchmarks/speed.py --rounds {rounds}",
        "commit": commit(),
        "device": device(),
        "date": datetime.date.today().isoformat(),
        "versions": {name: version(name) for name in ("tensorflow", "keras", "keras-hub", "torch")},
        "unit": "tokens per second; batch 16 x 128 in training, prompt 32 and 64 new tokens in generation, float32",
        "median_of": rounds,
        "results": results,
    }
    write_json(HERE / "results" / "speed.json", content)


if __name__ == "__main__":
    main()
