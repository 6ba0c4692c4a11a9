"""Runs that detect and segment: through the same loop, stopped and resumed."""

import io
import itertools
import json

import numpy as np
import pytest
import torch
from lives import CASCADE, DETECT, SEGMENT, StopAfter, equal, weights_of, without_times
from PIL import Image

from lsa_study.by_image import BEST
from lsa_study.config.settings import Settings
from lsa_study.config.task import OF_TASK
from lsa_study.errors import ConfigError
from lsa_study.training import optim, scores, seen, tasks, train
from lsa_study.training.distributed import ALONE


@pytest.mark.parametrize("row", [DETECT, CASCADE, SEGMENT], ids=["mask", "cascade", "upernet"])
def test_stopping_anywhere_changes_nothing(make_run, row):
    whole, pieces = make_run("whole", **row), make_run("pieces", **row)
    assert train(whole) == "done"
    assert train(pieces, stop=StopAfter(1)) == "stopped"
    assert train(pieces, stop=StopAfter(2)) == "stopped"
    assert train(pieces) == "done"
    assert equal(weights_of(whole), weights_of(pieces))
    assert without_times(whole.metrics()) == without_times(pieces.metrics())
    result, kind = whole.result(), whole.settings().task.kind
    assert result.acc1 is None
    assert result.loss is None
    assert set(OF_TASK[kind]) <= result.metrics.keys()
    assert result.score == result.metrics[OF_TASK[kind][0]]
    assert result.params > 0
    assert result.macs > 0
    assert whole.image_scores_file.exists() == (kind == "segment")
    if kind == "segment":
        each = np.frombuffer(whole.image_scores(4), np.float32)
        assert 100 * each.mean() == pytest.approx(result.metrics["miou"], abs=1e-4)


@pytest.mark.parametrize("row", [DETECT, SEGMENT], ids=["detect", "segment"])
@pytest.mark.parametrize("weights", ["ema", "model"])
def test_both_networks_are_recorded_where_weights_are_averaged(make_run, row, weights):
    run = make_run(
        **row, train__ema_decay=0.9, evaluation__weights=weights, evaluation__epoch="best",
        train__epochs=3, train__lr=0.01,
    )  # fmt: skip
    assert train(run) == "done"
    result, kind, epochs = run.result(), run.settings().task.kind, run.metrics()
    for name in OF_TASK[kind]:
        chosen = [epoch[f"metrics.{weights}_{name}"] for epoch in epochs]
        assert chosen == [epoch[f"metrics.{name}"] for epoch in epochs]
        assert result.metrics[name] == result.metrics[f"{weights}_{name}"]
        assert {f"model_{name}", f"ema_{name}"} <= result.metrics.keys()
    name, other = OF_TASK[kind][0], "model" if weights == "ema" else "ema"
    first = [epoch[f"metrics.{name}"] for epoch in epochs]
    assert result.epoch == 1 + first.index(max(first))
    assert result.score == max(first)
    if kind == "segment":
        assert first != [epoch[f"metrics.{other}_{name}"] for epoch in epochs]


def test_a_picture_shows_as_many_objects_as_there_are(make_run, monkeypatch):
    """Of scores far below one half the best, written beside their boxes."""
    task = tasks.of(make_run(**DETECT).settings())
    sets = task.sets("cpu")
    tests = list(itertools.islice(sets.test(), tasks.dense.SHOWN))
    there = [len(test.target["boxes"]) for test in tests]
    number = max(there) + 2

    class Finds(torch.nn.Module):
        def predict(self, images):
            side = images[0].shape[-1]
            boxes = torch.tensor([[i, i, i + 9.0, i + 9.0] for i in range(number)])
            masks = torch.zeros((number, side, side), dtype=torch.bool)
            ranked, labels = torch.linspace(0.06, 0.4, number), torch.ones(number, dtype=int)
            return [{"boxes": boxes, "scores": ranked, "labels": labels, "masks": masks}]

    answers, drawn = [], []
    plain = tasks.dense.strip
    monkeypatch.setattr(tasks.dense, "strip", lambda *of: answers.extend(of[2]) or plain(*of))
    monkeypatch.setattr(seen, "_written", lambda image, *of: drawn.append(of[1]) or image)
    content = task.seen(Finds(), sets)
    assert [len(one["scores"]) for one in answers] == there
    for one in answers:
        assert one["scores"].max() == pytest.approx(0.4)
        assert one["scores"].tolist() == sorted(one["scores"].tolist(), reverse=True)
    assert any(said[0] == "0: 0.40" for said in drawn if said)
    with Image.open(io.BytesIO(content)) as picture:
        assert picture.info["comment"] == BEST


def test_texts_beside_boxes_do_not_cover_one_another():
    image, colour = torch.full((3, 192, 192), 128, dtype=torch.uint8), (0, 255, 0)
    boxes = torch.tensor([[50.0, 60.0, 90.0, 90.0]] * 2)
    one = seen._written(image, boxes[:1], ["1: 0.40"], [colour])
    two = seen._written(image, boxes, ["1: 0.40", "2: 0.30"], [colour, colour])
    changed = [(of != image).any(0).sum() for of in (one, two)]
    assert changed[1] == pytest.approx(2 * changed[0], abs=8)
    corner = torch.tensor([[188.0, 0.0, 192.0, 4.0]])
    assert (seen._written(image, corner, ["7: 0.99"], [colour]) != image).any()


def test_a_step_in_parts_learns_as_a_whole_one(make_run):
    """Detection has no norm over images, so parts only change how sums are rounded."""
    row = {**DETECT, "train__epochs": 1, "augment": "{crop: none}"}
    parts = make_run("parts", **row, runtime__accumulate=2)
    assert train(parts) == "done"


def test_first_order_scores_agree_with_a_bootstrap():
    draw = torch.Generator().manual_seed(0)
    images, classes = 200, 5
    named = torch.randint(1, 60, (images, classes), generator=draw)
    quality = torch.rand((images, 1), generator=draw)  # one image is easy, another hard
    agreed = (named * quality).round().long()
    overlap = torch.stack([agreed, named], 1)
    each = scores.by_image(overlap).double()
    assert 100 * float(each.mean()) == pytest.approx(
        float(scores.mean_iou(overlap.sum(0))), abs=1e-4
    )
    chosen = torch.randint(images, (4000, images), generator=draw)
    again = torch.stack([scores.mean_iou(overlap[rows].sum(0)) for rows in chosen])
    first_order = 100 * float(each.std()) / images**0.5
    assert first_order == pytest.approx(float(again.std()), rel=0.06)


def test_a_class_that_no_image_names_moves_no_score():
    overlap = torch.zeros((3, 2, 3), dtype=torch.int64)
    overlap[:, :, 0], overlap[:, 1, 1] = 5, 2
    each = scores.by_image(overlap)
    assert torch.isfinite(each).all()
    assert float(each.mean()) == pytest.approx(0.5)


def test_what_processes_found_is_put_together(monkeypatch):
    """Two processes, whose sums are of what both would give."""
    found = [[{"image_id": 0, "score": 0.25}], [{"image_id": 1, "score": 0.5}, {"image_id": 3}]]
    sent: dict[int, list[torch.Tensor]] = {0: [], 1: []}

    class Two:
        count = 2

        def __init__(self, rank, others):
            self.rank, self.others, self.calls = rank, others, 0

        def sum(self, tensor):
            sent[self.rank].append(tensor.clone())
            other = self.others[self.calls] if self.others else torch.zeros_like(tensor)
            self.calls += 1
            return tensor + other

    lengths = torch.tensor([len(json.dumps(one)) for one in found])
    texts = torch.zeros((2, int(lengths.max())), dtype=torch.uint8)
    for row, one in zip(texts, found, strict=True):
        raw = json.dumps(one).encode()
        row[: len(raw)] = torch.tensor(list(raw), dtype=torch.uint8)
    only = [torch.tensor([0, int(lengths[1])]), texts * torch.tensor([[0], [1]], dtype=torch.uint8)]
    device = torch.device("cpu")
    assert tasks.dense._of_all(found[0], Two(0, only), device) == found[0] + found[1]
    assert tasks.dense._of_all(found[0], ALONE, device) == found[0]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"task.kind": "classify"}, "data.name='scenes' holds nothing to classify"),
        ({"data.name": "imagenet"}, "data.name='imagenet' holds nothing to detect"),
        ({"augment.label_smoothing": 0.1}, "augment.label_smoothing=0.1"),
        ({"augment.crop": "pad"}, "augment.crop='pad'"),
        (
            {"runtime.compile": True, "augment.mixup": 0.8},
            "augment.mixup=0.8, runtime.compile=True: not read where task.kind='detect'; give "
            "augment.mixup: 0.0, runtime.compile: false",
        ),
        ({"data.validation": 20, "data.train_limit": 100}, "data.validation=20"),
        ({"model.backbone": "volo_d1"}, "only a Swin gives the four maps"),
        ({"train.decay": {"kind": "steps"}}, "steps need some, such as [8, 11]"),
        ({"train.decay": {"kind": "steps", "milestones": [9, 3]}}, "give rising epochs"),
        ({"train.decay": {"milestones": [3]}}, "nothing else reads them"),
        ({"train.decay": {"power": 2.0}}, "power=2 changes nothing"),
        (
            {"train.decay": {"kind": "steps", "milestones": [1, 1000]}},
            "milestones=[1, 1000] with epochs=2: the rate never falls at 1000",
        ),
        ({"augment.crop_pad": 2}, "crop_pad=2: read with augment.crop: pad alone; leave it at 4"),
        ({"augment.mix_prob": 0.5}, "mix_prob=0.5: read with augment.mixup or augment.cutmix"),
        ({"evaluation.batch_size": 8}, "evaluation.batch_size=8: not read where"),
    ],
)
def test_settings_that_do_not_fit_a_task_are_refused(make_run, change, said):
    plain = make_run(**DETECT).settings().model_dump(mode="json")
    for path, value in change.items():
        *groups, last = path.split(".")
        place = plain
        for group in groups:
            place = place.setdefault(group, {})
        if isinstance(value, dict):
            place[last] = value
        elif path == "task.kind":
            plain["task"] = {"kind": value}
        else:
            place[last] = value
    with pytest.raises((ValueError, ConfigError)) as caught:
        Settings.model_validate(plain)
    assert said in str(caught.value)


def test_a_run_that_classifies_is_written_as_before(make_run):
    plain = make_run().settings().model_dump(mode="json")
    assert "task" not in plain
    assert "decay" not in plain["train"]


@pytest.mark.parametrize("row", [DETECT, SEGMENT], ids=["mask", "upernet"])
def test_norms_and_swins_tables_alone_are_spared_as_mmdet_does(make_run, row):
    """With ELSA: the backbone's norms and the tables of its last stage; biases are decayed."""
    elsa = {"model__op": "{kind: elsa, group_width: 4}", "train__no_decay": "mmdet"}
    settings = make_run(**row, **elsa).settings()
    network = tasks.of(settings).network(3)
    spared, decayed = optim.optimiser(network, settings.train).param_groups
    assert (spared["weight_decay"], decayed["weight_decay"]) == (0.0, settings.train.weight_decay)
    names = {id(tensor): name for name, tensor in network.named_parameters()}
    kinds = {"norm" in names[id(one)] or "rel_bias" in names[id(one)] for one in spared["params"]}
    others = [names[id(one)] for one in decayed["params"]]
    assert kinds == {True}
    assert any("rel_bias" in names[id(one)] for one in spared["params"])
    assert all(names[id(one)].startswith("backbone.") for one in spared["params"])
    left = [name for name in others if name.startswith("backbone.")]
    assert not any("rel_bias" in name or "norm" in name for name in left)
    assert any(name.endswith("ghost_head") for name in others)
    assert any(name.endswith(".bias") for name in others)
