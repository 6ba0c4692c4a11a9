"""What ``import lsa_study.ops`` costs beside torch."""

import subprocess
import sys

import torch

from lsa_kernels import build
from lsa_kernels.build import constant_in_graphs


def test_the_compiler_is_not_imported_with_the_operators():
    code = (
        "import sys, torch; before = {*sys.modules}; import lsa_study.ops\n"
        "new = {name.partition('.')[0] for name in sys.modules.keys() - before}\n"
        "assert 'torch._dynamo' not in sys.modules\n"
        "sys.exit(bool(new & {'sympy', 'triton', 'timm', 'pandas', 'scipy'}))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_functions_are_marked_as_torch_marks_them():
    def one():
        return "1"

    def other():
        return "1"

    assert vars(constant_in_graphs(one)) == vars(torch.compiler.assume_constant_result(other)) != {}


def test_a_graph_keeps_what_was_looked_up(monkeypatch):
    monkeypatch.setattr(build, "_built", lambda *_: build.Built(None, "no compiler"))

    @torch.compile(backend="eager", fullgraph=True)
    def none_here(x):
        return x + 1 if build.why_missing() else x

    assert none_here(torch.zeros(1)).item() == 1
