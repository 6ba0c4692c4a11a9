"""Golden tensors for tests: ``@pytest.mark.golden("eq4_*")`` runs a test once for every such file.

The smaller files lie in tests/golden; the rest is looked for in a folder ``shared/golden`` beside
the repository. A test is made only for files that are here.
"""

import fnmatch
import json
import os
import subprocess
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import zygote
from slurm_summary import pytest_terminal_summary as pytest_terminal_summary

# Processes that share the cores must not each take them all; read before torch starts.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

GPU = os.environ.get("LSA_GPU_TESTS_ON", "cuda")
"""Where tests marked ``gpu`` compute; cpu shows that the tests themselves work."""

HERE = Path(__file__).resolve().parent / "golden"
SHARED = HERE.parent.parent.parent / "shared" / "golden"
FOLDERS = (HERE, SHARED, SHARED / "seeds")


def golden_file(name: str) -> Path | None:
    """Where a golden file is, or None."""
    found = (folder / f"{name}.npz" for folder in FOLDERS)
    return next((path for path in found if path.exists()), None)


class Golden:
    """One file: arrays by name, ``meta`` as a dictionary."""

    def __init__(self, name: str) -> None:
        self.name = name
        with np.load(golden_file(name)) as arrays:
            self.arrays = {key: arrays[key] for key in arrays if key != "meta"}
            self.meta = json.loads(str(arrays["meta"]))

    def __getitem__(self, key: str) -> np.ndarray:
        return self.arrays[key]

    def with_prefix(self, prefix: str) -> dict[str, np.ndarray]:
        """The arrays called ``prefix...``, without it."""
        start = len(prefix)
        return {key[start:]: a for key, a in self.arrays.items() if key.startswith(prefix)}


# Their tests share what takes long to make, so one worker runs them all; the longest begins.
TOGETHER = (
    "test_process.py", "test_released.py", "test_costs.py", "test_start.py", "test_pinned_json.py",
    "test_browser.py", "test_html.py", "test_run.py",
)  # fmt: skip


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist, in the process that hands tests out
def pytest_xdist_make_scheduler(config, log):
    """Groups by file, not by mark: pytest-xdist 3.8 loses its marks under pytest 9.2."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        groups: ClassVar[dict[str, str]] = {}

        def _split_scope(self, nodeid):
            path = Path(nodeid.partition("::")[0])
            if path.parent.name == "slurm":
                # Two clusters at most, however many workers there are: these tests mostly wait.
                return self.groups.setdefault(nodeid, f"slurm-{len(self.groups) % 2}")
            return path.name if path.name in TOGETHER else nodeid

    config.option.loadscopereorder = False  # as they are ordered below
    return Scheduling(config, log) if config.getvalue("dist") == "loadgroup" else None


def rank(item):
    """When a test begins: what others would wait for at the end goes first.

    Tests of SLURM mostly wait, beside tests that compute; then come long files, then long tests.
    """
    if item.get_closest_marker("slurm") is not None:
        return 0
    if item.path.name in TOGETHER:
        return 1 + TOGETHER.index(item.path.name)
    return 1 + len(TOGETHER) + (item.get_closest_marker("slow") is None)


def pytest_configure(config):
    if config.getoption("numprocesses", None):  # for all workers, before they start
        zygote.address()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    real = item.get_closest_marker("real_process") is not None
    subprocess.Popen = zygote.Real if real else zygote.Popen
    if item.get_closest_marker("gpu") is not None and GPU == "cuda":
        import torch

        if not torch.cuda.is_available():
            pytest.skip("no GPU here")


def lacks_its_file(item) -> bool:
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    return "golden" in parameters and parameters["golden"] is None


def pytest_collection_modifyitems(config, items):
    items[:] = [item for item in items if not lacks_its_file(item)]
    if "exhaustive" not in config.option.markexpr:
        items[:] = [item for item in items if item.get_closest_marker("exhaustive") is None]
    items.sort(key=rank)


def pytest_generate_tests(metafunc):
    if "golden" in metafunc.fixturenames:
        (marker,) = metafunc.definition.iter_markers("golden")
        names = (HERE / "index.txt").read_text().split()
        chosen = [n for n in names if any(fnmatch.fnmatchcase(n, g) for g in marker.args)]
        assert chosen, f"no golden file is called {marker.args}"
        here = [name for name in chosen if golden_file(name)]
        # An empty list would leave a test that skips; one of None is taken out below.
        metafunc.parametrize("golden", here or [None], indirect=True)


@pytest.fixture
def gpu():
    """The device of a test marked ``gpu``."""
    import torch

    return torch.device(GPU)


@pytest.fixture
def golden(request) -> Golden:
    return Golden(request.param)
