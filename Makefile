# All targets use a virtual environment in this folder. Nothing else on the machine is changed.
#
#   make demo     install missing libraries, then learn a style, transfer it, and print the path of the sheet
#   make test     install missing libraries, then check code style and types, and run the tests
#   make format   format the code
#   make wheel    build the wheel into dist/
#   make clean    remove the environment and all build results
#
# TORCH_INDEX_URL chooses another build of PyTorch, such as the small CPU build. TORCH_SPEC chooses another version:
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
	@echo "Installing PyTorch. With CUDA libraries (the default on Linux): about 3 GB to download and 7 GB on disk."
	@echo "A CPU build is about 0.2 GB to download: set TORCH_INDEX_URL to an index of CPU builds."
	$(PIP) install $(CONSTRAINTS) $(if $(TORCH_INDEX_URL),--index-url "$(TORCH_INDEX_URL)") "$(or $(TORCH_SPEC),torch)"
	@echo "Installing the other libraries: about 0.2 GB."
	$(PIP) install $(CONSTRAINTS) --editable ".[dev,eval,studio]"
	@touch $@

lint: $(INSTALLED)
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)

types: $(INSTALLED)
	$(BIN)/mypy

# The models are small, so several processes are faster than several threads.
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
