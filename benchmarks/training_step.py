"""Our training step, evaluation and loader beside timm's, in turns.

Run: python benchmarks/training_step.py [--data FOLDER] [--seconds 20] [--threads 2]

Both sides have the same network with the same first weights, batch, data and precision; what is
timed on timm's side is the recipe of its train and validate scripts: ``create_loader``,
``create_optimizer_v2``, clipped gradients, schedule, meters. Each side is a process of its own,
ours with memory kept as our workers do. FOLDER holds ``train/<wnid>/*.JPEG``, of which 32 pictures
are used; without it only the digits are measured.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rounds import Apart, Effort, machine, options, shown, timed, write
from timm.data import Mixup, create_dataset, create_loader
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.models import model_parameters
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from timm.utils import AverageMeter, accuracy, dispatch_clip_grad
from torch import Tensor, nn

from lsa_study import data, models
from lsa_study.config import study
from lsa_study.config.settings import Settings
from lsa_study.data import digits
from lsa_study.data.sets import Datasets
from lsa_study.errors import EnvironmentLacks
from lsa_study.machine import need_bfloat16
from lsa_study.models.throughput import Contender
from lsa_study.training import environment
from lsa_study.training.distributed import ALONE
from lsa_study.training.evaluate import evaluate
from lsa_study.training.step import Stepper

PICTURES = 32
DIGITS, PHOTOGRAPHS = "micro Swin, digits", "Swin-T, ImageNet photographs"
WHAT = ("step", "evaluation", "loading")
SIDES = ("timm", "ours")
Pair = tuple[Contender, Contender]


class Digits(torch.utils.data.Dataset[tuple[Any, int]]):
    """The digits as timm wants a data set: pictures, and a ``transform`` to be set."""

    transform: Callable[[Image.Image], Any] | None = None

    def __init__(self, split: str) -> None:
        pixels, labels = digits.make(split)
        self.pixels, self.labels = pixels.transpose(0, 2, 3, 1), labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        assert self.transform is not None
        picture = Image.fromarray(self.pixels[index].copy())
        return self.transform(picture), int(self.labels[index])


class Bench:
    """One network on one data set, on our side and on timm's."""

    def __init__(self, settings: Settings, device: torch.device, sources: tuple[Any, Any]) -> None:
        self.settings, self.device = settings, device
        self.sets: Datasets = data.load(settings, device=str(device))
        self.train_source, self.test_source = sources
        self.precision = environment.precision(settings.train, device)
        self.batch = next(iter(self.sets.train(self._epoch())))

    def _epoch(self) -> Any:
        return self.sets.epoch(0, self.settings.train.batch_size)

    def network(self) -> nn.Module:
        """The same weights at every call."""
        torch.manual_seed(0)
        size, classes = self.settings.data.image_size, self.sets.source.num_classes
        model = models.from_settings(self.settings.model, image_size=size, num_classes=classes)
        return model.to(self.device)

    def autocast(self) -> Any:
        """Of timm's side; ours has its own."""
        use = self.precision != torch.float32
        return torch.autocast(self.device.type, self.precision) if use else nullcontext()

    # -- the pairs ----------------------------------------------------------------------------

    def step(self) -> Pair:
        """One optimiser step on one batch."""
        ours = Stepper(self.settings, self.network().train(), ALONE, steps=100)
        batches = itertools.repeat(self.batch)

        def our_step() -> Tensor:
            with environment.deterministic(self.device):
                return ours.train_step(5, 0, batches)

        return our_step, self._timms_step(self.network().train())

    def _timms_step(self, model: nn.Module) -> Callable[[], Tensor]:
        train, (images, targets) = self.settings.train, (self.batch.images, self.batch.targets)
        optimizer = create_optimizer_v2(
            model,
            opt="adamw",
            lr=train.lr * train.batch_size / train.lr_batch,
            weight_decay=train.weight_decay,
        )
        scheduler = CosineLRScheduler(
            optimizer, t_initial=300, lr_min=train.min_lr, warmup_t=20, t_in_epochs=False,
            warmup_lr_init=train.warmup_lr,
        )  # fmt: skip
        smoothed = LabelSmoothingCrossEntropy(self.settings.augment.label_smoothing)
        loss_of = SoftTargetCrossEntropy() if targets.ndim == 2 else smoothed
        updates = itertools.count(5)

        def step() -> Tensor:
            scheduler.step_update(next(updates))
            with self.autocast():
                loss = loss_of(model(images), targets)
            loss.backward()
            dispatch_clip_grad(model_parameters(model), value=train.clip_grad or 5.0, mode="norm")
            optimizer.step()
            optimizer.zero_grad()
            return loss.detach()

        return step

    def evaluation(self) -> Pair:
        """A pass over the test pictures, decoding included."""
        model, size = self.network().eval(), self.settings.evaluation.batch_size
        loader = self._loader(self.test_source, size, is_training=False)

        def ours() -> float:
            with environment.deterministic(self.device):
                return evaluate(model, self.sets, size, precision=self.precision).acc1

        @torch.inference_mode()
        def timms() -> float:
            loss, top1, top5 = AverageMeter(), AverageMeter(), AverageMeter()
            for images, labels in loader:
                with self.autocast():
                    logits = model(images)
                first, fifth = accuracy(logits, labels, topk=(1, 5))
                loss.update(nn.functional.cross_entropy(logits, labels).item(), len(images))
                top1.update(first.item(), len(images))
                top5.update(fifth.item(), len(images))
            return float(top1.avg)

        return ours, timms

    def loading(self) -> Pair:
        """A pass over the training pictures with the recipe's augmentation and mixing."""
        wanted = self.settings.augment
        loader = self._loader(
            self.train_source, self.settings.train.batch_size, is_training=True,
            no_aug=wanted.crop == "none", scale=wanted.crop_scale, ratio=wanted.crop_ratio,
            hflip=wanted.hflip, color_jitter=wanted.color_jitter, re_prob=wanted.erasing,
            auto_augment=wanted.rand_augment, re_mode="pixel", interpolation="random",
        )  # fmt: skip
        mixup = None
        if self.sets.mixer is not None:
            mixup = Mixup(
                wanted.mixup, wanted.cutmix, label_smoothing=wanted.label_smoothing,
                num_classes=self.sets.source.num_classes,
            )  # fmt: skip

        def ours() -> int:
            return sum(len(batch.images) for batch in self.sets.train(self._epoch()))

        def timms() -> int:
            seen = 0
            for images, labels in loader:
                mixed, _ = mixup(images, labels) if mixup is not None else (images, labels)
                seen += len(mixed)
            return seen

        return ours, timms

    def _loader(self, source: Any, batch_size: int, **options: Any) -> Any:
        mean, std = self.sets.source.mean, self.sets.source.std
        workers = self.settings.runtime.workers
        size = self.settings.data.image_size
        crop = self.settings.evaluation.crop_share
        given = {"interpolation": "bicubic", "crop_pct": crop, **options}
        return create_loader(
            source, (3, size, size), batch_size, mean=mean, std=std, num_workers=workers,
            device=self.device, persistent_workers=workers > 0, **given,
        )  # fmt: skip


def toy(device: torch.device) -> Bench:
    """The micro Swin on the digits."""
    (run,) = study.load_study("table1", only="swin", overrides=["model.drop_path=0.0"]).runs()
    return Bench(run.settings, device, (Digits("train"), Digits("test")))


def lay_out(folder: Path | None, work: Path) -> None:
    """Lay photographs out as ImageNet is, under ``work``; made up where there is no folder."""
    made_up = work / "made_up" / "train" / "n00000001"
    if folder is None:
        made_up.mkdir(parents=True)
        draw = np.random.default_rng(0)
        for number in range(PICTURES):
            coarse = Image.fromarray(draw.integers(0, 256, (47, 63, 3), np.uint8))
            coarse.resize((500, 375), Image.Resampling.BICUBIC).save(made_up / f"{number}.JPEG")
        folder = work / "made_up"
    for split in ("train", "val"):
        chosen = work / "imagenet" / split
        for path in sorted((folder / "train").glob("*/*"))[:PICTURES]:
            (chosen / path.parent.name).mkdir(parents=True, exist_ok=True)
            (chosen / path.parent.name / path.name).symlink_to(path.resolve())


def photographs(work: Path, device: torch.device, overrides: list[str]) -> Bench:
    """Swin-T on photographs that ``lay_out`` laid out: 8 at a time, 224 x 224."""
    given = [
        f"data.root={work}", f"data.train_limit={PICTURES}", "train.batch_size=8",
        "evaluation.batch_size=8", "model.drop_path=0.0",
        # Without noise on its strength: at the strongest, timm's Posterize fails on new Pillows.
        "augment.rand_augment=rand-m9-inc1", *overrides,
    ]  # fmt: skip
    (run,) = study.load_study("table1", tier="paper", only="swin", overrides=given).runs()
    roots = (str(work / "imagenet" / split) for split in ("train", "val"))
    train, test = (create_dataset("", root) for root in roots)
    return Bench(run.settings, device, (train, test))


def make(
    work: Path | None, device: str, what: str, side: str, name: str, overrides: list[str]
) -> dict[str, Contender]:
    """One side of a pair, by its name; on digits where there are no photographs."""
    place = torch.device(device)
    bench = toy(place) if work is None else photographs(work, place, overrides)
    pair: Pair = getattr(bench, what)()
    return {name: pair[side == "timm"]}


def same(what: str, calls: dict[str, Contender]) -> None:
    """Prove that all do the same work: equal first loss, accuracy, number of pictures."""
    found = {name: float(call()) for name, call in calls.items()}  # type: ignore[arg-type]
    values = list(found.values())
    if max(values) - min(values) > 1e-2 * max(1.0, abs(values[0])):
        raise SystemExit(f"{what}: they do not do the same: {found}")


def compared(
    work: Path | None, what: str, effort: Effort, device: str, overrides: list[str]
) -> dict[str, Any]:
    """Both sides of one pair in turns; a step on photographs also in bf16, where it can be."""
    kinds = {"": overrides}
    if what == "step" and work is not None and device == "cpu":
        try:
            need_bfloat16()
            kinds[", bf16"] = [*overrides, "train.precision=bf16"]
        except EnvironmentLacks as error:
            print(f"no step in bf16: {error}")
    sides = []
    try:
        for (kind, given), side in itertools.product(kinds.items(), SIDES):
            name = f"{side}{kind}"
            keep = side == "ours"
            sides.append(Apart(make, work, device, what, side, name, given, keep=keep))
        calls = {name: call for side in sides for name, call in side.contenders.items()}
        network = DIGITS if work is None else PHOTOGRAPHS
        same(f"{network}: {what}", calls)
        times = timed(calls, "timm", effort, torch.device(device), beside=SIDES)
    finally:
        for one in sides:
            one.end()
    row = {"network": network, "what": what, "batch": 32 if work is None else 8, "times": times}
    lines = (
        f"  {name} {1e3 * t['median']:.1f} ms ({1e3 * t['low']:.1f}-{1e3 * t['high']:.1f}), "
        f"{shown(t['speed'])} x timm"
        for name, t in times.items()
    )
    print(f"{network}: {what}", *lines, sep="\n", flush=True)
    return row


def measured(
    work: Path | None, what: tuple[str, ...], effort: Effort, device: str, overrides: list[str],
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """Pairs on digits or on what ``lay_out`` laid out in ``work``; anew after each."""
    found: dict[str, Any] = {"machine": machine(torch.device(device)), "pairs": []}
    for one in what:
        found["pairs"].append(compared(work, one, effort, device, overrides))
        yield found


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options(parser, seconds=20.0)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--workers", type=int, default=0, help="loading processes of either side")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    effort = Effort(asked.seconds, asked.rounds)
    before: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        places: list[Path | None] = [None]
        if asked.data:
            lay_out(asked.data, Path(folder))
            places.append(Path(folder))
        for work in places:
            overrides = [f"runtime.workers={asked.workers}"]
            for found in measured(work, WHAT, effort, asked.device, overrides):
                pairs = [*before, *found["pairs"]]
                write(asked.out, found | {"workers": asked.workers, "pairs": pairs})
            before += found["pairs"]


if __name__ == "__main__":
    main()
