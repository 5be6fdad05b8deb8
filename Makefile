# Every target does its own set-up in .venv, and repeats none of it when it is up to date.
.PHONY: help train test test-newest lint lock format bench clean
.DEFAULT_GOAL := help

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
LOCK := requirements.lock
# A worker per core, each with about 1 GB; a file's tests stay together, for they share what they have prepared.
PARALLEL := --numprocesses auto --maxprocesses 8 --dist loadfile
# uv where it is on the PATH, pip otherwise.
UV := $(shell command -v uv 2>/dev/null)

help:  ## show this list
	@grep -E '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

# Exactly the versions of the lock, each file with its hash; then litcam itself, which downloads nothing more.
$(READY): pyproject.toml $(LOCK)
ifdef UV
	$(UV) venv --quiet --allow-existing --python $(PYTHON) .venv
	$(UV) pip sync --quiet --require-hashes --python $(BIN)/python $(LOCK)
	$(UV) pip install --quiet --no-deps --no-build-isolation --python $(BIN)/python --editable .
else
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement $(LOCK)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
endif
	@touch $@

lock: $(READY)  ## take the newest versions that pyproject.toml allows into the lock
	$(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate \
		--extra dev --custom-compile-command 'make lock' --output-file $(LOCK) $(ARGS) pyproject.toml

test-newest:  ## run every test with the newest versions, in an environment of its own
	$(PYTHON) -m venv --clear .venv-newest
	.venv-newest/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	HF_HUB_OFFLINE=1 .venv-newest/bin/python -m pytest $(PARALLEL) $(ARGS)

train: $(READY)  ## fine-tune the embedded model on the embedded data and watch it (about two minutes on two cores)
	$(BIN)/python train.py $(ARGS)

test: $(READY) lint  ## lint, check the types and run every test
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest $(PARALLEL) $(ARGS)

lint: $(READY)  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)  ## let ruff rewrite what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY)  ## print the measured speed ratios (about half an hour)
	$(BIN)/python benchmarks/monitoring_overhead.py
	$(BIN)/python benchmarks/explainers.py

clean:  ## remove the environment and the caches (runs/ stays)
	rm -rf .venv .venv-newest .mypy_cache .ruff_cache .pytest_cache build src/litcam.egg-info
