# `make demo` and `make test` set up everything they need. VENV and PYTHON may be given: make test VENV=path PYTHON=python3.12
VENV ?= .venv
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
WORKERS ?= 2
PYTEST_ARGS ?=
TORCH := 2.13.0
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
SHELL := bash

.PHONY: help demo test lint install clean
.DEFAULT_GOAL := help

help:
	@echo "make demo     demonstrations, supervised start, PPO, evaluation and a report on LIBERO (about 15 minutes on 2 cores)"
	@echo "make test     all tests"
	@echo "make lint     ruff, mypy, import rules, size bounds"
	@echo "make install  the environment in $(VENV) that the others use (they call it themselves)"
	@echo "make clean    remove caches and build outputs; $(VENV) and runs/ stay"

demo: $(INSTALLED)
	@bash .ci/system-packages
	$(BIN)/vla-rl demo

# One thread a process: the tests run in several processes, and threads beyond the cores only slow each other down.
test: $(INSTALLED)
	@bash .ci/system-packages test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal --durations=15 $(PYTEST_ARGS)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q tests/test_bounds.py

install: $(INSTALLED)

# torch comes first: without a GPU its CPU build is some GB smaller, and only an exact version can name it. Where the
# package index has no CPU build, or a GPU is there, the index's default build is taken.
$(INSTALLED): pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed: sudo apt-get install python3.11 python3.11-venv"; exit 1; }
	@test -x $(BIN)/pip || bash .ci/make-venv $(PYTHON) $(VENV)
	@echo "Installing Python packages into $(VENV); the first time this takes some minutes"
	@$(BIN)/pip install -q --upgrade pip
	@{ ! command -v nvidia-smi >/dev/null && $(BIN)/pip install -q "torch==$(TORCH)+cpu" 2>/dev/null; } || $(BIN)/pip install -q "torch==$(TORCH)"
	@$(BIN)/pip install -q -e ".[dev]"
	@$(BIN)/pip install -q --no-deps "openpi-client==0.1.2"
	@touch $@

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -type d -prune -exec rm -rf {} +
