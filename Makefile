# make train: set up, make the mini corpus, train, test and export a Sumformer.
# make test:  set up and run every test but the slowest, which make test-slow runs.
# make clean: remove what these made, but for corpora (data) and trained models (results).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SETUP := $(VENV)/.setup

.PHONY: train test test-slow lint clean

train: $(SETUP)
	$(BIN)/python train.py hparams/sumformer.yaml

PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4

test: $(SETUP)
	$(PYTEST) --dist loadfile -m 'not slow' --cov --cov-report=term --durations=15

test-slow: $(SETUP)
	$(PYTEST) -m slow --durations=15

lint: $(SETUP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .coverage*

$(SETUP): setup.cfg pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 10) else "Python %d.%d is too old: 3.10 or later is needed; make PYTHON=python3.x" % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --upgrade --quiet pip
	$(BIN)/python -m pip install --quiet --editable '.[mini,dev]'
	touch $@
