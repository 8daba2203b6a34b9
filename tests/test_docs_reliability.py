"""docs/reliability.md: every promise names a test that exists, and its script runs, is killed, and goes on."""

import re
from pathlib import Path

import pytest
import trainings

TESTS = Path(__file__).parent
PAGE = (TESTS.parent / "docs" / "reliability.md").read_text(encoding="utf-8")


def test_every_promise_has_its_test():
    table = re.findall(r"^\| (.+?) \| (.*`test_.*) \|$", PAGE, re.MULTILINE)
    assert len(table) > 20
    for promise, tests in table:
        names = re.findall(r"`(?:(test_\w+)\.py::)?(test_\w+)`", tests)
        assert names, promise
        for file, name in names:
            source = (TESTS / f"{file or 'test_reliability'}.py").read_text(encoding="utf-8")
            assert f"\ndef {name}(" in source, name


def test_the_script_runs_and_goes_on(tmp_path, monkeypatch):
    from kerasllm.training import checkpoint_files

    (script,) = re.findall(r"```python\n(.+?)```", PAGE, re.DOTALL)
    script = script.replace("    if checkpoint.finished:", "    began = checkpoint.step\n    if checkpoint.finished:")
    script = script.replace("make_deterministic()\nmodel", "model")  # it would stay so for all tests
    trainings.make_corpus(tmp_path)
    (tmp_path / "corpora").mkdir()
    (tmp_path / "corpus").rename(tmp_path / "corpora" / "excerpt")
    monkeypatch.chdir(tmp_path)
    small = script.replace("steps_per_epoch=50", "steps_per_epoch=5").replace('"batch_size": 16', '"batch_size": 2')
    with pytest.MonkeyPatch.context() as patch:
        trainings.At(patch, "on_train_batch_end", 8, trainings.strike)
        with pytest.raises(trainings.Struck):
            exec(small, {})
    seen = {}
    exec(small, seen)
    assert seen["began"] == 5
    assert seen["checkpoint"].finished
    assert [path.name for path in checkpoint_files.checkpoints(tmp_path / "runs" / "script" / "checkpoints")]
