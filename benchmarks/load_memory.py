"""What loading a checkpoint needs: peak of resident memory above that after the imports, beside the weights' own size.

    python benchmarks/load_memory.py

Each load is a process of its own. The limit is 1.2 times the weights in the dtype asked for, and 200 MB. Linux only:
the peak is VmHWM of /proc/self/status, reset after the imports. Writes benchmarks/results/load_memory.json.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import kerasllm
from kerasllm.convert.huggingface import to_huggingface
from kerasllm.files import write_json
from kerasllm.quickstart import commit, device

CHILD = """
import json, sys, time
import kerasllm, kerasllm.folder, kerasllm.convert.huggingface, kerasllm.convert.single_files
import kerasllm.text.bpe, kerasllm.text.wordpiece, tokenizers, safetensors, gguf, ml_dtypes
import tensorflow as tf
tf.Variable([1.0]).assign([2.0])  # TensorFlow makes its threads and allocators now
def memory(name):
    line = next(line for line in open("/proc/self/status") if line.startswith(name))
    return int(line.split()[1]) * 1024
before = memory("VmRSS")
open("/proc/self/clear_refs", "w").write("5")
started = time.perf_counter()
model, tokenizer = kerasllm.load(sys.argv[1], dtype=sys.argv[2])
seconds = time.perf_counter() - started
weights = sum(w.value.numpy().nbytes for w in model.weights)
print(json.dumps([weights, memory("VmHWM") - before, seconds]))
"""


def measure(path: str, dtype: str) -> dict[str, Any]:
    """One load in a process of its own."""
    command = [sys.executable, "-c", CHILD, path, dtype]
    child = subprocess.run(command, capture_output=True, text=True, check=True)
    weights, peak, seconds = json.loads(child.stdout.strip().splitlines()[-1])
    limit = 1.2 * weights + 200e6
    sizes = {"weights": weights, "peak_above_imports": peak, "limit": limit}
    return {
        **{f"{name}_megabytes": round(value / 1e6, 1) for name, value in sizes.items()},
        "within": peak <= limit,
        "seconds": round(seconds, 2),
    }


def main() -> None:
    """Measure both packaged models in every format and dtype."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "load_memory.json")
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in ("minilm-l6", "smollm2-135m-instruct"):
            model, tokenizer = kerasllm.load(name)
            sources = {
                "as packaged": name,
                "model folder": str(kerasllm.save(model, tokenizer, Path(folder) / name / "kerasllm")),
                "Hugging Face folder": str(to_huggingface(model, Path(folder) / name / "hf", tokenizer)),
            }
            for kind, path in sources.items():
                for dtype in ("float32", "bfloat16", "float16"):
                    row = {"model": name, "format": kind, "dtype": dtype, **measure(path, dtype)}
                    rows.append(row)
                    print(row, flush=True)
    content = {"command": "python benchmarks/load_memory.py", "commit": commit(), "device": device(), "rows": rows}
    write_json(args.out, content)


if __name__ == "__main__":
    main()
