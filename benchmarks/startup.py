"""How long a user waits before anything happens: `import kerasllm` and `kerasllm --help`.

    python benchmarks/startup.py [--runs 7]

Each is a new process; the time of a bare interpreter is part of it and shown for comparison. Prints the median and the
fastest of the runs, in seconds, and fails if a median is over its limit.
"""

import argparse
import statistics
import subprocess
import sys
import time

LIMITS = {"python -c pass": None, "import kerasllm": 0.3, "kerasllm --help": 1.0}
COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "import kerasllm": [sys.executable, "-c", "import kerasllm"],
    "kerasllm --help": [sys.executable, "-m", "kerasllm.cli", "--help"],
}


def seconds(command: list[str]) -> float:
    """Wall-clock time of one run; its output is thrown away."""
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=7, help="runs of each command (default 7)")
    runs = parser.parse_args().runs
    slow = []
    for name, command in COMMANDS.items():
        seconds(command)  # reads the files into memory and writes byte code
        times = [seconds(command) for _ in range(runs)]
        limit = LIMITS[name]
        print(f"{name:16}  median {statistics.median(times):.3f}  fastest {min(times):.3f}  limit {limit or 'none'}")
        if limit and statistics.median(times) > limit:
            slow.append(name)
    if slow:
        print(f"too slow: {', '.join(slow)}", file=sys.stderr)
    return bool(slow)


if __name__ == "__main__":
    sys.exit(main())
