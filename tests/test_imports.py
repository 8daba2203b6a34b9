"""`import kerasllm` is light, and every public name leads somewhere."""

import subprocess
import sys

import pytest

import kerasllm
from kerasllm import training


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True).stdout


def test_import_brings_neither_tensorflow_nor_keras():
    code = "import sys, kerasllm; dir(kerasllm); print(*sys.modules)"
    heavy = {"tensorflow", "keras", "numpy", "jax", "matplotlib", "pandas"}
    assert not heavy & set(run(code).split())


def test_files_and_errors_need_no_keras():
    code = "import sys; from kerasllm import InputError; import kerasllm.files, kerasllm.config; print(*sys.modules)"
    assert not {"tensorflow", "keras"} & set(run(code).split())


@pytest.mark.parametrize("name", kerasllm.__all__)
def test_public_names_resolve(name):
    assert getattr(kerasllm, name) is not None
    assert name in dir(kerasllm)


@pytest.mark.parametrize("name", training.__all__)
def test_public_names_of_training_resolve(name):
    assert getattr(training, name).__doc__
    assert name in dir(training)


@pytest.mark.parametrize("module", [kerasllm, training])
def test_unknown_names_are_attribute_errors(module):
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        module.nothing  # noqa: B018
