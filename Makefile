# make demo   the base install into .venv, then the shipped model on the shipped clip
# make test   completes .venv (export, train, cues, bench, tensorrt-rtx, dev), then what a change usually breaks
# make test-all   every test that needs no GPU; with SLOWEST=N the N slowest are printed
# make test-gpu   the tests that need an NVIDIA GPU; with TESO_REQUIRE_GPU=1 what is missing fails
# make fuzz   odd inputs, CASES of them from SEED; a line for each that does not end well
# make test-lowest   the tests that need the base install alone, with its lowest versions, in .venv-lowest
# make docs   the documentation site, into site/
# make check  linters and types        make format   put the code in order

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check
BASE := $(VENV)/.base
FULL := $(VENV)/.full
DOCS := $(VENV)/.docs
LOWEST := .venv-lowest
INSTALL_FILES := pyproject.toml constraints.txt

CASES ?= 2000
SLOWEST ?= 25
SEED ?= 1

.PHONY: demo test test-all test-gpu test-lowest fuzz docs check format clean

demo: $(BASE)
	$(BIN)/teso-deploy demo

# Three processes for two cores: one of them runs the files whose tests wait (tests/support/distribution.py). One
# thread in each of them is faster than two processes with more.
PYTEST = OMP_NUM_THREADS=1 $(1)/python -m pytest --durations=$(SLOWEST)
SHARED := -n 3 --dist loadfile

# tests/tiers.toml lists the slow tests.
test: $(FULL)
	$(call PYTEST,$(BIN)) $(SHARED) -m "not gpu and not slow"

test-all: $(FULL)
	$(call PYTEST,$(BIN)) $(SHARED)

test-gpu: $(FULL)
	$(call PYTEST,$(BIN)) -m gpu tests/gpu

fuzz: $(FULL)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz --cases $(CASES) --seed $(SEED)

test-lowest: $(LOWEST)/.base
	$(call PYTEST,$(LOWEST)/bin) $(SHARED) --base-install

docs: $(DOCS)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build -q --strict

check: $(FULL)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m tests.support.prose

format: $(FULL)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(LOWEST) build dist site .pytest_cache .mypy_cache .ruff_cache

$(BASE): $(INSTALL_FILES)
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -q -c constraints.txt -e .
	touch $@

$(DOCS): $(BASE)
	$(PIP) install -q -c constraints.txt -e '.[docs]'
	touch $@

$(LOWEST)/.base: pyproject.toml constraints-lowest.txt
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/pip --disable-pip-version-check install -q -c constraints-lowest.txt -e . pytest pytest-xdist hypothesis
	touch $@

# torch first and exactly: a looser range would bring gigabytes of CUDA packages.
$(FULL): $(BASE)
	$(PIP) install -q -c constraints.txt torch==2.13.0
	$(PIP) install -q -c constraints.txt -e '.[dev,export,train,cues,bench,tensorrt-rtx]'
	touch $@
