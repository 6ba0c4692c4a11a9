"""Weights of another image size, window or head, and what a network makes of them."""

import numpy as np
import pytest
import timm
import torch

from lsa_study.models import build_model, load_official


def cubic(distance, a=-0.75):
    """Keys's kernel with the slope that torch and Swin's authors use."""
    x = abs(distance)
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0


def resized(picture, rows, columns):
    """Bicubic interpolation of a 2-D array by loops; pixels beyond the edge repeat it."""
    height, width = picture.shape
    out = np.zeros((rows, columns))
    for i in range(rows):
        for j in range(columns):
            y, x = (i + 0.5) * height / rows - 0.5, (j + 0.5) * width / columns - 0.5
            for r in range(int(np.floor(y)) - 1, int(np.floor(y)) + 3):
                for c in range(int(np.floor(x)) - 1, int(np.floor(x)) + 3):
                    value = picture[min(max(r, 0), height - 1), min(max(c, 0), width - 1)]
                    out[i, j] += cubic(y - r) * cubic(x - c) * value
    return out


def drawn(name, **options):
    torch.manual_seed(0)
    model = build_model(name, num_classes=4, **options)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    return model


def begun(name, state, source="lsa", head="kept", rows=(), **options):
    torch.manual_seed(1)
    model = build_model(name, num_classes=4, **options)
    load_official(model, state, source=source, head=head, rows=rows)
    return model.state_dict()


def rest_is_equal(new, old, but):
    assert new.keys() == old.keys()
    assert [name for name in old if name not in but and not torch.equal(new[name], old[name])] == []


def test_tables_of_other_windows_are_interpolated():
    """All three tables of Net7's windows, 7 to 12; nothing else changes."""
    old = drawn("net7_swin_tiny", img_size=224, window_size=7).state_dict()
    new = begun("net7_swin_tiny", old, img_size=384, window_size=12)
    tables = {n for n in old if n.rpartition(".")[2] in ("rel_bias", "rel_k", "rel_q")}
    assert len(tables) == 36
    rest_is_equal(new, old, tables)
    for name, channel in (("rel_bias", ()), ("rel_k", (5,)), ("rel_q", (31,))):
        place = f"layers.1.blocks.1.attn.{name}"
        assert new[place].shape[1] == 23 * 23
        for head in (0, 5):
            ours = new[place][(head, slice(None), *channel)].view(23, 23).double().numpy()
            theirs = old[place][(head, slice(None), *channel)].view(13, 13).double().numpy()
            np.testing.assert_allclose(ours, resized(theirs, 23, 23), atol=1e-5)


def test_the_released_swin_in_another_window():
    """Their table is (offsets, heads) and runs the other way."""
    options = {"img_size": 224, "num_classes": 4}
    torch.manual_seed(0)
    theirs = timm.create_model("swin_tiny_patch4_window7_224", **options)
    name = "layers.2.blocks.3.attn.relative_position_bias_table"
    torch.nn.init.normal_(theirs.get_parameter(name))
    old = theirs.state_dict()
    new = begun("lsa_swin_tiny", old, "timm", img_size=384, window_size=12)
    table = old[name][:, 7].flip(0).view(13, 13).double().numpy()
    ours = new["layers.2.blocks.3.attn.rel_bias"][7].view(23, 23).double().numpy()
    np.testing.assert_allclose(ours, resized(table, 23, 23), atol=1e-5)


def test_a_position_map_of_another_image_size():
    old = drawn("elsa_volo_d1", img_size=64).state_dict()
    new = begun("elsa_volo_d1", old, img_size=96)
    rest_is_equal(new, old, {"pos_embed"})
    assert (old["pos_embed"].shape[1:3], new["pos_embed"].shape[1:3]) == ((4, 4), (6, 6))
    for channel in (0, 200):
        theirs = old["pos_embed"][0, :, :, channel].double().numpy()
        ours = new["pos_embed"][0, :, :, channel].double().numpy()
        np.testing.assert_allclose(ours, resized(theirs, 6, 6), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "heads"), [("elsa_swin_tiny", {"head.fc"}), ("elsa_volo_d1", {"head", "aux_head"})]
)
def test_a_drawn_head_is_the_network_s_own(name, heads):
    """Of 21,841 classes too, as after ImageNet-21K; kept, such a head does not fit."""
    old = drawn(name, img_size=32).state_dict()
    own = {f"{head}.{part}" for head in heads for part in ("weight", "bias")}
    old |= {part: torch.ones(21841, *old[part].shape[1:]) for part in own}
    new = begun(name, old, head="drawn", img_size=32)
    rest_is_equal(new, old, own)
    torch.manual_seed(1)
    fresh = build_model(name, img_size=32, num_classes=4).state_dict()
    for part in own:
        assert torch.equal(new[part], fresh[part])
    with pytest.raises(ValueError, match=r"shapes differ: .*head.*\(21841, "):
        begun(name, old, img_size=32)


@pytest.mark.parametrize(
    ("name", "heads"), [("elsa_swin_tiny", {"head.fc"}), ("elsa_volo_d1", {"head", "aux_head"})]
)
def test_a_mapped_head_takes_the_rows_of_its_classes(name, heads):
    """Four of 21,841 classes, in the network's own order, as Swin's code maps ImageNet-21K."""
    old = drawn(name, img_size=32).state_dict()
    own = {f"{head}.{part}" for head in heads for part in ("weight", "bias")}
    old |= {part: torch.randn(21841, *old[part].shape[1:]) for part in own}
    rows = [359, 21840, 0, 5564]
    new = begun(name, old, head="mapped", rows=rows, img_size=32)
    rest_is_equal(new, old, own)
    for part in own:
        for ours, theirs in enumerate(rows):
            assert torch.equal(new[part][ours], old[part][theirs])
    with pytest.raises(ValueError, match=r"has 21841 rows, and the map asks for row 21841"):
        begun(name, old, head="mapped", rows=[0, 1, 2, 21841], img_size=32)
    with pytest.raises(ValueError, match=r"shapes differ: .*head.*\(3, "):
        begun(name, old, head="mapped", rows=[0, 1, 2], img_size=32)


def test_what_has_another_shape_for_another_reason_does_not_fit():
    """More heads, wider layers: nothing is loaded."""
    old = drawn("net7_swin_tiny", img_size=32).state_dict()
    with pytest.raises(ValueError, match=r"shapes differ: layers\.0\.blocks\.0\.attn\.rel_k \(3, "):
        begun("net7_swin_tiny", old, img_size=32, heads="2x")
    with pytest.raises(ValueError, match=r"nothing here takes: .*rel_k"):
        begun("lsa_swin_tiny", old, img_size=32)
