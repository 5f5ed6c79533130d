# make train: set up, make the mini corpus, train, test and export a Sumformer.
# make test:  set up and run every test but the slowest, which make test-slow runs.
# make coverage: make test, and which lines it does not reach; takes twice as long.
# make gpu:   set up, run the tests that need a GPU, and measure it: docs/gpu/<its name>.
# make docs:  set up, and make the site: docs/_build/index.html.
# make clean: remove what these made, but for corpora (data) and trained models (results).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SETUP := $(VENV)/.setup

.PHONY: train test test-slow coverage gpu lint docs clean

train: $(SETUP)
	$(BIN)/python train.py hparams/sumformer.yaml

PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4

test: $(SETUP)
	$(PYTEST) --dist loadfile -m 'not slow' --durations=15

test-slow: $(SETUP)
	$(PYTEST) -m slow --durations=15

coverage: $(SETUP)
	$(PYTEST) --dist loadfile -m 'not slow' --cov --cov-report=term

NAME = $$($(BIN)/python -c 'import torch; print(torch.cuda.get_device_name().replace(" ", "-"))')
PAPER := LibriSpeech/ASR/transformer
SYSTEMS := $(addprefix $(PAPER)/,sumformer sumformer_published branchformer_attention) branchformer_rotary
SIZE := num_encoder_layers=18 d_model=512 csgu_linear_units=3072 mixer_heads=8 num_decoder_layers=1

gpu: $(SETUP)
	$(BIN)/python -c 'import sys, torch; sys.exit(None if torch.cuda.is_available() else "make gpu: torch finds no GPU here")'
	$(BIN)/python -m pytest -m gpu
	mkdir -p docs/gpu/$(NAME)
	$(BIN)/summarymixing benchmark cell --device cuda --form plain causal chunks selective \
	    > docs/gpu/$(NAME)/cell_inference.csv
	$(BIN)/summarymixing benchmark cell --device cuda --form plain causal chunks selective --train \
	    > docs/gpu/$(NAME)/cell_training.csv
	for precision in fp32 bf16; do \
	    $(BIN)/summarymixing benchmark systems $(SYSTEMS) --set $(SIZE) --device cuda \
	        --precision $$precision --csv docs/gpu/$(NAME)/systems_$$precision.csv \
	        --plot docs/gpu/$(NAME)/systems_$$precision.png || exit 1; \
	done

lint: $(SETUP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

docs: $(SETUP)
	$(BIN)/sphinx-build -W --keep-going -n -E -q -c docs . docs/_build

clean:
	rm -rf $(VENV) build dist docs/_build *.egg-info .pytest_cache .ruff_cache .coverage*

$(SETUP): setup.cfg pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 10) else "Python %d.%d is too old: 3.10 or later is needed; make PYTHON=python3.x" % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --upgrade --quiet pip
	$(BIN)/python -m pip install --quiet --editable '.[mini,dev]'
	touch $@
