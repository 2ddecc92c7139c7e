# make demo    the loop model and the iris model, rewritten and not, on this machine
# make test    all tests and the examples of the docstrings
# make fuzz    generated models against the graph as written, for FUZZ_SECONDS (600) or
#              until there are FUZZ_MODELS
# make lint    ruff and mypy
# make docs    the documentation, which is executed, into docs/_build/html; its links are checked
# make bench   the benchmark in short; `make bench BENCH_ARGS=` runs all of it
#
# Each target creates .venv with what it needs; all that must be there is Python >= 3.12, found
# as python3, python3.12, python3.13, python3.14 or named by `make test PYTHON=/path/to/python`.

VENV := .venv
BIN := $(VENV)/bin
PYTEST_ARGS ?= -n 2 --dist loadfile
BENCH_ARGS ?= --short
FUZZ_SECONDS ?= 600
FUZZ_MODELS ?=
PYTHON ?=

CANDIDATES := $(or $(PYTHON),python3 python3.12 python3.13 python3.14 python)
SUITABLE := import sys, venv, ensurepip; sys.exit(not (3, 12) <= sys.version_info < (3, 15))
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test fuzz lint docs bench clean
.DELETE_ON_ERROR:

demo: $(VENV)/installed-bench
	$(BIN)/python -m benchmarks.demo

test: $(VENV)/installed-test
	$(BIN)/python -m pytest $(PYTEST_ARGS)

fuzz: $(VENV)/installed-test
	FUZZ_SECONDS=$(FUZZ_SECONDS) FUZZ_MODELS=$(FUZZ_MODELS) $(BIN)/python -m tests.generated.fuzz

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/installed-docs
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs docs/_build/html
	$(BIN)/python docs/check_links.py docs/_build/html

bench: $(VENV)/installed-bench
	$(BIN)/python -m benchmarks.run $(BENCH_ARGS)

clean:
	rm -rf $(VENV) docs/_build

# the package in editable mode with one dependency group of pyproject.toml
$(VENV)/installed-%: $(VENV)/created pyproject.toml
	@echo "Installing the package and its group '$*' into $(VENV) (a few minutes at first)"
	@$(PIP_INSTALL) --editable . --group $*
	@touch $@

# `pip install --group` needs pip >= 25.1, and Python 3.12 brings an older one
$(VENV)/created:
	@for python in $(CANDIDATES); do \
	    if $$python -c '$(SUITABLE)' >/dev/null 2>&1; then \
	        echo "Creating $(VENV) with $$($$python -V)"; \
	        $$python -m venv $(VENV) && $(PIP_INSTALL) --upgrade 'pip>=25.1' && touch $@; \
	        exit; \
	    fi; \
	done; \
	echo "None of these is a Python 3.12 to 3.14 with its venv module: $(CANDIDATES)." >&2; \
	echo "Install one (on Debian and Ubuntu with python3-venv), or name it:" >&2; \
	echo "    make $(or $(MAKECMDGOALS),demo) PYTHON=/path/to/python3.12" >&2; \
	exit 1
