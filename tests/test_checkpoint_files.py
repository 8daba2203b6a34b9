"""Saves that are killed in the middle: what is found afterwards is whole, old or new."""

import os
import resource
import signal
import sys

import numpy as np
import pytest
from trainings import in_a_child

from kerasllm.files import clear_remains, remove_folder
from kerasllm.training import checkpoint_files


def test_a_save_killed_at_any_write_point_leaves_a_whole_checkpoint(tmp_path):
    before = np.arange(5.0, dtype="float32")
    plain = {name: {} for name in ("history", "best", "identity", "model")}
    content = {**plain, "callbacks": [], "epoch": 0, "steps_per_epoch": 9, "finished": False}

    def snapshot(shift):
        return checkpoint_files.Snapshot({"w": before + shift}, {"optimizer/0000": before - shift}, content)

    checkpoint_files.write(tmp_path, 1, snapshot(1), None, None)
    events = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.chmod", "tempfile.mkdtemp", "shutil.rmtree")

    def save(limit):
        seen = [0]

        def die(event, args):
            if event in events and str(tmp_path) in str(args):
                seen[0] += 1
                if seen[0] == limit:
                    os.kill(os.getpid(), signal.SIGKILL)

        def child():
            sys.addaudithook(die)
            path = checkpoint_files.write(tmp_path, 2, snapshot(2), None, None)
            remove_folder(path.with_name("step-00000001"))

        return in_a_child(child)

    killed, limit = 0, 0
    while True:
        limit += 1
        ended = save(limit)
        clear_remains(tmp_path, checkpoint_files.PATTERN)  # as the next process does first
        path, found, damaged = checkpoint_files.newest(tmp_path)
        assert not damaged
        read = checkpoint_files.read(path)
        shift = found["step"]
        np.testing.assert_array_equal(read.weights["w"], before + shift)
        np.testing.assert_array_equal(read.arrays["optimizer/0000"], before - shift)
        left = {path.name for path in tmp_path.iterdir()}
        assert left <= {"step-00000001", "step-00000002"} and left
        if not os.WIFSIGNALED(ended):
            break
        killed += 1
        if "step-00000001" not in left:
            checkpoint_files.write(tmp_path, 1, snapshot(1), None, None)
        if "step-00000002" in left:
            remove_folder(tmp_path / "step-00000002")
    assert killed > 15, killed
    assert left == {"step-00000002"}


@pytest.mark.parametrize("known", [True, False], ids=["replacing", "new"])
def test_a_save_killed_while_a_file_is_half_written_or_an_old_one_replaced_loses_nothing(known, tmp_path):
    plain = {name: {} for name in ("history", "best", "identity", "model")}
    content = {**plain, "callbacks": [], "epoch": 0, "steps_per_epoch": 9, "finished": False}

    def write(value, step=2):
        weights = {"w": np.full(5000, value, "float32")}
        checkpoint_files.write(tmp_path, step, checkpoint_files.Snapshot(weights, {}, content), None, None)

    def half(limit):
        def child():
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # the kernel ends whoever writes more than so many bytes
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            write(2.0)

        return in_a_child(child)

    write(1.0, step=2 if known else 1)
    for limit in (1, 100, 9000, 20_001):
        assert os.WIFSIGNALED(half(limit))
        clear_remains(tmp_path, checkpoint_files.PATTERN)
        path, _, damaged = checkpoint_files.newest(tmp_path)
        assert not damaged and checkpoint_files.read(path).weights["w"][-1] == 1.0
    if not known:
        return

    def killed_at(limit):
        seen = [0]

        def die(event, args):
            seen[0] += event == "os.rename" and ".tmp" not in str(args[1])
            if event == "os.rename" and seen[0] == limit:
                os.kill(os.getpid(), signal.SIGKILL)

        def child():
            sys.addaudithook(die)
            write(2.0)

        return in_a_child(child)

    values = []
    for limit in range(1, 9):
        ended = killed_at(limit)
        clear_remains(tmp_path, checkpoint_files.PATTERN)
        values.append(float(checkpoint_files.read(checkpoint_files.newest(tmp_path)[0]).weights["w"][0]))
        if not os.WIFSIGNALED(ended):
            break
    assert values[-1] == 2.0 and values[0] == 1.0 and len(values) > 2
