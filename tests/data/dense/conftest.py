"""Tiny trees in COCO's and ADE20K's layouts, and the settings that name them."""

import json

import pytest
import tiny_trees
import torch

from lsa_study.config.settings import Data
from lsa_study.data.dense import instances


@pytest.fixture(autouse=True)
def _read_anew():
    instances.read.cache_clear()
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # of many tests beside each other
    yield
    torch.set_num_threads(before)


@pytest.fixture
def coco_root(tmp_path):
    tiny_trees.write_coco(tmp_path)
    return tmp_path


@pytest.fixture
def change(coco_root):
    """Change the file of the training instances, or those that are named."""

    def do(action, *which):
        for split in which or ("train",):
            file = coco_root / "coco" / "annotations" / f"instances_{split}2017.json"
            content = json.loads(file.read_text())
            action(content)
            file.write_text(json.dumps(content))
        instances.read.cache_clear()

    return do


@pytest.fixture
def ade_root(tmp_path):
    tiny_trees.write_ade20k(tmp_path)
    return tmp_path


@pytest.fixture
def asked():
    """Settings of data; limited, as tiny trees are not whole."""

    def make(name, root=None, **changes):
        given = {"image_size": 96, "train_limit": 100, "test_limit": 100, "validation": None}
        return Data.model_construct(
            name=name, root=None if root is None else str(root), **(given | changes)
        )

    return make
