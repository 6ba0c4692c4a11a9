# Two commands do all on a fresh machine: `make study` and `make test`. Both set up what they need.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Where `make study` writes; git ignores it.
RESULTS ?= out
# Runs trained side by side, each on its share of the cores; a toy run takes about 1 GB.
JOBS ?= $(shell $(PYTHON) -c 'import os; print(min(2, os.cpu_count()))')
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
	@echo 'Setting up $(VENV): some minutes, 6 GB, of which 5 are torch for NVIDIA GPUs.'
	@command -v nvidia-smi >/dev/null || echo 'No GPU here: README.md says how to take the smaller torch.'
	$(BIN)/python -m pip install --disable-pip-version-check --editable '.[dev]'
	@echo 'Compiling the C++ kernels: a minute.'
	$(BIN)/python -c 'import lsa_kernels; print(lsa_kernels.build_info())'
	@touch $@

study: setup
	$(BIN)/lsa run all --tier toy --again --jobs $(JOBS) --results $(RESULTS)
	$(BIN)/lsa run ddf_table3 --only base,ddf --as filters --tier toy --again --jobs $(JOBS) \
	  --results $(RESULTS)
	$(BIN)/lsa run stem --only patchify_05_short,conv_bn_relu_05_short --as stems --tier toy \
	  --again --jobs $(JOBS) --results $(RESULTS)
	$(BIN)/lsa table all filters stems --tier toy --results $(RESULTS)
	$(BIN)/lsa plots all filters stems --tier toy --results $(RESULTS)
	$(BIN)/lsa report all filters stems --tier toy --results $(RESULTS)
	@echo
	@echo 'All is in $(RESULTS)/toy; open $(RESULTS)/toy/report.html in a browser. To go on:'
	@echo '  . $(BIN)/activate'
	@echo '  lsa why table3 net6_n --results $(RESULTS)       # what one row rests on'
	@echo '  lsa run table1 --set train.epochs=4 --as short --results $(RESULTS)'
	@echo '  lsa explain train.epochs                   # and any other setting'

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
