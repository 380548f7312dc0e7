# Everything here needs Python (3.10 or newer; 3.11 is tested) and make. The first target that needs it creates
# $(VENV) with the versions of constraints.txt; a stamp per set of extras says what is installed in it.

PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed-

EXTRAS_demo := viz
EXTRAS_test := test,viz
EXTRAS_lint := dev

# One thread a worker: more only compete for the same cores. No test talks to the Hub.
PYTEST := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal --timeout 900

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow test-all lint bench manifest clean
.DELETE_ON_ERROR:
.SECONDARY:

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' Makefile

demo: $(STAMP)demo  ## train, convert, fine-tune, save and reload a small ViT on real digits (under 2 minutes)
	$(BIN)/hf-lam demo

test: $(STAMP)test  ## the tests, without the slow ones and those that need a GPU (under 5 minutes)
	$(PYTEST) -m "not slow and not gpu"

test-slow: $(STAMP)test  ## only the slow tests: compile, export, several processes
	$(PYTEST) -m "slow and not gpu"

test-all: $(STAMP)test  ## every test; those that need a GPU are skipped without one
	$(PYTEST)

lint: $(STAMP)lint  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP)demo  ## the attention kernels against stock SDPA
	$(BIN)/python benchmarks/attention.py

manifest: $(STAMP)demo  ## renew the hashes of the code that travels with models
	$(BIN)/python -m hf_lam.hub.manifest

clean:  ## remove the virtual environment, caches and build outputs
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# constraints.txt pins torch too: without it, pip would fetch whatever torch is newest.
$(STAMP)%: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e ".[$(EXTRAS_$*)]"
	@touch $@
