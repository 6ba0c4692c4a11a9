"""Detectors and segmenters: released features, counts, one protocol, images of any kind."""

import dataclasses
import sys

import pytest
import torch
from networks import on_meta

from lsa_study.config.operators import DdfOp, ElsaOp, UnifiedOp
from lsa_study.config.settings import Model
from lsa_study.config.task import Segment
from lsa_study.errors import ConfigError, EnvironmentLacks
from lsa_study.measure import count
from lsa_study.models import build_detector, dense, detection_features, load_official
from lsa_study.models.operators import LSA
from lsa_study.models.swin import Swin, SwinSize

ROWS = {
    ("mask_rcnn", "lsa_swin_tiny"): (47_798_959, 267),
    ("cascade_mask_rcnn", "lsa_swin_tiny"): (85_642_875, 745),
    ("upernet", "lsa_swin_tiny"): (59_941_862, 945),
    ("mask_rcnn", "elsa_swin_tiny"): (48_651_583, 269),
    ("cascade_mask_rcnn", "elsa_swin_tiny"): (86_495_499, 748),
    ("upernet", "elsa_swin_tiny"): (60_794_486, 946),
    ("mask_rcnn", "lsa_swin_small"): (69_116_863, 354),
    ("cascade_mask_rcnn", "lsa_swin_small"): (106_960_779, 838),
    ("upernet", "lsa_swin_small"): (81_259_766, 1038),
    ("mask_rcnn", "elsa_swin_small"): (72_385_231, 367),
    ("cascade_mask_rcnn", "elsa_swin_small"): (110_229_147, 846),
    ("upernet", "elsa_swin_small"): (84_528_134, 1046),
    ("cascade_mask_rcnn", "lsa_swin_base"): (144_990_073, 982),
    ("upernet", "lsa_swin_base"): (121_279_716, 1188),
    ("mask_rcnn", "elsa_swin_base"): (112_060_397, 508),
    ("cascade_mask_rcnn", "elsa_swin_base"): (149_904_313, 987),
    ("upernet", "elsa_swin_base"): (126_193_956, 1193),
}
"""Tables 9 and 10: parameters as counted of the released networks, which round to the article's;
and the article's GFLOPs."""
QUICK = ("mask_rcnn", "elsa_swin_tiny")
TOY = dense.Heads(
    "mask_rcnn", channels=16, anchor_scale=4.0, proposals=60, rois=24, box_width=32, mask_size=14,
    convs=1,
)  # fmt: skip
FRAMEWORKS = ["mask_rcnn", "cascade_mask_rcnn", "upernet"]
DETECTORS = FRAMEWORKS[:2]


def toy(framework, *, op=LSA, classes=3, backbone="swin_micro4", **changes):
    torch.manual_seed(0)
    task = dataclasses.replace(TOY, framework=framework, **changes)
    return dense.build(task, Model(backbone=backbone, op=op, drop_path=0.0), classes)


def scene(seed, height=64, width=96, objects=2):
    """Bright rectangles, each in the color of its class; what a detector and a segmenter learn."""
    draw = torch.Generator().manual_seed(seed)
    image = 0.1 * torch.randn(3, height, width, generator=draw)
    boxes, masks, labels = [], [], []
    semantic = torch.zeros(height, width, dtype=torch.int64)
    for number in range(objects):
        tall, wide = torch.randint(16, 30, (2,), generator=draw).tolist()
        top = int(torch.randint(0, height - tall, (1,), generator=draw))
        left = int(torch.randint(0, width - wide, (1,), generator=draw))
        mask = torch.zeros(height, width, dtype=torch.uint8)
        mask[top : top + tall, left : left + wide] = 1
        kind = (seed + number) % 2
        image[kind] += 2 * mask
        semantic[mask > 0] = kind + 1
        boxes.append([left, top, left + wide, top + tall])
        masks.append(mask)
        labels.append(kind + 1)
    found = {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor(labels, dtype=torch.int64),
        "masks": torch.stack(masks) if masks else torch.zeros(0, height, width, dtype=torch.uint8),
        "image_id": seed,
    }
    return image, found, {"labels": semantic}


def losses(network, scenes, seed=0):
    torch.manual_seed(seed)
    segments = isinstance(network, dense.Segmenter)
    return network.loss([s[0] for s in scenes], [s[2 if segments else 1] for s in scenes])


def micro():
    """The golden file's backbone."""
    size = SwinSize(12, (1, 1, 1, 2), (1, 2, 3, 6))
    op = ElsaOp(kernel_size=3, group_width=4, last_stage_window=3)
    return Swin(size, op, num_classes=0, drop_path_rate=0.0)


@pytest.mark.golden("det_*")
def test_the_released_backbone(golden):
    network = dense.detection_backbone(micro()).double()
    weights = {name: torch.from_numpy(array) for name, array in golden.with_prefix("w.").items()}
    load_official(network, weights, source="elsa")
    image = torch.from_numpy(golden["x"]).requires_grad_()
    maps = detection_features(network, image)
    for index, found in enumerate(maps):
        want = torch.from_numpy(golden[f"y{index}"])
        torch.testing.assert_close(found, want, rtol=0, atol=1e-9)
    sum((one * torch.from_numpy(golden[f"gy{i}"])).sum() for i, one in enumerate(maps)).backward()
    for found, name in (
        (image, "gx"),
        (network.patch_embed.proj.bias, "gw.patch_embed.proj.bias"),
        (network.layers[3].blocks[1].attn.rel_bias, "gw.layers.3.blocks.1.attn.rb"),
        (network.norm3.weight, "gw.norm3.weight"),
    ):
        torch.testing.assert_close(found.grad, torch.from_numpy(golden[name]), rtol=0, atol=1e-9)


def test_windows_are_padded_before_they_are_rolled():
    """On maps of whole windows the order is the same; on others it is not."""
    torch.manual_seed(0)
    backbone = toy("mask_rcnn").backbone
    shifted = backbone.layers[1].blocks[1].attn
    assert shifted.shift
    assert shifted.pads_first
    for tensor in shifted.parameters():
        torch.nn.init.normal_(tensor, std=0.3)
    for side, same in ((14, True), (10, False)):
        x = torch.randn(1, side, side, 32)
        shifted.pads_first = True
        first = shifted(x)
        shifted.pads_first = False
        assert torch.allclose(first, shifted(x), atol=1e-5) is same


@pytest.mark.parametrize("row", ROWS, ids="-".join)
def test_parameters_to_the_unit(row):
    network = on_meta(build_detector, *row)
    assert sum(p.numel() for p in network.parameters()) == ROWS[row][0]


@pytest.mark.parametrize(
    "row", [r if r == QUICK else pytest.param(r, marks=pytest.mark.slow) for r in ROWS]
)
def test_operations_are_the_articles(row):
    """The auxiliary head costs parameters alone; 1000 boxes and 100 masks an image."""
    found = count(
        on_meta(build_detector, *row), (3, 512, 2048) if "upernet" in row else (3, 800, 1280)
    )
    assert found.params == ROWS[row][0]
    assert found.macs / 1e9 == pytest.approx(ROWS[row][1], rel=0.012)


@pytest.mark.parametrize(
    ("framework", "changes"),
    [*((framework, {}) for framework in FRAMEWORKS), ("mask_rcnn", {"upsample": "ddf_up"})],
)
def test_gradients_reach_every_parameter(framework, changes):
    network = toy(framework, op=ElsaOp(group_width=4), channels=40, **changes)
    sum(losses(network, [scene(0), scene(1)]).values()).backward()
    for name, tensor in network.named_parameters():
        assert tensor.grad is not None, f"{name} is not used"
        assert tensor.grad.isfinite().all(), name
        assert tensor.grad.abs().max() > 0, f"no gradient reaches {name}"


@pytest.mark.parametrize(
    "op",
    [
        UnifiedOp(terms=("qk", "bias"), norm="softmax", application="window", size=5),
        UnifiedOp(terms=("qk", "bias"), norm="softmax", application="neighboring"),
        UnifiedOp(terms=("qk",), norm="softmax", application="window"),
        ElsaOp(group_width=4),
        DdfOp(),
    ],
    ids=lambda op: f"{op.kind}-{len(getattr(op, 'terms', ''))}",
)
def test_the_operator_moves_what_is_found(op):
    plain, other = toy("mask_rcnn"), toy("mask_rcnn", op=op)
    given = [scene(0), scene(1)]
    assert losses(plain, given)["rpn_class"] != losses(other, given)["rpn_class"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("upsample", "ddf_up"), ("channels", 24), ("anchor_scale", 8.0), ("proposals", 20),
        ("rois", 8), ("box_width", 48), ("mask_size", 28), ("convs", 2),
    ],
)  # fmt: skip
def test_every_number_of_a_task_is_read(field, value):
    given = [scene(0), scene(1)]
    plain, other = (
        losses(toy("mask_rcnn"), given),
        losses(toy("mask_rcnn", **{field: value}), given),
    )
    assert any(plain[name] != other[name] for name in plain)


@pytest.mark.parametrize("framework", DETECTORS)
@pytest.mark.parametrize("objects", [(0, 2), (0, 0)], ids=str)
def test_images_without_objects(framework, objects):
    network = toy(framework)
    found = losses(network, [scene(i, objects=number) for i, number in enumerate(objects)])
    total = sum(found.values())
    assert total.isfinite()
    total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    if not any(objects):
        assert found["rpn_box"] == found["box1"] == found["mask1"] == 0


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_odd_sizes_and_one_class(framework):
    """Images of unlike and odd sizes in one batch; what is found lies in its own image."""
    network = toy(framework, classes=1 if framework != "upernet" else 3)
    scenes = [scene(0, 61, 93), scene(1, 85, 47)]
    for _, found, _ in scenes:
        found["labels"].fill_(1)
    sum(losses(network, scenes).values()).backward()
    network.eval()
    for (image, _, _), found in zip(scenes, network.predict([s[0] for s in scenes]), strict=True):
        height, width = image.shape[1:]
        if framework == "upernet":
            assert found["labels"].shape == (height, width)
            assert found["labels"].dtype == torch.int64
            continue
        number = len(found["boxes"])
        assert number, "an untrained network finds something in noise"
        assert found["boxes"].shape == (number, 4)
        assert found["masks"].shape == (number, height, width)
        assert found["masks"].dtype == torch.bool
        assert (found["labels"] == 1).all()
        assert (found["scores"].diff() <= 0).all()
        assert (found["boxes"] >= 0).all()
        assert (found["boxes"] <= torch.tensor([width, height] * 2)).all()


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_blank_images(framework):
    network = toy(framework, classes=30).eval()
    found = network.predict([torch.zeros(3, 64, 64), torch.zeros(3, 32, 40)])
    assert len(found) == 2
    if framework != "upernet":  # of 31 classes none is sure
        assert found[0]["masks"].shape == (len(found[0]["boxes"]), 64, 64)
        assert found[1]["boxes"].shape[1] == 4


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_an_image_is_judged_alike_alone_and_with_others(framework):
    network = toy(framework).double().eval()
    images = [scene(i)[0].double() for i in range(2)]
    together, alone = network.predict(images), [network.predict([image])[0] for image in images]
    for one, other in zip(together, alone, strict=True):
        for name in one:
            torch.testing.assert_close(one[name], other[name])


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_few_steps_lower_the_loss(framework):
    network, scenes = toy(framework), [scene(0), scene(1)]
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    seen = []
    for _ in range(8):
        total = sum(losses(network, scenes).values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        seen.append(total.item())
    assert sum(seen[-2:]) < 0.92 * sum(seen[:2]), seen


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_half_precision_keeps_boxes_exact(framework):
    """Under autocast coordinates stay in float32: losses are near, boxes no multiples of 1/2."""
    network, scenes = toy(framework), [scene(0), scene(1)]
    exact = losses(network, scenes)
    with torch.autocast("cpu", torch.bfloat16):
        found = losses(network, scenes)
        sum(found.values()).backward()
        answers = network.eval().predict([scenes[0][0]])
    assert found["class" if framework == "upernet" else "rpn_class"].dtype == torch.float32
    for name in exact:
        if name.startswith(("rpn", "class", "auxiliary")):
            assert found[name].item() == pytest.approx(exact[name].item(), rel=0.05)
    if framework != "upernet":
        assert answers[0]["boxes"].dtype == torch.float32
        assert (answers[0]["boxes"] * 4 % 1 != 0).any()


@pytest.mark.slow
@pytest.mark.parametrize("framework", DETECTORS)
def test_two_scenes_are_learnt_by_heart(framework):
    """Boxes, classes and masks: so labels, shifts and masks mean what they should."""
    network = toy(framework, channels=32, box_width=64)
    scenes = [scene(0, objects=1), scene(1, objects=1)]
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    for step in range(120):
        total = sum(losses(network, scenes, seed=step).values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    network.eval()
    for (_, truth, _), found in zip(scenes, network.predict([s[0] for s in scenes]), strict=True):
        assert found["labels"][0] == truth["labels"][0]
        assert (found["boxes"][0] - truth["boxes"][0]).abs().max() < 5
        mask, own = found["masks"][0], truth["masks"][0].bool()
        assert (mask & own).sum() > 0.7 * (mask | own).sum()


def test_ignored_pixels_teach_nothing():
    network = toy("upernet")
    image, _, truth = scene(0)
    ignored = {"labels": torch.full_like(truth["labels"], 255)}
    found = network.loss([image, image], [ignored, ignored])
    assert found["class"] == found["auxiliary"] == 0
    half = {"labels": truth["labels"].clone()}
    half["labels"][:, :48] = 255
    network.dropout.p = network.auxiliary[3].p = 0.0
    other = {"labels": half["labels"].clone()}
    assert network.loss([image] * 2, [half] * 2) == network.loss([image] * 2, [other] * 2)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_step_is_the_same_bit_by_bit(framework):
    """As training on a CPU asks of every part: a killed run goes on with the same numbers."""
    network, scenes = toy(framework), [scene(0), scene(1)]
    network.train()
    seen = []
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        for _ in range(2):
            network.zero_grad()
            sum(losses(network, scenes).values()).backward()
            seen.append([tensor.grad.clone() for tensor in network.parameters()])
    finally:
        torch.use_deterministic_algorithms(before)
    assert all(map(torch.equal, *seen))


def test_a_network_that_diverged_says_so_by_its_loss():
    for framework in DETECTORS:
        network = toy(framework)
        with torch.no_grad():
            network.pyramid.output[0].bias.fill_(float("nan"))
        assert not sum(losses(network, [scene(0), scene(1)]).values()).isfinite()


def test_released_classifiers_begin_a_detector():
    classifier = Model(backbone="swin_micro4", op=LSA, drop_path=0.0)
    trained = dense.registry.from_settings(classifier, image_size=224, num_classes=7)
    network = toy("mask_rcnn")
    dense.begin_from(network.backbone, trained.state_dict(), source="lsa")
    assert torch.equal(
        network.backbone.layers[1].blocks[1].attn.qkv.weight,
        trained.layers[1].blocks[1].attn.qkv.weight,
    )
    with pytest.raises(ValueError, match=r"lsa weights do not fit the backbone: layers\.0\."):
        dense.begin_from(toy("mask_rcnn", op=DdfOp()).backbone, trained.state_dict(), source="lsa")


def test_refusals(monkeypatch):
    network = toy("mask_rcnn")
    image, found, _ = scene(0)
    with pytest.raises(ValueError, match=r"predict: the network is in training; call eval\(\)"):
        network.predict([image])
    flat = found | {"boxes": torch.tensor([[3.0, 4.0, 3.0, 9.0]] * 2)}
    with pytest.raises(ValueError, match="boxes of image 0: one has no area; leave it out"):
        network.loss([image], [flat])
    with pytest.raises(ValueError, match=r"loss: the network is in evaluation; call train\(\)"):
        network.eval().loss([image], [found])
    with pytest.raises(
        ConfigError, match=r"model\.backbone='swin_micro': a Swin of 2 stages has not"
    ):
        toy("mask_rcnn", backbone="swin_micro")
    with pytest.raises(ConfigError, match="upsample='ddf_up': upernet has no such pyramid"):
        toy("upernet", upsample="ddf_up")
    with pytest.raises(ConfigError, match="'mask_rcn' is unknown; did you mean mask_rcnn"):
        build_detector("mask_rcn", "lsa_swin_tiny")
    with pytest.raises(ConfigError, match=r"'lsa_swin_tin' is unknown"):
        build_detector("mask_rcnn", "lsa_swin_tin")
    with pytest.raises(ConfigError, match="a Resnet has not the four maps"):
        on_meta(build_detector, "mask_rcnn", "ddf_resnet50")
    with pytest.raises(ValueError, match=r"give what detection_backbone\(network\) returns"):
        detection_features(micro(), image[None])
    for name in [n for n in sys.modules if n.startswith("segmentation_models_pytorch")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", None)
    with pytest.raises(EnvironmentLacks, match=r"pip install 'lsa_study\[detection\]'"):
        toy("upernet")


@pytest.mark.parametrize(("size", "std"), [("article", 0.01), ("micro", 0.1)])
def test_pixels_are_judged_by_first_weights_of_the_size(size, std):
    """Of 64 channels, the article's deviation leaves a segmenter at the background for long."""
    heads = dense.Heads.of(Segment(kind="segment", size=size))
    torch.manual_seed(0)
    network = dense.build(heads, Model(backbone="swin_micro4", op=LSA, drop_path=0.0), 11)
    for last in (network.classifier, network.auxiliary[-1]):
        assert float(last.weight.detach().std()) == pytest.approx(std, rel=0.1)
