# `make demo` and `make test` are all that a new user needs; each installs what it lacks.
SHELL := /bin/bash
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
INSTALLED := .venv/installed

export HF_HUB_OFFLINE ?= 1
unexport PYTHONDONTWRITEBYTECODE

.PHONY: install demo test test-all test-fast hunt lint lock digests docs clean test-stack test-power

install: $(INSTALLED)

$(INSTALLED): pyproject.toml $(wildcard requirements/*.txt) requirements/install.py
	@$(PYTHON) requirements/install.py
	@touch $@

demo: install  ## the whole loop, once: train, register, promote, serve, flip, roll back
	@$(BIN)/python examples/demo.py

# Two files at a time, whatever the machine: each may start servers that take gigabytes.
SLOW := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test: test-fast  ## what an installation has to show: the quick ones, and each room's whole story on the real components
	@$(SLOW) -m "slow and story"

test-all: test-fast  ## everything
	@$(SLOW) -m slow

test-fast: lint  ## the quick ones, without training and vLLM: for the loop while you work
	@$(BIN)/python -m pytest -m "not slow" -n auto --maxprocesses 8

hunt: MINUTES ?= 30
hunt: TESTS ?= tests
hunt: install  ## the tests of chance, with other random numbers each time, for MINUTES
	@$(BIN)/python tests/hunt.py --minutes $(MINUTES) $(TESTS)

test-stack: install  ## docker-compose.yml for real, with podman; as root on Debian
	@$(BIN)/python tests/stack/run.py

test-power: install  ## faults are planted in a copy of the tree, one by one: do the tests notice? FAULTS="04 09" for some
	@$(BIN)/python tests/faults/run.py $(FAULTS)

lint: install
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache

lock: install  ## resolve the versions again, from pyproject.toml, with the hashes of their files
	@$(BIN)/python requirements/lock.py

digests:  ## write the digest that each image of others has now beside its tag; needs their registry
	@$(PYTHON) requirements/images.py

docs: install  ## the documentation, into site/
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict
	@echo "built into site/; to read it: $(BIN)/python -m http.server --directory site --bind 127.0.0.1"

clean:
	rm -rf .venv build dist site .mypy_cache .pytest_cache .ruff_cache .hypothesis
