"""CIFAR-10 from parquet files in the layout of data set hubs, and from torchvision's folder."""

import hashlib
import io
import os
import pickle
import stat
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from pyarrow import parquet
from torchvision.datasets import CIFAR10

from lsa_study import data
from lsa_study.data import cifar, in_memory
from lsa_study.data.paths import DataLacks

LABELS = {"train": [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 3, 1], "test": [9, 0, 5]}


def write_parquet(path: Path, images: list[bytes], labels: list[int]) -> None:
    entries = [{"bytes": image, "path": None} for image in images]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"image": pa.array(entries, kind), "label": pa.array(labels, pa.int64())})
    parquet.write_table(table, path, row_group_size=5)


@pytest.fixture
def root(tmp_path, encoded):
    folder = tmp_path / "data" / "cifar10"
    folder.mkdir(parents=True)
    for offset, (split, labels) in enumerate(LABELS.items()):
        images = [
            encoded(100 * offset + i, form="JPEG" if i % 2 else "PNG") for i in range(len(labels))
        ]
        write_parquet(folder / f"{split}.parquet", images, labels)
    return folder.parent


def test_parquet_is_decoded_as_pillow_does(root, settings, encoded):
    sets = data.load(settings("proxy", data__root=root))
    assert (sets.source.train_images, sets.source.test_images) == (12, 3)
    found = in_memory._read("cifar10", data.require(settings("proxy", data__root=root).data))[0]
    assert found["train.labels"].tolist() == LABELS["train"]
    assert found["test.labels"].tolist() == LABELS["test"]
    for row, picture in enumerate(found["train.pixels"]):
        content = encoded(row, form="JPEG" if row % 2 else "PNG")
        want = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
        assert np.abs(picture.permute(1, 2, 0).numpy().astype(int) - want).max() <= row % 2


def test_decoded_pictures_are_cached_privately_and_read_back(root, settings, monkeypatch, tmp_path):
    asked = settings("proxy", data__root=root)
    first = data.load(asked)
    (cached,) = (tmp_path / "cache" / "lsa_study").iterdir()
    assert cached.name == f"{first.source.fingerprint}.safetensors"
    assert stat.S_IMODE(cached.parent.stat().st_mode) == 0o700
    monkeypatch.setattr(cifar, "_decoded", lambda *_: pytest.fail("decoded again"))
    in_memory._read.cache_clear()
    assert torch.equal(data.load(asked)._train, first._train)


def test_a_torn_cache_is_made_again(root, settings, tmp_path):
    asked = settings("proxy", data__root=root)
    first = data.load(asked)
    (cached,) = (tmp_path / "cache" / "lsa_study").iterdir()
    cached.write_bytes(cached.read_bytes()[:1000])
    in_memory._read.cache_clear()
    assert torch.equal(data.load(asked)._train, first._train)


def test_a_cache_that_cannot_be_written_costs_nothing(root, settings, monkeypatch, tmp_path):
    blocked = tmp_path / "blocked"
    blocked.write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    assert data.load(settings("proxy", data__root=root)).source.train_images == 12


def test_the_fingerprint_is_of_the_content(root, settings, encoded):
    def fingerprint():
        in_memory._read.cache_clear()
        return data.load(settings("proxy", data__root=root)).source.fingerprint

    first = fingerprint()
    path = root / "cifar10" / "test.parquet"
    before = path.read_bytes()
    write_parquet(path, [encoded(100), encoded(101, form="JPEG"), encoded(7)], LABELS["test"])
    assert fingerprint() != first
    path.write_bytes(before)
    assert fingerprint() == first


@pytest.mark.parametrize("damage", ["truncated", "text", "columns", "picture", "size", "label"])
def test_damage_is_told_before_training(root, settings, encoded, damage):
    path = root / "cifar10" / "train.parquet"
    good = [encoded(i) for i in range(12)]
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "text":
        path.write_text("not a table")
    elif damage == "columns":
        parquet.write_table(pa.table({"label": [1, 2]}), path)
    elif damage == "picture":
        write_parquet(path, [*good[:7], good[7][:200], *good[8:]], LABELS["train"])
    elif damage == "size":
        write_parquet(path, [*good[:7], encoded(7, height=16), *good[8:]], LABELS["train"])
    else:
        write_parquet(path, good, [*LABELS["train"][:-1], 10])
    words = {"picture": "image 7 of 12", "size": "image 7 of 12", "label": "labels from 0 to 10"}
    with pytest.raises(DataLacks, match=words.get(damage, "damaged")) as told:
        data.check(settings("proxy", data__root=root))
    assert str(path) in str(told.value)


def test_limits_take_the_first(root, settings):
    sets = data.load(settings("proxy", data__root=root, data__train_limit=5))
    assert sets._train_labels.tolist() == LABELS["train"][:5]
    assert sets.source.test_images == 3
    sets = data.load(settings("proxy", data__root=root, data__train_limit=5, data__test_limit=2))
    assert (sets.source.train_images, sets.source.test_images) == (5, 2)
    tested = torch.cat([labels for _, _, labels in sets.test(2)])
    assert tested.tolist() == LABELS["test"][:2]


@pytest.fixture
def batches(tmp_path, monkeypatch):
    """Torchvision's layout with four images a file; its checksums are those of these files."""
    folder = tmp_path / "data" / "cifar10" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    lists: dict[str, list[list[str]]] = {"train_list": [], "test_list": []}
    for number, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        pixels = np.random.default_rng(number).integers(0, 256, (4, 3072), dtype=np.uint8)
        content = pickle.dumps({"data": pixels, "labels": [number, 1, 2, 3]})
        (folder / name).write_bytes(content)
        kind = "test_list" if name == "test_batch" else "train_list"
        lists[kind].append([name, hashlib.md5(content).hexdigest()])
    content = pickle.dumps({"label_names": [str(i) for i in range(10)]})
    (folder / "batches.meta").write_bytes(content)
    meta = {
        "filename": "batches.meta",
        "key": "label_names",
        "md5": hashlib.md5(content).hexdigest(),
    }
    monkeypatch.setattr(CIFAR10, "meta", meta)
    for kind, entries in lists.items():
        monkeypatch.setattr(CIFAR10, kind, entries)
    return folder


def test_torchvisions_folder(batches, settings):
    asked = settings("proxy", data__root=batches.parent.parent)
    sets = data.load(asked)
    assert (sets.source.train_images, sets.source.test_images) == (20, 4)
    found = in_memory._read("cifar10", data.require(asked.data))[0]
    want = np.random.default_rng(2).integers(0, 256, (4, 3, 32, 32), dtype=np.uint8)
    assert np.array_equal(found["train.pixels"][8:12].numpy(), want)
    assert found["train.labels"][:5].tolist() == [0, 1, 2, 3, 1]


def test_torchvisions_folder_is_never_unpickled_when_its_checksum_is_wrong(batches, settings):
    """A pickle can run code; a file that is not the known one is not opened."""
    marker = batches / "executed"

    class Trap:
        def __reduce__(self):
            return (os.mkdir, (str(marker),))

    (batches / "data_batch_3").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(DataLacks, match="download=True"):
        data.load(settings("proxy", data__root=batches.parent.parent))
    assert not marker.exists()


REAL = os.environ.get("LSA_DATA")


@pytest.mark.skipif(
    REAL is None or not (Path(REAL) / "cifar10" / "train.parquet").exists(),
    reason="LSA_DATA holds no cifar10/train.parquet",
)
def test_the_real_files(settings):
    sets = data.load(settings("proxy", data__root=REAL))
    assert (sets.source.train_images, sets.source.test_images) == (50_000, 10_000)
    assert torch.bincount(sets._train_labels).tolist() == [5000] * 10
    pixels = sets._tests[0][0].float() / 255
    assert pixels.mean().item() == pytest.approx(0.47, abs=0.02)
