"""``lsa eval`` on real pictures of digits, with weights that are saved as their authors save them.

A network with drawn weights gets a head that tells digits apart: features of the training pictures,
least squares. So its accuracy is far from chance, and would fall if any weight came back wrong.
"""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from layouts import as_released_by_elsa
from PIL import Image
from sklearn.datasets import load_digits
from torch.nn import functional as F

from lsa_study.data.paths import DataLacks
from lsa_study.errors import ConfigError
from lsa_study.models import build_model
from lsa_study.training.evaluate_released import _settings, evaluate_weights

ROOT = Path(__file__).resolve().parents[2]
NAME = "elsa_swin_tiny"
SIDE = 64
TRAIN, VAL = 150, 50
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def pictures():
    """The digits as 64 x 64 RGB pictures and their labels: first those of train, then of val."""
    digits = load_digits()
    count = TRAIN + VAL
    grey = (digits.images[:count] * 15.9).astype(np.uint8)
    wide = grey.repeat(8, 1).repeat(8, 2)
    return np.stack([wide] * 3, -1), digits.target[:count]


def normalised(pixels):
    return torch.from_numpy((pixels / 255 - MEAN) / STD).permute(0, 3, 1, 2).float()


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """Folder with data/imagenet, weights.pth in ELSA's layout, and the accuracy to be found."""
    folder = tmp_path_factory.mktemp("released")
    pixels, labels = pictures()
    for number, (picture, label) in enumerate(zip(pixels, labels, strict=True)):
        place = folder / "data/imagenet" / ("train" if number < TRAIN else "val") / f"n{label:02}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(place / f"{number}.png")
    torch.manual_seed(0)
    model = build_model(NAME, img_size=SIDE, num_classes=10).eval()
    images = normalised(pixels)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("qkv.weight", "rel_bias")):
                parameter.mul_(20)  # so that attention and its order matter
        features = model.forward_head(model.forward_features(images), pre_logits=True)
        wanted = F.one_hot(torch.from_numpy(labels[:TRAIN]), 10).float()
        known = torch.cat([features[:TRAIN], torch.ones(TRAIN, 1)], 1)
        head = torch.linalg.lstsq(
            known.T @ known + 1e-3 * torch.eye(known.shape[1]), known.T @ wanted
        ).solution
        model.head.fc.weight.copy_(head[:-1].T)
        model.head.fc.bias.copy_(head[-1])
        best = model(images[TRAIN:]).topk(5, 1).indices == torch.from_numpy(labels[TRAIN:, None])
    torch.save({"state_dict": as_released_by_elsa(model.state_dict())}, folder / "weights.pth")
    return folder, 100 * best[:, 0].float().mean().item(), 100 * best.any(1).float().mean().item()


def evaluate(folder, weights="weights.pth", name=NAME, results="results", **changes):
    asked = {
        "source": "elsa", "root": str(folder / "data"), "image_size": SIDE, "crop_share": 1.0,
        "window": None, **changes,
    }  # fmt: skip
    return evaluate_weights(name, folder / weights, results=folder / results, **asked)


def test_accuracy_is_that_of_the_network_that_was_saved(released):
    folder, top1, top5 = released
    assert 60 < top1 < top5
    found = evaluate(folder)
    assert found["acc1"] == pytest.approx(top1, abs=1e-4)
    assert found["acc5"] == pytest.approx(top5, abs=1e-4)
    assert found["images"] == VAL
    assert json.loads((folder / "results/released/elsa_swin_tiny-elsa.json").read_text()) == found


def lsa_eval(*arguments):
    """Run the command in its own process, as a shell would."""
    command = [sys.executable, "-m", "lsa_study.cli", "eval", *map(str, arguments)]
    environment = {**os.environ, "COLUMNS": "200"}
    return subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=ROOT, env=environment
    )


def test_the_command_prints_what_it_found(released, tmp_path):
    folder, top1, top5 = released
    told = lsa_eval(
        NAME, "--weights", folder / "weights.pth", "--source", "elsa", "--data", folder / "data",
        "--size", SIDE, "--crop", "1.0", "--results", tmp_path,
    )  # fmt: skip
    assert told.returncode == 0, told.stderr
    assert told.stdout == f"{NAME}: top-1 {top1:.2f} %  top-5 {top5:.2f} %  {VAL} images\n"
    assert (tmp_path / "released/elsa_swin_tiny-elsa.json").is_file()


class Harmful:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def test_a_pickle_with_code_ends_with_exit_code_2_and_does_not_run(released, tmp_path):
    folder, *_ = released
    torch.save({"state_dict": Harmful(tmp_path / "ran")}, tmp_path / "bad.pth")
    told = lsa_eval(
        NAME, "--weights", tmp_path / "bad.pth", "--source", "elsa", "--data", folder / "data",
        "--results", tmp_path / "r",
    )  # fmt: skip
    assert told.returncode == 2, told.stderr
    assert "bad.pth: holds an object that would run code when read (posix.mkdir); " in told.stderr
    assert "weights_only" not in told.stderr  # torch's advice to turn it off
    assert "Traceback" not in told.stderr
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "r").exists()


def spoiled(folder, kind):
    whole = (folder / "weights.pth").read_bytes()
    path = folder / f"{kind}.pth"
    if kind == "truncated":
        path.write_bytes(whole[: len(whole) // 2])
    elif kind == "text":
        path.write_text("weights\n")
    elif kind == "bare":
        path.write_bytes(pickle.dumps({"model": Harmful(folder / "ran")}))
    elif kind == "list":
        torch.save([torch.zeros(2)], path)
    elif kind == "words":
        torch.save({"state_dict": {"norm.bias": "zero"}}, path)
    elif kind == "cut":
        path = path.with_suffix(".safetensors")
        safetensors.torch.save_file({"weight": torch.zeros(999)}, path)
        path.write_bytes(path.read_bytes()[:500])
    return path


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("missing", r"missing\.pth: no such file of weights; give a \.safetensors or \.pth file"),
        ("truncated", r"truncated\.pth: cannot be read as weights .*damaged.*; fetch it again"),
        ("text", r"text\.pth: cannot be read as weights .*of another kind; fetch it again"),
        ("bare", r"bare\.pth: .*(would run code|cannot be read as weights).*; "),
        ("list", r"list\.pth: holds a list; give tensors by name"),
        ("words", r"words\.pth: the weights hold norm\.bias \(str\); give tensors by name"),
        ("cut", r"cut\.safetensors: cannot be read as weights .*damaged.*; fetch it again"),
    ],
)
def test_files_that_are_no_weights(released, kind, words):
    folder, *_ = released
    path = spoiled(folder, kind)
    with pytest.raises(ConfigError, match=words) as told:
        evaluate(folder, path.name, results=f"results-{kind}")
    assert told.value.exit_code == 2
    assert "\n" not in str(told.value)
    assert not (folder / f"results-{kind}").exists()
    assert not (folder / "ran").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"source": "swin"},
            r"weights\.pth: swin weights for Swin do not fit: they lack: layers\.3\.blocks\.0\.attn"
            r"\.rel_bias.*; nothing here takes: layers\.3\.blocks\.0\.attn\.rb, .*"
            r"Give the weights of elsa_swin_tiny as released by swin",
        ),
        (
            {"name": "lsa_swin_tiny"},
            r"nothing here takes: layers\.0\.blocks\.0\.attn\.ghost_head, ",
        ),
        (
            {"name": "elsa_swin_tiny_noghost"},
            r"do not fit: nothing here takes: layers\.0\.blocks\.0\.attn\.ghost_head, [^;]*"
            r"layers\.2\.blocks\.5\.attn\.ghost_head\. Give",
        ),
        (
            {"name": "elsa_swin_small"},
            r"they lack: layers\.2\.blocks\.6\.norm1\.weight.*shapes differ: layers\.0\.blocks\.0"
            r"\.attn\.attn\.0\.weight \(64, 4, 7, 7\), here \(64, 8, 7, 7\)",
        ),
        (
            {"image_size": 96, "window": 3},
            r"shapes differ: .*rel_bias \(24, 9\), here \(24, 25\)",
        ),
        ({"source": "elsas"}, r"--source elsas: no such release; did you mean elsa\?"),
        ({"name": "resnet50"}, r"resnet50: no such network; did you mean ddf_resnet50\?"),
        ({"crop_share": 0.0}, r"evaluation\.crop_share"),
        (
            {"name": "dwconv_eq4_swin_tiny", "window": 12},
            r"window_size=12: it has no window; drop it",
        ),
    ],
)  # fmt: skip
def test_weights_that_do_not_fit(released, changes, words):
    folder, *_ = released
    with pytest.raises(ConfigError, match=words) as told:
        evaluate(folder, results="results-unfit", **changes)
    assert told.value.exit_code == 2
    assert not (folder / "results-unfit").exists()


def test_without_pictures(released, tmp_path):
    folder, *_ = released
    with pytest.raises(DataLacks, match="ImageNet not found at") as told:
        evaluate(folder, root=str(tmp_path))
    assert told.value.exit_code == 3


def test_weights_of_timm_count_the_same_in_timms_network_and_in_ours(released):
    """From a safetensors file; attention of ours is a point of Eq. 4."""
    folder, *_ = released
    torch.manual_seed(1)
    network = timm.create_model("swin_tiny_patch4_window7_224", img_size=SIDE, num_classes=10)
    safetensors.torch.save_file(network.state_dict(), folder / "timm.safetensors")
    names = ("swin_tiny_patch4_window7_224", "lsa_swin_tiny")
    theirs, ours = (evaluate(folder, "timm.safetensors", name, source="timm") for name in names)
    assert (ours["acc1"], ours["acc5"]) == (theirs["acc1"], theirs["acc5"])


@pytest.mark.parametrize(
    ("name", "side", "share"),
    [("elsa_swin_tiny", 224, 0.9), ("volo_d1", 224, 0.96), ("volo_d5_512", 512, 1.15)],
)
def test_size_and_crop_are_the_networks_own(name, side, share):
    settings = _settings(name, None, None, None)
    assert (settings.data.image_size, settings.evaluation.crop_share) == (side, share)
    settings = _settings(name, None, 96, 0.5)
    assert (settings.data.image_size, settings.evaluation.crop_share) == (96, 0.5)
