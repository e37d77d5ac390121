PYTHON ?= python3.11
VENV := .venv
SECONDS ?= 60
BIN := $(VENV)/bin

.PHONY: demo test bench browser lint clean

demo: $(VENV)/.demo
	$(BIN)/psi-fast demo --out runs/demo

test: $(VENV)/.dev browser lint
	$(BIN)/python -m pytest

# What this machine can measure; the README's table and the figures are made from the rows. SECONDS bounds each series.
bench: $(VENV)/.dev
	$(BIN)/python -m pytest benchmarks --benchmark-only --benchmark-max-time=0.3 --benchmark-min-rounds=3 --benchmark-columns=median,iqr,rounds
	$(BIN)/python benchmarks/run.py --seconds $(SECONDS)
	$(BIN)/python benchmarks/table.py --write
	$(BIN)/python benchmarks/plot.py

# The report is tested in a browser. Where none can be had its tests are skipped and say so; with CI=true they fail.
browser: $(VENV)/.dev
	@command -v chromium chromium-browser google-chrome > /dev/null || \
	(apt-get update -qq && apt-get install -qq --yes --no-install-recommends chromium fonts-dejavu-core > /dev/null) || \
	$(BIN)/playwright install chromium || true

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

# One stamp per set of extras: a second run installs nothing, a changed pyproject.toml installs again.
$(VENV)/.%: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[$*]"
	touch $@

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

clean:
	rm -rf $(VENV) runs .pytest_cache .ruff_cache
