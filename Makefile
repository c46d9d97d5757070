# Every target makes what it needs. `make` alone tells what there is.

VENV := .venv
BIN := $(VENV)/bin
HOST ?= 127.0.0.1
PORT ?= 8080
# Arguments for pytest, e.g. make test PYTEST="-k whiteout"
PYTEST ?=
# How many files of tests run side by side; 0 runs them in this process.
TESTERS ?= 4
# Where the benchmark writes its figures.
BENCH ?= bench.json
# The first Python on this machine that is new enough; make PYTHON=… names another.
PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3.14 python3; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
SOURCES := app.py setup.py endpoints formats data util test

.DEFAULT_GOAL := help
.PHONY: help run test check format install requirements bench clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: install ## serve on 127.0.0.1:8080 from SQLite and a folder; imports a demo image when the registry is empty
	@$(BIN)/python -m test.demo --url http://$(HOST):$(PORT)
	@$(BIN)/registry-verbs serve --host $(HOST) --port $(PORT)

test: check ## the checks and the whole suite
	$(BIN)/python -m pytest -n $(TESTERS) --dist loadfile --cov=util --cov=formats --cov-branch --cov-fail-under=95 $(PYTEST)

check: $(VENV)/.tools ## linter, formatting, types, direction of imports
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: $(VENV)/.tools ## write the sources as the linter wants them
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

install: $(VENV)/.installed ## .venv with registry-verbs in it

requirements: $(VENV)/.python ## pin anew what setup.py asks for (needs the network)
	$(BIN)/python -m venv var/pip-tools
	var/pip-tools/bin/pip install --quiet pip-tools
	CUSTOM_COMPILE_COMMAND='make requirements' var/pip-tools/bin/pip-compile $(COMPILE) $(EXTRAS) \
		--output-file requirements.txt setup.py
	CUSTOM_COMPILE_COMMAND='make requirements' var/pip-tools/bin/pip-compile $(COMPILE) $(EXTRAS) --extra dev \
		--constraint requirements.txt --output-file test/requirements.txt setup.py
EXTRAS := --extra postgres --extra mysql --extra celery --extra ldap --extra azure --extra swift
COMPILE := --quiet --upgrade --generate-hashes --strip-extras --allow-unsafe \
	--no-emit-index-url --no-emit-find-links --no-emit-trusted-host

bench: $(VENV)/.installed ## measure against the limit and the peers; a table, and bench.json
	$(BIN)/python -m test.bench $(BENCH)

clean: ## remove what was made here; the data under var/ stays
	rm -rf $(VENV) build dist *.egg-info .coverage* .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -prune -exec rm -rf {} +

# The pins are complete, so that nothing is resolved while installing: hence --no-deps.
$(VENV)/.tools: test/requirements.txt $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r test/requirements.txt
	@touch $@

$(VENV)/.installed: requirements.txt setup.py $(VENV)/.python
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r requirements.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

$(VENV)/.python:
	@if ! $(or $(PYTHON),false) -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then \
		echo "registry-verbs needs Python 3.11 or newer; this is `$(or $(PYTHON),python3) --version 2>&1`." >&2; \
		echo "Install one (Debian 12: apt-get install python3 python3-venv) or name it: make PYTHON=/path/to/python3" >&2; \
		exit 1; fi
	@if ! $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null; then \
		echo "$(PYTHON) cannot make a virtual environment (Debian: apt-get install python3-venv)." >&2; exit 1; fi
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@touch $@
