# Each target builds what it needs: a virtual environment in .venv from pyproject.toml and constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Timings and tests on a busy machine suffer from OpenMP threads that spin while they wait.
export OMP_WAIT_POLICY := PASSIVE
export HF_HUB_OFFLINE := 1
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest

.PHONY: help demo test test-fast test-one lint format bench bench-registry serve soak clean
.DEFAULT_GOAL := help

help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /make \1\t/' | expand -t 22
	@echo 'Every target passes ARGS on, such as: make test ARGS="-k lockfile"'

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

demo: $(VENV)/.demo ## grow a small tree of real adapters, publish, resolve and compose them (ARGS=--fresh starts over)
	$(BIN)/loratree demo $(ARGS)

test: $(VENV)/.dev ## run the tests; they start their own PostgreSQL and S3 server
	$(PYTEST) --numprocesses 2 --dist loadfile $(ARGS)

test-fast: $(VENV)/.dev ## run the tests that need no server and no other process, in under a minute
	LORATREE_TEST_HYPOTHESIS=fast $(PYTEST) --numprocesses 2 --dist loadfile --fast $(ARGS)

test-one: $(VENV)/.dev ## run one test or one file: make test-one T=tests/composer/arithmetic/test_merge.py
	$(PYTEST) $(T) $(ARGS)

lint: $(VENV)/.dev ## ruff, mypy --strict, import-linter
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.dev ## sort imports and lay the code out
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(VENV)/.dev ## measure the composer beside PEFT; one row: ARGS="--only merge-bf16"
	$(BIN)/python -m benchmarks.compose $(ARGS)

bench-registry: $(VENV)/.dev ## measure the registry beside MLflow; small: ARGS="--leaves 10000"
	$(BIN)/python -m benchmarks.registry $(ARGS)

serve: $(VENV)/.dev ## serve the registry on http://127.0.0.1:8321
	$(BIN)/loratree serve $(ARGS)

clean: ## remove the virtual environment and every cache
	rm -rf $(VENV) demo-out .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis

soak: $(VENV)/.dev ## run the long checks, every point of the crash matrix among them: many hours; ends at the first failure
	OMP_NUM_THREADS=1 LORATREE_TEST_HYPOTHESIS=soak $(BIN)/python -m pytest --numprocesses 2 --timeout 3600 -m hypothesis $(ARGS)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.header_inputs --inputs 1000000
	for database in sqlite postgresql; do $(BIN)/python -m tests.collector_race --operations 100000 --database $$database || exit 1; done
	$(BIN)/python -m tests.collector_race --operations 10000 --database postgresql --store moto
	LORATREE_TEST_LONG=1 OMP_NUM_THREADS=1 $(BIN)/python -m tests.crash
	for database in sqlite postgresql; do $(BIN)/python -m benchmarks.registry --leaves 1000000 --database $$database || exit 1; done
