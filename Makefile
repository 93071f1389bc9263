# On a fresh machine `make demo` and `make test` do all: they set up .venv first. Variables may be given on the command
# line: PYTHON (3.11 to 3.13), and TORCH, the torch that the tests install (a CUDA build of several GB on other
# machines; name the CPU build of your index instead).
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
export TF_CPP_MIN_LOG_LEVEL ?= 3
PYTEST := $(BIN)/python -m pytest -q -p no:cacheprovider

.PHONY: demo test lint soak clean

demo: $(VENV)/.base
	$(BIN)/seqlm demo

test: $(VENV)/.dev lint wheel-test
	KERAS_BACKEND=tensorflow $(PYTEST) -m "not soak" --durations=15
	KERAS_BACKEND=jax $(PYTEST) -m "backends and not soak"
	KERAS_BACKEND=torch $(PYTEST) -m "backends and not soak"

soak: $(VENV)/.dev
	KERAS_BACKEND=tensorflow $(PYTEST) -m soak

lint: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

# The wheel holds all that a user imports: built, installed beside the dependencies, imported outside the checkout.
wheel-test: $(VENV)/.dev
	rm -rf build/wheel && $(BIN)/python -m pip wheel -q --no-deps --no-build-isolation -w build/wheel .
	$(BIN)/python -m pip install -q --no-deps --target build/wheel/site build/wheel/*.whl
	cd build/wheel && PYTHONPATH=site ../../$(BIN)/python -c "import keras_seqlm, seqlm_runtime, seqlm_cli, pathlib; \
	  assert 'build/wheel/site' in str(pathlib.Path(keras_seqlm.__file__).as_posix()), keras_seqlm.__file__; \
	  keras_seqlm.models.RecurrentLM(260, size='nano').build(); print('wheel', keras_seqlm.__version__, 'imports')"

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.base: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install -q -e .
	touch $@

$(VENV)/.dev: pyproject.toml $(VENV)/.base
	$(BIN)/python -m pip install -q "$(TORCH)" "setuptools>=77" wheel
	$(BIN)/python -m pip install -q -e ".[dev,jax,torch]"
	touch $@

clean:
	rm -rf build dist *.egg-info $(VENV)
