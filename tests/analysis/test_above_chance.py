"""The committed detectors and segmenters have learned: they beat what knows all but the classes.

Chance knows where every object is and guesses what it is, which is far more than a network knows
that has learned nothing: that one finds nothing, or labels every pixel as the background.
"""

from pathlib import Path

import pytest
import torch

from lsa_study import load_results
from lsa_study.config.study import load_study
from lsa_study.training import scores, tasks

RESULTS = Path(__file__).resolve().parents[2] / "results"
DRAWS = 10
MARGIN = 3.0
"""Points above the luckiest of the draws."""


def guessed(test, draw):
    """The objects of a scene as they are, each of a class and with a score by chance."""
    count = len(test.target["boxes"])
    labels = torch.randint(1, 11, (count,), generator=draw)
    answer = {**test.target, "labels": labels, "masks": test.target["masks"].bool()}
    answer["scores"] = torch.rand(count, generator=draw)
    return scores.found_in(test, answer, (1.0, 1.0))


def relabelled(labels, draw):
    """A map of labels whose digits are outlined exactly, each called another by chance."""
    return torch.cat([torch.zeros(1), torch.randint(1, 11, (10,), generator=draw)]).long()[labels]


def chance(settings):
    """The first metric of a run that guesses: its luckiest of ``DRAWS``."""
    sets, draw = tasks.of(settings).sets("cpu"), torch.Generator().manual_seed(0)
    classes, every = sets.source.num_classes, []
    for _ in range(DRAWS):
        if settings.task.kind == "detect":
            found = [one for test in sets.test() for one in guessed(test, draw)]
            every.append(scores.Truth(sets.test_split).average_precision(found)["box_ap"])
            continue
        maps = (test.target["labels"] for test in sets.test())
        overlaps = (scores.overlaps(relabelled(one, draw), one, classes) for one in maps)
        every.append(float(scores.mean_iou(sum(overlaps))))
    return max(every)


@pytest.mark.parametrize(
    ("name", "metrics"), [("table9", ["box_ap", "mask_ap"]), ("table10", ["miou"])]
)
def test_every_row_is_above_chance(name, metrics):
    study = load_study(name, tier="toy", recall=RESULTS)
    guess = chance(next(iter(study.variants.values())))
    runs = {run.identity for run in study.runs()}
    frame = load_results(RESULTS, tier="toy")
    mine = frame[frame["identity"].isin(runs)]
    assert set(mine["identity"]) == runs
    for metric in metrics:
        assert (mine[f"metrics.{metric}"] > guess + MARGIN).all(), (metric, guess)
