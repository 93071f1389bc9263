# On a fresh machine `make demo` and `make test` do all: they set up .venv first. Variables may be given on the command
# line: PYTHON (3.11 to 3.13), and TORCH, the torch that the tests install (a CUDA build of several GB on other
# machines; name the CPU build of your index instead).
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
export TF_CPP_MIN_LOG_LEVEL ?= 3
# A process more finds the package and the tests compiled by those before it, whatever the shell is set to.
unexport PYTHONDONTWRITEBYTECODE
PYTEST := $(BIN)/python -m pytest -q -p no:cacheprovider
ONE_THREAD := OMP_NUM_THREADS=1 TF_NUM_INTRAOP_THREADS=1

.PHONY: demo test quick test-tensorflow test-jax test-torch lint wheel-test soak clean

demo: $(VENV)/.base
	$(BIN)/seqlm demo

# All that CI runs. First what measures time, with nothing beside it; then the backends side by side, each with the
# output in a file of its own: all of them run whatever fails, and the files are shown at the end.
BACKENDS := tensorflow jax torch
SAID := build/tests
test: $(VENV)/.dev lint wheel-test
	rm -rf $(SAID) && mkdir -p $(SAID)
	@code=0; KERAS_BACKEND=tensorflow $(PYTEST) -m alone || code=$$?; \
	$(MAKE) --no-print-directory -k -j2 $(BACKENDS:%=test-%) || code=$$?; \
	for name in $(BACKENDS); do printf '\n===== %s\n' $$name; cat $(SAID)/$$name || code=1; done; \
	printf '\n===== in all\n'; for name in $(BACKENDS); do echo "$$name: $$(tail -n 1 $(SAID)/$$name)"; done; \
	exit $$code

# Two workers keep two cores busy: more threads in each would only wait for each other. JAX compiles what is equal once.
JAX_ONCE := JAX_COMPILATION_CACHE_DIR=$(CURDIR)/$(SAID)/jax_cache JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0 \
  JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES=-1
test-tensorflow test-jax test-torch: $(VENV)/.dev
	@mkdir -p $(SAID); name=$(@:test-%=%); echo "tests on $$name begin; what they say is in $(SAID)/$$name"; \
	case $$name in \
	  tensorflow) which="(not neutral or backends or tensorflow) and not soak and not alone" more="-n 2 --dist loadfile";; \
	  jax) which="backends and not tensorflow and not soak" more=;; \
	  torch) which="(backends or neutral) and not tensorflow and not soak" more=;; \
	esac; \
	KERAS_BACKEND=$$name $(ONE_THREAD) $(JAX_ONCE) $(PYTEST) -m "$$which" $$more --durations=10 > $(SAID)/$$name 2>&1; code=$$?; \
	echo "tests on $$name end: $$(tail -n 1 $(SAID)/$$name)"; exit $$code

# By hand, while you work: on TensorFlow alone, without what is slow, exports or starts other processes.
quick: $(VENV)/.dev lint
	KERAS_BACKEND=tensorflow $(ONE_THREAD) $(PYTEST) --quick -n 2 --dist loadfile --durations=10

# By hand, in an hour or two: trials at full scale, further cases of what `make test` runs a case of, and on TensorFlow
# also what it runs on torch alone.
soak: $(VENV)/.dev
	KERAS_BACKEND=tensorflow $(PYTEST) -m "soak or (neutral and not backends)"
	KERAS_BACKEND=jax $(PYTEST) -m "soak and backends"
	KERAS_BACKEND=torch $(PYTEST) -m "soak and (backends or neutral)"

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
