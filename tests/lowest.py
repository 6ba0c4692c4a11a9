"""The lower bounds of pyproject.toml: ``python tests/lowest.py VENV [--shared NAME...]``.

Makes an environment of its own with exactly the lower bounds of all dependencies, for a part of the
tests (``make lowest``). What is shared, such as torch with its gigabytes, and all that is no
dependency of the package (pytest) come from the environment that runs this.
"""

import argparse
import re
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def pins(dependencies):
    """``name>=version`` as ``name==version``, by name."""
    found = (re.fullmatch(r"([\w-]+)>=([\w.]+)", line) for line in dependencies)
    return {match[1]: f"{match[1]}=={match[2]}" for match in found}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("venv", type=Path)
    parser.add_argument("--shared", nargs="*", default=[])
    given = parser.parse_args()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    wanted = pins(project["dependencies"])
    for name in given.shared:
        del wanted[name]
    # It would bring a torch of its own.
    alone = [wanted.pop("timm")] if "torch" in given.shared else []
    subprocess.run([sys.executable, "-m", "venv", "--clear", given.venv], check=True)
    python = given.venv / "bin" / "python"
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--only-binary", ":all:", *wanted.values()], check=True)
    if alone:
        subprocess.run([*pip, "--no-deps", *alone], check=True)
    purelib = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    folder = subprocess.run(purelib, check=True, capture_output=True, text=True).stdout.strip()
    paths = (ROOT, ROOT / "kernels", sysconfig.get_path("purelib"))
    Path(folder, "others.pth").write_text("".join(f"{path}\n" for path in paths))


if __name__ == "__main__":
    main()
