"""Parts of detectors by themselves, against answers that a person can check."""

import numpy as np
import pytest
import torch
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from lsa_study.models.dense.boxes import RoiPool, Rule, Stage
from lsa_study.models.dense.detector import together
from lsa_study.models.dense.heads import Heads
from lsa_study.models.dense.masks import mask_targets, paste
from lsa_study.models.dense.proposals import Anchors, BestOfObject, Proposals
from lsa_study.models.dense.pyramid import Pyramid

TASK = Heads("cascade_mask_rcnn", channels=8, box_width=8, mask_size=14, convs=1, rois=16)


def test_anchors():
    """Three ratios of height to width, the same area, around every pixel, of no whole sides."""
    sides = (3, 2, 1, 1, 1)
    levels = [torch.zeros(1, 8, side, side + 1, dtype=torch.float16) for side in sides]
    anchors, _ = Anchors(8.0)(ImageList(torch.zeros(2, 3, 12, 16), [(12, 16)] * 2), levels)
    assert anchors.dtype == torch.float32  # half precision would round coordinates
    assert len(anchors) == 3 * sum(side * (side + 1) for side in sides)
    by_hand = []
    for side, stride in zip(sides, (4, 8, 16, 32, 64), strict=True):
        for row, column, ratio in np.ndindex(side, side + 1, 3):
            tall = 8 * stride * (0.5, 1, 2)[ratio] ** 0.5
            wide = (8 * stride) ** 2 / tall
            x, y = column * stride, row * stride
            by_hand.append([x - wide / 2, y - tall / 2, x + wide / 2, y + tall / 2])
    np.testing.assert_allclose(anchors.numpy(), by_hand, rtol=1e-6, atol=1e-4)


def test_the_best_anchor_of_an_object_finds_it():
    """Also where it overlaps another more; of two objects the last; not below the low threshold."""
    overlaps = torch.tensor(
        [
            # the anchors: 0 and 1 overlap enough, 2 and 3 are best for somebody, 4 and 5 are not
            [0.9, 0.1, 0.5, 0.0, 0.4, 0.2],
            [0.0, 0.2, 0.45, 0.0, 0.4, 0.1],  # best anchor: 2, which object 0 overlaps more
            [0.0, 0.8, 0.0, 0.0, 0.4, 0.0],
            [0.0, 0.0, 0.0, 0.29, 0.0, 0.0],  # nothing overlaps it by 0.3
            [0.0, 0.0, 0.45, 0.0, 0.1, 0.0],  # as object 1
        ]
    )
    match = BestOfObject(0.7, 0.3, allow_low_quality_matches=True)
    nothing, unsure = match.BELOW_LOW_THRESHOLD, match.BETWEEN_THRESHOLDS
    assert match(overlaps).tolist() == [0, 2, 4, nothing, unsure, nothing]


def test_nothing_is_learnt_from_anchors_in_the_padding_of_a_batch():
    """Each image counts to its own next multiple of 32; objects find their best anchor there."""
    proposals = Proposals(TASK, proposals=8, beta=0.0)
    sizes = [(40, 96), (64, 33)]
    batch = together([torch.zeros(3, *size) for size in sizes], 32)
    assert batch.shape[-2:] == (64, 96)
    levels = [torch.zeros(2, 8, 64 // s, 96 // s) for s in (4, 8, 16, 32)]
    levels.append(torch.zeros(2, 8, 1, 2))
    anchors = proposals.anchor_generator(ImageList(batch, sizes), levels)
    objects = (torch.tensor([[4.0, 4.0, 30.0, 30.0]]), torch.zeros(0, 4))
    targets = [
        {"boxes": boxes, "masks": torch.zeros(len(boxes), *size)}
        for boxes, size in zip(objects, sizes, strict=True)
    ]
    labels, boxes = proposals.assign_targets_to_anchors(anchors, targets)
    for label, (height, width) in zip(labels, [(64, 96), (64, 64)], strict=True):
        outside = []
        for level, stride in zip(levels, (4, 8, 16, 32, 64), strict=True):
            for row, column, _ in np.ndindex(*level.shape[2:], 3):
                outside.append(row * stride >= height or column * stride >= width)
        outside = torch.tensor(outside)
        assert (label[outside] == -1).all()
        assert outside.any() == (width < 96)
    assert (labels[1][~outside] == 0).all()
    assert (labels[0] == 1).sum() >= 1
    assert (boxes[0][labels[0] == 1] == objects[0]).all()


def test_cells_of_a_box_see_their_own_place():
    """A map that says where it is: each cell's mean is its center, half a pixel shifted or not."""
    ys, xs = torch.meshgrid(torch.arange(32.0), torch.arange(40.0), indexing="ij")
    place = torch.stack([4 * (xs + 0.5), 4 * (ys + 0.5)])[None]
    others = [torch.zeros(1, 2, 32 // k, 40 // k) for k in (2, 4, 8)]
    cells = RoiPool(7)([place, *others], [torch.tensor([[20.0, 30.0, 90.0, 65.0]])])
    want_x, want_y = 20 + 70 * (np.arange(7) + 0.5) / 7, 30 + 35 * (np.arange(7) + 0.5) / 7
    np.testing.assert_allclose(cells[0, 0].numpy(), np.tile(want_x, (7, 1)), rtol=1e-5)
    np.testing.assert_allclose(cells[0, 1].numpy(), np.tile(want_y[:, None], 7), rtol=1e-5)


def test_boxes_are_cut_out_of_the_level_of_their_size():
    """From 112 pixels on out of the second, from 224 the third, from 448 the fourth."""
    levels = [torch.full((2, 1, 128 >> k, 128 >> k), float(k)) for k in range(4)]
    sides = (0.0, 20.0, 111.0, 113.0, 223.0, 225.0, 449.0, 500.0)
    boxes = [torch.tensor([[0, 0, side, side] for side in sides]), torch.zeros(0, 4)]
    cells = RoiPool(3)(levels, boxes)
    assert cells.amax((1, 2, 3)).tolist() == [0, 0, 0, 1, 1, 2, 3, 3]
    assert RoiPool(3)(levels, [torch.zeros(0, 4)] * 2).shape == (0, 1, 3, 3)


def test_mask_targets():
    """An object that fills the left half of a box and its lower rows."""
    mask = torch.zeros(2, 20, 30, dtype=torch.uint8)
    mask[1, :, :14] = 1
    mask[1, 12:] = 1
    found = mask_targets(mask, torch.tensor([[10.0, 4.0, 18.0, 20.0]]), torch.tensor([1]), 4)
    want = [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1]]
    assert found[0].tolist() == want


def test_masks_come_back_where_they_were():
    mask = torch.zeros(1, 24, 32, dtype=torch.uint8)
    mask[0, 6:18, 8:24] = 1
    mask[0, 6:12, 16:24] = 0
    box = torch.tensor([[4.0, 2.0, 28.0, 22.0]])
    found = paste(mask_targets(mask, box, torch.tensor([0]), 28), box, (24, 32))
    np.testing.assert_array_equal(found.numpy(), mask.bool().numpy())
    outside = paste(torch.ones(1, 14, 14), torch.tensor([[20.6, 0.0, 32.0, 24.0]]), (24, 32))
    assert outside.sum() == 24 * 11  # not the column whose center lies outside its box
    assert paste(torch.ones(0, 14, 14), torch.zeros(0, 4), (24, 32)).shape == (0, 24, 32)


@pytest.mark.parametrize("sides", [(16, 8, 4, 2), (13, 7, 4, 2)])
def test_the_pyramid_is_torchvisions(sides):
    ours, theirs = Pyramid((3, 5, 6, 7), 8, "nearest"), FeaturePyramidNetwork(
        [3, 5, 6, 7], 8, LastLevelMaxPool()
    )  # fmt: skip
    state = {}
    for name, tensor in ours.state_dict().items():
        kind, index, leaf = name.split(".")
        state[f"{'inner' if kind == 'lateral' else 'layer'}_blocks.{index}.0.{leaf}"] = tensor
    theirs.load_state_dict(state)
    maps = [torch.randn(2, c, s, s + 1) for c, s in zip((3, 5, 6, 7), sides, strict=True)]
    wanted = theirs({str(i): one for i, one in enumerate(maps)}).values()
    for found, want in zip(ours(maps), wanted, strict=True):
        torch.testing.assert_close(found, want)
    filtered = Pyramid((3, 5, 6, 7), 8, "ddf_up")(maps)
    assert [one.shape for one in filtered] == [one.shape for one in ours(maps)]


def test_images_are_laid_into_one_batch():
    images = [torch.ones(3, 33, 20), 2 * torch.ones(3, 5, 40)]
    batch = together(images, 32)
    assert batch.shape == (2, 3, 64, 64)
    assert [one.sum().item() for one in batch] == [3 * 33 * 20, 2 * 3 * 5 * 40]
    labels = together([torch.zeros(3, 4, dtype=torch.int64), torch.ones(2, 5).long()], fill=255)
    assert labels[0, :, 4].tolist() == [255] * 3


@pytest.mark.parametrize("cascade", [True, False])
def test_losses_by_hand(cascade):
    """One object, one box that is it, one that misses half of it, one far away."""
    torch.manual_seed(0)
    stage = Stage(TASK, 2, Rule(0.5, (0.1, 0.2), 0.5), cascade=cascade)
    truth = torch.tensor([[10.0, 10.0, 30.0, 30.0]])
    boxes = [torch.tensor([[10.0, 10.0, 30.0, 22.0], [40.0, 40.0, 60.0, 60.0]])]
    target = {"boxes": truth, "labels": torch.tensor([2]), "masks": torch.ones(1, 64, 64).byte()}
    levels = [torch.zeros(1, 8, 16 >> k, 16 >> k) for k in range(4)]
    for name, tensor in stage.box_predictor.named_parameters():
        torch.nn.init.zeros_(tensor)
        if "bias" in name and "cls" in name:
            tensor.data.copy_(torch.tensor([0.5, 0.0, -0.5]))
    losses, proposed = stage.losses(levels, boxes, [target], [(64, 64)])
    scores = np.exp([0.5, 0.0, -0.5]) / np.exp([0.5, 0.0, -0.5]).sum()
    class_loss = -(2 * np.log(scores[2]) + np.log(scores[0])) / 3
    assert losses["class"].item() == pytest.approx(0.5 * class_loss, rel=1e-5)
    # The box that misses half: its center has to move by 4 of 12 pixels, its height to grow by 5/3.
    shift = (4 / 12 / 0.1 + np.log(20 / 12) / 0.2) / 3
    overlap = 10 * (1 - 0.6) / 3
    want = 0.5 * (overlap if cascade else shift)
    assert losses["box"].item() == pytest.approx(want, rel=1e-4)
    # The next stage is proposed the two boxes, not the object; unmoved, for all shifts are 0.
    found = sorted(proposed[0].tolist())
    np.testing.assert_allclose(found, sorted(boxes[0].tolist()), atol=1e-4)
