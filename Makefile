# `make demo` and `make test` on a fresh clone are all it takes: each makes .venv itself.
PYTHON ?= python3
WORKERS ?= 2
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input --quiet
# one thread a test worker, or they fight for the cores
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

.PHONY: help demo test lint format slow wheel clean
.DEFAULT_GOAL := help

help:
	@echo "make demo    train, ensemble and evaluate on a small generated data set"
	@echo "make test    ruff, mypy and the fast tests"
	@echo "make lint    ruff and mypy alone;  make format  mends what ruff can"
	@echo "make slow    the tests that take minutes"
	@echo "make wheel   dist/*.whl and the source archive"

$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV); the first time this takes a few minutes"
	@$(PIP) install -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(STAMP)
	@$(BIN)/autoseg demo --work_dir work_dirs/demo

lint: $(STAMP)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy --strict autoseg

test: lint
	@$(ONE_THREAD) $(BIN)/pytest -q -n $(WORKERS) --dist loadgroup --durations=25

slow: $(STAMP)
	@$(ONE_THREAD) $(BIN)/pytest -q -m slow

format: $(STAMP)
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

wheel: $(STAMP)
	@$(BIN)/python -m build --no-isolation

clean:
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache
