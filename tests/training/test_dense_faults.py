"""Detection and segmentation where things go wrong: losses, images, processes, disks."""

import re

import pytest
import torch
from lives import CASCADE, DETECT, SEGMENT, StopAfter, equal, weights_of
from test_ranks import together

from lsa_study import rundir
from lsa_study.config.task import OF_TASK
from lsa_study.data import sets
from lsa_study.data.dense import scenes
from lsa_study.data.dense.sets import DenseSets
from lsa_study.data.paths import DataLacks
from lsa_study.errors import EnvironmentLacks
from lsa_study.models.dense.boxes import Stage
from lsa_study.training import scores, tasks, train

ROWS = {"mask": DETECT, "cascade": CASCADE, "upernet": SEGMENT}
every_row = pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
WILD = {"train__lr": "1.0e+30", "train__warmup_epochs": 0}
FEW = "{name: scenes, image_size: 64, train_limit: 6, test_limit: 2}"


# -- numbers that are none --------------------------------------------------------------------


@every_row
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, "epoch 1, step 2: training loss (nan|inf)"),
        ({"train__batch_size": 8}, "epoch 1, after step 1: what the network finds is not finite"),
    ],
    ids=["by its loss", "in the last step of an epoch"],
)
def test_divergence_is_a_result(make_run, row, change, said):
    folder = make_run(**{**row, **WILD, **change})
    assert train(folder) == "diverged"
    result = folder.result()
    assert re.fullmatch(said + r" at lr \S+e\+\d+", result.reason)
    assert (result.score, result.metrics) == (None, {})
    assert folder.metrics() == []


@every_row
def test_nothing_found_is_a_score_of_0(make_run, monkeypatch, capfd, row):
    """Without a warning, which would be an error here, and with a picture."""
    find = Stage.postprocess_detections

    def nothing(self, *arguments):
        self.score_thresh = 1.1
        return find(self, *arguments)

    monkeypatch.setattr(Stage, "postprocess_detections", nothing)
    monkeypatch.setattr(scores, "overlaps", lambda answer, labels, n: torch.stack(
        [torch.zeros(n, dtype=torch.int64), torch.bincount(labels.flatten(), minlength=n)]
    ))  # fmt: skip
    folder = make_run(**row)
    assert train(folder) == "done"
    result = folder.result()
    assert set(result.metrics.values()) == {0.0}
    assert result.score == 0.0
    assert (result.epoch, result.metrics_missing) == (2, None)
    assert folder.seen_file.exists()
    assert capfd.readouterr() == ("", "")


def without_objects(keep):
    """Scenes of which some are empty."""
    whole = scenes.Scenes.__getitem__

    def some(self, index):
        image, target = whole(self, index)
        if keep(self.split, index):
            return image, target
        if self.task == "segment":
            return image, {"labels": torch.full_like(target["labels"], 255)}
        lists = ("boxes", "labels", "masks", "crowd")
        return image, target | {name: target[name][:0] for name in lists}

    return some


@every_row
def test_images_without_objects_are_learnt_from_and_judged(make_run, monkeypatch, row):
    monkeypatch.setattr(
        scenes.Scenes, "__getitem__", without_objects(lambda split, index: index % 2)
    )
    folder = make_run(**row)
    assert train(folder) == "done"
    assert all(0 < record["train_loss"] < 100 for record in folder.metrics())
    assert folder.result().metrics_missing is None


@every_row
def test_a_test_set_without_objects_gives_no_number(make_run, monkeypatch, row):
    """The run is kept, and says so; no file holds what JSON has no name for."""
    monkeypatch.setattr(
        scenes.Scenes, "__getitem__", without_objects(lambda split, index: split == "train")
    )
    folder = make_run(**row)
    assert train(folder) == "done"
    result, first = folder.result(), OF_TASK[folder.settings().task.kind][0]
    assert set(result.metrics.values()) == {None}
    assert f"{first} has no " in result.metrics_missing
    assert result.score is None
    assert not folder.image_scores_file.exists()
    assert f"no {first} after epoch 2; " in folder.status().message
    for name in ("metrics.jsonl", "result.json", "status.json"):
        assert "NaN" not in (folder.root / name).read_text()


# -- several processes ------------------------------------------------------------------------


def find_some():
    """In place of what is found: objects that stand there, some of them shifted or unsure."""

    def answers(test, answer, scale):
        found = []
        for number, row in enumerate(test.sets.test_split.annotations(test.index)):
            shift = (5 * test.index + number) % 4
            left, top, width, height = row["bbox"]
            code = row["segmentation"] | {"counts": row["segmentation"]["counts"].decode()}
            found.append({
                "image_id": row["image_id"], "category_id": row["category_id"],
                "bbox": [left + shift, top, width, height], "segmentation": code,
                "score": 1 / (2 + (7 * test.index + 3 * number) % 5),
            })  # fmt: skip
        return found

    scores.found_in = answers


@pytest.mark.parametrize(("row", "ranks"), [(DETECT, 2), (DETECT, 3), (SEGMENT, 3)])
def test_processes_judge_as_one_does(make_run, start, monkeypatch, row, ranks):
    """The same weights give the same numbers; of three processes one has no test image."""
    few = {"data": FEW if ranks == 3 else FEW.replace("test_limit: 2", "test_limit: 5")}
    folder = make_run(**{**row, **few, "train__batch_size": 6})
    assert together(start, folder, ranks, (find_some,) * ranks) == [0] * ranks
    monkeypatch.setattr(scores, "found_in", scores.found_in)  # put back at the end
    find_some()
    settings = folder.settings()
    task = tasks.of(settings)
    images = task.sets("cpu")
    network = task.network(images.source.num_classes)
    network.load_state_dict(weights_of(folder))
    alone, result = task.evaluate(network, images), folder.result()
    assert alone.metrics == result.metrics
    assert 0 < result.score < 100
    assert folder.seen_file.exists()
    if alone.image_scores is not None:
        count = settings.data.test_limit
        assert alone.image_scores.numpy().tobytes() == folder.image_scores(count)


def test_two_processes_take_the_step_of_one_in_two_parts(make_run, start):
    row = {**DETECT, "train__epochs": 1}
    one, two = make_run("one", **row, runtime__accumulate=2), make_run("two", **row)
    assert train(one) == "done"
    assert together(start, two) == [0, 0]
    first, second = weights_of(one), weights_of(two)
    for name in first:
        torch.testing.assert_close(first[name], second[name], atol=2e-5, rtol=0)
    losses = [folder.metrics()[0]["train_loss"] for folder in (one, two)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


def lack_a_test_image():
    def lacking(*_, **__):
        raise DataLacks("val/x.JPEG: cannot be decoded")

    DenseSets.test = sets.Datasets.test = lacking


@pytest.mark.parametrize("row", [{}, DETECT, SEGMENT], ids=["classify", "detect", "segment"])
def test_if_one_lacks_a_test_image_all_end_and_its_message_is_kept(make_run, start, row):
    folder = make_run(**row)
    assert together(start, folder, prepare=(None, lack_a_test_image)) == [11, 11]
    assert folder.status().cause == "data"
    assert "val/x.JPEG: cannot be decoded" in folder.status().message


def spoil_the_last_step():
    from lsa_study.training.step import Stepper

    original = Stepper._update

    def spoiling(self):
        original(self)
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.fill_(torch.nan)

    Stepper._update = spoiling


@pytest.mark.parametrize("row", [DETECT, SEGMENT], ids=["detect", "segment"])
def test_all_processes_see_that_one_s_test_images_diverged(make_run, start, row):
    """Of three, the last has no test image."""
    folder = make_run(**{**row, "data": FEW, "train__batch_size": 6})
    assert together(start, folder, 3, (spoil_the_last_step,) * 3) == [12] * 3
    assert "after step 1: what the network finds is not finite" in folder.result().reason


# -- disks ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["seen.jpg", "image_scores.npz", "last.pt", "metrics.jsonl"])
def test_a_disk_that_is_full_for_a_file_loses_nothing(make_run, monkeypatch, name):
    whole, folder = make_run("whole", **SEGMENT), make_run(**SEGMENT)
    ways = {
        "last.pt": (torch, "save"), "metrics.jsonl": (rundir.RunDir, "log_metrics"),
    }  # fmt: skip
    place, way = ways.get(name, (rundir, "write_whole"))
    write = getattr(place, way)

    def full(path, content, **how):
        if way != "write_whole" or path.name == name:
            raise (EnvironmentLacks if way != "save" else OSError)("No space left on device")
        return write(path, content, **how)

    with monkeypatch.context() as patch:
        patch.setattr(place, way, full)
        assert train(folder) == "failed"
        assert folder.status().cause == "disk"
        assert "No space left on device" in folder.status().message
        assert folder.result() is None
    assert [train(folder), train(whole)] == ["done", "done"]
    assert equal(weights_of(folder), weights_of(whole))
    assert folder.result().metrics == whole.result().metrics
    assert folder.image_scores(4) == whole.image_scores(4)
    assert folder.seen_file.read_bytes() == whole.seen_file.read_bytes()


@every_row
def test_stopping_within_the_test_goes_on_with_it(make_run, row):
    """Two steps, then one test image: what was found of it is found again."""
    whole, cut = make_run("whole", **row), make_run(**row)
    assert train(cut, stop=StopAfter(3)) == "stopped"
    assert (cut.status().epoch, cut.status().step, cut.metrics()) == (0, 2, [])
    assert [train(cut), train(whole)] == ["done", "done"]
    assert equal(weights_of(whole), weights_of(cut))
    assert cut.result().metrics == whole.result().metrics
    assert "resumed at epoch 1, its test" in (cut.attempt_folder(2) / "log.txt").read_text()
