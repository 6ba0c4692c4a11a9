"""Fine-tuning: runs that begin from another run's weights, or from a file's."""

import hashlib
import io

import pytest
import torch
from lives import StopAfter, equal, weights_of
from rich.console import Console
from safetensors.torch import save_file
from tuned import written

from lsa_study.analysis.collect import collect
from lsa_study.analysis.provenance import why, why_text
from lsa_study.config import study
from lsa_study.errors import EnvironmentLacks
from lsa_study.launch.local import Queue
from lsa_study.record import Result
from lsa_study.rundir import RunDir, runs_folder
from lsa_study.training import train


def run_folder(results, run):
    folder = RunDir(runs_folder(results, "toy") / run.name)
    folder.create(run.settings, variant=run.variant, start=run.start)
    return folder


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """Both rows trained by a queue that is told the later one first; the study and its results."""
    folder = tmp_path_factory.mktemp("tuned")
    loaded = study.load_study(written(folder))
    summary = Queue(folder, jobs=1, console=Console(file=io.StringIO())).work(loaded.runs())
    assert list(summary.finished.values()) == ["done", "done"], summary.errors
    return loaded, folder


def test_the_row_is_trained_first_and_its_weights_are_gone_on_with(tuned):
    """At a rate of zero nothing but the weights that it began from is left."""
    loaded, results = tuned
    later, first = (run_folder(results, run) for run in loaded.runs())
    assert later.result().start == first.root.name
    assert first.result().start is None
    assert later.result().acc1 == first.result().acc1
    for name, tensor in weights_of(first).items():
        torch.testing.assert_close(weights_of(later)[name], tensor, rtol=0, atol=1e-9)


def test_the_row_s_origin_is_traced(tuned):
    loaded, results = tuned
    first = loaded.runs()[1]
    told = why_text(why(loaded, "tuned", collect(results, "toy"), results))
    assert f"begins    from whole ({first.identity})" in told
    assert "begins" not in why_text(why(loaded, "whole", collect(results, "toy"), results))


def test_a_resumed_run_needs_its_start_no_more(tuned, tmp_path):
    """Bitwise as the undisturbed one, though the run it began from has been moved away."""
    loaded, results = tuned
    changed = written(tmp_path, ("train.lr: 1.0e-12", "train.lr: 1.0e-3"))
    later, first = study.load_study(changed).runs()
    assert first.identity == loaded.runs()[1].identity
    lives = {}
    for name, lives_of_it in (("whole", 1), ("cut", 2)):
        place = tmp_path / name
        runs_folder(place, "toy").mkdir(parents=True)
        link = runs_folder(place, "toy") / first.name
        link.symlink_to(runs_folder(results, "toy") / first.name)
        lives[name] = folder = run_folder(place, later)
        if lives_of_it == 2:
            assert train(folder, stop=StopAfter(1), console=None) == "stopped"
            link.unlink()
        assert train(folder, console=None) == "done"
    assert equal(weights_of(lives["whole"]), weights_of(lives["cut"]))
    assert lives["cut"].result().start == first.name
    assert not equal(weights_of(lives["whole"]), weights_of(run_folder(results, first)))


def test_a_queue_refuses_what_begins_from_nothing(tmp_path):
    asked = study.load_study(written(tmp_path), only="tuned").runs()
    with pytest.raises(
        EnvironmentLacks, match=r"tuned-s0-.*begins from whole \(\w{10}\), which ha"
    ):
        Queue(tmp_path, jobs=1, console=Console(file=io.StringIO())).work(asked)
    assert not (tmp_path / "toy").exists()


def test_a_start_that_diverged_is_told(tmp_path):
    later, first = study.load_study(written(tmp_path)).runs()
    folder = run_folder(tmp_path, later)
    assert train(folder, console=None) == "failed"
    words = f"{later.name}: begins from whole ({first.identity}), which has not been trained; train"
    assert folder.status().cause == "data"
    assert folder.status().message.startswith(words)
    run_folder(tmp_path, first).write_result(Result(outcome="diverged"))
    assert train(folder, console=None) == "failed"
    assert f"{first.name} ({first.identity}), which ended diverged; " in folder.status().message


def from_file(tmp_path, monkeypatch, more=""):
    monkeypatch.setenv("LSA_DATA", str(tmp_path))
    start = f"train.start: {{weights: mine/w.safetensors, source: lsa{more}}}"
    (later, _) = study.load_study(written(tmp_path, ("train.start: {row: whole}", start))).runs()
    return run_folder(tmp_path, later)


def put(tmp_path, weights):
    path = tmp_path / "weights" / "mine" / "w.safetensors"
    path.parent.mkdir(parents=True)
    save_file(weights, path)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_file_is_gone_on_with_and_its_digest_kept(tuned, tmp_path, monkeypatch):
    loaded, results = tuned
    before = weights_of(run_folder(results, loaded.runs()[1]))
    folder = from_file(tmp_path, monkeypatch)
    digest = put(tmp_path, before)
    assert train(folder, console=None) == "done"
    assert folder.result().start == f"mine/w.safetensors sha256:{digest}"
    for name, tensor in weights_of(folder).items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=1e-9)


def test_a_file_that_is_missing_or_does_not_fit(tuned, tmp_path, monkeypatch):
    """Weights for 12 classes go with head: drawn alone."""
    loaded, results = tuned
    folder = from_file(tmp_path, monkeypatch)
    assert train(folder, console=None) == "failed"
    assert folder.status().cause == "data"
    assert "weights/mine/w.safetensors not found (from LSA_DATA)" in folder.status().message
    weights = weights_of(run_folder(results, loaded.runs()[1]))
    weights |= {"head.fc.weight": torch.zeros(12, weights["head.fc.weight"].shape[1])}
    put(tmp_path, weights | {"head.fc.bias": torch.zeros(12)})
    assert train(folder, console=None) == "failed"
    assert folder.status().cause == "config"
    assert "shapes differ: head.fc.weight (12, " in folder.status().message
    assert train(from_file(tmp_path, monkeypatch, ", head: drawn"), console=None) == "done"


def test_a_head_is_mapped_by_a_file_beside_the_weights(tuned, tmp_path, monkeypatch):
    loaded, results = tuned
    before = weights_of(run_folder(results, loaded.runs()[1]))
    draw = torch.Generator().manual_seed(0)
    theirs = {
        name: torch.randn(12, *before[name].shape[1:], generator=draw)
        for name in ("head.fc.weight", "head.fc.bias")
    }
    digest = put(tmp_path, before | theirs)
    folder = from_file(tmp_path, monkeypatch, ", head: mapped, map: mine/map.txt")
    assert train(folder, console=None) == "failed"
    assert folder.status().cause == "data"
    assert "weights/mine/map.txt not found (from LSA_DATA); put" in folder.status().message
    place = tmp_path / "weights" / "mine" / "map.txt"
    for text, words in (
        ("0\none\n", "entry 2 is 'one'; give a line"),
        ("-1\n", "entry 1 is '-1'; give a line"),
        ("0\n1\n", "shapes differ: head.fc.weight (2, "),
        ("\n".join(map(str, range(3, 13))), "has 12 rows, and the map asks for row 12"),
    ):
        place.write_text(text)
        assert train(folder, console=None) == "failed"
        assert folder.status().cause == "config"
        assert words in folder.status().message
    rows = [11, 0, 1, 2, 3, 4, 5, 6, 7, 8]
    place.write_text("".join(f"{row}\n" for row in rows))
    assert train(folder, console=None) == "done"
    after = weights_of(folder)
    for name, tensor in theirs.items():
        torch.testing.assert_close(after[name], tensor[rows], rtol=0, atol=1e-9)
    begun = folder.result().start
    assert begun.startswith(f"mine/w.safetensors sha256:{digest}, head by mine/map.txt sha256:")
