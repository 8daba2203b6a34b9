"""What all tests share: a quiet TensorFlow on the CPU, where the test data are, and slow tests last."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")


def _wants_gpu(config: pytest.Config) -> bool:
    expression = config.getoption("markexpr")
    return "gpu" in expression and "not gpu" not in expression


def pytest_configure(config: pytest.Config) -> None:
    """Hide GPUs (before TensorFlow is imported) unless GPU tests were asked for: results shall not depend on them."""
    if not _wants_gpu(config):
        os.environ["CUDA_VISIBLE_DEVICES"] = "-1"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip GPU tests where there is no GPU, and run slow tests last."""
    if not (_wants_gpu(config) and Path("/dev/nvidia0").exists()):
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a GPU (where there is one: pytest -m gpu)"))
    items.sort(key=lambda item: item.get_closest_marker("slow") is not None)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of test data that are too large for the repository."""
    folder = os.environ.get("KERASLLM_DATA")
    if not folder:
        pytest.skip("needs the test data: set KERASLLM_DATA to their folder")
    assert Path(folder).is_dir(), f"KERASLLM_DATA={folder}: no such folder"
    return Path(folder)
