"""Swin around an operator: stages, shifts, stochastic depth, initialisation, timm's weights."""

import itertools

import pytest
import timm
import torch
from networks import on_meta, shallow  # noqa: F401  # a fixture

from lsa_study import ops
from lsa_study.config import study
from lsa_study.config.operators import (
    ConvOp,
    DdfOp,
    DwConvOp,
    DwNetOp,
    ElsaOp,
    OutlookOp,
    UnifiedOp,
)
from lsa_study.config.settings import Model
from lsa_study.errors import ConfigError
from lsa_study.models import build_model, from_settings, load_official
from lsa_study.models.operators import BlockContext, build_block

LSA = {"terms": ("qk", "bias"), "norm": "softmax", "application": "window"}
STUDIES = study.ARTICLE
SIDES = {"toy": 28, "proxy": 28, "paper": 224}


def network(op, backbone="swin_micro", image_size=28, drop_path=0.1, classes=10):
    settings = Model(backbone=backbone, op=op, drop_path=drop_path)
    return from_settings(settings, image_size=image_size, num_classes=classes)


def places(model):
    return [[block.attn for block in stage.blocks] for stage in model.layers]


@pytest.mark.parametrize("size", [(224, 224), (128, 256)])
def test_same_logits_as_timm(size):
    """All four stages, shifted and not, from timm's weights: tables, projections, merges, head.

    The oblong image has maps that are not whole windows, and windows of 4 x 7 pixels.
    """
    torch.manual_seed(0)
    theirs = timm.create_model("swin_tiny_patch4_window7_224", img_size=size).double().eval()
    for name, tensor in theirs.named_parameters():
        if "table" in name or name.endswith("bias"):
            torch.nn.init.normal_(tensor, std=0.5)
    ours = build_model("lsa_swin_tiny", img_size=size).double().eval()
    load_official(ours, theirs.state_dict(), source="timm")
    image = torch.randn(1, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(ours(image), theirs(image), rtol=0, atol=1e-8)


def rows():
    """Every network of the article's tables at every tier, each once."""
    found = {}
    for name, tier in itertools.product(STUDIES, SIDES):
        for variant, settings in study.load_study(name, tier=tier).variants.items():
            found.setdefault(settings.model, pytest.param(settings, id=f"{tier}-{name}-{variant}"))
    return list(found.values())


@pytest.mark.parametrize("settings", rows())
@pytest.mark.usefixtures("shallow")
def test_every_row_of_the_article_builds(settings):
    side = settings.data.image_size
    model = on_meta(from_settings, settings.model, image_size=side, num_classes=10)
    with torch.no_grad():
        assert model(torch.empty(2, 3, side, side, device="meta")).shape == (2, 10)


@pytest.mark.parametrize("backbone", ["swin_micro", "swin_mini", "swin_mini_p2", "swin_mini_conv"])
@pytest.mark.parametrize(
    "op",
    [
        UnifiedOp(terms=("qk", "q_rk", "rq_k", "bias"), norm="softmax", application="window"),
        UnifiedOp(terms=("q_rk",), norm="filter_norm", application="neighboring"),
        UnifiedOp(**LSA | {"application": "neighboring"}, border="mask", implementation="sdc"),
        ElsaOp(group_width=4, ghost_mul=1.0),
        ElsaOp(variant="eq7", last_stage="same"),
        DwConvOp(heads="1x", last_stage="lsa"),
        DwNetOp(),
        DwNetOp(kind="ddwconv"),
        DdfOp(combine="add", heads="1x", reduction=0.3),
        OutlookOp(),
    ],
    ids=lambda op: f"{op.kind}-{getattr(op, 'norm', '')}{getattr(op, 'variant', '')}",
)
def test_gradients_reach_every_parameter(backbone, op):
    torch.manual_seed(0)
    model = network(op, backbone, drop_path=0.0)
    model(torch.randn(4, 3, 28, 28)).square().sum().backward()
    for name, tensor in model.named_parameters():
        assert tensor.grad is not None, f"{name} is not used"
        assert tensor.grad.abs().max() > 0, f"no gradient reaches {name}"


def test_heads_that_do_not_divide_are_refused():
    place = BlockContext(dim=16, heads=3, map_size=(14, 14), odd=False, last_stage=False)
    with pytest.raises(ConfigError, match=r"model\.op\.heads = '2x': 6 heads do not divide 16"):
        build_block(DwConvOp(heads="2x"), place)


def test_stochastic_depth_grows_from_zero():
    model = on_meta(build_model, "lsa_swin_tiny", drop_path_rate=0.11)
    rates = [
        [getattr(d, "drop_prob", 0.0) for d in (b.drop_path1, b.drop_path2)]
        for stage in model.layers
        for b in stage.blocks
    ]
    want = [0.01 * block for block in range(12)]
    assert rates == [[pytest.approx(w)] * 2 for w in want]


def test_odd_blocks_shift_where_there_are_several_windows():
    model = network(UnifiedOp(**LSA), "swin_mini")
    shifts = [[op.shift if side > 7 else 0 for op in stage] for stage, side in zip(
        places(model), (28, 14, 7), strict=True)]  # fmt: skip
    assert shifts == [[0, 3], [0, 3], [0, 0]]
    assert all(op.size == 7 for stage in places(model) for op in stage)


def test_small_maps_have_small_windows():
    """Swin: a map below the window's size is one window."""
    model = on_meta(network, UnifiedOp(**LSA), "swin_tiny", image_size=96)
    assert [stage[0].size for stage in places(model)] == [7, 7, 6, 3]


@pytest.mark.parametrize(
    ("op", "first", "last"),
    [
        (UnifiedOp(**LSA | {"application": "neighboring"}), "neighboring", "window"),
        (
            UnifiedOp(**LSA | {"application": "neighboring"}, last_stage="same"),
            "neighboring",
            "neighboring",
        ),
        (ElsaOp(), ops.ELSA, "window"),
        (ElsaOp(last_stage="same"), ops.ELSA, ops.ELSA),
        (DwConvOp(), ops.DwConv, ops.DwConv),
        (DwConvOp(last_stage="lsa"), ops.DwConv, "window"),
    ],
)
def test_last_stage(op, first, last):
    stages = places(network(op, "swin_mini"))
    for stage, want in zip(stages, (first, first, last), strict=True):
        for part in stage:
            if isinstance(want, str):
                assert part.application == want
                assert part.terms == {"qk", "bias"}
                assert part.norm == "softmax"
            else:
                assert type(part) is want


def test_norm_and_terms_change_in_all_stages():
    op = UnifiedOp(terms=("q_rk",), norm="identity", application="neighboring")
    for stage in places(network(op, "swin_mini")):
        for part in stage:
            assert (part.terms, part.norm) == ({"q_rk"}, "identity")


def outputs_of(rows):
    """Logits of every row from one seed."""
    image = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(1))
    found = {}
    for name, op in rows.items():
        torch.manual_seed(0)
        model = network(op).eval()
        with torch.no_grad():
            for parameter in model.parameters():  # beyond the tiny initial tables
                parameter.add_(torch.randn_like(parameter) * 0.1)
            found[name] = model(image)
    return found


def test_no_setting_of_an_operator_is_dead():
    """Any two rows of the study differ in their output, from equal seeds."""
    rows = {
        variant: settings.model.op
        for name in STUDIES
        for variant, settings in study.load_study(name, tier="toy").variants.items()
    }
    found = outputs_of(rows)
    for one, other in itertools.combinations(rows, 2):
        if rows[one] != rows[other]:
            assert not torch.allclose(found[one], found[other], atol=1e-5), (one, other)


def test_no_setting_of_a_counterpart_is_dead():
    found = outputs_of(
        {
            "dwnet": DwNetOp(),
            "dwnet5": DwNetOp(kernel_size=5),
            "ddwconv": DwNetOp(kind="ddwconv"),
            "ddwconv5": DwNetOp(kind="ddwconv", kernel_size=5),
            "ddf": DdfOp(),
            "ddf_heads": DdfOp(heads="1x"),
            "ddf_add": DdfOp(combine="add"),
            "ddf_wide": DdfOp(reduction=0.5),
            "ddf_spatial": DdfOp(branches="spatial"),
            "ddf_channel": DdfOp(branches="channel"),
            "ddf_batch": DdfOp(norm="batch"),
            "ddf_sigmoid": DdfOp(norm="sigmoid"),
            "ddf_alone": DdfOp(shell="none"),
            "conv": ConvOp(),
            "conv5": ConvOp(kernel_size=5),
            "conv_linear": ConvOp(shell="linear"),
            "outlook": OutlookOp(),
            "outlook_heads": OutlookOp(heads="1"),
            "outlook5": OutlookOp(kernel_size=5),
            "outlook_dense": OutlookOp(stride=1),
        }
    )
    for one, other in itertools.combinations(found, 2):
        assert not torch.allclose(found[one], found[other], atol=1e-5), (one, other)


def test_dwnets_block_has_no_norm_before_the_layer():
    block = network(DwNetOp()).layers[0].blocks[0]
    assert type(block.norm1) is torch.nn.Identity
    assert isinstance(block.norm2, torch.nn.BatchNorm2d)
    x = torch.randn(3, 5, 4, 16)
    got = block.norm2(x)
    torch.testing.assert_close(got.mean((0, 1, 2)), torch.zeros(16), rtol=0, atol=1e-5)
    torch.testing.assert_close(
        got.var((0, 1, 2), unbiased=False), torch.ones(16), rtol=0, atol=1e-3
    )


def test_twins_are_twins():
    """Two ways to compute the same neighborhoods agree; a map of one window shows no shift."""
    base = {**LSA, "terms": ("qk", "q_rk", "rq_k", "bias"), "application": "neighboring"}
    found = outputs_of(
        {
            "auto": UnifiedOp(**base),
            "unfold": UnifiedOp(**base, implementation="unfold"),
            "masked": UnifiedOp(**base, border="mask"),
            "sdc": UnifiedOp(**base, border="mask", implementation="sdc"),
        }
    )
    torch.testing.assert_close(found["auto"], found["unfold"], rtol=0, atol=1e-5)
    torch.testing.assert_close(found["masked"], found["sdc"], rtol=0, atol=1e-5)


def test_window_and_neighborhood_differ_in_the_first_stage():
    window, neighborhood = UnifiedOp(**LSA), UnifiedOp(**LSA | {"application": "neighboring"})
    found = outputs_of({"window": window, "neighborhood": neighborhood})
    assert not torch.allclose(found["window"], found["neighborhood"], atol=1e-5)


def test_initialisation():
    """Linear maps: truncated normal, 0.02, no bias. Tables likewise. Convolutions: torch's own."""
    torch.manual_seed(0)
    model = build_model("elsa_swin_tiny", ghost_mul=1.0)
    elsa, lsa = model.layers[1].blocks[0].attn, model.layers[3].blocks[1].attn
    for linear in (elsa.post_proj, lsa.qkv, model.head.fc, model.layers[2].blocks[0].mlp.fc1):
        assert linear.weight.std().item() == pytest.approx(0.02, rel=0.05)
        assert not linear.bias.any()
    assert lsa.rel_bias.std().item() == pytest.approx(0.02, rel=0.05)
    bound = elsa.dim**-0.5
    assert elsa.pre_proj.weight.abs().max().item() == pytest.approx(bound, rel=0.02)
    assert elsa.pre_proj.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)
    assert elsa.pre_proj.bias.any()
    mul, add = elsa.ghost_head[0], elsa.ghost_head[1]
    assert mul.std().item() == pytest.approx(1, rel=0.05)
    assert add.std().item() == pytest.approx(0.02, rel=0.05)


def test_tables_can_be_kept_from_decay():
    model = network(UnifiedOp(terms=("q_rk", "rq_k", "bias"), norm="softmax", application="window"))
    tables = {name.rpartition(".")[2] for name in model.no_weight_decay()}
    assert tables == {"rel_k", "rel_q", "rel_bias"}
    assert len(model.no_weight_decay()) == 3 * 3


def test_another_image_size_keeps_the_areas():
    model = network(UnifiedOp(**LSA), image_size=28)
    model.set_input_size(40)
    assert model(torch.zeros(1, 3, 40, 40)).shape == (1, 10)
    with pytest.raises(ValueError, match="window_size cannot change once built"):
        model.set_input_size(40, window_size=3)
