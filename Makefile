# Four words: setup, check, test, bench; and demo, and chaos and soak, which take root and over an hour each. Each sets up what it needs.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
MINUTES ?= 60
TWO_AT_A_TIME := --numprocesses 2 --dist loadfile --no-loadscope-reorder

.PHONY: setup demo check test bench chaos soak

setup: .venv/ready

.venv/ready: requirements.txt requirements-export.txt requirements-video.txt requirements-loggers.txt requirements-tracing.txt requirements-dev.txt constraints.txt pyproject.toml
	test -x $(BIN)/pip || $(PYTHON) -m venv .venv || \
		($(PYTHON) -m venv --without-pip .venv && $(PYTHON) -m pip --python $(BIN)/python install pip)
	$(BIN)/pip install --quiet torch==2.13.0
	$(BIN)/pip install --quiet -r requirements.txt -r requirements-dev.txt -c constraints.txt
	$(BIN)/pip install --quiet --no-deps -e .
	touch .venv/ready

demo: setup
	$(BIN)/python jobs/train.py demo

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Tests of whole clusters start many processes, and run after the others, which each keep one core busy.
test: setup
	$(BIN)/python -m pytest $(TWO_AT_A_TIME) --ignore tests/cluster --ignore tests/chaos
	$(BIN)/python -m pytest $(TWO_AT_A_TIME) tests/cluster

bench: setup
	$(BIN)/python jobs/benchmark.py ingest

chaos: setup
	$(BIN)/python -m pytest -m chaos

soak: setup
	SOAK_MINUTES=$(MINUTES) $(BIN)/python -m pytest -m soak -o log_cli=true -o log_cli_level=INFO
