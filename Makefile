# Everything happens in a virtual environment of this folder: nothing else on the machine is touched.
#
#   make demo     install what is missing, then learn a style, transfer it, and say where the sheet of pictures is
#   make test     install what is missing, then check style and types, and run the tests
#   make format   put the style right
#   make wheel    build the wheel into dist/
#   make clean    remove the environment and everything that was built
#
# TORCH_INDEX_URL chooses another build of PyTorch, such as the small one for the CPU only; TORCH_SPEC another version:
#   make test TORCH_INDEX_URL=<the index of the CPU builds>
#   make test TORCH_SPEC=torch TORCH_INDEX_URL=<the index of the builds for another CUDA>

PYTHON ?= python3
VENV ?= .venv
TORCH_SPEC ?=
TORCH_INDEX_URL ?=

BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip --disable-pip-version-check
INSTALLED = $(VENV)/.installed
CODE = src recipes benchmarks tests
CONSTRAINTS = $(if $(TORCH_SPEC),,--constraint constraints.txt)

.PHONY: demo test lint types pytest format wheel clean
.DELETE_ON_ERROR:

test: lint types pytest

demo: $(INSTALLED)
	$(BIN)/inst demo

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed: make PYTHON=...") if sys.version_info < (3, 11) else 0'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing PyTorch: with CUDA's libraries (the default on Linux) about 3 GB to download and 7 GB on disk;"
	@echo "a CPU build about 0.2 GB to download: set TORCH_INDEX_URL to an index of CPU builds."
	$(PIP) install $(CONSTRAINTS) $(if $(TORCH_INDEX_URL),--index-url "$(TORCH_INDEX_URL)") "$(or $(TORCH_SPEC),torch)"
	@echo "Installing the other libraries: about 0.2 GB."
	$(PIP) install $(CONSTRAINTS) --editable ".[dev,eval]"
	@touch $@

lint: $(INSTALLED)
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)

types: $(INSTALLED)
	$(BIN)/mypy

# Many small models: more is gained by several processes than by threads within one.
pytest: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses auto --maxprocesses 4

format: $(INSTALLED)
	$(BIN)/ruff check --fix $(CODE)
	$(BIN)/ruff format $(CODE)

wheel: $(INSTALLED)
	$(PIP) wheel --no-deps --wheel-dir dist .

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache
	find $(CODE) -name __pycache__ -prune -exec rm -rf {} +
