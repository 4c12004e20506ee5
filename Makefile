# Each target builds what it needs: a virtual environment in .venv from pyproject.toml and constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Timings and tests on a busy machine suffer from OpenMP threads that spin while they wait.
export OMP_WAIT_POLICY := PASSIVE
export HF_HUB_OFFLINE := 1

.PHONY: demo test lint bench serve soak clean
.DEFAULT_GOAL := help

help:
	@echo "make demo   grow a small tree of real adapters, publish, resolve and compose them (ARGS=--fresh starts over)"
	@echo "make test   run the tests; they start their own PostgreSQL and S3 server"
	@echo "make lint   ruff, mypy --strict, import-linter"
	@echo "make bench  run the benchmarks"
	@echo "make serve  serve the registry on http://127.0.0.1:8321"
	@echo "make soak   run the long checks, every point of the crash matrix among them: many hours; ends at the first failure"

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "loratree needs Python 3.11 or newer, $(PYTHON) is older: run make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[demo]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[all,dev]'
	@touch $@ $(VENV)/.demo

demo: $(VENV)/.demo
	$(BIN)/loratree demo $(ARGS)

test: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile $(ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

serve: $(VENV)/.dev
	$(BIN)/loratree serve $(ARGS)

clean:
	rm -rf $(VENV) demo-out .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis

bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks.compose $(ARGS)

soak: $(VENV)/.dev
	OMP_NUM_THREADS=1 LORATREE_HYPOTHESIS=soak $(BIN)/python -m pytest --numprocesses 2 --timeout 3600 -m hypothesis $(ARGS)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.header_inputs --inputs 1000000
	for database in sqlite postgresql; do $(BIN)/python -m tests.collector_race --operations 100000 --database $$database || exit 1; done
	$(BIN)/python -m tests.collector_race --operations 10000 --database postgresql --store moto
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.crash
	for database in sqlite postgresql; do $(BIN)/python -m benchmarks.registry --leaves 1000000 --database $$database || exit 1; done
