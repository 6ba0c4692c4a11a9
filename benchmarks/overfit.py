"""Do Swin-T, ELSA and Net7-N learn a few photographs by heart, through the whole trainer?

Run: python benchmarks/overfit.py PHOTOGRAPHS RESULTS [--out results/benchmarks/overfit.json]
[--jobs 3]

PHOTOGRAPHS holds ``<class>/<file>.JPEG``. They become both halves of a data set: the training set
names each five times, so that an epoch is longer, the test set once, so that the accuracy is that
on the training photographs. The runs of ``overfit.yaml`` go to RESULTS; called again, it goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from lsa_study import rundir
from lsa_study.config import study

COPIES = 5
TIER = "paper"
STUDY = Path(__file__).with_name("overfit.yaml")


def main() -> None:
    """Lay out the photographs, train, write the accuracies."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("photographs", type=Path)
    parser.add_argument("results", type=Path)
    parser.add_argument("--out", type=Path, help="a JSON file")
    parser.add_argument("--jobs", default="3", help="networks trained side by side")
    chosen = parser.parse_args()
    images = lay_out(chosen.photographs, chosen.results / "data" / "imagenet")
    asked = [f"data.train_limit={COPIES * images}", "runtime.workers=1"]
    lsa = Path(sys.executable).with_name("lsa")
    command = [str(lsa), "run", str(STUDY), "--tier", TIER, "--results", str(chosen.results)]
    command += ["--jobs", chosen.jobs, *(word for one in asked for word in ("--set", one))]
    environment = os.environ | {"LSA_DATA": str(chosen.results / "data")}
    done = subprocess.run(command, env=environment, check=False)
    if done.returncode:
        sys.exit(done.returncode)
    loaded = study.load_study(STUDY, tier=TIER, overrides=asked)
    rows = [row(chosen.results, run) for run in loaded.runs()]
    for one in rows:
        reached = f"{one['acc1'][-1]:.1f} % of {images} photographs" if one["acc1"] else "nothing"
        print(f"{one['row']} at {one['pixels']} px: {one['outcome']}, {reached}")
    if chosen.out:
        chosen.out.write_text(json.dumps({"photographs": images, "rows": rows}, indent=1) + "\n")


def lay_out(photographs: Path, target: Path) -> int:
    """Link every photograph into both halves; give their number."""
    found = sorted(path for path in photographs.glob("*/*") if path.is_file())
    for path in found:
        names = [("train", f"{path.stem}_{number}{path.suffix}") for number in range(COPIES)]
        for half, name in [*names, ("val", path.name)]:
            link = target / half / path.parent.name / name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.unlink(missing_ok=True)
            link.symlink_to(path.resolve())
    return len(found)


def row(results: Path, run: study.RunSpec) -> dict:
    """What a finished run achieved, epoch by epoch, and what it ran on."""
    folder = rundir.RunDir(rundir.runs_folder(results, TIER) / run.name)
    result, metrics = folder.result(), folder.metrics()
    facts = ("identity", "outcome", "commit", "device", "precision", "torch", "seed")
    return {
        "row": run.label,
        "pixels": run.settings.data.image_size,
        "acc1": [epoch["acc1"] for epoch in metrics],
        "train_loss": [epoch["train_loss"] for epoch in metrics],
        "seconds": [epoch["seconds"] for epoch in metrics],
        "steps": metrics[-1]["step"] if metrics else 0,
        "images_per_step": run.settings.train.batch_size,
        **{name: getattr(result, name, None) for name in facts},
    }


if __name__ == "__main__":
    main()
