PYTHON ?= python3.11
VENV := .venv
SECONDS ?= 60
BIN := $(VENV)/bin
# A second one for the tests: what requirements.lock names, and the wheel.
TESTED := .venv-wheel
TESTED_BIN := $(abspath $(TESTED))/bin
# What tests read, besides the packages.
BESIDE := tests benchmarks docs examples kernels/README.md kernels/NOTES.md $(wildcard *.md *.cff) pyproject.toml requirements.lock \
	Makefile LICENSE
PSI_FAST_DATA ?= $(abspath ../shared/data)
export PSI_FAST_DATA

.PHONY: demo dev test bench browser lint wheel lock clean

demo: $(VENV)/.demo
	$(BIN)/psi-fast demo --out runs/demo

# The whole suite (or TESTS) runs once, against the wheel, from a folder that lies outside the checkout and has no source in it.
test: lint browser wheel
	set -e; outside=$$(mktemp -d); trap 'rm -rf "$$outside"' EXIT; \
	cp -r --parents $(BESIDE) "$$outside"; cd "$$outside"; unset PYTHONPATH; \
	$(TESTED_BIN)/python -c 'import sys, psi_fast, psi_fast_kernels as k; assert all(p.__file__.startswith(sys.prefix) for p in (psi_fast, k))'; \
	$(TESTED_BIN)/python -m pytest $(TESTS)

# The sdist, and from what it holds the wheel, into a venv that has nothing else of psi_fast.
wheel: $(TESTED)/.locked
	rm -rf dist
	$(TESTED_BIN)/python -m build --no-isolation
	$(TESTED_BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --force-reinstall dist/*.whl
	$(TESTED_BIN)/python -m pip check

# For developing: the same packages, and the checkout itself.
dev: $(VENV)/.dev

# What this machine can measure; the README's table and the figures are made from the rows. SECONDS bounds each series.
bench: $(VENV)/.dev
	$(BIN)/python -m pytest benchmarks --benchmark-only --benchmark-max-time=0.3 --benchmark-min-rounds=3 --benchmark-columns=median,iqr,rounds
	$(BIN)/python benchmarks/run.py --seconds $(SECONDS)
	$(BIN)/python benchmarks/table.py --write
	$(BIN)/python benchmarks/plot.py

# The report is tested in a browser. Where none can be had its tests are skipped and say so; with CI=true they fail.
browser: $(TESTED)/.locked
	@command -v chromium chromium-browser google-chrome > /dev/null || \
	(apt-get update -qq && apt-get install -qq --yes --no-install-recommends chromium fonts-dejavu-core > /dev/null) || \
	$(TESTED_BIN)/playwright install chromium || true

lint: $(TESTED)/.locked
	$(TESTED_BIN)/ruff check .
	$(TESTED_BIN)/ruff format --check .
	$(TESTED_BIN)/pyright --pythonpath $(TESTED_BIN)/python

# Pins what pyproject.toml asks for, with hashes; what is pinned stays so while it fits, but for UPGRADE=--upgrade.
lock: $(TESTED)/.locked
	$(TESTED_BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --custom-compile-command "make lock" \
	--extra dev $(UPGRADE) --output-file requirements.lock pyproject.toml

$(VENV)/.locked $(TESTED)/.locked: %/.locked: requirements.lock | %/bin/python
	$*/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	touch $@

$(VENV)/.dev: $(VENV)/.locked pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

# One stamp per set of extras: a second run installs nothing, a changed pyproject.toml installs again.
$(VENV)/.%: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[$*]"
	touch $@

$(VENV)/bin/python $(TESTED)/bin/python: %/bin/python:
	$(PYTHON) -m venv $*

clean:
	rm -rf $(VENV) $(TESTED) dist runs .pytest_cache .ruff_cache
