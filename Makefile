# make demo    the main job end to end on real data, on this machine
# make test    every check: format, lint, types, import contracts, tests
# make ui      the demo location in Dagster's own UI
# make bench   measurements beside their peers; NAMES="p8 p9" chooses, FULL=1 takes the large sizes
# make soak    the long tests
# make newest  tests on the newest Dagster, without dagster-aws
#
# The environment is made on the first use. PYTHON=/path/to/python chooses another interpreter (3.11 to 3.13).

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:

VENV := .venv
BIN := $(VENV)/bin
SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
PYTHON ?= $(shell for name in python3 python3.13 python3.12 python3.11; do \
	if $$name -c '$(SUPPORTED)' >/dev/null 2>&1; then echo $$name; break; fi; done)

# What is installed, as the files say it at that time: enough to run (`all`), or to run every check (`dev`).
INSTALLED_ALL := $(VENV)/.installed-all
INSTALLED_DEV := $(VENV)/.installed-dev
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

# Two processes use both cores of a small machine; `loadfile` keeps the servers that a file starts in one of them.
PYTEST_ARGS ?= -n 2 --dist loadfile
NAMES ?=
FULL ?=

.PHONY: help demo test lint types imports pytest chromium ui bench soak newest env format constraints clean

help:
	@sed -n 's/^# make /  make /p' Makefile

demo: $(INSTALLED_ALL)
	$(BIN)/snapshot-assets demo

test: lint types imports pytest

lint: $(INSTALLED_DEV)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(INSTALLED_DEV)
	$(BIN)/mypy

imports: $(INSTALLED_DEV)
	$(BIN)/lint-imports

# The last of the steps of `test`, so that its summary is what the output ends with.
pytest: $(INSTALLED_DEV) chromium
	$(BIN)/pytest $(PYTEST_ARGS)

# For the browser tests, which are skipped and say so where it is missing.
chromium:
	@command -v chromium >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && \
	  apt-get update --quiet=2 && \
	  DEBIAN_FRONTEND=noninteractive apt-get install --yes --quiet=2 --no-install-recommends chromium fonts-liberation; } || \
	  echo "Chromium is missing and could not be installed, so there are no browser tests" >&2

ui: $(INSTALLED_ALL)
	mkdir -p .dagster
	DAGSTER_HOME="$(CURDIR)/.dagster" $(BIN)/dagster dev -w workspace.yaml

bench: $(INSTALLED_DEV)
	$(BIN)/python -m benchmarks $(NAMES) $(if $(FULL),--full)

soak: $(INSTALLED_DEV)
	$(INSTALL) atheris
	$(BIN)/pytest -m soak --timeout=7200 --durations=20

# The newest dagster core, and no dagster-aws. The other packages of Dagster follow the core by days and pin it, so they
# come without what they ask for; everything else is as in the environment of the other checks.
NEWEST := $(VENV)-newest
NEWEST_TESTS ?= test_assets test_checks test_components test_dg_project test_imports test_maintenance test_reload test_sensor
NEWEST_DESELECT := tests/dagster/test_assets.py::TestMaterialization::test_credentials_may_come_from_dagster_aws

newest: $(INSTALLED_DEV)
	$(BIN)/python -m venv --clear $(NEWEST)
	$(BIN)/python -m pip freeze --exclude-editable | grep -v '^dagster' > $(NEWEST)/others.txt
	$(NEWEST)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --requirement $(NEWEST)/others.txt
	$(NEWEST)/bin/python -m pip install --quiet --disable-pip-version-check --upgrade dagster dagster-graphql
	$(NEWEST)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps dagster-cloud-cli dagster-dask \
	  dagster-dg-cli dagster-dg-core dagster-rest-resources dagster-webserver
	$(NEWEST)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	! $(NEWEST)/bin/python -c 'import dagster_aws' 2>/dev/null
	$(NEWEST)/bin/python -m pip freeze | grep '^dagster'
	$(NEWEST)/bin/pytest $(NEWEST_TESTS:%=tests/dagster/%.py) --deselect $(NEWEST_DESELECT)

env: $(INSTALLED_DEV)

format: $(INSTALLED_DEV)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The newest versions that pyproject.toml allows, written down.
constraints:
	rm -rf $(VENV)-constraints
	$(PYTHON) -m venv $(VENV)-constraints
	$(VENV)-constraints/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	{ sed -n '/^#/p' constraints.txt; \
	  $(VENV)-constraints/bin/python -m pip freeze --exclude-editable --exclude snapshot-assets; } > constraints.new
	mv constraints.new constraints.txt
	rm -rf $(VENV)-constraints

clean:
	rm -rf $(VENV) $(VENV)-constraints $(VENV)-newest .mypy_cache .ruff_cache .pytest_cache .import_linter_cache dist

$(INSTALLED_DEV): pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) --editable '.[dev]'
	touch $(INSTALLED_ALL) $@

$(INSTALLED_ALL): pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) --editable '.[all]'
	touch $@

# Debian keeps the part of venv that installs pip in a package of its own.
$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "Python 3.11, 3.12 or 3.13 is needed; give PYTHON=/path/to/it" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  package="$$($(PYTHON) -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')"; \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    apt-get update --quiet=2 && apt-get install --yes --quiet=2 "$$package"; \
	  else echo "Python's venv module is incomplete; install $$package" >&2; exit 1; fi; }
	$(PYTHON) -m venv $(VENV)
