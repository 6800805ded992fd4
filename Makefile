# The two commands of the README, and the checks. Each creates the environment it needs.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
NAME   ?= quickstart

export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Stages and tests start hundreds of processes: none has to compile our modules anew.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: quickstart test test-whole test-slice test-browser test-slow check format docs bench env clean

quickstart: $(READY)
	$(BIN)/potstill run quickstart

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow and not whole and not cuda"

test-whole: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "whole and not slow" --timeout 900

test-slice: $(READY)
	$(BIN)/python -m pytest -m slow tests/e2e --timeout 1800

# The studio in headless Chromium, a program of the system (on Debian: apt-get install chromium).
test-browser: $(READY)
	$(BIN)/python -m pytest -m slow tests/integration/test_studio_browser.py --timeout 1800

test-slow: $(READY)
	$(BIN)/python -m pytest -m "slow" --timeout 1800

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tools/make_reference.py --check
	$(BIN)/python tools/make_scaling.py --check
	$(BIN)/python tools/make_deploy.py --check
	$(BIN)/python tools/make_site.py --check
	$(BIN)/python tools/make_notebook.py --check

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/python tools/make_reference.py
	$(BIN)/python tools/make_scaling.py
	$(BIN)/python tools/make_deploy.py
	$(BIN)/python tools/make_site.py --llms
	$(BIN)/python tools/make_notebook.py

# The documentation as a site, in site/: strictly, and with nothing fetched from elsewhere.
docs: $(READY)
	$(BIN)/python tools/make_site.py

bench: $(READY)
	@$(BIN)/python benchmarks/$(NAME).py

env: $(READY)

# Installed once for each state of the lock; the marker is written last.
$(READY): requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	@touch $@

clean:
	rm -rf $(VENV) build dist site .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
