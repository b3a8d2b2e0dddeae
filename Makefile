# make run    compile an example, run it and compare it with its peers
# make test   the tests (quick ones); `make check` adds the slow ones, `make lint` the linters
# make bench  a suite (SUITE=sparsity, standard) against its peers, for BUDGET seconds; again goes on where it stopped
# make study  measure what docs/results.md shows (PARTS=performer efficiency schemes structures), likewise, and write it
# Each sets up its own virtual environment in .venv first, and does nothing there when nothing changed.

SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
WORKERS ?= auto

BUDGET ?= 3600
SUITE ?= sparsity
RANK ?= 120
PARTS ?=

.PHONY: run bench study test check lint format wheel gpu-bundle clean setup
.DEFAULT_GOAL := help

help:
	@sed -n '1,5s/^# //p' Makefile

setup: $(READY)

$(READY): pyproject.toml tools/setup.sh
	@bash tools/setup.sh $(VENV)
	@touch $@

run: $(READY)
	@mkdir -p build
	$(BIN)/attnc compile examples/streaming.attn -o build/streaming.py
	$(BIN)/attnc bench examples/streaming.attn -n 8192

bench: $(READY)
	@mkdir -p build/bench
	$(BIN)/attnc bench --suite $(SUITE) --budget $(BUDGET) --json build/bench/$(SUITE).json \
		--markdown build/bench/$(SUITE).md

study: $(READY)
	$(BIN)/python tools/reproduce.py $(PARTS) --budget $(BUDGET)

test: $(READY)
	@$(BIN)/python -m pytest -m "not slow" -n $(WORKERS) --dist worksteal

check: lint
	@$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

lint: $(READY)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: $(READY)
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

wheel: $(READY)
	@$(BIN)/python -m pip wheel -q --no-deps -w dist .

gpu-bundle: $(READY)
	@$(BIN)/python tools/gpu_bundle.py --out build/gpu --rank $(RANK)

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
