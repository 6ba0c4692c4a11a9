"""ImageNet in shards: the same images, order, draws and messages as from folders."""

from dataclasses import replace

import numpy as np
import pyarrow as arrow
import pytest
import torch
import typer
from pyarrow import parquet

from lsa_study import data
from lsa_study.cli import doctor
from lsa_study.data import imagenet, paths, shards
from lsa_study.data.paths import DataLacks

CLASSES = {"n00000001": 3, "n00000002": 1, "n00000003": 2}


@pytest.fixture
def pictures(encoded):
    """Split -> (class, file, content)."""
    rows = {"train": CLASSES, "val": dict.fromkeys(CLASSES, 1)}
    return {
        split: [
            (name, f"{name}_{9 + i}.JPEG", encoded(7 * i + len(split), 50 + i, 61, "JPEG"))
            for name, count in counts.items()
            for i in range(count)
        ]
        for split, counts in rows.items()
    }


@pytest.fixture
def root(tmp_path, pictures):
    for split, rows in pictures.items():
        for name, file, content in rows:
            folder = tmp_path / "folders" / "imagenet" / split / name
            folder.mkdir(parents=True, exist_ok=True)
            (folder / file).write_bytes(content)
    return tmp_path / "folders"


@pytest.fixture
def small(settings):
    def make(root, **changes):
        return settings(
            "paper", **{"data__root": root, "data__image_size": 32, "data__train_limit": 100,
            "train__batch_size": 2, "runtime__workers": 0, **changes},
        )  # fmt: skip

    return make


@pytest.fixture
def packed(root, tmp_path):
    assert shards.write_shards(root, tmp_path / "shards", images=4) == 3
    return tmp_path / "shards"


def batches(sets):
    return [(b.images, b.targets) for b in sets.train(sets.epoch(1, 2))] + [
        (images, labels) for _, images, labels in sets.test(2)
    ]


def test_every_layout_gives_the_same_batches(small, root, packed):
    plain = data.load(small(root))
    wanted = batches(plain)
    for workers in (0, 1):
        sets = data.load(small(packed, runtime__workers=workers))
        assert sets.source == plain.source
        for ours, theirs in zip(batches(sets), wanted, strict=True):
            assert all(map(torch.equal, ours, theirs))


def test_the_layout_of_data_set_hubs_is_read(small, root, pictures, tmp_path):
    """Paths as file_class.JPEG, many rows a group, classes counted from the files' numbers."""
    folder = tmp_path / "hub" / "imagenet"
    folder.mkdir(parents=True)
    numbers = dict(zip(CLASSES, (17, 400, 999), strict=True))
    for split, file_name in (("train", "train"), ("val", "validation")):
        rows = [
            {
                "image": {"bytes": content, "path": f"{file.removesuffix('.JPEG')}_{name}.JPEG"},
                "label": numbers[name],
            }
            for name, file, content in reversed(pictures[split])
        ]
        parquet.write_table(
            arrow.Table.from_pylist(rows), folder / f"{file_name}-00000-of-00001.parquet"
        )
    sets, plain = data.load(small(tmp_path / "hub")), data.load(small(root))
    # These shards do not say how large each image is, so they are no more than alike.
    known = plain.source.fingerprint
    assert sets.source.fingerprint != known
    assert replace(sets.source, fingerprint=known) == plain.source
    for ours, wanted in zip(batches(sets), batches(plain), strict=True):
        assert all(map(torch.equal, ours, wanted))


def test_the_fingerprint_covers_the_size_of_every_shard(small, packed):
    """Of shards that record no sizes of images, as data set hubs have them."""

    def fingerprint():
        imagenet.listings.cache_clear()
        shards._opened.cache_clear()  # a shard that is still open is read by its old footer
        return data.load(small(packed)).source.fingerprint

    first = sorted((packed / "imagenet").iterdir())[0]
    plain = parquet.read_table(first).drop_columns("size")
    parquet.write_table(plain, first, use_dictionary=False)
    before = fingerprint()
    assert fingerprint() == before
    parquet.write_table(plain, first, use_dictionary=False, row_group_size=1)
    assert fingerprint() != before


def test_files_are_found_in_split_folders_too(small, packed):
    home = packed / "imagenet"
    for split in ("train", "val"):
        (home / split).mkdir()
        for path in home.glob(f"{split}-*.parquet"):
            path.rename(home / split / path.name)
    layout = paths.layout_of_imagenet(packed)
    assert (layout.kind, len(layout.train), len(layout.test)) == ("parquet", 2, 1)
    assert data.load(small(packed)).source.train_images == 6


def test_two_layouts_are_refused(small, root, packed, monkeypatch):
    for path in (packed / "imagenet").iterdir():
        path.rename(root / "imagenet" / path.name)
    wanted = r": holds ImageNet as folders \(imagenet/train\) and parquet \(imagenet/train-00000"
    with pytest.raises(DataLacks, match=wanted):
        data.check(small(root))
    with pytest.raises(DataLacks, match="keep one of them"):
        data.require(small(root).data)
    monkeypatch.setenv("LSA_DATA", str(root))
    assert "keep one of them" in doctor._data()


def test_doctor_tells_the_layout(root, packed, monkeypatch):
    for place, words in (
        (root, "imagenet found as folders"),
        (packed, "imagenet found as parquet, 2 + 1 shards"),
        (root.parent, "imagenet missing (wants imagenet/train/<wnid>/"),
    ):
        monkeypatch.setenv("LSA_DATA", str(place))
        assert words in doctor._data()


def test_missing_images_are_counted(small, packed):
    with pytest.raises(DataLacks) as told:
        data.check(small(packed, data__train_limit="null"))
    words = str(told.value)
    assert "train has 6 images in 3 classes, expected 1,281,167 in 1000: 1,281,161 missing" in words
    assert "the smallest class is n00000002 with 1" in words


def test_a_damaged_row_is_named(small, packed):
    sets = data.load(small(packed))
    path = packed / "imagenet" / "train-00001-of-00002.parquet"
    content = path.read_bytes()
    start = content.index(b"\xff\xd8\xff")
    path.write_bytes(content[:start] + bytes(100) + content[start + 100 :])
    with pytest.raises(
        DataLacks, match=r"row \d of group 0 \(n0.*JPEG\): cannot be decoded"
    ) as told:
        batches(sets)
    assert str(told.value).startswith(str(path))


def write_split(root, labels, picture, split="train"):
    path = root / "imagenet" / f"{split}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    shards.write_parquet(path, [(f"{label}.JPEG", label, picture) for label in labels])


def test_shards_of_other_images_are_refused(small, tmp_path, encoded):
    picture = encoded(1, form="JPEG")
    write_split(tmp_path, [3], picture, "val")
    for labels, words in (
        ([], "train: holds no images"),
        ([-1], "train.parquet: some rows have no image.path or no label"),
        ([2], "val: holds images of class 3, of which train has none"),
    ):
        write_split(tmp_path, labels, picture)
        with pytest.raises(DataLacks) as told:
            data.check(small(tmp_path))
        assert words in str(told.value)


def test_strange_tables_are_refused(small, tmp_path):
    folder = tmp_path / "imagenet"
    folder.mkdir()
    for split in ("train", "val"):
        parquet.write_table(arrow.table({"label": [0]}), folder / f"{split}.parquet")
    with pytest.raises(DataLacks, match=r"train\.parquet: is damaged or holds something else"):
        data.check(small(tmp_path))
    for split in ("train", "val"):
        (folder / f"{split}.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataLacks, match=r"wanted are columns image"):
        data.check(small(tmp_path))


def test_folders_are_written_once(root, capsys):
    """By the command; what it wrote has the same names and bytes."""
    again = root.parent / "again"
    shards.main(root, again)
    assert "2 shards" in capsys.readouterr().out

    def refused(source, target):
        with pytest.raises(typer.Exit) as left:
            shards.main(source, target)
        return left.value.exit_code, capsys.readouterr().err

    code, message = refused(root, again)
    assert code == 3
    assert "holds ImageNet already; choose an empty folder" in message
    for source in (root.parent / "nowhere", again):  # which holds shards already
        code, message = refused(source, root.parent / "third")
        assert code == 3
        assert "holds no folders imagenet/train and imagenet/val" in message
    train = imagenet.listings(paths.layout_of_imagenet(again))[0]
    plain = imagenet.listings(paths.layout_of_imagenet(root))[0]
    np.testing.assert_array_equal(train.names, plain.names)
    assert [train.read(i) for i in range(6)] == [plain.read(i) for i in range(6)]


def test_an_image_that_cannot_be_read_is_named_and_no_shard_is_left(root, tmp_path):
    path = root / "imagenet" / "train" / "n00000002" / "n00000002_9.JPEG"
    path.unlink()
    path.mkdir()
    with pytest.raises(DataLacks, match=r"n00000002_9.JPEG: cannot be read \("):
        shards.write_shards(root, tmp_path / "shards")
    assert list((tmp_path / "shards" / "imagenet").iterdir()) == []
