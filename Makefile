# Two commands for a newcomer: make demo, make test. Both make their own environment first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

LOWEST := .venv-lowest
# Python 3.10 where there is one.
LOWEST_PYTHON ?= $(shell for p in python3.10 $(PYTHON); do $$p -c '' 2>/dev/null && echo $$p && break; done)
LOWEST_PACKAGES ?= --editable '.[dev]'
LOWEST_TESTS ?= tests

CORE := .lowest-core
CORE_PACKAGES := lightning pytorch-lightning torchmetrics jsonargparse pyyaml
CORE_TESTS := tests/test_imports.py tests/test_optimizer.py tests/test_reference_trajectory.py tests/namespace \
	tests/strategy/test_drop_in.py tests/strategy/test_accumulation.py tests/cli/test_lightning_cli.py

.PHONY: demo test test-all test-lowest test-lowest-core lint docs install clean

demo: install
	$(BIN)/lightning-bsqh demo

test: install
	$(BIN)/python -m pytest -n auto --dist worksteal

# With what make test leaves out, as it takes too long: about twenty minutes on two cores.
test-all: install
	ALL_PROCESS_TESTS=1 $(BIN)/python -m pytest -n auto --dist worksteal -m 'slow or not slow'

# The lowest versions of everything that pyproject.toml admits; LOWEST_TESTS="FILES" runs a part.
test-lowest: $(LOWEST)/.installed
	$(LOWEST)/bin/python -m pytest -n auto $(LOWEST_TESTS)

# A part of them in a minute: the lowest Lightning and what belongs to it, laid over the installed torch, as the lowest
# torch comes with gigabytes of CUDA.
test-lowest-core: install $(CORE)/.installed
	PYTHONPATH="$(CURDIR)/$(CORE)" $(BIN)/python -m pytest -n auto --dist worksteal $(CORE_TESTS)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The site, in docs/_build/html. Warnings are errors, links between pages among them.
docs: $(VENV)/.installed-docs
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs docs/_build/html

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	touch $@

$(LOWEST)/.installed: pyproject.toml requirements-lowest.txt
	$(LOWEST_PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet --upgrade pip
	$(LOWEST)/bin/python -m pip install --quiet --constraint requirements-lowest.txt $(LOWEST_PACKAGES)
	touch $@

$(CORE)/.installed: requirements-lowest.txt $(VENV)/.installed
	rm -rf $(CORE)
	$(BIN)/python -m pip install --quiet --no-deps --constraint requirements-lowest.txt --target $(CORE) $(CORE_PACKAGES)
	touch $@

clean:
	rm -rf $(VENV) $(LOWEST) $(CORE) runs docs/_build
