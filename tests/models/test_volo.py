"""VOLO around an operator: its first stage changes, everything else is timm's."""

import pytest
import timm
import torch

from lsa_study import ops
from lsa_study.config.operators import DwConvOp, ElsaOp, OutlookOp, UnifiedOp
from lsa_study.config.settings import Model
from lsa_study.models import build_model, from_settings, load_official
from lsa_study.models.blocks import SpatialBlock


def network(op, drop_path=0.1, image_size=32):
    settings = Model(backbone="volo_d1", op=op, drop_path=drop_path)
    return from_settings(settings, image_size=image_size, num_classes=10)


def parameters(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("op", "count"),
    [
        (ElsaOp(group_width=16), 27_044_712),
        (ElsaOp(group_width=16, ghost_mul=1.0), 27_082_344),
        (ElsaOp(group_width=8, ghost_mul=1.0), 26_881_640),
        (ElsaOp(group_width=8, ghost_mul=1.0, kernel_size=5), 26_672_168),
        (ElsaOp(group_width=32, ghost_mul=1.0), 27_483_752),
        (UnifiedOp(terms=("qk", "bias"), norm="softmax", application="window"), 26_555_816),
    ],
)
def test_candidates_for_the_articles_network(op, count):
    settings = Model(backbone="volo_d1", op=op, drop_path=0.1)
    with torch.device("meta"):
        assert parameters(from_settings(settings, image_size=224, num_classes=1000)) == count


def test_same_logits_as_timm():
    """With outlook attention the network is VOLO, and VOLO's weights fit it by name."""
    torch.manual_seed(0)
    theirs = timm.create_model("volo_d1_224", img_size=32, num_classes=10).double().eval()
    ours = network(OutlookOp()).double().eval()
    load_official(ours, theirs.state_dict(), source="volo")
    image = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(ours(image), theirs(image), rtol=0, atol=1e-8)


def test_all_but_the_first_stage_is_timms():
    with torch.device("meta"):
        ours = network(ElsaOp(group_width=16))
        theirs = timm.create_model("volo_d1_224", img_size=32, num_classes=10)
    assert all(type(block) is SpatialBlock for block in ours.network[0])
    assert all(type(block.attn) is ops.ELSA for block in ours.network[0])
    rest = {name: p.shape for name, p in ours.named_parameters() if "network.0." not in name}
    assert rest == {
        name: p.shape for name, p in theirs.named_parameters() if "network.0." not in name
    }


def test_first_stage_as_volos():
    """Six heads, an MLP of ratio 3, no bias on q, k and v, windows shifted in odd blocks."""
    op = UnifiedOp(terms=("qk", "bias"), norm="softmax", application="window", size=4)
    with torch.device("meta"):
        blocks = network(op).network[0]
        elsa = network(ElsaOp(group_width=16)).network[0]
        large = build_model("elsa_volo_d5").network[0]
    assert [block.attn.num_heads for block in blocks] == [6] * 4
    assert [block.attn.shift for block in blocks] == [0, 2, 0, 2]
    assert all(block.attn.qkv.bias is None for block in blocks)
    assert all(block.mlp.fc1.out_features == 3 * 192 for block in blocks)
    assert elsa[0].attn.pre_proj.bias is None
    assert large[0].mlp.fc1.out_features == 4 * 384


def test_stochastic_depth_starts_after_the_first_stage():
    """As VOLO's builder, timm's and the authors' alike."""
    with torch.device("meta"):
        model = network(DwConvOp(), drop_path=0.17)
    groups = [model.network[i] for i in (0, 2, 3, 4)]
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for group in groups for block in group]
    assert rates == pytest.approx([0.0] * 4 + [0.01 * block for block in range(4, 18)])


def test_initialisation_of_the_first_stage():
    torch.manual_seed(0)
    attn = network(ElsaOp(group_width=16)).network[0][1].attn
    assert attn.post_proj.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert not attn.post_proj.bias.any()
    assert attn.pre_proj.weight.abs().max().item() == pytest.approx(192**-0.5, rel=0.02)


@pytest.mark.parametrize("op", [ElsaOp(group_width=16), DwConvOp()], ids=lambda op: op.kind)
def test_gradients_reach_every_parameter(op):
    torch.manual_seed(0)
    model = network(op, drop_path=0.0)
    model(torch.randn(2, 3, 32, 32)).square().sum().backward()
    for name, tensor in model.named_parameters():
        assert tensor.grad is not None, f"{name} is not used"
        assert tensor.grad.abs().max() > 0, f"no gradient reaches {name}"


def test_short_names_are_timms_own():
    assert type(timm.create_model("volo_d1", img_size=64)) is timm.models.volo.VOLO
    with torch.device("meta"):
        assert parameters(build_model("volo_d1", img_size=384)) == 26_777_960


@pytest.mark.parametrize("call", ["first", "second"])
def test_features_of_elsa_volo(call):
    """Timm changes the settings of feature extraction it is handed."""
    model = build_model("elsa_volo_d1", img_size=64, features_only=True, out_indices=(0, 1, 3))
    maps = model(torch.zeros(1, 3, 64, 64))
    assert [tuple(m.shape[1:]) for m in maps] == [(192, 8, 8), (384, 4, 4), (384, 4, 4)]
    assert timm.get_pretrained_cfg("elsa_volo_d1").crop_pct == 0.96


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"last_stage": "same"}, "op.last_stage='same' changes nothing: volo_d1"),
        ({"last_stage_window": 12}, "op.last_stage_window=12 changes nothing: volo_d1"),
    ],
)
def test_a_setting_that_does_nothing_is_refused(setting, words):
    with pytest.raises(ValueError, match=words):
        network(ElsaOp(**setting))
