# Every target does its own set-up in .venv, and repeats none of it when it is up to date.
.PHONY: help train test lint format bench clean
.DEFAULT_GOAL := help

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
# uv where it is on the PATH, pip otherwise.
UV := $(shell command -v uv 2>/dev/null)

help:  ## show this list
	@grep -E '^[a-z]+: .*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 16

$(READY): pyproject.toml
ifdef UV
	$(UV) venv --quiet --allow-existing --python $(PYTHON) .venv
	$(UV) pip install --quiet --python $(BIN)/python --editable '.[dev]'
else
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
endif
	@touch $@

train: $(READY)  ## fine-tune the embedded model on the embedded data and watch it (about three minutes on two cores)
	$(BIN)/python train.py $(ARGS)

test: $(READY) lint  ## lint, check the types and run every test
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest $(ARGS)

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
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache build src/litcam.egg-info
