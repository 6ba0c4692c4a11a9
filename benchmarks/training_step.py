"""Our training step, evaluation and loader beside timm's, interleaved in one process.

Run: python benchmarks/training_step.py [--data FOLDER] [--seconds 20] [--threads 2]

Both sides have the same network with the same first weights, batch, data and precision; what is
timed on timm's side is the recipe of its train and validate scripts: ``create_loader``,
``create_optimizer_v2``, clipped gradients, schedule, meters. FOLDER holds ``train/<wnid>/*.JPEG``,
of which 32 pictures are used; without it only the digits are measured.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from PIL import Image
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
from lsa_study.models.throughput import Contender, interleaved, machine
from lsa_study.training import environment
from lsa_study.training.distributed import ALONE
from lsa_study.training.evaluate import evaluate
from lsa_study.training.step import Stepper

OUT = Path(__file__).resolve().parent.parent / "results" / "benchmarks" / "training.json"
PICTURES = 32
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


def imagenet(folder: Path, work: Path, device: torch.device, workers: int) -> Bench:
    """Swin-T on real photographs: 8 at a time, 224 x 224."""
    (work / "imagenet").mkdir()
    for split in ("train", "val"):
        chosen = work / "imagenet" / split
        chosen.mkdir()
        for path in sorted((folder / "train").glob("*/*"))[:PICTURES]:
            (chosen / path.parent.name).mkdir(exist_ok=True)
            (chosen / path.parent.name / path.name).symlink_to(path.resolve())
    overrides = [
        f"data.root={work}", f"data.train_limit={PICTURES}", "train.batch_size=8",
        "evaluation.batch_size=8", "model.drop_path=0.0", f"runtime.workers={workers}",
        # Without noise on its strength: at the strongest, timm's Posterize fails on new Pillows.
        "augment.rand_augment=rand-m9-inc1",
    ]  # fmt: skip
    (run,) = study.load_study("table1", tier="paper", only="swin", overrides=overrides).runs()
    roots = (str(work / "imagenet" / split) for split in ("train", "val"))
    train, test = (create_dataset("", root) for root in roots)
    return Bench(run.settings, device, (train, test))


def same(what: str, pair: Pair) -> None:
    """Prove that both sides do the same work: equal first loss, accuracy, number of pictures."""
    one, other = (float(call()) for call in pair)
    if abs(one - other) > 1e-2 * max(1.0, abs(one)):
        raise SystemExit(f"{what}: ours gives {one}, timm's {other}; they do not do the same")


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--seconds", type=float, default=20.0, help="for each pair")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--workers", type=int, default=0, help="loading processes of either side")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=OUT)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    device = torch.device(asked.device)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as work:
        benches = {"micro Swin, digits": toy(device)}
        if asked.data:
            photographs = imagenet(asked.data, Path(work), device, asked.workers)
            benches["Swin-T, ImageNet photographs"] = photographs
        for name, bench in benches.items():
            for what in ("step", "evaluation", "loading"):
                pair: Pair = getattr(bench, what)()
                same(f"{name}: {what}", pair)
                times = interleaved(
                    dict(zip(("ours", "timm"), pair, strict=True)),
                    seconds=asked.seconds, device=device,
                )  # fmt: skip
                batch = bench.settings.train.batch_size
                rows.append(
                    {"network": name, "what": what, "batch": batch,
                     "precision": str(bench.precision).removeprefix("torch."),
                     "timm_over_ours": times["timm"].median / times["ours"].median,
                     **{side: asdict(timing) for side, timing in times.items()}}
                )  # fmt: skip
                shown = "  ".join(
                    f"{side} {t.median * 1e3:.1f} ms ({t.low * 1e3:.1f}-{t.high * 1e3:.1f})"
                    for side, t in times.items()
                )
                print(
                    f"{name}: {what}: {shown}  timm/ours {rows[-1]['timm_over_ours']:.2f}",
                    flush=True,
                )
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    found = {"machine": machine(device), "workers": asked.workers, "pairs": rows}
    asked.out.write_text(json.dumps(found, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
