"""Runs of the other works: stopped and resumed, by SGD, behind stems, with ResNets."""

import pytest
import torch
from lives import StopAfter, equal, weights_of, without_times

from lsa_study import data, models
from lsa_study.models.tokens import mean_cosine, stem_tokens
from lsa_study.training import train

DDF = {
    "model__backbone": "resnet_micro", "model__op": "{kind: ddf, kernel_size: 3, shell: none}",
    "train__optimizer": "{kind: sgd, momentum: 0.9, nesterov: true}",
}  # fmt: skip
STEM = {
    "model__backbone": "deit_micro", "model__op": "{kind: attention}",
    "model__stem": "{kind: conv, hidden: 4}",
}  # fmt: skip


@pytest.mark.parametrize("row", [DDF, STEM], ids=["ddf", "stem"])
def test_stopping_anywhere_changes_nothing(make_run, row):
    whole, pieces = make_run("whole", **row), make_run("pieces", **row)
    assert train(whole) == "done"
    for calls in (1, 2):
        assert train(pieces, stop=StopAfter(calls)) == "stopped"
    assert train(pieces) == "done"
    assert equal(weights_of(whole), weights_of(pieces))
    assert without_times(whole.metrics()) == without_times(pieces.metrics())
    assert whole.result().token_cosine == pieces.result().token_cosine


def test_a_step_in_parts_is_the_same_with_groups_of_batch_norm(make_run):
    row = {**DDF, "train__norm_batch": 8}
    whole, parts = make_run("whole", **row), make_run("parts", **row, runtime__accumulate=2)
    assert [train(one) for one in (whole, parts)] == ["done", "done"]
    one, other = weights_of(whole), weights_of(parts)
    for name, tensor in one.items():
        torch.testing.assert_close(other[name], tensor, rtol=1e-2, atol=1e-3)


def test_tokens_are_measured_by_the_reported_weights(make_run):
    folder = make_run(**STEM)
    assert train(folder) == "done"
    settings = folder.settings()
    network = models.from_settings(settings.model, image_size=28, num_classes=10)
    network.load_state_dict(weights_of(folder))
    _, images, _ = next(iter(data.load(settings).test(settings.evaluation.batch_size)))
    want = mean_cosine(stem_tokens(network.eval(), images))
    assert folder.result().token_cosine == pytest.approx(want, abs=1e-6)
    assert -1 <= want <= 1


def test_runs_that_are_not_about_stems_do_not_measure_it(make_run):
    folder = make_run()
    assert train(folder) == "done"
    assert folder.result().token_cosine is None
    assert "token_cosine" not in (folder.root / "result.json").read_text()


def test_the_mean_cosine_by_hand():
    tokens = torch.randn(3, 5, 7)
    pairs = [
        torch.cosine_similarity(image[i], image[j], dim=0)
        for image in tokens.double() for i in range(5) for j in range(5) if i != j
    ]  # fmt: skip
    assert mean_cosine(tokens) == pytest.approx(float(torch.stack(pairs).mean()))
    assert mean_cosine(torch.ones(2, 4, 3)) == pytest.approx(1.0)
    assert mean_cosine(torch.tensor([[[1.0, 0.0], [-2.0, 0.0]]])) == pytest.approx(-1.0)


@pytest.mark.parametrize(
    ("backbone", "op", "side", "shape"),
    [
        ("swin_micro", "dwconv", 28, (2, 196, 16)),
        ("volo_d1", "outlook", 32, (2, 16, 192)),
        ("deit_micro", "attention", 28, (2, 49, 24)),
    ],
)
def test_tokens_behind_the_stem_of_every_backbone(backbone, op, side, shape):
    model = models.registry.Model.model_validate(
        {"backbone": backbone, "op": {"kind": op}, "drop_path": 0.1}
    )
    network = models.from_settings(model, image_size=side, num_classes=3)
    assert stem_tokens(network, torch.randn(2, 3, side, side)).shape == shape
