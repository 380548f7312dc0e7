# Everything here needs Python (3.10 or newer; 3.11 is tested) and make. The first target that needs it creates
# $(VENV) with the versions of constraints.txt; a stamp per set of extras says what is installed in it.

PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed-

# `make demo` is `hf-lam demo`; the extra `demo` of pyproject.toml is the app in examples/space.
EXTRAS_demo := viz
EXTRAS_test := test,test-demo
EXTRAS_lint := dev
EXTRAS_docs := docs

# One thread a worker: more only compete for the same cores. No test talks to the Hub.
PYTEST := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal --timeout 900

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow test-all lint versions build check-dist check-release docs docs-serve notebooks bench manifest clean
.DELETE_ON_ERROR:
.SECONDARY:

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' Makefile

demo: $(STAMP)demo  ## train, convert, fine-tune, save and reload a small ViT on real digits (under 2 minutes)
	$(BIN)/hf-lam demo

test: $(STAMP)test  ## the tests, without the slow ones and those that need a GPU (about 6 minutes)
	$(PYTEST) -m "not slow and not gpu"

test-slow: $(STAMP)test  ## only the slow tests: compile, export, several processes
	$(PYTEST) -m "slow and not gpu"

test-all: $(STAMP)test  ## every test; those that need a GPU are skipped without one
	$(PYTEST)

lint: $(STAMP)lint  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

versions: $(STAMP)test  ## the lowest versions that pyproject.toml promises, and the newest, in environments of their own
	$(BIN)/python .ci/versions.py

build: $(STAMP)build  ## the sdist and the wheel, in dist/
	rm -rf build dist hf_lam.egg-info/SOURCES.txt
	$(BIN)/python -m build

check-dist: $(STAMP)build  ## what `make build` left in dist/: its files, and the wheel installed where nothing else is
	$(BIN)/twine check --strict dist/*
	$(BIN)/python .ci/dist.py $(DIST_OPTIONS)

check-release:  ## whether TAG=v… can be released: version, changelog, hashes, saved folders
	$(PYTHON) .ci/release.py $(TAG)

docs: $(STAMP)docs  ## the documentation site, in site/; any broken link is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

docs-serve: $(STAMP)docs  ## the documentation site on http://127.0.0.1:8000, renewed when a page changes
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

notebooks: $(STAMP)test  ## renew notebooks/ from the tutorials; those whose code has changed are run, with real data
	PYTHONPATH=tests $(BIN)/python tests/docs/write_notebooks.py

bench: $(STAMP)demo  ## the attention kernels against stock SDPA
	$(BIN)/python benchmarks/attention.py

manifest: $(STAMP)demo  ## renew the hashes of the code that travels with models
	$(BIN)/python -m hf_lam.hub.manifest

clean:  ## remove the virtual environment, caches and build outputs
	rm -rf $(VENV) build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# The tools of `make build` and `make check-dist`, which need neither hf_lam nor torch.
$(STAMP)build: constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt build twine
	@touch $@

# constraints.txt pins torch too: without it, pip would fetch whatever torch is newest.
$(STAMP)%: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e ".[$(EXTRAS_$*)]"
	@touch $@
