"""Names of studies and rows never lead out of their folder, and long ones still fit."""

import pytest
from tuned import written

from lsa_study import rundir
from lsa_study.config import names, study
from lsa_study.config.remember import remember
from lsa_study.errors import ConfigError
from lsa_study.launch.records import chosen_runs
from lsa_study.rundir import RunDir

BAD = ("../out", "/out", "w/o bias", "a b", ".", "..", ".hidden", "-out", "a*", "a,b", "~", "", "é")


@pytest.mark.parametrize("name", BAD)
def test_a_path_is_no_name(tmp_path, name):
    path = written(tmp_path, ("  whole: {label", f"  {name!r}: {{label"), ("row: whole", "row: x"),
                   ("baseline: whole", "baseline: tuned"))  # fmt: skip
    with pytest.raises(ConfigError, match=r"tuned\.yaml:\d+: variants\..*cannot be a name; give"):
        study.load_study(path)
    path = written(tmp_path, ("study: tuned", f"study: {name!r}"))
    with pytest.raises(ConfigError, match=r"tuned\.yaml:2: study: .*cannot be a name; give"):
        study.load_study(path)


def test_a_run_folder_is_made_under_a_good_name_alone(tmp_path):
    run = study.load_study(written(tmp_path)).runs()[0]
    folder = RunDir(tmp_path / "runs" / ".." / "out")
    with pytest.raises(ConfigError, match="cannot be a name"):
        folder.create(run.settings, variant="../out")
    assert [path.name for path in tmp_path.iterdir()] == ["tuned.yaml"]
    with pytest.raises(ConfigError, match="give an identity"):
        folder.sibling("*/../../out")


def test_long_names_are_cut_and_stay_apart(tmp_path):
    one, other = ("n" * 400 + end for end in "ab")
    long = written(
        tmp_path, ("study: tuned", f"study: {one}"), ("  tuned:\n", f"  {one}:\n"),
        ("against: tuned", f"against: {one}"), ("  whole: {", f"  {other}: {{"),
        ("row: whole", f"row: {other}"), ("baseline: whole", f"baseline: {other}"),
    )  # fmt: skip
    loaded = study.load_study(long, seeds=[names.LONGEST**4])
    made = [run.name for run in loaded.runs()]
    assert len(set(made)) == 2
    assert all(len(name) < 200 for name in made)
    for run in loaded.runs():
        folder = RunDir(rundir.runs_folder(tmp_path, "toy") / run.name)
        folder.create(run.settings, variant=run.variant, start=run.start)
    remember(tmp_path, [loaded])
    assert {run.name for run in chosen_runs(tmp_path, [str(long)])} == set(made)


def test_todays_names_stay_as_they_are():
    for stem in study.ARTICLE:
        for run in study.load_study(stem).runs():
            assert run.name == f"{run.variant}-s0-{run.identity}"
