# `make demo` and `make test` do all their own set-up in .venv; a second call reuses it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
NATIVE_SOURCES := CMakeLists.txt $(shell find csrc -type f)

.PHONY: demo test docs clean

demo: $(INSTALLED)
	$(BIN)/amcl-fast pretrain --recipe demo

test: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto

docs: $(INSTALLED)
	$(BIN)/mkdocs build --strict

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "amcl-fast needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>&1)." \
	           "Name another one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(INSTALLED): pyproject.toml setup.py constraints.txt $(NATIVE_SOURCES) | $(BIN)/python
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[all]'
	$(BIN)/amcl-fast doctor
	@touch $@

clean:
	rm -rf $(VENV) build dist site *.egg-info .mypy_cache .pytest_cache .ruff_cache
	rm -f amcl_fast/_native*.so amcl_fast/_native_missing.txt
	find amcl_fast kernels tests -name __pycache__ -type d -prune -exec rm -rf {} +
