# Two commands matter: `make demo` and `make test`. Both create .venv and install the pinned set first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
HELD_OUT ?= rb
JOBS ?= 2
STAMP := $(VENV)/.installed

.PHONY: demo test test-all benchmark lint types docs install clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "networld-jax needs Python >= 3.11, got $$($(PYTHON) -V 2>&1); set PYTHON=/path/to/python3.11"; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "Python's venv module is missing; install it: apt-get install python3-venv"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(STAMP)
	$(BIN)/python -m experiments.demo --config=experiments/configs/demo.py:$(HELD_OUT) --workdir=runs/demo $(ARGS)

test: $(STAMP)
	$(BIN)/python -m pytest -m "not slow" -n $(JOBS) --dist loadfile $(ARGS)

test-all: $(STAMP)
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(ARGS)

SUITES ?= sampler env train closed_loop
benchmark: $(STAMP)
	for suite in $(SUITES); do $(BIN)/python -m experiments.benchmark --suite=$$suite \
	  --config=experiments/configs/benchmark.py --workdir=runs/benchmark $(ARGS) || exit; done

lint: $(STAMP)
	$(BIN)/ruff check src envs experiments benchmarks tests tools

types: $(STAMP)
	$(BIN)/mypy

# In an environment of its own: the site's packages have nothing to do with the library's.
docs: .venv-docs/.installed
	.venv-docs/bin/mkdocs build --strict

.venv-docs/.installed: pyproject.toml
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python -m pip install --quiet --disable-pip-version-check 'mkdocs-material>=9.6' 'mkdocstrings[python]>=0.30' ruff
	@touch $@

clean:
	rm -rf $(VENV) .venv-docs .jax_cache runs build dist site
