"""The paper tier against the released commands, from their numbers alone.

Each audit gives a line for every deviation of a run's settings, and of what is made from them.
Nothing here reads how the package does it; timm's own functions and loops in NumPy stand beside it.
"""

import io
import math
import random
import re

import numpy as np
import torch
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, create_transform
from timm.data.random_erasing import RandomErasing
from torch import nn

from lsa_study import models
from lsa_study.data import augment, imagenet, transforms
from lsa_study.data.sets import Batch
from lsa_study.training import optim, token_labeling
from lsa_study.training.distributed import ALONE
from lsa_study.training.step import Stepper

COMMANDS = {
    # peak, first and last rate; epochs of warm-up, of the cosine's horizon, and all
    "swin": (1e-3, 1e-6, 1e-5, 20, 300, 310),
    "swin_large": (2e-5, 2e-8, 2e-7, 5, 30, 30),
    "volo_d1": (1.6e-3, 1e-6, 1e-5, 20, 300, 310),
    "volo_d3": (1e-3, 1e-6, 1e-5, 20, 300, 310),
    "volo_d4": (1e-3, 1e-6, 1e-5, 20, 300, 310),
    "volo_d5": (8e-4, 1e-6, 1e-5, 20, 300, 310),
    "volo, larger": (8e-6, 1e-6, 4e-6, 5, 30, 40),
}
SPARED = re.compile(
    r"(.*\.)?(bias|pos_embed|cls_token|(bn|norm)\d?\.weight|patch_embed\.conv\.[147]\.weight|"
    r"channel_branch\.\d\.std)"
)
"""Names of 1-D parameters, and of VOLO's position map and class token."""
DECAYED = re.compile(r".*\.(rel_bias|rel_k|rel_q|ghost_head|(fc\d?|qkv|proj|conv\d?)\.weight)")
"""Names that Swin's own rule, or one for tables alone, would spare among them."""
CROP = {"swin": 0.9, "volo_d1": 0.96, "volo_d3": 0.96, "volo_d4": 1.15, "volo_d5": 1.15}
CLASSES, SMOOTHING, TIES = 1000, 0.1, 1e-6


def command_of(settings):
    """The name of the released command that a run follows."""
    backbone, start = settings.model.backbone, settings.train.start
    if backbone.startswith("volo"):
        return "volo, larger" if start is not None else backbone
    return "swin_large" if backbone == "swin_large" else "swin"


def rates(settings, *, steps=3):
    """The rate of every step against linear epochs, a cosine counted from epoch 0, and the last."""
    peak, first, last, warmup, horizon, epochs = COMMANDS[command_of(settings)]
    train, found = settings.train, []
    optimizer = optim.optimiser(nn.Linear(1, 1), train)
    set_rate = optim.schedule(optimizer, train, steps=steps)
    for epoch in range(max(epochs, train.epochs)):
        wanted = last
        if epoch < warmup:
            wanted = first + (peak - first) * epoch / warmup
        elif epoch < horizon:
            wanted = last + (peak - last) * (1 + math.cos(math.pi * epoch / horizon)) / 2
        for step in range(steps):
            set_rate(epoch, step)
            rate = optimizer.param_groups[0]["lr"]
            if (epoch < train.epochs) != (epoch < epochs):
                found.append(f"epoch {epoch}: of {train.epochs}, released {epochs}")
            elif not math.isclose(rate, wanted, rel_tol=1e-9):
                found.append(f"epoch {epoch}, step {step}: {rate:.6g}, released {wanted:.6g}")
    return found


def groups(settings, model=None):
    """Which parameters are decayed, by their names."""
    if model is None:
        torch.manual_seed(0)
        model = models.from_settings(
            settings.model, image_size=settings.data.image_size, num_classes=CLASSES
        )
    decay = 1e-8 if settings.train.start else 0.05
    made = optim.optimiser(model, settings.train).param_groups
    rule = {id(p): group["weight_decay"] for group in made for p in group["params"]}
    found = []
    for name, parameter in model.named_parameters():
        spared = SPARED.fullmatch(name) is not None
        assert not (spared and DECAYED.fullmatch(name)), name
        wanted = 0.0 if spared else decay
        if rule.get(id(parameter)) != wanted:
            found.append(f"{name}: decayed by {rule.get(id(parameter))}, released {wanted}")
    return found


def seeded(seed):
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def picture(seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((300, 200), Image.Resampling.BICUBIC)


def encoded(image):
    content = io.BytesIO()
    image.save(content, "png")
    return content.getvalue()


def pictures(settings, seeds=range(24)):
    """Every step of the pipeline on the same draws, against timm's own functions in their order."""
    crop, flip, change, _ = create_transform(
        settings.data.image_size, is_training=True, use_prefetcher=True, scale=(0.08, 1.0),
        ratio=(3 / 4, 4 / 3), hflip=0.5, color_jitter=0.4, auto_augment="rand-m9-mstd0.5-inc1",
        interpolation="random", mean=IMAGENET_DEFAULT_MEAN, std=IMAGENET_DEFAULT_STD,
    ).transforms  # fmt: skip
    theirs = [crop, flip, change]
    if settings.model.backbone.startswith("volo"):  # the label map moves with the whole picture
        theirs = [flip, change, crop]
    ours = transforms.training(settings, imagenet.MEAN).transforms
    ours = [step for step in ours if step is not transforms.whole]
    if len(ours) != 3:
        return [f"{len(ours)} steps, released 3"]
    found = []
    for seed in seeds:
        mine, other = encoded(picture(seed)), picture(seed)
        if settings.model.backbone.startswith("volo"):
            mine = transforms.whole(mine)
        states = []
        for number, (own, released) in enumerate(zip(ours, theirs, strict=True), start=1):
            seeded(1000 * seed + number)
            mine = own(mine)
            states = [random.random(), np.random.rand(), torch.rand(1).item()]
            seeded(1000 * seed + number)
            try:
                other = released(other)
            except ValueError:  # Pillow refuses timm's strongest posterize; ours is black
                break
            name = f"seed {seed}, step {number} ({type(released).__name__})"
            if states != [random.random(), np.random.rand(), torch.rand(1).item()]:
                found.append(f"{name}: draws other numbers")
            if mine.size != other.size or (np.asarray(mine) != np.asarray(other)).any():
                found.append(f"{name}: other pixels")
                break
    return found


def views(settings, seeds=range(6)):
    """What is seen of test pictures, against timm's evaluation."""
    share = CROP["swin" if command_of(settings) == "swin" else settings.model.backbone]
    theirs = create_transform(
        settings.data.image_size, is_training=False, use_prefetcher=True, crop_pct=share,
        interpolation="bicubic", mean=IMAGENET_DEFAULT_MEAN, std=IMAGENET_DEFAULT_STD,
    )  # fmt: skip
    ours, found = transforms.testing(settings), []
    for seed in seeds:
        mine = np.asarray(ours(encoded(picture(seed)))).transpose(2, 0, 1)
        other = np.asarray(theirs(picture(seed)))
        if mine.shape != other.shape or (mine != other).any():
            found.append(f"seed {seed}: other pixels of the test picture")
    return found


def erasing(settings, *, images=3000, side=24):
    """How often and how much is erased, against timm's: their draws are not the same ones."""
    share = augment.MicroBatch(0, torch.arange(images), torch.arange(images), ((0, 0, images),))
    mine, other = torch.zeros(2, images, 3, side, side).unbind(0)
    augment.erase(mine, share, batch=images, augment=settings.augment, purpose=(0,))
    seeded(0)
    RandomErasing(0.25, mode="pixel", max_count=1, device="cpu")(other)
    found, measured = [], []
    for batch in (mine, other):
        covered = (batch != 0).all(1).float().mean((1, 2))
        erased, noise = covered[covered > 0], batch[batch != 0]
        shown = (batch != 0).any(1)
        rows, columns = (shown.any(axis).sum(1)[covered > 0] for axis in (2, 1))
        shape = (rows / columns).log().std().item()
        measured.append((len(erased) / images, erased.mean().item(), shape, noise.std().item()))
    for what, one, released, near in zip(
        ("share of pictures", "area", "spread of shapes", "deviation of noise"), *measured,
        (0.03, 0.015, 0.08, 0.02), strict=True,
    ):  # fmt: skip
        if not math.isclose(one, released, abs_tol=near):
            found.append(f"erasing, {what}: {one:.3f}, released {released:.3f}")
    return found


def _smoothed(labels):
    shares = np.full((len(labels), CLASSES), SMOOTHING / CLASSES)
    shares[np.arange(len(labels)), labels] += 1 - SMOOTHING
    return shares


def _mixed(images, labels, more):
    """Mixup 0.8 or cutmix 1.0, each in half of the batches, as timm draws them.

    ``more``: pixels that an odd side of cutmix's box gains, none in timm 0.4.9 of the release.
    """
    assert np.random.rand() < 1.0
    height, width = images.shape[2:]
    if np.random.rand() < 0.5:
        side = math.sqrt(1 - np.random.beta(1.0, 1.0))
        sides = int(height * side), int(width * side)
        middle = np.random.randint(0, height), np.random.randint(0, width)
        (top, bottom), (left, right) = (
            (max(0, at - cut // 2), min(length, at + (cut + more) // 2))
            for at, cut, length in zip(middle, sides, (height, width), strict=True)
        )
        mixed = images.copy()
        mixed[:, :, top:bottom, left:right] = images[::-1][:, :, top:bottom, left:right]
        own = 1 - (bottom - top) * (right - left) / (height * width)
    else:
        own = np.random.beta(0.8, 0.8)
        mixed = own * images + (1 - own) * images[::-1]
    shares = _smoothed(labels)
    return mixed, own * shares + (1 - own) * shares[::-1]


def _cross_entropy(logits, shares):
    """Mean over all but the last axis of - sum of shares times log of softmax."""
    high = logits.max(-1, keepdims=True)
    logs = logits - high - np.log(np.exp(logits - high).sum(-1, keepdims=True))
    return -(shares * logs).sum(-1).mean()


def fixed(*shape):
    """Logits that anybody can write down: 3 sin(1), 3 sin(2), ..."""
    return 3 * np.sin(np.arange(1, math.prod(shape) + 1, dtype=np.float64)).reshape(shape)


def mixing(settings, seeds=range(20)):
    """Mixed pictures, their soft targets and the loss on fixed logits."""
    mixer = augment.mixer(settings.augment, CLASSES)
    if mixer is None:
        return ["nothing is mixed"]
    images, labels = fixed(6, 3, 20, 16), np.array([3, 999, 0, 17, 500, 3])
    logits, found = fixed(6, CLASSES), []
    stepper = Stepper(settings, nn.Linear(1, 1), ALONE, steps=1)
    stepper.forward = nn.Identity()
    for seed in seeds:
        seeded(seed)
        mine, shares = mixer(torch.from_numpy(images.copy()), torch.from_numpy(labels))
        # Present releases of timm paste an odd box a pixel larger: known, and on the sheet.
        for more in (0, 1):
            seeded(seed)
            wanted, targets = _mixed(images, labels, more)
            if np.allclose(mine.numpy(), wanted, atol=TIES):
                break
        if not np.allclose(mine.numpy(), wanted, atol=TIES):
            found.append(f"seed {seed}: other pixels are mixed")
        if not np.allclose(shares.numpy(), targets, atol=TIES):
            found.append(f"seed {seed}: other targets")
        loss = stepper._loss_of(Batch(0, torch.from_numpy(logits).float(), shares), 0, 0).item()
        released = _cross_entropy(logits, targets)
        if not math.isclose(loss, released, rel_tol=1e-5):
            found.append(f"seed {seed}: loss {loss:.6f}, released {released:.6f}")
    return found


def token_loss(settings):
    """Token labeling's loss on fixed logits: of class numbers, and of label maps with a box."""
    images, tokens = fixed(4, CLASSES), fixed(4, 196, CLASSES)[:, :, ::-1].copy()
    labels, found = np.array([3, 999, 0, 17]), []
    maps = _smoothed(np.arange(4 * 196) % CLASSES).reshape(4, 196, CLASSES)
    machine = _smoothed(np.array([5, 999, 1, 17]))
    box = (2, 3, 9, 14)
    own = 1 - 7 * 11 / 196
    mixed = own * machine + (1 - own) * machine[::-1]
    every = np.repeat(_smoothed(labels)[:, None], 196, axis=1)
    for name, of_box, asked, targets, each in (
        ("classes", (0, 0, 0, 0), (labels, None), _smoothed(labels), every),
        ("maps, mixed", box, (machine, maps), mixed, maps),
    ):
        answers = token_labeling.Answers(
            torch.from_numpy(images), torch.from_numpy(tokens), (of_box,), 4
        )
        given = [None if one is None else torch.from_numpy(one) for one in asked]
        given = [one.float() if one is not None and one.ndim > 1 else one for one in given]
        loss = token_labeling.loss(
            answers, *given, settings.train.tokens, smoothing=settings.augment.label_smoothing
        ).item()
        released = 1.0 * _cross_entropy(images, targets) + 0.5 * _cross_entropy(tokens, each)
        if not math.isclose(loss, released, rel_tol=1e-5):
            found.append(f"{name}: loss {loss:.6f}, released {released:.6f}")
    return found
