# Run `make` to see what there is to run. ARGS reaches the program: make test ARGS="-k replay", make demo ARGS="--help".
# JOBS=2 tests in two processes, each with brokers of its own: sooner, but tests of time need a machine with cores to spare.

SHELL := /bin/sh
PYTHON_IN_VENV := .venv/bin/python
ARGS ?=
JOBS ?= 0

.PHONY: help setup demo kafka test check bench clean
.DEFAULT_GOAL := help

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-7s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup:  ## Make .venv with Refold and its tools (Python 3.11+); at once when up to date
	@sh tools/setup.sh

demo: setup  ## Run a small federation on this machine, then rebuild and verify its models
	@$(PYTHON_IN_VENV) -m refold demo $(ARGS)

kafka: setup  ## Run a Kafka broker until Ctrl-C (ARGS="--nodes 3"); Java and Maven, or Docker, are needed
	@$(PYTHON_IN_VENV) -m refold.testing.kafka up $(ARGS)

check: setup  ## Lint, formatting, types and the direction of imports
	$(PYTHON_IN_VENV) -m ruff check .
	$(PYTHON_IN_VENV) -m ruff format --check .
	$(PYTHON_IN_VENV) -m mypy
	$(PYTHON_IN_VENV) -m pytest -q tests/unit/test_imports.py

test: check  ## All checks, then all tests, those on real brokers too (REFOLD_WITH_TORCH=1 adds torch and its tests)
	$(PYTHON_IN_VENV) -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

bench: setup  ## Run every benchmark (ARGS=--json for machines)
	@set -e; for program in benchmarks/[!_]*.py; do \
		[ -e "$$program" ] || { echo "no benchmarks yet"; break; }; \
		echo "$$program" >&2; $(PYTHON_IN_VENV) "$$program" $(ARGS); \
	done

clean:  ## Remove caches and build outputs; .venv stays
	rm -rf build dist demo-out .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name .venv -prune -o -name .git -prune -o -type d -name __pycache__ -exec rm -rf {} +
