"""Batch norm by groups of images: neither processes nor parts move a result."""

import numpy as np
import pytest
import torch
from lives import weights_of
from test_ranks import together
from torch import nn

from lsa_study.models.blocks import ChannelsLastBatchNorm
from lsa_study.training import train
from lsa_study.training.batch_norm import GroupedBatchNorm


@pytest.mark.parametrize("kind", [nn.BatchNorm2d, ChannelsLastBatchNorm])
def test_every_group_is_normalised_by_itself(kind):
    """Outputs and running statistics by NumPy, gradients by layers that see one group each."""
    draw = torch.Generator().manual_seed(0)
    last = kind is ChannelsLastBatchNorm
    shape, axes = ((6, 4, 5, 3), (0, 1, 2)) if last else ((6, 3, 4, 5), (0, 2, 3))
    x = torch.randn(shape, generator=draw, dtype=torch.float64).requires_grad_()
    weights = torch.randn(shape, generator=draw, dtype=torch.float64)
    layer, alone = (kind(3).double().train() for _ in range(2))
    before = alone.running_var.clone().numpy()
    GroupedBatchNorm(nn.Sequential(layer), images=2)
    out = layer(x)
    (out * weights).sum().backward()

    groups = x.detach().numpy().reshape(3, 2, *shape[1:])
    moved = {"mean": [], "var": []}
    for number, group in enumerate(groups):
        mean, var = group.mean(axes, keepdims=True), group.var(axes, keepdims=True)
        want = (group - mean) / np.sqrt(var + 1e-5)
        np.testing.assert_allclose(out.detach().numpy()[2 * number :][:2], want, atol=1e-12)
        moved["mean"].append(0.1 * mean.ravel())
        moved["var"].append(0.9 * before + 0.1 * group.var(axes, ddof=1))
    np.testing.assert_allclose(layer.running_mean, np.mean(moved["mean"], 0), atol=1e-12)
    np.testing.assert_allclose(layer.running_var, np.mean(moved["var"], 0), atol=1e-12)
    parts = [part.clone().requires_grad_() for part in x.detach().split(2)]
    for part, given in zip(parts, weights.split(2), strict=True):
        (alone(part) * given).sum().backward()
    torch.testing.assert_close(x.grad, torch.cat([p.grad for p in parts]), rtol=0, atol=1e-12)
    torch.testing.assert_close(layer.weight.grad, alone.weight.grad, rtol=0, atol=1e-12)
    assert torch.equal(layer.eval()(x), kind.forward(layer, x))


ROW = {
    "model__op": "{kind: ddwconv}", "train__norm_batch": 8, "train__epochs": 1,
    "model__drop_path": 0.0, "train__ema_decay": 0.9,
}  # fmt: skip


def alike(first, second):
    """To what Adam's first steps make of the rounding of float32."""
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, rtol=0, atol=1e-3, msg=name)


def test_devices_and_parts_move_nothing(make_run, start):
    """One process with whole steps, with steps in two parts, and two processes: 4 groups a step."""
    runs = [make_run(f"run{n}", runtime__accumulate=n, **ROW) for n in (1, 2)]
    runs.append(make_run("two", **ROW))
    assert [train(run) for run in runs[:2]] == ["done", "done"]
    assert together(start, runs[2]) == [0, 0]
    first, *others = map(weights_of, runs)
    assert sum("running_var" in name for name in first) > 3
    for other in others:
        alike(first, other)
    losses = [run.metrics()[0]["loss"] for run in runs]
    assert losses == pytest.approx([losses[0]] * 3, abs=1e-4)


def test_whole_parts_move_the_statistics_once_a_step(make_run):
    """Without groups too, a step in two parts counts as one."""
    groups = make_run("groups", **{**ROW, "train__norm_batch": 16})
    parts = make_run("parts", runtime__accumulate=2, **{**ROW, "train__norm_batch": "null"})
    assert [train(run) for run in (groups, parts)] == ["done", "done"]
    alike(weights_of(groups), weights_of(parts))


def test_parts_that_are_no_whole_groups_are_refused(make_run):
    folder = make_run(runtime__accumulate=8, **ROW)
    assert train(folder) == "failed"
    assert folder.status().cause == "config"
    assert "cut into 8 parts of a multiple of 8 images" in folder.status().message
    assert "; give runtime.accumulate: 1, 2 or 4, or train.norm" in folder.status().message
    free = make_run("none", **{**ROW, "model__op": "{kind: elsa}"}, runtime__accumulate=8)
    assert train(free) == "done"
