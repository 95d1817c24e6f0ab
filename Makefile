# make test and make demo set up all that they need on a machine that has make and python3 (3.10 or newer).

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
DEMO_READY := .venv/.demo-ready
export PATH := $(PATH):/usr/sbin:/usr/local/sbin
# Interpreters begin by the hundred in a run of the tests: what one has compiled is kept for the others.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help test soak bench docs demo dist lint programs clean
.NOTPARALLEL:

help:
	@echo "make test    all checks and tests (installs beanstalkd and haproxy if they are missing)"
	@echo "make soak    the random tests again, and a million simulated schedules, for some hours, with their figures"
	@echo "make bench   gstalk beside the raw limit and other clients, in a few minutes (ARGS=--help for more)"
	@echo "make docs    the documentation's site, in build/site"
	@echo "make demo    producer and consumer at work (installs the command line alone)"
	@echo "make dist    sdist and wheel, in dist, looked at as an index does"
	@echo "make lint    the checks alone"
	@echo "make clean   remove what these made"

# Most tests wait most of the time, so several run side by side. Those that assert how long something takes wait, too, but
# need a processor when they do not: there are two of them at a time.
test: lint programs
	$(BIN)/pytest -n 3 --dist worksteal -m "not timing"
	$(BIN)/pytest -n 2 --dist worksteal -m timing

soak: $(READY) programs
	GSTALK_LISTEN=1 $(BIN)/pytest -n 4 --dist worksteal -m "not timing" tests/io tests/faults
	GSTALK_SOAK=1 $(BIN)/pytest -m soak

bench: $(READY) programs
	$(BIN)/python -m pip install --quiet --editable '.[bench]'
	$(BIN)/python -m benchmarks $(ARGS)

docs: $(READY)
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet --fresh-env docs build/site
	@echo "open build/site/index.html"

demo: $(DEMO_READY)
	$(BIN)/python -m gstalk demo

dist: $(READY)
	$(BIN)/python -m pip install --quiet --editable '.[release]'
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*
	$(BIN)/check-wheel-contents dist/*.whl
	@# Full marks are 10. The last two are the owners' to give: see CONTRIBUTING.md.
	$(BIN)/pyroma --min=8 .

lint: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy gstalk tests examples

programs:
	.ci/provide beanstalkd haproxy

# Both install into the same environment: what the demo needs is a part of the whole, whichever is made first.
$(READY): setup.py | .venv/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[cli,docs,test]'
	@touch $(DEMO_READY) $@

$(DEMO_READY): setup.py | .venv/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[cli]'
	@touch $@

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
		|| { echo "gstalk: needs Python 3.10 or newer; name one: make PYTHON=python3.12 test" >&2; exit 1; }
	@# Debian ships python3 without ensurepip, and then leaves half of an environment behind.
	$(PYTHON) -m venv .venv || { rm -rf .venv; .ci/provide python3-venv && $(PYTHON) -m venv .venv; }

clean:
	rm -rf .venv build dist *.egg-info .coverage .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
