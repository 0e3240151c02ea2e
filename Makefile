# Needs Python >= 3.10 and make; everything else goes into .venv, once.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.ONESHELL:

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
# Another interpreter: make PYTHON=/path/to/python3.12 ...
PYTHON ?=

.PHONY: help env demo test test-first test-rest test-types test-all lint style types format docs clean

help:
	@echo 'make demo      phantom -> plain and located nnU-Net -> demo/results.json, demo/figure.png'
	@echo 'make test      style, types, import floors and the tests (without the slow ones)'
	@echo 'make test-all  the same with the slow ones'
	@echo 'make lint      style, types, import floors'
	@echo 'make format    lets ruff repair the style'
	@echo 'make docs      builds the documentation into site/'
	@echo 'make clean     removes caches and build products; the environment stays (rm -r $(VENV))'

env: $(STAMP)

# The stamp is written last: an interrupted installation is taken up again by the next make. A change of the
# dependencies in pyproject.toml installs again.
$(STAMP): pyproject.toml
	@fits() { "$$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1; }
	if [ -x $(BIN)/python ] && fits $(BIN)/python && $(BIN)/python -m pip --version >/dev/null 2>&1; then
		echo "== environment: going on with $(VENV)"
	else
		found=
		for candidate in $(PYTHON) python3 python3.13 python3.12 python3.11 python3.10 python3.14 python; do
			if fits "$$candidate"; then found=$$candidate; break; fi
		done
		if [ -z "$$found" ]; then
			echo "error: no Python >= 3.10 with the venv module found (tried: $(PYTHON) python3 python3.10 ... python3.14 python)." >&2
			echo "Install one (Debian/Ubuntu: apt install python3 python3-venv) or name it: make PYTHON=/path/to/python" >&2
			exit 1
		fi
		echo "== environment: $(VENV) from $$found ($$($$found --version))"
		"$$found" -m venv --clear $(VENV)
	fi
	echo "== environment: installing the package with its tools (torch is large; several minutes the first time)"
	$(BIN)/python -m pip install --disable-pip-version-check -e '.[dev]'
	touch $(STAMP)
	echo "== environment: ready"

demo: $(STAMP)
	@$(BIN)/locctx demo

lint: style types

style: $(STAMP)
	@echo '== ruff check';   $(BIN)/ruff check .
	echo '== ruff format';   $(BIN)/ruff format --check .
	echo '== lint-imports';  $(BIN)/lint-imports --no-logo

types: $(STAMP)
	@echo '== mypy';          $(BIN)/mypy

# Two plain processes of about the same length on two cores, and mypy, which takes minutes without its cache.
QUICK := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m 'not slow'
FIRST := tests/integration tests/networks
# $(call shown,COMMAND,LOG): the output comes in one piece when the command has ended
shown = status=0; $(1) > $(2) 2>&1 || status=$$?; cat $(2); exit $$status

test: style
	@echo '== pytest, in two processes: $(FIRST) here; mypy and the other tests are shown when they have ended'
	$(MAKE) --no-print-directory -j3 test-types test-first test-rest

test-first: $(STAMP)
	@$(QUICK) $(FIRST)

test-rest: $(STAMP)
	@$(call shown,$(QUICK) tests $(addprefix --ignore ,$(FIRST)),.pytest_rest.log)

test-types: $(STAMP)
	@$(call shown,$(BIN)/mypy,.mypy.log)

test-all: lint
	@echo '== pytest, slow ones too'
	$(BIN)/python -m pytest

format: $(STAMP)
	@$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(VENV)/.docs: $(STAMP)
	@$(BIN)/python -m pip install --disable-pip-version-check -e '.[docs]'
	touch $@

docs: $(VENV)/.docs
	@PYTHONPATH=. $(BIN)/mkdocs build --strict

clean:
	@rm -rf build dist site .pytest_rest.log .mypy.log .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -path ./$(VENV) -prune -o -type d -name __pycache__ -print0 | xargs -0 rm -rf
