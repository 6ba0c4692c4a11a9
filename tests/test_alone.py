"""Every module of the package can be the first one that a process imports."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FORKS = """
import contextlib, gc, importlib, os, sys, traceback
for name in ("torch", "torchvision.transforms.v2", "timm.optim", "timm.scheduler", "pandas",
             "pyarrow.parquet", "scipy.stats", "matplotlib.figure", "pydantic.json_schema",
             "submitit", "rich.progress", "jinja2", "typer", "triton.experimental.gluon"):
    with contextlib.suppress(ImportError):
        importlib.import_module(name)
# Imported anew in every fork, out of modules that stay: whoever is the first to do so has the
# study's networks registered.
for name, module in [*sys.modules.items()]:
    if name.partition(".")[0] == "timm" and name.count(".") < 2 and hasattr(module, "__path__"):
        del sys.modules[name]
gc.freeze()
failed = []
for group in sys.argv[1:]:
    names = group.split(",")
    for name in names:
        if child := os.fork():
            failed += [name] if os.waitpid(child, 0)[1] else []
            continue
        try:
            importlib.import_module(name)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    if not failed and group is not sys.argv[-1]:
        for name in names:
            importlib.import_module(name)
print(*failed)
"""
"""Modules are given in groups: those of one are there before the next ones are tried.

Importing torch and the like takes seconds, forking a process that has them milliseconds.
"""


def fails(*groups):
    """Those of the modules that a process cannot import before any other of their group."""
    done = subprocess.run(
        [sys.executable, "-c", FORKS, *(",".join(group) for group in groups)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    sys.stderr.write(done.stderr)
    return done.stdout.split()


def modules():
    for place, top in ((ROOT, "lsa_study"), (ROOT / "kernels", "lsa_kernels")):
        for path in sorted((place / top).rglob("*.py")):
            parts = path.relative_to(place).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


LAYERS = (
    ("config", "errors", "files", "machine", "vocabulary", "record", "terminal"),
    ("ops", "rundir", "by_image", "ownership"), ("measure", "models", "data"), ("training",),
)  # fmt: skip
"""As the arrows of the imports go: nothing of one imports anything of the next ones."""


def test_every_module_can_be_imported_first():
    every = [one for one in modules() if not one.startswith("lsa_kernels.gpu.")]
    layers = [
        [one for one in every if one.split(".")[1:2] and one.split(".")[1] in names]
        for names in LAYERS
    ]
    last = [one for one in every if not any(one in layer for layer in layers)]
    assert min(map(len, [*layers, last])) > 10
    assert fails(*layers, last) == []
