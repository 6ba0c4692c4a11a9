"""The order of an epoch and its division among processes."""

import itertools

import pytest
import torch

from lsa_study.data.sampler import MIX_GROUP, EpochSampler
from lsa_study.errors import ConfigError


def steps_of(epoch: EpochSampler) -> list[list[int]]:
    """Images of every step, whatever the parts."""
    found: dict[int, list[int]] = {}
    for share in epoch.shares():
        found.setdefault(share.step, []).extend(share.indices.tolist())
    return [found[step] for step in sorted(found)]


def test_an_epoch_takes_every_image_at_most_once_and_leaves_out_the_rest():
    steps = steps_of(EpochSampler(images=103, batch_size=20, seed=0, epoch=0))
    assert [len(step) for step in steps] == [20] * 5
    seen = list(itertools.chain(*steps))
    assert len(set(seen)) == 100
    assert set(seen) <= set(range(103))


def test_fewer_images_than_a_batch_make_one_step_of_all():
    epoch = EpochSampler(images=7, batch_size=64, seed=0, epoch=0)
    assert (epoch.steps, epoch.batch) == (1, 7)
    assert sorted(steps_of(epoch)[0]) == list(range(7))


def test_the_order_depends_on_seed_and_epoch_alone():
    def first(**changes):
        return steps_of(
            EpochSampler(**{"images": 64, "batch_size": 16, "seed": 1, "epoch": 2, **changes})
        )

    assert first() == first()
    assert first(seed=3)[0] != first()[0]
    assert first(epoch=3)[0] != first()[0]
    assert first(first_step=2) == first()[2:]


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("parts", [1, 2, 4])
@pytest.mark.parametrize("batch", [24, 64, 2 * MIX_GROUP, 3 * MIX_GROUP])
def test_parts_cut_a_step_without_gap_or_overlap(batch, parts, paired):
    whole = EpochSampler(images=2 * batch, batch_size=batch, seed=0, epoch=0, paired=paired)
    cut = [
        EpochSampler(2 * batch, batch, 0, 0, parts=parts, mine=range(part, part + 1), paired=paired)
        for part in range(parts)
    ]
    for step in range(2):
        mine = [steps_of(epoch)[step] for epoch in cut]
        assert {len(part) for part in mine} == {batch // parts}
        assert sorted(itertools.chain(*mine)) == sorted(steps_of(whole)[step])


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_a_part_holds_both_images_of_a_mixed_pair(parts):
    """Timm mixes image i of a group with image (last - i): rows reversed give the partners."""
    batch = 3 * MIX_GROUP
    for part in range(parts):
        epoch = EpochSampler(
            batch, batch, 0, 0, parts=parts, mine=range(part, part + 1), paired=True
        )
        (share,) = epoch.shares()
        covered = 0
        for group, first, end in share.groups:
            rows = share.positions[first:end]
            partners = 2 * group * MIX_GROUP + MIX_GROUP - 1 - rows
            assert torch.equal(rows.flip(0), partners)
            covered += end - first
        assert covered == batch // parts


@pytest.mark.parametrize(
    ("batch", "group", "cuts"),
    [(1024, 128, (1, 2, 8)), (1024, 64, (1, 2, 4, 16)), (32, 8, (1, 2, 4)), (60, 6, (1, 2, 5, 10)),
     (60, 3, (1, 2, 5, 10)), (384, 96, (1, 2, 4)), (512, 256, (1, 2))],
)  # fmt: skip
def test_groups_of_batch_norm_are_the_same_images_however_a_step_is_cut(batch, group, cuts):
    found = []
    for parts in cuts:
        groups = set()
        for part in range(parts):
            (share,) = EpochSampler(
                batch, batch, 0, 0, parts=parts, mine=range(part, part + 1), paired=True,
                together=group,
            ).shares()  # fmt: skip
            groups |= {frozenset(rows.tolist()) for rows in share.positions.split(group)}
            for number, first, end in share.groups:
                rows = share.positions[first:end]
                width = MIX_GROUP if batch % MIX_GROUP == 0 else batch
                assert torch.equal(rows.flip(0), (2 * number + 1) * width - 1 - rows)
        found.append(groups)
    assert len(found[0]) == batch // group
    assert found.count(found[0]) == len(cuts)


def test_a_batch_that_cannot_be_cut_is_refused_in_words():
    with pytest.raises(ConfigError, match=r"batch_size = 64 .* 3 parts .* multiple of 3"):
        EpochSampler(images=640, batch_size=64, seed=0, epoch=0, parts=3)
    with pytest.raises(ConfigError, match=r"pairs for mixup or cutmix .* multiple of 8"):
        EpochSampler(images=640, batch_size=20, seed=0, epoch=0, parts=4, paired=True)
    with pytest.raises(ConfigError, match=r"1 training images .* 2 parts"):
        EpochSampler(images=1, batch_size=20, seed=0, epoch=0, parts=2)
