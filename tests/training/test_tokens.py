"""Token labeling and MixToken: the loss by NumPy, the mixing by hand, runs of a small VOLO."""

import numpy as np
import pytest
import torch
from lives import StopAfter
from safetensors.torch import load_file

from lsa_study.config.operators import OutlookOp
from lsa_study.config.protocol import TokenLabels
from lsa_study.models import volo
from lsa_study.training import token_labeling, train

SMALL = volo.VoloSize((1, 1, 1, 1), (16, 32), (2, 4), stem_dim=8)


@pytest.fixture(autouse=True)
def _small_volo(monkeypatch):
    monkeypatch.setitem(volo.SIZES, "volo_d1", SMALL)


# -- the loss ------------------------------------------------------------------------------------


def shares(draw, *shape):
    raw = draw.random(shape)
    return raw / raw.sum(-1, keepdims=True)


def log_softmax(logits):
    raised = logits - logits.max()
    return raised - np.log(np.exp(raised).sum())


def by_hand(images, each, box, targets, of_tokens, weights):
    """The definition read aloud, and its gradients: w (p sum(t) - t) for every row of logits."""
    count, num_tokens = each.shape[:2]
    top, left, bottom, right = box
    kept = 1 - (bottom - top) * (right - left) / num_tokens
    total, slopes = 0.0, (np.zeros_like(images), np.zeros_like(each))
    for n in range(count):
        target = kept * targets[n] + (1 - kept) * targets[count - 1 - n]
        rows = [(images[n], target, weights[0] / count, slopes[0], n)]
        for i in range(num_tokens):
            weight = weights[1] / (count * num_tokens)
            rows.append((each[n, i], of_tokens[n, i], weight, slopes[1], (n, i)))
        for logits, wanted, weight, slope, place in rows:
            total -= weight * (wanted * log_softmax(logits)).sum()
            slope[place] = weight * (np.exp(log_softmax(logits)) * wanted.sum() - wanted)
    return total, *slopes


@pytest.mark.parametrize("box", [(0, 0, 0, 0), (1, 0, 3, 1), (0, 1, 3, 2), (0, 0, 3, 2)])
@pytest.mark.parametrize("labels", ["classes", "shares", "maps"])
def test_loss_and_gradients_are_those_of_the_definition(box, labels):
    """Three images of 3 x 2 tokens and 5 classes; smoothed map shares need not sum to 1."""
    draw, smoothing = np.random.default_rng(3), 0.1
    images, each = draw.normal(size=(3, 5)), draw.normal(size=(3, 6, 5))
    targets, of_tokens = 1.02 * shares(draw, 3, 5), 1.02 * shares(draw, 3, 6, 5)
    asked = torch.from_numpy(targets).float(), torch.from_numpy(of_tokens).float()
    if labels == "classes":
        classes = np.array([4, 0, 2])
        targets = np.full((3, 5), smoothing / 5)
        targets[np.arange(3), classes] += 1 - smoothing
        asked = torch.from_numpy(classes), None
    if labels != "maps":
        of_tokens = np.repeat(targets[:, None], 6, axis=1)
        asked = asked[0], None
    logits = [torch.from_numpy(z).requires_grad_() for z in (images, each)]
    wanted = TokenLabels(labels="plain", class_weight=0.7, dense_weight=0.3)
    answers = token_labeling.Answers(*logits, (box,), 3)
    got = token_labeling.loss(answers, *asked, wanted, smoothing=smoothing)
    got.backward()
    want, *slopes = by_hand(images, each, box, targets, of_tokens, (0.7, 0.3))
    assert got.item() == pytest.approx(want, rel=1e-6)
    for tensor, slope in zip(logits, slopes, strict=True):
        np.testing.assert_allclose(tensor.grad.numpy(), slope, atol=1e-7)


def test_no_box_mixes_nothing_and_a_whole_one_reverses_the_batch():
    torch.manual_seed(0)
    images, each, classes = torch.randn(4, 5), torch.randn(4, 6, 5), torch.tensor([0, 1, 2, 3])
    only = TokenLabels(labels="plain", dense_weight=0.0)

    def loss(box, classes):
        return token_labeling.loss(
            token_labeling.Answers(images, each, (box,), 4), classes, None, only, smoothing=0.1
        )

    plain = torch.nn.functional.cross_entropy(images, classes, label_smoothing=0.1)
    torch.testing.assert_close(loss((0, 0, 0, 0), classes), plain)
    torch.testing.assert_close(loss((0, 0, 3, 2), classes.flip(0)), plain)
    assert (loss((0, 0, 3, 2), classes) - plain).abs() > 0.01


# -- the network in training ---------------------------------------------------------------------


def network():
    torch.manual_seed(0)
    model = volo.Volo(SMALL, OutlookOp(), img_size=(64, 96), num_classes=7).double()
    # Both heads begin with the same small weights: made large, each is seen.
    for head in (model.head, model.aux_head):
        torch.nn.init.normal_(head.weight)
    return model.train()


def pictures(count=3):
    draw = torch.Generator().manual_seed(1)
    return torch.randn(count, 3, 64, 96, generator=draw, dtype=torch.float64)


def answer(model, images, *purpose, mix_token=1.0, **how):
    wanted = TokenLabels(labels="plain", mix_token=mix_token)
    return token_labeling.answer(model, images, wanted, *purpose, **{"group": len(images), **how})


def a_box():
    """A purpose whose box is neither empty, nor square, nor the whole map of 4 x 6 tokens."""
    for number in range(100):
        top, left, bottom, right = token_labeling.draw_box(4, 6, 1.0, "box", number, 0)
        if 0 < bottom - top < 4 and 0 < right - left < 6 and bottom - top != right - left:
            return number, (top, left, bottom, right)
    raise AssertionError("no such box")


def test_tokens_are_mixed_and_put_back():
    """The stem's map mixed by hand, and every token's answer fetched from where it was pasted."""
    model, images = network(), pictures()
    number, (top, left, bottom, right) = a_box()
    got = answer(model, images, "box", number)
    assert got.boxes == ((top, left, bottom, right),)
    stem = model.patch_embed(images)
    mixed = stem.clone()
    for n in range(3):
        for row in range(2 * top, 2 * bottom):
            for column in range(2 * left, 2 * right):
                mixed[n, :, row, column] = stem[2 - n, :, row, column]
    found = model.norm(model.forward_cls(model.forward_tokens(mixed.permute(0, 2, 3, 1))))
    each = model.aux_head(found[:, 1:]).unflatten(1, (4, 6))
    torch.testing.assert_close(got.images, model.head(found[:, 0]), rtol=0, atol=1e-12)
    for n in range(3):
        for row in range(4):
            for column in range(6):
                inside = top <= row < bottom and left <= column < right
                want = each[2 - n if inside else n, row, column]
                torch.testing.assert_close(got.tokens[n, 6 * row + column], want)


def test_without_mixing_the_answers_are_those_of_timms_forward():
    model, images = network(), pictures()
    got = answer(model, images, "any", mix_token=0.0)
    assert got.boxes == ((0, 0, 0, 0),)
    torch.testing.assert_close(got.images + 0.5 * got.tokens.max(1).values, model(images))


def test_groups_are_mixed_among_themselves_however_a_step_is_cut():
    """Six images in groups of two: in one part, and in three parts of one group each."""
    model, images = network(), pictures(6)
    for layer in model.modules():  # whose statistics are the whole batch's
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.eval()
    whole = answer(model, images, "step", group=2)
    cut = [
        answer(model, images[2 * part : 2 * part + 2], "step", group=2, part=part)
        for part in range(3)
    ]
    assert len(set(whole.boxes)) == 3
    assert whole.boxes == tuple(part.boxes[0] for part in cut)
    for name in ("images", "tokens"):
        parts = torch.cat([getattr(part, name) for part in cut])
        torch.testing.assert_close(getattr(whole, name), parts, rtol=0, atol=1e-12)
    wanted, classes = TokenLabels(labels="plain"), torch.arange(6)
    losses = [
        token_labeling.loss(found, labels, None, wanted, smoothing=0.1)
        for found, labels in zip([whole, *cut], [classes, *classes.split(2)], strict=True)
    ]
    torch.testing.assert_close(losses[0], torch.stack(losses[1:]).mean())


def test_the_purpose_alone_draws_the_box():
    boxes = set()
    for number in range(12):
        np.random.seed(number)
        boxes.add(token_labeling.draw_box(14, 14, 1.0, "box", 5))
    assert len(boxes) == 1
    assert len({token_labeling.draw_box(14, 14, 1.0, "box", number) for number in range(12)}) > 4


def released_box(size, lam):
    """The release's box, read aloud; x is what it calls the first side."""
    cut = [int(side * np.sqrt(1 - lam)) for side in size]
    middle = [np.random.randint(side) for side in size]
    ends = [
        (np.clip(at - length // 2, 0, side), np.clip(at + length // 2, 0, side))
        for at, length, side in zip(middle, cut, size, strict=True)
    ]
    return ends[0][0], ends[1][0], ends[0][1], ends[1][1]


@pytest.mark.parametrize("beta", [1.0, 1000.0])
def test_boxes_are_as_large_and_as_often_empty_as_the_released_ones(beta):
    np.random.seed(0)
    ours = [token_labeling.draw_box(14, 14, beta, number) for number in range(8000)]
    theirs = [released_box((14, 14), np.random.beta(beta, beta)) for _ in range(8000)]
    pasted, empty = [], []
    for boxes in (ours, theirs):
        areas = np.array([(bottom - top) * (right - left) for top, left, bottom, right in boxes])
        pasted.append(areas.mean() / 196)
        empty.append((areas == 0).mean())
    assert pasted[0] == pytest.approx(pasted[1], abs=0.008)
    assert empty[0] == pytest.approx(empty[1], abs=0.006)
    if beta == 1.0:
        assert pasted[0] == pytest.approx(0.27, abs=0.008), "timm's box, rounded up, pastes 0.296"


def test_gradients_reach_every_parameter():
    model, images = network(), pictures(4)
    answers = answer(model, images, "any")
    wanted = TokenLabels(labels="plain")
    token_labeling.loss(answers, torch.arange(4), None, wanted, smoothing=0.1).backward()
    for name, tensor in model.named_parameters():
        assert tensor.grad is not None, name
        assert tensor.grad.abs().max() > 0, name


# -- whole runs ----------------------------------------------------------------------------------

VOLO = {
    "model__backbone": "volo_d1", "data__image_size": 32, "train__tokens": "{labels: plain}",
    "model__drop_path": 0.3, "train__ema_decay": 0.9,
}  # fmt: skip


def same_end(one, other):
    first, second = load_file(one.weights), load_file(other.weights)
    assert all(torch.equal(first[name], second[name]) for name in first)
    for mine, theirs in zip(one.metrics(), other.metrics(), strict=True):
        for key in ("train_loss", "loss", "acc1", "ema_acc1"):
            assert mine[key] == theirs[key], key


def test_stopping_in_mid_epoch_changes_nothing(make_run):
    whole, pieces = make_run("whole", **VOLO), make_run("pieces", **VOLO)
    assert train(whole) == "done"
    for calls in (1, 2, 0):
        np.random.seed(calls)
        torch.manual_seed(calls)
        assert train(pieces, stop=StopAfter(calls)) == "stopped"
    assert train(pieces) == "done"
    same_end(whole, pieces)


def test_the_recipe_is_another_run_than_labels_alone(make_run):
    """And so is each of its settings."""
    recipes = ("null", "{labels: plain}", "{labels: plain, mix_token: 0.0}")
    losses = set()
    for number, asked in enumerate(recipes):
        # Of fewer than 4 x 4 tokens a box, rounded down, holds none.
        changes = {"train__tokens": asked, "train__epochs": 1, "data__image_size": 64}
        folder = make_run(str(number), **VOLO | changes)
        assert train(folder) == "done"
        losses.add(folder.metrics()[0]["train_loss"])
    assert len(losses) == len(recipes)


@pytest.mark.parametrize("labels", ["maps", "maps_and_truth"])
def test_runs_on_label_maps_resume_too(make_run, image_folder, labels):
    """Stopped while loading processes have maps ready."""
    draw = torch.Generator().manual_seed(0)
    for path in (image_folder / "imagenet" / "train").rglob("*.JPEG"):
        place = image_folder / "imagenet" / "token_labels" / path.parent.name / f"{path.stem}.pt"
        place.parent.mkdir(parents=True, exist_ok=True)
        scores = 10 * torch.rand(3, 5, 6, generator=draw)
        classes = torch.rand(4, 5, 6, generator=draw).argsort(0)[:3]
        torch.save(torch.stack([scores, classes.float()]).half(), place)
    files = {
        **VOLO, "tier": "paper", "data__root": image_folder, "data__train_limit": 64,
        "train__batch_size": 16, "train__norm_batch": 8, "train__epochs": 1,
        "augment__mixup": 0.0,
        "augment__cutmix": 0.0, "train__tokens": f"{{labels: {labels}}}",
    }  # fmt: skip
    whole = make_run("whole", **files, runtime__workers=0)
    assert train(whole) == "done"
    pieces = make_run("pieces", **files, runtime__workers=1)
    assert train(pieces, stop=StopAfter(1)) == "stopped"
    assert pieces.status().step == 2
    assert train(pieces) == "done"
    same_end(whole, pieces)
