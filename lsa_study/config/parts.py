"""Into how many parts a step can be cut: processes times ``runtime.accumulate``.

A part is computed at once, so it holds whole pairs of images to mix and, where a network has batch
norm, whole groups of ``train.norm_batch`` images: the statistics of a group that parts shared would
need all of them in memory together, which is what parts are there to avoid.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from lsa_study.config.networks import has_batch_norms
from lsa_study.config.settings import Model, Settings
from lsa_study.config.values import IMAGES
from lsa_study.errors import ConfigError

FEWEST = 2
"""Images of a group that is advised: over one alone, a pooled map has no variance."""


@dataclass(frozen=True)
class Smaller:
    """Settings with which a step takes less memory."""

    overrides: tuple[str, ...] = ()
    """As ``--set`` takes them; together they are accepted. Empty: there are none."""
    note: str = ""
    """What a reader must know of them."""

    @property
    def accumulate(self) -> int | None:
        """The parts, where nothing else changes and neither do numbers."""
        (only,) = self.overrides if len(self.overrides) == 1 and not self.note else ("",)
        return int(only.partition("=")[2]) if only else None

    def __str__(self) -> str:
        if not self.overrides:
            return "a part of a step cannot be smaller; give a device with more memory"
        return " and ".join(self.overrides) + (f" ({self.note})" if self.note else "")


def batch_norms(model: Model) -> bool:
    """Whether a network has batch norms; what comes from outside may."""
    return has_batch_norms(model.backbone, model.op, model.stem)


def _normed(settings: Settings) -> bool:
    """Whether the network has batch norms, those of a task's heads among them."""
    heads = getattr(settings.task, "framework", None) in ("cascade_mask_rcnn", "upernet")
    return heads or batch_norms(settings.model)


def why_not(settings: Settings, processes: int = 1) -> str | None:
    """Why so many processes cannot train a run, with what would be right; None if they can."""
    train, accumulate, grain = settings.train, settings.runtime.accumulate, _grain(settings)
    parts = processes * accumulate
    batch = min(train.batch_size, settings.data.train_limit or train.batch_size)
    if settings.task.kind == "segment" and batch < FEWEST * parts:
        return (
            f"{batch} images of a step in {parts} part{'s' * (parts > 1)} leave one to a part, and "
            f"the batch norm of UperNet's pooled maps needs {FEWEST}; give a larger "
            "train.batch_size or data.train_limit, fewer processes, or a smaller "
            "runtime.accumulate"
        )
    if train.batch_size % (parts * grain) == 0 or _fills_no_step(settings, parts):
        return _cannot_compile(settings)
    reasons = [
        *(["mixup and cutmix take images in pairs"] if settings.augment.mixes else []),
        *(
            [f"batch norm groups of train.norm_batch={train.norm_batch}"]
            if _grouped(settings)
            else []
        ),
    ]
    whole = f" of a multiple of {grain} images ({', '.join(reasons)})" if reasons else ""
    if fits := _fitting(settings, processes):
        right = f"runtime.accumulate: {_either(fits)}"
    elif fits := _fitting(settings, 1):
        right = f"processes times runtime.accumulate: {_either(fits)}"
    else:
        right = f"train.batch_size: a multiple of {parts * grain}"
    fewer = _smaller_groups(settings, processes, accumulate)
    return (
        f"runtime.accumulate={accumulate}"
        + (f" on {processes} devices" if processes > 1 else "")
        + f": train.batch_size={train.batch_size} cannot be cut into {parts} "
        f"part{'s' * (parts > 1)}{whole}; give {right}" + (f", or {fewer}" if fewer else "")
    )


def smaller(settings: Settings, processes: int = 1) -> Smaller:
    """What to set for the same effective batch in less memory; ``why_not`` accepts it.

    Where groups of batch norm bound the parts, as many as there can be; else twice as many.
    """
    now, batch = settings.runtime.accumulate, settings.train.batch_size
    more = [parts for parts in _fitting(settings, processes) if parts > now]
    if _grouped(settings):
        if not more:
            return _smaller_groups(settings, processes, now + 1) or Smaller()
        return Smaller((f"runtime.accumulate={max(more)}",))
    note = ""
    if _normed(settings):
        more = [parts for parts in more if batch // (parts * processes) >= FEWEST]
        note = "batch norm then takes its statistics over smaller parts, so that numbers change"
    if not more:
        return Smaller()
    twice = min((parts for parts in more if parts >= 2 * now), default=max(more))
    return Smaller((f"runtime.accumulate={twice}",), note)


def check_parts(variants: Mapping[str, Settings], where: Callable[[str], str]) -> None:
    """Refuse rows that one process could not train; ``where`` a row is written.

    Raises:
        ConfigError: all such rows, each with what would be right.
    """
    reasons = {name: why_not(settings) for name, settings in variants.items()}
    if wrong := [f"{where(name)}: {name}: {reason}" for name, reason in reasons.items() if reason]:
        raise ConfigError(*wrong)


def _grouped(settings: Settings) -> bool:
    return settings.train.norm_batch is not None and batch_norms(settings.model)


def _grain(settings: Settings) -> int:
    """Images of which a part holds a multiple."""
    group = settings.train.norm_batch if _grouped(settings) else None
    return math.lcm(group or 1, 2 if settings.augment.mixes else 1)


def _fills_no_step(settings: Settings, parts: int) -> bool:
    """Whether there are fewer images than a step wants, which then is as large as parts allow."""
    data, pair = settings.data, 2 if settings.augment.mixes else 1
    known = IMAGES[data.name][0] if data.name in IMAGES else math.inf
    images = min(known, data.train_limit or math.inf) - (data.validation or 0)
    enough = parts * pair <= images < settings.train.batch_size
    return enough and not _grouped(settings)


def _cannot_compile(settings: Settings) -> str | None:
    if settings.runtime.compile and _grouped(settings):
        return (
            "runtime.compile=True: train.norm_batch computes batch norms by groups, which is not "
            "compiled; set runtime.compile: false, or train.norm_batch: null"
        )
    return None


def _fitting(settings: Settings, processes: int) -> list[int]:
    """Every ``runtime.accumulate`` with which ``processes`` can share a step."""
    most, rest = divmod(settings.train.batch_size, processes * _grain(settings))
    if rest:
        return []
    low = [n for n in range(1, math.isqrt(most) + 1) if most % n == 0]
    return sorted({*low, *(most // n for n in low)})


def _smaller_groups(settings: Settings, processes: int, parts: int) -> Smaller | None:
    """The largest groups of batch norm with which a step can be cut into at least so many parts."""
    group = settings.train.norm_batch
    if group is None or not _grouped(settings):
        return None
    for images in range(group - 1, FEWEST - 1, -1):
        train = settings.train.model_copy(update={"norm_batch": images})
        fits = _fitting(settings.model_copy(update={"train": train}), processes)
        if enough := [n for n in fits if n >= parts]:
            overrides = (f"train.norm_batch={images}", f"runtime.accumulate={enough[0]}")
            note = "batch norm then takes other statistics: numbers change, and it is another run"
            return Smaller(overrides, note)
    return None


def _either(numbers: list[int]) -> str:
    if len(numbers) > 6:
        return f"a divisor of {numbers[-1]}"
    return " or ".join(filter(None, [", ".join(map(str, numbers[:-1])), str(numbers[-1])]))
