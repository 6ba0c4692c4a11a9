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

.PHONY: setup study test check clean

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

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache
