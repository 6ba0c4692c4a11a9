"""Whatever a row of the paper tier begins from: where it is missing, nothing is queued."""

import io
import re

import pytest
from rich.console import Console

from lsa_study.config import study
from lsa_study.errors import EnvironmentLacks
from lsa_study.launch.cluster import Cluster
from lsa_study.launch.local import Queue
from lsa_study.launch.slurm import launch
from lsa_study.rundir import runs_folder

OWN = "train.start={study: table8}"
NOT = r"which has not been trained here"
LACKING = {
    "weights": ("table9", "mask_*_t_1x", (), [
        r"train\.start\.weights: .*/weights/swin_tiny_patch4_window7_224\.pth not found .*; put "
        "the weights there, begin from a row that is trained here",
        r"train\.start\.weights: .*/weights/elsa_swin_tiny\.pth\.tar not found \(from LSA_DATA\)",
    ]),
    "map": ("table8", "swin_large", (), [
        r"train\.start\.map: .*/map22kto1k\.txt not found .*; put the map",
    ]),
    "row": ("table8", "volo_d1_384", (), [
        rf"volo_d1_384-s0-\w+: begins from volo_d1 \(\w+\), {NOT}, so there are no weights; "
        "ask for that row too",
    ]),
    "study": ("table10", "swin_b,elsa_swin_b", (OWN,), [
        rf"swin_b-s0-\w+: begins from table8/swin_base \(\w+\), {NOT} at tier paper with seed 0; "
        "train that row of table8 first, or ask for it in the same call",
        rf"elsa_swin_b-s0-\w+: begins from table8/elsa_swin_base \(\w+\), {NOT}",
    ]),
}  # fmt: skip


def here(results, runs):
    Queue(results, jobs=1, console=Console(file=io.StringIO())).work(runs)


def on_a_cluster(results, runs):
    launch(runs, results, Cluster(check_data="here"), fit=True)


@pytest.mark.parametrize("begin", [here, on_a_cluster])
@pytest.mark.parametrize("kind", LACKING)
def test_all_that_is_missing_is_named(slurm, tmp_path, monkeypatch, kind, begin):
    table, only, overrides, lines = LACKING[kind]
    weights = tmp_path / "data" / "weights" / "imagenet21k"
    weights.mkdir(parents=True)
    (weights / "swin_large.pth").touch()
    monkeypatch.setenv("LSA_DATA", str(tmp_path / "data"))
    asked = [*overrides, "runtime.device=cpu", "train.precision=float32"]
    runs = study.load_study(table, tier="paper", only=only, overrides=asked).runs()
    with pytest.raises(EnvironmentLacks) as caught:
        begin(tmp_path / "results", runs)
    said = str(caught.value).splitlines()
    assert len(said) == len(lines)
    for line, wanted in zip(said, lines, strict=True):
        assert re.match(wanted, line), line
    assert not runs_folder(tmp_path / "results", "paper").exists()
    assert slurm.calls("sbatch") == []
