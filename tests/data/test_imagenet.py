"""ImageNet's folders: real files, real worker processes."""

import errno
import multiprocessing
import os
import signal
import subprocess

import numpy as np
import pytest
import torch

from lsa_study import data
from lsa_study.data import imagenet, paths
from lsa_study.data.paths import DataLacks

CLASSES = {"n01": 3, "n02": 1, "n03": 2}


@pytest.fixture
def root(tmp_path, encoded):
    """Six training images in three classes and three test images; sizes differ, one is grey."""
    number = 0
    for split, counts in (("train", CLASSES), ("val", dict.fromkeys(CLASSES, 1))):
        for name, count in counts.items():
            folder = tmp_path / "imagenet" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                number += 1
                content = encoded(number, height=60 + number, width=70 - number, form="JPEG")
                (folder / f"{name}_{i}.JPEG").write_bytes(content)
            (folder / "notes.txt").write_text("not an image")
    return tmp_path


@pytest.fixture
def small(settings, root):
    def make(**changes):
        return settings(
            "paper", **{"data__root": root, "data__image_size": 32, "data__train_limit": 100,
            "train__batch_size": 2, "runtime__workers": 0, **changes},
        )  # fmt: skip

    return make


def images_of(sets, epoch=0):
    return torch.cat([batch.images for batch in sets.train(sets.epoch(epoch, 2))])


def test_the_list_takes_classes_in_turn(small, root):
    layout = paths.layout_of_imagenet(root)
    train, _ = imagenet.listings(layout)
    assert [name.decode() for name in train.names] == [
        "n01/n01_0.JPEG", "n02/n02_0.JPEG", "n03/n03_0.JPEG", "n01/n01_1.JPEG", "n03/n03_1.JPEG",
        "n01/n01_2.JPEG",
    ]  # fmt: skip
    assert train.labels.tolist() == [0, 1, 2, 0, 2, 0]
    sets = data.load(small(data__train_limit=3))
    assert (sets.source.train_images, sets.source.test_images) == (3, 3)
    assert sets.source.num_classes == 3
    few = data.load(small(data__test_limit=2))
    assert few.source.test_images == 2
    assert [rows.tolist() for rows, _, _ in few.test(2)] == [[0, 1]]


def test_an_incomplete_set_is_refused_with_counts(small, root):
    with pytest.raises(DataLacks) as told:
        data.check(small(data__train_limit="null"))
    words = str(told.value)
    assert "train has 6 images in 3 classes, expected 1,281,167 in 1000: 1,281,161 missing" in words
    assert "the smallest class is n02 with 1" in words


@pytest.mark.parametrize("crop", ["random_resized", "pad", "none"])
def test_images_do_not_depend_on_the_number_of_workers(small, crop):
    alone = images_of(data.load(small(augment__crop=crop)))
    helped = images_of(data.load(small(augment__crop=crop, runtime__workers=2)))
    assert alone.shape == (6, 3, 32, 32)
    assert torch.equal(alone, helped)
    other = images_of(data.load(small(augment__crop=crop)), epoch=1)
    assert not torch.equal(alone, other)


def test_an_epoch_goes_on_where_it_was_left(small):
    sets = data.load(small())
    whole = list(sets.train(sets.epoch(0, 2)))
    rest = list(sets.train(sets.epoch(0, 2, first_step=1)))
    assert [batch.step for batch in rest] == [1, 2]
    for one, other in zip(whole[1:], rest, strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.targets, other.targets)


def test_test_images_are_resized_and_cropped_as_the_article_says(small, root):
    """Shorter side to floor(size / share), bicubic, then the centre: by Pillow alone."""
    from PIL import Image

    sets = data.load(small(evaluation__crop_share=0.9))
    ((rows, images, labels),) = sets.test(8)
    assert (rows.tolist(), labels.tolist()) == ([0, 1, 2], [0, 1, 2])
    picture = Image.open(root / "imagenet" / "val" / "n01" / "n01_0.JPEG")
    width, height = picture.size
    short = 35
    size = (
        (short, int(short * height / width))
        if width < height
        else (int(short * width / height), short)
    )
    resized = np.asarray(picture.resize(size, Image.Resampling.BICUBIC)) / 255
    top, left = round((size[1] - 32) / 2), round((size[0] - 32) / 2)
    crop = resized[top : top + 32, left : left + 32]
    want = ((crop - imagenet.MEAN) / imagenet.STD).transpose(2, 0, 1)
    np.testing.assert_allclose(images[0].numpy(), want, atol=1e-5)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_is_named(small, root, workers):
    path = root / "imagenet" / "train" / "n02" / "n02_0.JPEG"
    path.write_bytes(path.read_bytes()[:300])
    sets = data.load(small(runtime__workers=workers))
    with pytest.raises(DataLacks, match="cannot be decoded") as told:
        images_of(sets)
    assert str(told.value).startswith(str(path))
    assert "Traceback" not in str(told.value)


# -- trees as they are found ----------------------------------------------------------------------


def test_hidden_files_of_desktops_and_notebooks_are_no_images(small, root, encoded):
    wanted = data.load(small()).source
    imagenet.listings.cache_clear()
    for split in ("train", "val"):
        for folder in (root / "imagenet" / split, root / "imagenet" / split / "n02"):
            for name in (".DS_Store", "._n02_0.JPEG", "._n09.parquet"):
                (folder / name).write_bytes(b"\0\5\26\7")
            (folder / ".ipynb_checkpoints").mkdir()
            (folder / ".ipynb_checkpoints" / "a-checkpoint.JPEG").write_bytes(encoded(1))
    assert data.load(small()).source == wanted


@pytest.mark.parametrize(
    ("gone", "named"),
    [
        (["train/n02"], "train/n02: holds no images; bring them back, or remove the folder here"),
        (["train/n02", "val/n02"], "train/n02: holds no images"),
        (["val/n01", "val/n02", "val/n03"], "val: holds no images"),
        (["val/n02"], None),
    ],
)
def test_labels_follow_the_names_of_folders(small, root, gone, named):
    for folder in gone:
        for path in (root / "imagenet" / folder).iterdir():
            path.unlink()
    if named is not None:
        with pytest.raises(DataLacks, match=named):
            data.check(small())
        return
    for listing in imagenet.listings(paths.layout_of_imagenet(root)):
        for name, label in zip(listing.names, listing.labels, strict=True):
            assert name.decode().startswith(["n01", "n02", "n03"][label])


def test_images_of_a_class_that_train_lacks_are_named(small, root):
    for path in (root / "imagenet" / "train" / "n02").iterdir():
        path.unlink()
    (root / "imagenet" / "train" / "n02").rmdir()
    with pytest.raises(DataLacks, match="val: holds n02; wanted are the same <wnid>/ folders"):
        data.check(small())


def test_what_only_has_the_name_of_an_image(small, root):
    """A lost link is named where it is read; a pipe is not waited for."""
    folder = root / "imagenet" / "train" / "n02"
    os.mkfifo(folder / "pipe.JPEG")
    assert data.load(small()).source.train_images == 6
    imagenet.listings.cache_clear()
    (folder / "lost.JPEG").symlink_to(folder / "nowhere")
    with pytest.raises(DataLacks, match=r"lost\.JPEG: cannot be decoded \(.*No such file"):
        images_of(data.load(small()))


# -- loading processes that fail ------------------------------------------------------------------


def test_a_full_shared_memory_is_reported(small, monkeypatch):
    def full(self):
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>")

    monkeypatch.setattr(torch.UntypedStorage, "_share_fd_cpu_", full)
    with pytest.raises(RuntimeError, match="unable to allocate shared memory"):
        images_of(data.load(small(runtime__workers=1)))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_no_loading_process_can_be_started(small, monkeypatch):
    def none(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(torch.multiprocessing, "Queue", none)
    with pytest.raises(RuntimeError, match=r"shared memory: .*Read-only"):
        images_of(data.load(small(runtime__workers=1)))


def test_a_batch_that_cannot_be_handed_over_is_not_waited_for(small, monkeypatch):
    def refused(*_):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(multiprocessing.reduction, "DupFd", refused)
    with pytest.raises(RuntimeError, match=r"DataLoader worker .* exited unexpectedly"):
        images_of(data.load(small(runtime__workers=1)))


# -- contents -------------------------------------------------------------------------------------


def test_strange_folders_are_refused(small, root):
    (root / "imagenet" / "val" / "n09").mkdir()
    with pytest.raises(DataLacks, match="holds n09; wanted are the same"):
        data.check(small())


def test_the_fingerprint_is_of_the_content(small, root, encoded):
    def fingerprint():
        imagenet.listings.cache_clear()
        return data.load(small()).source.fingerprint

    first = fingerprint()
    assert fingerprint() == first
    (root / "imagenet" / "train" / "n02" / "another.JPEG").write_bytes(encoded(1))
    assert fingerprint() != first


@pytest.mark.parametrize("split", ["train", "val"])
def test_the_fingerprint_covers_the_size_of_every_image(small, root, split):
    """Also of those whose content is not looked at."""

    def fingerprint():
        imagenet.listings.cache_clear()
        return data.load(small()).source.fingerprint

    first = fingerprint()
    last = sorted((root / "imagenet" / split).rglob("*.JPEG"))[-1]
    before = last.read_bytes()
    last.write_bytes(before + b"\0")
    assert fingerprint() != first
    last.write_bytes(before)
    assert fingerprint() == first


@pytest.mark.parametrize("workers", [0, 1])
def test_passes_do_not_disturb_each_other(small, workers):
    """One left half done, two at once: each gives its own images."""
    sets = data.load(small(runtime__workers=workers))
    wanted = images_of(sets)
    next(iter(sets.train(sets.epoch(1, 2))))
    assert torch.equal(images_of(sets), wanted)
    pairs = zip(sets.train(sets.epoch(0, 2)), sets.train(sets.epoch(0, 2)), strict=True)
    assert all(torch.equal(one.images, other.images) for one, other in pairs)
    assert torch.equal(images_of(sets), wanted)


def test_only_its_parent_ends_a_worker(small):
    """Signals to a terminal or a job reach workers too, which may hold a lock just then."""
    others = {*multiprocessing.active_children()}  # those of tests before
    sets = data.load(small(runtime__workers=1))
    wanted = images_of(sets)
    (worker,) = {*multiprocessing.active_children()} - others
    for name in ("INT", "TERM", "HUP", "USR1", "USR2"):
        subprocess.run(["kill", "-s", name, str(worker.pid)], check=True)
    assert torch.equal(images_of(sets), wanted)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()
    worker.terminate()
    worker.join(30)
    assert worker.exitcode == 0
