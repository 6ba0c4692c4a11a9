"""Tables, claims and figures of runs that are judged by AP or mIoU."""

import io
import json

import numpy as np
import pytest
from PIL import Image
from synthetic import write_run

from lsa_study.analysis import provenance
from lsa_study.analysis.claims import judge_tier
from lsa_study.analysis.collect import collect
from lsa_study.analysis.contrasts import compare
from lsa_study.analysis.formats import check_tables, contents, write_tables
from lsa_study.analysis.frame import load_results
from lsa_study.analysis.plots import figures
from lsa_study.analysis.provenance import why, why_text
from lsa_study.analysis.rows import rows_of
from lsa_study.analysis.table import build
from lsa_study.by_image import BEST
from lsa_study.config import study
from lsa_study.rundir import RunDir, runs_folder

AP = {"swin": (40.0, 36.0), "elsa": (42.0, 37.5)}


@pytest.fixture
def detected(tmp_path):
    """Table 9 at the toy tier over three seeds; ELSA two points of box AP above LSA."""
    loaded = study.load_study("table9", tier="toy", seeds=[0, 1, 2])
    for run in loaded.runs():
        box, mask = AP["elsa" if "elsa" in run.variant else "swin"]
        noise = np.random.default_rng(int(run.identity, 16)).normal(0, 0.1, 2)
        metrics = {
            "box_ap": box + noise[0],
            "mask_ap": mask + noise[1],
            "box_ap50": 60.0,
            "ema_box_ap": box,
        }
        nothing = {"acc1": None, "acc5": None, "loss": None, "best_acc1": None}
        write_run(tmp_path, run, changes={"metrics": metrics, **nothing})
    return tmp_path, loaded


def test_a_table_has_columns_of_each_metric_beside_the_articles(detected):
    results, loaded = detected
    table = build(loaded, collect(results, "toy"))
    header = table.header()
    assert header[2:9] == [
        "Box AP", "n", "Δ", "Article", "Mask AP", "Δ (Mask AP)", "Article (Mask AP)",
    ]  # fmt: skip
    line = dict(zip(header, table.texts()[1], strict=True))
    assert line["Article"] == "45.6 (+1.9)"
    assert line["Article (Mask AP)"] == "41.1 (+1.3)"
    assert 1.7 < table.rows[1].contrast.difference.mean < 2.3
    assert 1.2 < table.others[0][1].contrast.difference.mean < 1.8
    files = contents(table)
    row = json.loads(files["table9.json"])["rows"][1]
    assert row["box_ap"]["n"] == 3
    assert row["mask_ap_paper"] == 41.1
    assert row["mask_ap"]["mean"] == pytest.approx(37.5, abs=0.3)
    assert "acc1" not in row
    assert "mask_ap_mean" in files["table9.csv"].splitlines()[0]
    assert "Box AP" in files["table9.tex"]
    assert "Acc@1" not in files["table9.md"]


def test_tables_are_rebuilt_from_what_is_kept(detected):
    results, loaded = detected
    write_tables([loaded], results)
    collect(results, "toy", update=True)
    assert check_tables([loaded], results) == []


def test_claims_on_ap_are_judged_by_ap(detected, tmp_path):
    results, _ = detected
    path = tmp_path / "claims.yaml"
    lines = ["claims:"]
    for metric, margin in (("box_ap", 1.0), ("mask_ap", 1.0), ("mask_ap", 3.0)):
        lines += [
            f"  - id: {metric.replace('_', '-')}-{margin:.0f}", "    text: ELSA is better.",
            "    rows: [table9/mask_elsa_t_1x, table9/mask_swin_t_1x]", "    relation: above",
            f"    metric: {metric}", f"    margin: {margin}",
        ]  # fmt: skip
    path.write_text("\n".join(lines), "utf-8")
    found = judge_tier(results, "toy", path=path)
    assert [round(one.estimate.mean) for one in found] == [2, 1, 1] or [
        one.estimate.mean for one in found
    ] == pytest.approx([2.0, 1.5, 1.5], abs=0.3)
    assert "points of box AP" in found[0].numbers
    assert found[0].article == pytest.approx(1.9)
    assert found[1].article == pytest.approx(1.3)


def test_figures_name_the_metric_and_where_it_came_from(detected):
    results, loaded = detected
    rows = rows_of(loaded, collect(results, "toy"))
    drawn = figures([(loaded, rows)])
    accuracy = drawn["table9-accuracy"]
    assert "Box AP on the test set" in accuracy.axes[0].get_xlabel()
    assert "COCO" in accuracy.axes[1].get_xlabel()
    assert "costs-box_ap" in drawn
    found = why(loaded, "mask_elsa_t_1x", collect(results, "toy"), results)
    assert "box_ap    4" in why_text(found)


@pytest.fixture
def segmented(tmp_path):
    """Table 10 at the toy tier over three seeds, two rows of which have been run."""
    loaded = study.load_study("table10", tier="toy", seeds=[0, 1, 2])
    images, pairs = 497, [run for run in loaded.runs() if run.variant in ("swin_t", "elsa_swin_t")]
    draw = np.random.default_rng(0)
    hard = draw.normal(0, 0.2, images)
    for run in pairs:
        each = 0.5 + hard + draw.normal(0, 0.3, images)
        metrics = {"miou": 100 * float(each.mean())}
        nothing = {"acc1": None, "acc5": None, "loss": None, "best_acc1": None}
        changes = {"metrics": metrics, "test_images": images, **nothing}
        folder = write_run(tmp_path, run, changes=changes)
        folder.write_image_scores(each.astype(np.float32))
    return tmp_path, loaded


def test_the_noise_of_test_images_of_miou_is_in_the_interval(segmented):
    results, loaded = segmented
    table = build(loaded, collect(results, "toy"))
    rows = {row.variant: row for row in table.rows}
    assert all(run.image_scores for run in rows["swin_t"].runs)
    noise = compare(rows["elsa_swin_t"].done, rows["swin_t"].done).noise
    assert noise is not None
    assert noise.image > 0
    notes = " ".join(note.text for note in table.notes)
    assert "with the noise of the test images, to first order. One seed" in notes
    assert "from the finite test set" in notes


def test_a_difference_says_that_it_holds_the_noise_of_seeds_alone(segmented, detected):
    results, loaded = segmented
    run = next(one for one in loaded.runs() if one.variant == "swin_t" and one.seed == 1)
    RunDir(runs_folder(results, "toy") / run.name).image_scores_file.unlink()
    table = build(loaded, collect(results, "toy"))
    row = next(one for one in table.rows if one.variant == "elsa_swin_t")
    assert row.contrast.noise.image is None
    assert row.contrast.noise.error > 0
    assert row.contrast.noise.shown == "paired, the noise of seeds alone, always valid"
    notes = " ".join(note.text for note in table.notes)
    assert "of seeds alone, that of the test images is in none, as their runs" in notes
    assert "from the finite test set" not in notes
    kept = [one["delta_method"] for one in json.loads(contents(table)["table10.json"])["rows"]]
    assert row.contrast.noise.shown in kept
    legend = figures([(loaded, table.rows)])["table10-differences"].axes[0].get_legend()
    assert "95 % interval (of seeds alone)" in " ".join(one.get_text() for one in legend.texts)
    ap = build(detected[1], collect(detected[0], "toy"))
    assert ap.rows[1].contrast.noise.image is None
    assert "of seeds alone" in " ".join(note.text for note in ap.notes)


def test_runs_are_listed_without_pictures_and_differ_by_their_metrics(detected):
    results, loaded = detected
    (run,) = [one for one in loaded.runs() if one.variant == "mask_swin_t_1x" and one.seed == 0]
    folder = RunDir(runs_folder(results, "toy") / run.name)
    folder.write_seen(b"no picture")
    frame = load_results(results)
    assert not {"seen", "image_scores"} & {*frame}
    assert frame[["metrics.box_ap", "metrics.ema_box_ap"]].notna().all(axis=None)
    found = provenance.diff(results, "mask_swin_t_1x-s0", "mask_elsa_t_1x-s0")
    assert {"box_ap", "mask_ap"} <= found["metrics"].keys()


def test_a_picture_of_objects_says_which_it_shows(detected):
    results, loaded = detected
    runs = [run for run in loaded.runs() if run.seed == 0][:2]

    def captions(*comments):
        for run, comment in zip(runs, comments, strict=True):
            content = io.BytesIO()
            Image.new("RGB", (40, 20)).save(content, "JPEG", comment=comment)
            RunDir(runs_folder(results, "toy") / run.name).write_seen(content.getvalue())
        rows = rows_of(loaded, collect(results, "toy"))
        return figures([(loaded, rows)])["table9-seen"].get_label()

    assert "the highest scores, in each image at most as many as it" in captions(BEST, BEST)
    assert "objects of a score of 0.5 or more" in captions(b"", b"")
    assert "0.5" not in captions(BEST, b"")
