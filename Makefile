# make train   sets everything up and trains a GAN on handwritten digits (about three minutes on 2 cores)
# make test    sets everything up and runs the tests
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: train test test-medium test-slow lint types docs bench aot setup setup-dev clean

train: setup
	$(BIN)/python -m experiments.mnist_gan

test: setup-dev
	$(BIN)/python -m pytest

test-medium: setup-dev
	$(BIN)/python -m pytest --slow -m "medium and not slow"

test-slow: setup-dev
	$(BIN)/python -m pytest --slow

lint: setup-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup-dev
	$(BIN)/pyright --pythonpath $(BIN)/python

# The pages of docs/ and of the code, as a site: build/docs/index.html. Its search needs a server: `mkdocs serve`.
docs: setup-dev
	NO_MKDOCS_2_WARNING=1 JAX_PLATFORMS=cpu $(BIN)/python -m mkdocs build --strict --quiet

bench: $(VENV)/.bench
	$(BIN)/python -m benchmarks.mlp_gan

# Compiles for GPUs and TPUs, none of which is needed; AOT_FLAGS chooses programs and targets.
aot: .venv-aot/.done
	.venv-aot/bin/python -m benchmarks.aot $(AOT_FLAGS)

setup: $(VENV)/.run
setup-dev: $(VENV)/.dev

# Each stamp is renewed when its requirements change, so both commands can be repeated at no cost.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
	  { echo "error: $(PYTHON) is not Python 3.11, 3.12 or 3.13; try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }  # Debian's leaves one without pip

$(VENV)/.run: requirements.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

$(VENV)/.dev: requirements-dev.txt requirements-docs.txt requirements.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps "jax2onnx>=0.17.1,<0.18"
	@touch $@ $(VENV)/.run

$(VENV)/.bench: requirements-bench.txt requirements.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-bench.txt
	@touch $@

.venv-aot/.done: requirements-aot.txt requirements-aot-cuda.txt requirements.txt
	$(PYTHON) -m venv .venv-aot || { rm -rf .venv-aot; exit 1; }
	.venv-aot/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-aot.txt
	.venv-aot/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-aot-cuda.txt
	@touch $@

clean:
	rm -rf $(VENV) .venv-aot build dist *.egg-info .pytest_cache .ruff_cache
