"""Detectors that begin from the classifiers of another study, trained here."""

import io

import pytest
import torch
from begun import both
from lives import StopAfter, weights_of
from rich.console import Console
from safetensors.torch import save_file

from lsa_study.config import study
from lsa_study.errors import EnvironmentLacks
from lsa_study.launch.local import Queue
from lsa_study.record import Result
from lsa_study.rundir import RunDir, runs_folder
from lsa_study.training import tasks, train
from lsa_study.training.init_from import load_initial_weights


def work(results, runs):
    queue = Queue(results, jobs=1, console=Console(file=io.StringIO()))
    return queue.work(runs)


def folder_of(results, run):
    folder = RunDir(runs_folder(results, "toy") / run.name)
    folder.create(run.settings, variant=run.variant, start=run.start)
    return folder


def begun(results, run):
    """The detector of a run, random but for what it begins from, and what that is."""
    torch.manual_seed(1)
    network = tasks.of(run.settings).network(10)
    return network, load_initial_weights(network, folder_of(results, run), run.settings)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Both studies in one call, the detectors named first; their runs and the results folder."""
    folder = tmp_path_factory.mktemp("begun")
    classifiers, detectors = map(study.load_study, both(folder))
    runs = study.distinct([detectors, classifiers])
    summary = work(folder, runs)
    order = [name.partition("-")[0] for name in summary.finished]
    assert order.index("swin") < order.index("boxes")
    assert order.index("elsa") < order.index("elsa_boxes")
    assert {*summary.finished.values()} == {"done"}
    return folder, {run.variant: run for run in runs}


def test_those_that_are_begun_from_are_trained_first(trained):
    results, runs = trained
    for later, first in (("boxes", "swin"), ("elsa_boxes", "elsa")):
        assert folder_of(results, runs[later]).result().start == runs[first].name


def test_a_detector_has_the_weights_of_its_classifier(trained):
    """All of its backbone bit by bit, but for the norms of its maps, which no classifier has."""
    results, runs = trained
    for later, first in (("boxes", "swin"), ("elsa_boxes", "elsa")):
        network, name = begun(results, runs[later])
        assert name == runs[first].name
        theirs = weights_of(folder_of(results, runs[first]))
        own = {k: t for k, t in network.backbone.state_dict().items() if not k.startswith("norm")}
        left = {k for k in theirs if not k.startswith(("norm.", "head."))}
        assert own.keys() == left
        assert all(torch.equal(tensor, theirs[k]) for k, tensor in own.items())
        assert torch.equal(network.backbone.norm0.weight, torch.ones(16))


def test_a_segmenter_too(trained, tmp_path):
    results, runs = trained
    (_, path) = both(tmp_path, ("detectors", "kind: detect", "kind: segment"))
    (run, _) = study.load_study(path).runs()
    assert run.start == runs["swin"].identity
    network, _ = begun(results, run)
    theirs = weights_of(folder_of(results, runs["swin"]))["layers.2.blocks.1.mlp.fc1.weight"]
    assert torch.equal(network.backbone.layers[2].blocks[1].mlp.fc1.weight, theirs)


def test_tables_of_another_window_are_interpolated(trained, tmp_path):
    """Both rows named by hand, since their operators are not the same."""
    results, runs = trained
    start = "{study: classifiers, row: swin}"
    (_, path) = both(
        tmp_path, ("detectors", "{study: classifiers}", start),
        ("detectors", "application: window, size: 2", "application: window, size: 4"),
    )  # fmt: skip
    (run,) = study.load_study(path, only="boxes").runs()
    network, _ = begun(results, run)
    theirs = weights_of(folder_of(results, runs["swin"]))["layers.1.blocks.0.attn.rel_bias"]
    ours = network.backbone.layers[1].blocks[0].attn.rel_bias
    assert (theirs.shape[1], ours.shape[1]) == (9, 49)
    torch.testing.assert_close(ours.view(-1, 7, 7)[:, 3, 3], theirs.view(-1, 3, 3)[:, 1, 1])


def test_what_is_neither_done_nor_asked_for_is_refused(tmp_path):
    """Nothing is written; each run that lacks its start is named, with what to do."""
    _, detectors = map(study.load_study, both(tmp_path))
    with pytest.raises(EnvironmentLacks) as caught:
        work(tmp_path, detectors.runs())
    first, second = str(caught.value).splitlines()
    boxes = detectors.runs()[0]
    assert first == (
        f"{boxes.name}: begins from classifiers/swin ({boxes.start}), which has not been trained "
        "here at tier toy with seed 0; train that row of classifiers first, or ask for it in the "
        "same call"
    )
    assert "begins from classifiers/elsa" in second
    assert not (tmp_path / "toy").exists()


def test_what_ended_otherwise_or_lost_its_weights_is_refused(tmp_path):
    classifiers, detectors = map(study.load_study, both(tmp_path))
    (boxes, _), (swin, _) = detectors.runs(), classifiers.runs()
    before = folder_of(tmp_path, swin)
    before.write_result(Result(outcome="diverged"))
    with pytest.raises(EnvironmentLacks, match=r"\(\w{10}\), which ended diverged; give another"):
        work(tmp_path, [boxes])
    before.write_result(Result(outcome="done", acc1=10.0))
    gone = r"is done, but its weights .*weights\.safetensors are gone; put them back, or move its"
    with pytest.raises(EnvironmentLacks, match=gone):
        work(tmp_path, [boxes])
    assert not (runs_folder(tmp_path, "toy") / boxes.name).exists()


def test_weights_of_other_shapes_end_a_run_with_what_would_be_right(tmp_path):
    """Of the same backbone and operator, with other groups."""
    start = "{study: classifiers, row: elsa}"
    (first, path) = both(
        tmp_path, ("detectors", "{study: classifiers}", start),
        ("detectors", "kernel_size: 3, group_width: 8", "kernel_size: 5, group_width: 8"),
    )  # fmt: skip
    (run,) = study.load_study(path, only="elsa_boxes").runs()
    (elsa,) = study.load_study(first, only="elsa").runs()
    before = folder_of(tmp_path, elsa)
    network = tasks.of(elsa.settings).network(10)
    save_file(network.state_dict(), before.weights)
    before.write_result(Result(outcome="done", acc1=10.0))
    folder = folder_of(tmp_path, run)
    assert train(folder, console=None) == "failed"
    assert folder.status().cause == "config"
    message = folder.status().message
    assert message.startswith(f"train.start: {before.weights}: lsa weights do not fit the backbone")
    assert message.endswith("give those of the same network, trained to classify")


def test_a_run_that_goes_on_needs_its_start_no_more(trained, tmp_path):
    """The queue goes on with it, though what it began from has been moved away."""
    results, runs = trained
    run, first = runs["boxes"], runs["swin"].name
    folder = folder_of(tmp_path, run)
    link = runs_folder(tmp_path, "toy") / first
    link.symlink_to(runs_folder(results, "toy") / first)
    assert train(folder, stop=StopAfter(1), console=None) == "stopped"
    link.unlink()
    assert {*work(tmp_path, [run]).finished.values()} == {"done"}
