# Every target does its own set-up in .venv; a second call reuses it. `make help` lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
OTHERS := $(VENV)/others
NATIVE_SOURCES := CMakeLists.txt $(shell find csrc -type f)
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal

# What tells most in a minute: the losses on every path, what others rely on, and of each package what is quick. Less
# what is marked slow or distributed. A name that is no more ends pytest with an error.
QUICK := tests/test_*.py tests/losses/test_*.py tests/ops/test_*.py tests/recipes/test_*.py \
    tests/benchmarks/test_*.py \
    tests/callbacks/test_guard.py tests/callbacks/test_throughput.py \
    tests/data/test_headers.py tests/data/test_order.py tests/data/test_textures.py tests/data/test_walk.py \
    tests/docs/test_paths.py \
    tests/evaluate/test_evaluation.py tests/evaluate/test_linear.py \
    tests/kernels/test_launch_keys.py tests/kernels/test_tuning.py \
    tests/methods/test_barlow_twins.py tests/methods/test_simclr.py \
    tests/models/test_heads.py \
    tests/report/test_page.py \
    tests/runs/test_files.py tests/runs/test_read.py tests/runs/test_settings.py

.PHONY: demo check lint test docs help clean

demo: $(INSTALLED) # train on images that come with it, for about three minutes on two cores
	$(BIN)/amcl-fast pretrain --recipe demo

check: lint # linters, types and the quickest tests, in a minute and a half; the slowest ten are shown
	$(PYTEST) -q -m "not slow and not distributed" --durations 10 $(QUICK)

test: lint $(OTHERS)/.installed # linters, types and all tests
	$(PYTEST)

lint: $(INSTALLED) # linters and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(INSTALLED) # the documentation, in site/
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

$(OTHERS)/.installed: tests/others.txt | $(INSTALLED)
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target $(OTHERS) --requirement tests/others.txt
	@touch $@

help: # list the targets
	@sed -n 's/^\([a-z]*\):[^#]*# /make \1: /p' Makefile

clean: # remove what building, testing and documenting leave
	rm -rf $(VENV) build dist site *.egg-info .mypy_cache .pytest_cache .ruff_cache
	rm -f amcl_fast/_native*.so amcl_fast/_native_missing.txt
	find amcl_fast benchmarks docs kernels tests -name __pycache__ -type d -prune -exec rm -rf {} +
