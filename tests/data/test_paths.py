"""Where data are looked for, and what is said when they are not there."""

import subprocess
import sys
from typing import get_args

import pytest

from lsa_study import data
from lsa_study.config import task
from lsa_study.config.values import IMAGES, DataName
from lsa_study.data.paths import TITLES, DataLacks


def test_all_that_must_be_known_of_a_set_is_known_of_every_name():
    from lsa_study.data.in_memory import SETS

    names = set(get_args(DataName))
    assert (
        names
        == IMAGES.keys()
        == TITLES.keys()
        == {*SETS, *task.SETS["detect"], *task.SETS["segment"], "imagenet"}
    )


def test_digits_need_nothing(settings):
    assert data.require(settings().data) == ()


def test_missing_data_name_the_place_and_who_gave_it(settings, tmp_path, monkeypatch):
    with pytest.raises(DataLacks, match=r"neither data\.root nor LSA_DATA is set"):
        data.require(settings("proxy").data)
    monkeypatch.setenv("LSA_DATA", str(tmp_path))
    with pytest.raises(DataLacks) as told:
        data.check(settings("proxy"))
    assert f"CIFAR-10 not found at {tmp_path}/cifar10 (from LSA_DATA)" in str(told.value)
    assert "set LSA_DATA or data.root; `lsa run table1 --tier toy` needs no data" in str(told.value)
    assert "cifar10/train.parquet and cifar10/test.parquet" in str(told.value)
    with pytest.raises(DataLacks, match=r"ImageNet not found at .*elsewhere/imagenet \(from data"):
        data.check(settings("paper", data__root=tmp_path / "elsewhere"))


def test_data_root_goes_before_the_environment(settings, tmp_path, monkeypatch):
    monkeypatch.setenv("LSA_DATA", str(tmp_path / "other"))
    folder = tmp_path / "mine" / "imagenet"
    for split in ("train", "val"):
        (folder / split).mkdir(parents=True)
    found = data.require(settings("paper", data__root=tmp_path / "mine").data)
    assert found == (folder / "train", folder / "val")


def test_one_missing_split_is_missing_data(settings, tmp_path):
    (tmp_path / "imagenet" / "train").mkdir(parents=True)
    with pytest.raises(DataLacks, match="imagenet/train and imagenet/val"):
        data.require(settings("paper", data__root=tmp_path).data)


def test_asking_needs_no_torch():
    code = "import sys, lsa_study.data; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
