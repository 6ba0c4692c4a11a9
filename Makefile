# Two commands do all on a fresh machine: `make study` and `make test`. Both set up what they need.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Runs trained side by side, each on its share of the cores; a toy run takes about 1 GB.
JOBS ?= 2
# Processes that test: one for each core and one more, since some tests wait; a further one where
# there is SLURM, whose tests take two and mostly wait.
WORKERS ?= $(shell $(PYTHON) -c \
  'import os, shutil; print(os.cpu_count() + 1 + bool(shutil.which("slurmctld")))')
READY := $(VENV)/.ready

.PHONY: setup study test check lowest clean

setup: $(READY)

# Renewed only when the packaging changes: a second call installs nothing.
$(READY): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	$(BIN)/python -c 'import lsa_kernels; print(lsa_kernels.build_info())'
	touch $@

study: setup
	$(BIN)/lsa run all --tier toy --jobs $(JOBS)
	$(BIN)/lsa table all --tier toy
	$(BIN)/lsa plots all --tier toy
	$(BIN)/lsa report all --tier toy

test: setup
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The lowest versions that pyproject.toml allows, in an environment of their own, and the tests that
# ask most of them. SHARED= installs torch's gigabytes too; else it is that of $(VENV).
LOWEST := .venv-lowest
SHARED ?= torch torchvision
lowest: setup
	$(BIN)/python tests/lowest.py $(LOWEST) --shared $(SHARED)
	PYTHONPATH=.:kernels $(LOWEST)/bin/python -m pytest -n 2 --dist loadgroup -o filterwarnings=default \
	  -m "not slow and not slurm" tests/pins tests/config tests/cli tests/analysis/test_tables.py \
	  tests/analysis/test_claims.py tests/analysis/test_collect.py tests/analysis/test_statistics.py \
	  tests/data/test_shards.py tests/data/test_fast_pil.py tests/ops/test_layers.py \
	  tests/models/test_registry.py

clean:
	rm -rf $(VENV) $(LOWEST) .mypy_cache .ruff_cache .pytest_cache
