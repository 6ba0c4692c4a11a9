"""Grids and samples: which rows they make, how they are compared, what is refused."""

import contextlib
import math
import random

import pytest
import yaml
from in_process import answer

from lsa_study.cli.options import Selection
from lsa_study.config import contrast, names, study
from lsa_study.config.grid import expand
from lsa_study.config.layers import known_paths
from lsa_study.config.points import titles
from lsa_study.config.remember import remember
from lsa_study.config.yaml import read
from lsa_study.errors import ConfigError, Refused

OP = {"kind": "unified", "terms": ["qk", "bias"], "application": "neighboring", "norm": "softmax"}
SIZE, NORM, RATE = "model.op.size", "model.op.norm", "train.lr"
GRID = {SIZE: [3, 5, 7], NORM: ["softmax", "filter_norm"]}
SAMPLE = {
    "n": 12, "seed": 4, RATE: {"low": 1e-4, "high": 1e-2, "log": True},
    SIZE: [3, 5, 7], "train.epochs": {"low": 1, "high": 3},
}  # fmt: skip


@pytest.fixture
def write(tmp_path):
    """Writes an experiment file outside the repository; None leaves a key out."""
    (tmp_path / "none.csv").write_text("model,acc1\n")

    def written(**changes):
        document = {
            "study": "own", "title": "Own", "question": "Which?",
            "article": {"csv": "none.csv", "source": "none"}, "set": {"model.op": OP},
        } | changes  # fmt: skip
        path = tmp_path / "own.yaml"
        path.write_text(yaml.safe_dump(document, sort_keys=False))
        return path

    return written


def references(loaded):
    return {row: loaded.reference_of(row) for row in loaded.variants}


def mistakes(path, **how):
    with pytest.raises(ConfigError) as caught:
        study.load_study(path, **how)
    return caught.value.mistakes


def test_rows_are_the_product_and_readable(write):
    loaded = study.load_study(write(grid=GRID))
    assert [*loaded.variants] == [
        "size-3_norm-softmax", "size-3_norm-filter_norm", "size-5_norm-softmax",
        "size-5_norm-filter_norm", "size-7_norm-softmax", "size-7_norm-filter_norm",
    ]  # fmt: skip
    assert loaded.file.variants["size-5_norm-filter_norm"].label == "size 5, norm filter_norm"
    op = loaded.variants["size-5_norm-filter_norm"].model.op
    assert (op.size, op.norm, op.terms) == (5, "filter_norm", ("qk", "bias"))
    assert loaded.file.factor == [SIZE, NORM]
    assert loaded.file.baseline == "size-3_norm-softmax"


def test_a_row_is_compared_with_the_one_that_differs_in_one_factor(write):
    loaded = study.load_study(write(grid=GRID))
    assert references(loaded) == {
        "size-3_norm-softmax": "size-3_norm-softmax",
        "size-3_norm-filter_norm": "size-3_norm-softmax",
        "size-5_norm-softmax": "size-3_norm-softmax",
        "size-5_norm-filter_norm": "size-3_norm-filter_norm",
        "size-7_norm-softmax": "size-3_norm-softmax",
        "size-7_norm-filter_norm": "size-3_norm-filter_norm",
    }
    contrast.check_contrast(loaded)
    for row, other in references(loaded).items():
        found = contrast.differing_rows((loaded, row), (loaded, other))
        assert len(found) == (row != other)


def test_the_baseline_is_a_row_by_its_values(write):
    loaded = study.load_study(write(grid=GRID, baseline="size-5_norm-filter_norm"))
    assert loaded.file.baseline == "size-5_norm-filter_norm"
    assert references(loaded)["size-7_norm-softmax"] == "size-5_norm-softmax"
    assert references(loaded)["size-5_norm-softmax"] == "size-5_norm-filter_norm"
    assert next(iter(loaded.variants)) == "size-3_norm-softmax", "the order of values stands"


def test_written_rows_stand_before_those_of_a_grid(write):
    rows = {"plain": {"label": "Plain", "set": {"model.op.heads": "1", SIZE: 3}}}
    loaded = study.load_study(write(grid=GRID, variants=rows, baseline="plain"))
    assert next(iter(loaded.variants)) == "plain"
    assert len(loaded.variants) == 7
    assert references(loaded)["size-3_norm-softmax"] == "size-3_norm-softmax"
    contrast.check_contrast(loaded)
    loaded = study.load_study(write(grid=GRID, variants=rows, factor=["model.op.heads"]))
    assert references(loaded)["plain"] == "size-3_norm-softmax"
    contrast.check_contrast(loaded)
    confounded = {"plain": {"label": "P", "set": {"model.op.heads": "1", SIZE: 5}}}
    loaded = study.load_study(write(grid=GRID, variants=confounded, factor=["model.op.heads"]))
    with pytest.raises(Refused, match="plain also changes"):
        contrast.check_contrast(loaded)


def test_names_hold_any_value(write):
    grid = {
        "model.op": [OP, {"kind": "dwconv", "heads": "C"}],
        "train.clip_grad": [None, 0.5],
        RATE: [1e-05, 0.001],
    }
    loaded = study.load_study(write(grid=grid, set={}))
    assert "op-unified_clip_grad-none_lr-1e-05" in loaded.variants
    grid = {"model.op.terms": [["qk"], ["qk", "q_rk", "rq_k", "bias"]], "data.image_size": [28, 32]}
    first, *_, last = study.load_study(write(grid=grid)).variants
    assert first == "terms-qk_image_size-28"
    assert len(last) < 60
    assert names.short(last) == last
    grid = {"train.lr": [0.001, 0.002], "train.min_lr": [1e-5, 1e-6], "data.image_size": [28, 32]}
    assert "lr-0.001_min_lr-1e-05_image_size-28" in study.load_study(write(grid=grid)).variants


def test_settings_of_one_name_are_told_apart(write):
    grid = {"data.name": ["digits", "cifar10"], "model.op.size": [3, 5]}
    assert next(iter(study.load_study(write(grid=grid)).variants)) == "name-digits_size-3"
    assert titles(["a.b.size", "c.size", "lr"]) == {
        "a.b.size": "b.size", "c.size": "c.size", "lr": "lr",
    }  # fmt: skip


def test_a_grid_is_the_rows_written_out(write):
    """Identities are those of the same rows as variants."""
    rows = {
        f"size-{size}_norm-{norm}": {"label": "x", "set": {SIZE: size, NORM: norm}}
        for size in GRID[SIZE]
        for norm in GRID[NORM]
    }
    plain = study.load_study(
        write(variants=rows, factor=["model.op"], baseline="size-3_norm-softmax")
    )
    assert [run.name for run in plain.runs()] == [
        run.name for run in study.load_study(write(grid=GRID)).runs()
    ]


def test_all_mistakes_at_once(write):
    grid = {SIZE: [3, 3, "x"], NORM: ["softmax"], "train.lrr": [1, 2], "train": [1, 2],
            "seed": [0, 1], "runtime.workers": [0, 1]}  # fmt: skip
    found = "\n".join(mistakes(write(grid=grid)))
    for part in (
        "own.yaml:16: model.op.size: 3 is given twice",
        "model.op.norm: one value is no choice",
        "'train.lrr' is not a setting; did you mean train.lr?",
        "'train' is many settings at once",
        "'seed' makes no other row",
        "'runtime.workers' makes no other row",
        "own.yaml:19: model.op.size = 'x' is not a number; give one (in size-x_norm-softmax)",
    ):
        assert part in found, found


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"grid": 3}, "grid = 3 is not a group of settings; give"),
        ({"grid": {SIZE: 3}}, "grid.model.op.size = 3 will not do"),
        ({"grid": {}}, "variants is missing"),
        ({"grid": GRID, "sample": SAMPLE}, "sample beside a grid; give one of them"),
        ({"grid": {"model.op.sise": [3, 5]}}, "model.op.sise is not a setting; did you mean"),
        ({"grid": {SIZE: [4, 6]}}, "size=4: 'neighboring' centres"),
        ({"grid": GRID, "variants": {"size-3_norm-softmax": {"label": "x"}}}, "rename this one"),
        ({"sample": SAMPLE | {"n": 0}}, "sample.n = 0 will not do; give a number from 1"),
        ({"sample": SAMPLE | {"seed": "x"}}, "sample.seed = 'x' will not do"),
        ({"sample": {SIZE: [3, 5]}}, "sample.n is missing"),
        ({"sample": {"n": 3}}, "nothing to draw"),
        ({"sample": {"n": 3, SIZE: [3, 5]}}, "only 2 different rows were found; give n up to"),
        ({"sample": {"n": 3, RATE: {"low": 0, "high": 1, "log": True}}}, "low 0 has no logarithm"),
        ({"sample": {"n": 3, RATE: {"low": 2, "high": 1}}}, "low 2 is not below high 1"),
        ({"sample": {"n": 3, RATE: {"low": math.nan, "high": 1}}}, "low = nan is not a number"),
        ({"sample": {"n": 3, RATE: {"hi": 2}}}, "hi is not known"),
        ({"sample": {"n": 3, RATE: 7}}, "7 is nothing to draw from; give a list"),
        ({"grid": GRID, "baseline": {SIZE: 3}}, "baseline = a group of settings will not do"),
        ({"sample": SAMPLE, "groups": {"sample": [RATE]}}, "rename this group"),
        ({"grid": GRID, "baseline": [1]}, "baseline = [1] will not do"),
        ({"grid": GRID, "baseline": "size-4_norm-softmax"}, "is not a variant; did you mean size-"),
        ({"sample": SAMPLE | {"train.epochs": {"low": 1.0, "high": 3.5}}}, "train.epochs = "),
    ],
)  # fmt: skip
def test_what_is_refused(write, changes, said):
    found = "\n".join(mistakes(write(**changes)))
    assert said in found, found
    assert "own.yaml" in found


def test_too_many_rows(write):
    many = {RATE: [value / 1e5 for value in range(1, 202)]}
    (said,) = mistakes(write(grid=many))
    assert "201 rows; give fewer values, or allow up to 10,000 with --yes" in said
    assert len(study.load_study(write(grid=many), many=True).variants) == 201
    huge = {key: [*range(1, 1001)] for key in (RATE, "train.epochs", "data.train_limit", SIZE)}
    (said,) = mistakes(write(grid=huge), many=True)[:1]
    assert "1,000,000,000,000 rows; give fewer values" in said
    assert "--yes" not in said
    named = "lr-2_epochs-1_train_limit-1_size-1"
    assert "rows; give fewer values" in mistakes(write(grid=huge, baseline=named), many=True)[0]


def test_a_sample_is_the_same_for_the_same_seed(write):
    rows = [*study.load_study(write(sample=SAMPLE)).variants]
    assert len(set(rows)) == 12
    assert rows == [*study.load_study(write(sample=SAMPLE)).variants]
    assert rows == [*study.load_study(write(sample=SAMPLE | {"n": 20})).variants][:12]
    assert rows != [*study.load_study(write(sample=SAMPLE | {"seed": 5})).variants]


def test_what_is_drawn(write):
    loaded = study.load_study(write(sample=SAMPLE | {"n": 200}))
    rates = [one.train.lr for one in loaded.variants.values()]
    assert all(1e-4 <= rate <= 1e-2 for rate in rates)
    assert sum(rate < 1e-3 for rate in rates) in range(75, 126), "half of the logarithms"
    assert {one.train.epochs for one in loaded.variants.values()} == {1, 2, 3}
    assert {one.model.op.size for one in loaded.variants.values()} == {3, 5, 7}
    assert {*references(loaded).values()} == {next(iter(loaded.variants))}
    contrast.check_contrast(loaded)
    assert loaded.file.factor == ["sample"]
    even = study.load_study(write(sample={"n": 200, RATE: {"low": 0.001, "high": 0.1}}))
    rates = [one.train.lr for one in even.variants.values()]
    assert sum(rate < 0.05 for rate in rates) in range(75, 126)


def test_a_sample_beside_a_written_baseline(write):
    rows = {"plain": {"label": "Plain"}}
    loaded = study.load_study(write(sample=SAMPLE, variants=rows, baseline="plain"))
    assert {*references(loaded).values()} == {"plain"}
    contrast.check_contrast(loaded)
    wrong = {"plain": {"label": "Plain", "set": {"train.weight_decay": 0.5}}}
    loaded = study.load_study(write(sample=SAMPLE, variants=wrong, baseline="plain"))
    with pytest.raises(Refused, match=r"also changes train\.weight_decay"):
        contrast.check_contrast(loaded)


def test_a_grid_of_the_command_line(write):
    path = write(grid=GRID)
    loaded = study.load_study(path, grid=[f"{SIZE}=3,9", f"{RATE}=1.0e-3,2.0e-3"])
    assert len(loaded.variants) == 8, "its values take the place of the file's"
    assert "size-9_norm-softmax_lr-0.002" in loaded.variants
    alone = study.load_study(write(), grid=["model.op.terms=[qk],[qk,bias]"])
    assert [*alone.variants] == ["terms-qk", "terms-qk+bias"]
    for wrong in ("x", f"{SIZE}=", "=3", f"{SIZE}=3]"):
        assert f"--grid {wrong}" in mistakes(path, grid=[wrong])[0]
    assert "--grid model.op.size=5" in mistakes(path, grid=[f"{SIZE}=5"])[0]


def test_own_claims_are_about_the_rows_of_the_file(write):
    path = write(grid=GRID, claims=[{"id": "one"}])
    document = read(path)
    assert expand(document).document.data["claims"] == [{"id": "one"}]
    assert expand(document, [f"{RATE}=0.1,0.2"]).document.data["claims"] == []


def test_written_rows_are_repeated_at_each_of_its_points():
    loaded = study.load_study("table3", grid=[f"{SIZE}=3,5"], only="net7*,swin")
    assert [*loaded.variants][:2] == ["swin_size-3", "swin_size-5"]
    assert loaded.file.variants["swin_size-5"].label == "Swin-T, size 5"
    own = study.load_study("table3")
    for row in loaded.variants:
        before, _, size = row.rpartition("_size-")
        assert loaded.variants[row].model.op.size == int(size)
        reference = f"{own.reference_of(before)}_size-3" if size == "3" else f"{before}_size-3"
        assert loaded.reference_of(row) == reference
        same = own.variants[before].model.op.model_dump() | {"size": int(size)}
        assert loaded.variants[row].model.op.model_dump() == same
    contrast.check_contrast(loaded)


def test_the_command_refuses_and_writes_nothing(write, capfd):
    path = write(grid=GRID)
    before = {*path.parent.iterdir()}
    many = ",".join(str(value) for value in range(1, 100))
    for command in (f"run own.yaml --grid {SIZE}=3", f"run own.yaml --grid train.epochs={many}"):
        code, out, told = answer(path.parent, command, capfd)
        assert (code, out) == (2, ""), told
        assert "Traceback" not in told
    assert {*path.parent.iterdir()} == before
    code, out, told = answer(path.parent, f"plan own.yaml --grid train.epochs={many} --yes", capfd)
    assert code == 0, told
    assert "594 variants x 1 seed" in out


def test_no_grid_ends_in_a_traceback(write):
    """Whatever stands in a grid or a sample: rows, or mistakes."""
    chance = random.Random(1)
    values = [None, True, 3, 0.5, -1, math.inf, "x", [], [1, 1], [3, 5], {"low": 1, "high": 2}, {}]
    keys = [*known_paths(), "n", "seed", "low", "", "model.op.x"]
    for _ in range(300):
        group = {chance.choice(keys): chance.choice(values) for _ in range(chance.randint(0, 3))}
        changes = {chance.choice(["grid", "sample"]): group}
        for key in ("baseline", "variants", "factor", "groups"):
            if chance.random() < 0.3:
                changes[key] = chance.choice([*values, {"a": chance.choice([*values, {
                    chance.choice(["label", "set", "against"]): chance.choice(values)
                }])}])  # fmt: skip
        path = write(**changes)
        flags = [f"{SIZE}=3,5"] if chance.random() < 0.5 else []
        with contextlib.suppress(ConfigError):
            assert study.load_study(path, grid=flags).variants


def test_a_grid_that_was_asked_for_is_not_the_study_itself(write):
    """Its settings and seeds are of its own rows."""
    path = write(grid=GRID)
    results = path.parent / "results"
    how = {"results": results, "overrides": ["train.epochs=1"], "seeds": "0-4"}
    (side,) = Selection([str(path)], "toy", grid=[f"{RATE}=0.1,0.2"], **how).load()
    remember(results, [side])
    assert side.name.startswith("own-epochs-1-lr-0-1-0-2-seeds-0-4-")
    (own,) = Selection([str(path)], "toy", results=results).load(recall=True)
    assert (own.name, own.overrides, own.seeds, own.about) == ("own", (), (0,), "")
    (again,) = Selection([side.name], "toy", results=results).load(recall=True)
    assert again.variants == side.variants
    assert again.seeds == side.seeds
