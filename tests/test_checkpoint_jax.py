"""On JAX a training that was killed, or told to stop in its validation, goes on bit for bit, too."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import json, os, signal, sys
from pathlib import Path
import keras
import pytest
import trainings
from trainings import Struck, interrupted, run, values

folder = Path(sys.argv[1])
corpus = trainings.make_corpus(folder)
kill = lambda checkpoint: os.kill(os.getpid(), signal.SIGTERM)
cases = [
    ("lstm", trainings.EVERYTHING, "on_train_batch_end", 18, trainings.strike, False, Struck),
    ("transformer", {}, "on_test_batch_end", 1, kill, True, SystemExit),
]
results = []
for kind, options, hook, count, action, before, expect in cases:
    one, history = run(kind, corpus, folder / f"{kind}-straight", **options)
    interrupted(kind, corpus, folder / kind, hook, count, action, before, expect, **options)
    other, resumed = run(kind, corpus, folder / kind, resume=True, **options)
    same = all((a == b).all() for a, b in zip(values(one), values(other), strict=True))
    results.append([keras.backend.backend(), history == resumed, bool(same)])
print(json.dumps(results))
"""


@pytest.mark.slow
def test_a_training_on_jax_is_resumed_bit_for_bit(tmp_path):
    paths = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu", "PYTHONPATH": paths}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)], capture_output=True, text=True, env=environment, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1]) == [["jax", True, True]] * 2
