"""The C++ kernels under AddressSanitizer and UBSan: nothing is read or written out of bounds."""

import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from exactness import LANES

from lsa_kernels import build

DRIVER = Path(__file__).with_name("sanitize.cpp")
# -O0: every access is checked as written, and most of the test is the compiler's time.
FLAGS = (
    "-O0", "-std=c++17", "-march=native", "-fopenmp", "-fsanitize=address,undefined",
    "-fno-sanitize-recover=all", "-DLSA_FEW_SIZES",
)  # fmt: skip

SEED, RANDOM = 0, 1000
"""Cases of random sizes and strides; the last seed that a failure prints repeats it alone."""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler (g++) is on PATH")
@pytest.mark.parametrize("lanes", LANES)
def test_no_access_out_of_bounds(lanes, tmp_path):
    sources = [DRIVER, *sorted(build.SOURCES.rglob("*.cpp"))]

    def compile_one(source):
        made = tmp_path / f"{source.stem}.o"
        flags = (*FLAGS, f"-DLSA_LANES={lanes}")
        subprocess.run(["g++", *flags, "-c", source, "-o", made], check=True)
        return made

    with ThreadPoolExecutor() as pool:
        objects = list(pool.map(compile_one, sources))
    program = tmp_path / "sanitized"
    subprocess.run(["g++", *FLAGS, *objects, "-o", program], check=True)
    # Threads that wait for others must not keep a core busy.
    environment = os.environ | {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "passive"}
    command = [program, str(SEED), str(RANDOM)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    grid, refused, random, refused_too = map(int, re.findall(r"\d+", done.stdout))
    assert grid > 800
    assert random == RANDOM
    assert refused == refused_too == 0
