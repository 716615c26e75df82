# Thin: everything here is one or two lines that you can also type yourself.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# The CPU build on Linux without a GPU; an unpinned torch pulls gigabytes of CUDA libraries.
TORCH ?= torch==2.13.0
MUTANTS ?= 10000
# Processes that share the tests out, on one thread each; 1.5 GB of memory for each.
WORKERS ?= 2

.PHONY: setup check format test wheel demo docs fuzz kills bench bench-precision bench-judge gpu clean

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$(TORCH)" -e ".[dev]"
	@touch $@

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Triton's interpreter runs the CUDA kernel in the tests; 0.3 GB that nothing else needs.
$(VENV)/.triton: $(VENV)/.ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[triton]"
	@touch $@

test: setup $(VENV)/.triton
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist worksteal

# Wheel and sdist; the wheel alone, in a clean environment, does a run.
wheel: setup
	$(BIN)/python .ci/wheel.py "$(TORCH)"

demo: setup
	$(BIN)/spin-llm run smollm2-135m --effort quick --output runs/demo

# Pages that are made from the code. `docs/picture.py` makes the picture of the example report.
docs: setup
	$(BIN)/python docs/generate.py

# Ten thousand damaged files a reader; MUTANTS=N for fewer.
fuzz: setup
	$(BIN)/python tests/fuzz --mutants $(MUTANTS)

# Two hundred kills in all, at random moments.
kills: setup
	$(BIN)/python tests/kills.py apply revert run search baseline paper --kills 34

bench: setup
	$(BIN)/python benchmarks/scoring.py
	$(BIN)/python benchmarks/generation.py

# On a machine with a GPU, with the torch and transformers that PYTHON has; eight minutes at most.
gpu:
	$(PYTHON) benchmarks/gpu.py

bench-precision: setup
	$(BIN)/python benchmarks/precision.py

bench-judge: setup
	$(BIN)/python benchmarks/judge.py

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
