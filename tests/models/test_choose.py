"""``lsa bench --choose``: wrong ways are left out, tables of other machines are not read."""

import json
import warnings

import pytest
import torch

import lsa_kernels
from lsa_kernels import Eq4Inputs
from lsa_study.errors import ConfigError, EnvironmentLacks
from lsa_study.models import choose, throughput
from lsa_study.ops import choices, functional, reference

CPU = torch.device("cpu")
NEAR = choices.Case(
    "neighboring", (3, 3), ("softmax", "zero"), ("qk", "q_rk", "rq_k", "bias"), 2, (6, 7), 16, 2,
    torch.float32, True,
)  # fmt: skip
WINDOW = NEAR._replace(form="window", options=("softmax", "shifted"), map_size=(6, 6))
FILTERS = NEAR._replace(form="filters", options=(), terms=("add",))


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Tables go here; the kernels are loaded already."""
    lsa_kernels.build_info()
    monkeypatch.setenv("LSA_KERNELS_CACHE", str(tmp_path / "cache"))
    choices.forget()
    yield
    choices.forget()


@pytest.fixture
def followed(monkeypatch):
    """Let ``auto`` follow a table on a CPU as it does on a GPU."""
    monkeypatch.setattr(choices, "FOLLOWED", ("cpu",))


def write(cases, **changed):
    facts = choices.made_for(CPU)
    path = choices.path_of(facts)
    content = {
        "format": choices.FORMAT, "made": "2026-01-01T00:00:00+00:00", "made_for": facts,
        "cases": {str(case): {"way": way} for case, way in cases.items()}, "tiles": {},
    } | changed  # fmt: skip
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))
    choices.forget()
    return path


def attend(case, batch=1):
    tensors, _ = choose.inputs(case, batch, CPU)
    x = Eq4Inputs(*(t if t is None else t.requires_grad_(case.learns) for t in tensors))
    norm, border = case.options
    return functional.neighboring(x, norm, 3, border, 0.25, "auto")


# -- measuring -----------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [NEAR, WINDOW, FILTERS], ids=lambda case: case.form)
def test_every_way_that_is_right_is_timed_in_turns(case):
    found = choose.measured(case._replace(learns=False), CPU)
    timed = {*found["seconds"], *(w for w, why in found["left_out"].items() if "times as" in why)}
    assert timed == {*choices.WAYS[case.form]} - ({"sdpa"} if case is WINDOW else set())
    assert all(one["rounds"] >= 15 for one in found["seconds"].values())
    assert found["way"] in found["seconds"]


def test_a_way_that_cannot_is_left_out_with_its_reason():
    found = choose.measured(NEAR, CPU)
    assert "no backward on a CPU" in found["left_out"]["flex"]
    assert "bias alone" in choose.measured(WINDOW, CPU)["left_out"]["sdpa"]


SPOILS = {
    "a tap": lambda t: t.roll(1, 3),
    "a percent": lambda t: t * 1.01,
    "no number": lambda t: t * float("nan"),
    "a shape": lambda t: t[:, :1],
}


@pytest.mark.parametrize("spoil", SPOILS)
def test_a_way_that_is_wrong_is_left_out_and_named(spoil, monkeypatch):
    right = lsa_kernels.neighboring_attention
    monkeypatch.setattr(
        lsa_kernels, "neighboring_attention", lambda *g, **o: SPOILS[spoil](right(*g, **o))
    )
    found = choose.measured(NEAR, CPU)
    assert "fused" not in found["seconds"]
    assert found["way"] == "reference"
    expected = "Error" if spoil == "a shape" else "wrong: the output is off"
    assert expected in found["left_out"]["fused"]


def test_a_wrong_gradient_is_seen(monkeypatch):
    right = lsa_kernels.neighboring_attention

    def spoiled(*given, rel_bias, **options):
        # The output is as it was; the gradient of the bias is not.
        return right(*given, rel_bias=1.5 * rel_bias - 0.5 * rel_bias.detach(), **options)

    monkeypatch.setattr(lsa_kernels, "neighboring_attention", spoiled)
    assert "wrong: gradient 6" in choose.measured(NEAR, CPU)["left_out"]["fused"]


def test_nothing_is_measured_on_a_device_that_fails(monkeypatch):
    def broken(*given, **options):
        monkeypatch.setattr(torch, "zeros", broken)
        raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setattr(lsa_kernels, "neighboring_attention", broken)
    with pytest.raises(EnvironmentLacks, match="fails since fused was tried"):
        choose.measured(NEAR, CPU)


def test_networks_say_what_they_need_and_a_table_is_written(tmp_path):
    asked = {"size": 32, "batch": 1, "device": "cpu", "results": tmp_path}
    found = choose.choose(["elsa_swin_tiny"], seconds=0.0, **asked)
    assert len(found["cases"]) == 1
    assert any("filters 7 x 7, add, map 4 x 4, 6 heads of 32" in one for one in found["late"])
    table, reason = choices.table_of(CPU)
    assert reason is None
    assert table.ways == {case: one["way"] for case, one in found["cases"].items()}
    assert json.loads((tmp_path / "benchmarks" / "choices.json").read_text()) == found
    shown = choose.choose_text(found)
    assert "no time was left" in shown
    assert str(table.path) in shown
    assert table.digest in choices.said(CPU)
    # A second call keeps what the first one found.
    write({NEAR: "reference"})
    choose.choose(["elsa_swin_tiny"], seconds=0.0, **asked)
    assert choices.table_of(CPU)[0].ways.keys() == {str(NEAR), *found["cases"]}


def test_wrong_requests_are_refused(tmp_path):
    asked = {"size": 32, "batch": 1, "seconds": 0.0, "results": tmp_path}
    with pytest.raises(ConfigError, match="no such network"):
        choose.choose(["elsa_swin_tny"], device="cpu", **asked)
    with pytest.raises(ConfigError, match="no such device"):
        choose.choose([], device="tpu", **asked)
    if not torch.cuda.is_available():
        with pytest.raises(EnvironmentLacks, match="torch can use no GPU"):
            choose.choose([], device="cuda", **asked)
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(EnvironmentLacks, match="set LSA_KERNELS_CACHE"):
        choose.choose(["elsa_swin_tiny"], device="cpu", **asked)


# -- following -----------------------------------------------------------------------------------


def ways_taken(monkeypatch):
    taken = []
    for module, name in ((reference, "neighboring"), (lsa_kernels, "neighboring_attention")):
        right = getattr(module, name)

        def noted(*given, right=right, name=name, **options):
            taken.append(name)
            return right(*given, **options)

        monkeypatch.setattr(module, name, noted)
    return taken


def test_auto_takes_what_was_measured_for_the_case_alone(followed, monkeypatch):
    taken = ways_taken(monkeypatch)
    attend(NEAR)
    write({NEAR: "reference"})
    attend(NEAR)
    attend(NEAR, batch=3)  # of another class
    attend(NEAR._replace(learns=False))
    assert taken == [
        "neighboring_attention", "neighboring", "neighboring_attention", "neighboring_attention"
    ]  # fmt: skip


def test_a_chosen_way_that_cannot_take_the_inputs_is_passed_over(followed, monkeypatch):
    taken = ways_taken(monkeypatch)
    write({NEAR: "flex"})
    attend(NEAR)
    assert taken == ["neighboring_attention"]


def test_auto_on_a_cpu_stays_as_it_is(monkeypatch):
    taken = ways_taken(monkeypatch)
    write({NEAR: "reference"})
    attend(NEAR)
    assert taken == ["neighboring_attention"]


def test_windows_and_filters_follow_too(followed):
    tensors, _ = choose.inputs(WINDOW, 1, CPU)
    excluded = reference.shift_bands(6, 6, 3, (1, 1), CPU)
    x = Eq4Inputs(*(t.requires_grad_() for t in tensors))
    for way in ("reference", "fused"):
        write({WINDOW: way})
        assert functional._window_way(x, "softmax", (3, 3), excluded) == way
    plain = WINDOW._replace(terms=("qk",), learns=False)
    tensors, _ = choose.inputs(plain, 1, CPU)
    write({plain: "sdpa", WINDOW: "sdpa"})
    assert functional._window_way(Eq4Inputs(*tensors), "softmax", (3, 3), excluded) == "sdpa"
    assert functional._window_way(x, "softmax", (3, 3), excluded) != "sdpa"
    values, weights, mul, add = choose.inputs(FILTERS, 1, CPU)[0]
    write({FILTERS._replace(learns=False): "reference"})
    got = functional.apply_filters(values, weights, ghost_mul=mul, ghost_add=add, kernel_size=3)
    want = reference.apply_filters(values, weights, mul, add, 3)
    assert torch.equal(got, want)


def test_compiled_networks_follow_too(followed):
    write({NEAR._replace(learns=False): "reference"})
    case = NEAR._replace(learns=False)
    compiled = torch.compile(attend, backend="eager")
    with torch.no_grad():
        assert torch.equal(compiled(case), attend(case))


DAMAGE = {
    "half": (lambda path: path.write_bytes(path.read_bytes()[:90]), "is damaged"),
    "empty": (lambda path: path.write_text(""), "is damaged"),
    "list": (lambda path: path.write_text("[1]"), "is damaged"),
    "deep": (lambda path: path.write_text("[" * 100_000), "is damaged"),
    "folder": (lambda path: (path.unlink(), path.mkdir()), "cannot be read"),
    "way": (lambda path: write({NEAR: "sdpa"}), "no way is known"),
    "form": (lambda path: write({"walk 3 x 3": "fused"}), "no way is known"),
    "number": (lambda path: write({NEAR: 3}), "no way is known"),
    "tile": (lambda path: write({NEAR: "reference"}, tiles={"forward_kernel": -1}), "no way"),
    "version": (lambda path: write({NEAR: "reference"}, format=99), "no table of this version"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_table_is_ignored_with_a_line(damage, followed, monkeypatch):
    taken = ways_taken(monkeypatch)
    spoil, said = DAMAGE[damage]
    spoil(write({NEAR: "reference"}))
    choices.forget()
    with pytest.warns(UserWarning, match=said):
        attend(NEAR)
    attend(NEAR)
    assert taken == ["neighboring_attention"] * 2
    assert "lsa bench --choose" in choices.said(CPU)


@pytest.mark.parametrize("fact", ["device", "torch", "triton", "code"])
def test_a_table_of_another_machine_is_not_used(fact, followed, monkeypatch):
    """Neither by its name, which says what it was made with, nor if it was copied to ours."""
    taken = ways_taken(monkeypatch)
    other = choices.made_for(CPU) | {fact: "another"}
    write({NEAR: "reference"}, made_for=other)
    with pytest.warns(UserWarning, match=f"was made with another {fact}"):
        attend(NEAR)
    path = write({NEAR: "reference"}, made_for=other)
    path.rename(choices.path_of(other))
    choices.forget()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attend(NEAR)
    assert taken == ["neighboring_attention"] * 2


def test_what_was_chosen_is_named_of_the_kernels(monkeypatch):
    table = choices.read(write({NEAR: "reference"}), choices.made_for(CPU))
    monkeypatch.setattr(choices, "table_of", lambda device: (table, None))
    monkeypatch.setattr(lsa_kernels.gpu, "why_missing", lambda: None)
    monkeypatch.setattr(lsa_kernels.gpu, "why_no_tensor_cores", lambda area="": None)
    assert functional.kernels_on("cuda") == f"Triton kernels by table {table.digest}, tensor cores"
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "A card")
    assert throughput.machine(torch.device("cuda"))["kernels"].startswith("Triton kernels by table")


@pytest.mark.gpu
def test_on_a_gpu_a_case_is_measured(gpu):
    case = NEAR._replace(size=(7, 7), map_size=(14, 14), depth=32, dtype=torch.bfloat16)
    found = choose.measured(case, gpu)
    wrong = {way: why for way, why in found["left_out"].items() if "wrong" in why}
    assert not wrong
    if gpu.type == "cuda":
        assert "fused" in found["seconds"] or "times as long" in found["left_out"]["fused"]
        assert "flex" not in found["left_out"] or "times as long" in found["left_out"]["flex"]
        assert torch.cuda.get_device_name(gpu) in choices.made_for(gpu)["device"]
