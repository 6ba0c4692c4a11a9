"""A run folder survives what happens to folders: kills, torn lines, two writers, full disks."""

import contextlib
import os

import numpy as np
import pytest

from lsa_study import rundir
from lsa_study.config import study
from lsa_study.errors import ConfigError, EnvironmentLacks, Refused
from lsa_study.record import Attempt, Result, Status
from lsa_study.rundir import RunDir
from lsa_study.training import checkpoint


@pytest.fixture
def run():
    return study.load_study("table1", only="swin").runs()[0]


@pytest.fixture
def folder(tmp_path, run):
    made = RunDir(tmp_path / run.name)
    made.create(run.settings, variant=run.variant)
    return made


def test_settings_come_back_as_they_were(folder, run):
    assert folder.settings() == run.settings
    assert folder.config()["identity"] == run.identity


def test_another_run_is_refused(folder, run):
    folder.create(run.settings, variant=run.variant)
    other = study.load_study("table1", only="swin", overrides=["train.epochs=3"]).runs()[0]
    with pytest.raises(Refused, match=r"holds another run \(train\.epochs differ\)"):
        folder.create(other.settings, variant="swin")


def test_resources_of_another_call_are_not_another_run(folder):
    other = study.load_study("table1", only="swin", overrides=["runtime.workers=3"]).runs()[0]
    folder.create(other.settings, variant="swin")


def test_a_torn_line_costs_nothing_but_itself(folder):
    with folder.owned() as (_, attempt):
        folder.log_metrics({"epoch": 1, "attempt": attempt, "acc1": 10.0})
    with (folder.root / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 2, "att')  # the kill
    assert [record["epoch"] for record in folder.metrics()] == [1]
    with folder.owned() as (_, attempt):
        assert attempt == 2
        folder.log_metrics({"epoch": 2, "attempt": attempt, "acc1": 20.0})
    assert [(r["epoch"], r["acc1"]) for r in folder.metrics()] == [(1, 10.0), (2, 20.0)]


@pytest.mark.parametrize("line", ['{"epoch": 1, "attempt": 1, "acc1": "x", "loss": 0.5}', "[1]"])
def test_what_is_no_number_is_no_metric(folder, line):
    (folder.root / "metrics.jsonl").write_text(f"{line}\n")
    assert folder.metrics() == [{"epoch": 1, "attempt": 1, "loss": 0.5}] * ("x" in line)


def test_the_last_record_of_an_epoch_wins(folder):
    for accuracy in (1.0, 2.0):
        folder.log_metrics({"epoch": 1, "attempt": 1, "acc1": accuracy})
    assert folder.metrics() == [{"epoch": 1, "attempt": 1, "acc1": 2.0}]


@pytest.mark.parametrize("garbage", ["", "{", "[]", '{"epoch": 3}', "\x00\xff"])
def test_a_garbage_status_reads_as_waiting(folder, garbage):
    (folder.root / "status.json").write_text(garbage)
    assert folder.status() == Status()


def test_a_broken_result_is_told_not_taken_for_none(folder):
    assert folder.result() is None
    (folder.root / "result.json").write_text('{"outcome": "do')
    with pytest.raises(ConfigError, match="is unreadable"):
        folder.result()


DAMAGE = {
    "wrong type": ('"acc1": "high"', "holds acc1 = 'high'"),
    "several": ('"seed": true, "params": [1]', r"holds params = \[1\], seed = True"),
    "a float for a count": ('"seed": 1.0', "holds seed = 1.0"),
    "not finite": ('"loss": 1e999', "holds loss = inf"),
    "out of range": ('"acc1": 100.5', "holds acc1 = 100.5"),
    "400 digits": (f'"params": {"9" * 400}', "holds params = 9999"),
    "5000 digits": (f'"params": {"9" * 5000}', "is unreadable"),
    "deep": (f'"more": {"[" * 100_000}{"]" * 100_000}', "is unreadable"),
    "lone surrogate": (r'"torch": "\ud800"', "is unreadable"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_values_of_a_result_are_named(folder, damage):
    text, message = DAMAGE[damage]
    (folder.root / "result.json").write_text(f'{{"outcome": "done", {text}}}')
    with pytest.raises(ConfigError, match=f"{folder.root.name}/result.json: {message}") as caught:
        folder.result()
    assert len(str(caught.value)) < 400


def test_an_old_result_is_read(folder):
    """What is missing is None, also where it is NaN; what is unknown is left out."""
    (folder.root / "result.json").write_text('{"outcome": "done", "loss": NaN, "colour": [1]}')
    assert folder.result() == Result(outcome="done")


@pytest.mark.parametrize("text", ['"epoch": -1', '"heartbeat": "x"', '"state": "asleep"'])
def test_a_damaged_status_reads_as_waiting(folder, text):
    (folder.root / "status.json").write_text(f'{{"state": "running", {text}}}')
    assert folder.status() == Status()


def test_a_changed_state_keeps_the_rest(folder):
    folder.write_status(Status(state="running", epoch=2, cause="node", message="m"))
    folder.change_state("stopped", cause="cancelled")
    found = folder.status()
    assert (found.state, found.epoch) == ("stopped", 2)
    assert (found.cause, found.message) == ("cancelled", "m")


def test_the_environment_of_an_attempt_comes_back(folder):
    with folder.owned() as (_, attempt):
        assert folder.environments() == []
        written = Attempt(host="h", packages={"torch": "2"}, schema_version=1, seed=3)
        folder.write_environment(attempt, written)
        assert folder.environments() == [written]
        (folder.attempt_folder(attempt) / "environment.json").write_text('{"seed": "3"}')
        assert folder.environments() == []


@pytest.mark.parametrize(
    "line", ['{"epoch": 1e999}', '{"epoch": NaN}', "[" * 100_000, f'{{"epoch": {"9" * 5000}}}']
)
def test_a_damaged_record_costs_its_line(folder, line):
    folder.log_metrics({"epoch": 1, "attempt": 1})
    with (folder.root / "metrics.jsonl").open("a") as file:
        file.write(line + "\n")
    folder.log_metrics({"epoch": 2, "attempt": 1})
    assert [record["epoch"] for record in folder.metrics()] == [1, 2]


def test_a_broken_configuration_is_told(folder):
    (folder.root / "config.yaml").write_text("a: [1")
    with pytest.raises(ConfigError, match="is not a run's configuration"):
        folder.settings()


def test_damaged_settings_are_named(folder):
    text = (folder.root / "config.yaml").read_text().replace("epochs:", "epoch:")
    (folder.root / "config.yaml").write_text(text)
    with pytest.raises(ConfigError, match="is not a run's configuration"):
        folder.settings()


def test_another_schema_is_told(folder):
    text = (folder.root / "config.yaml").read_text().replace("schema: 1", "schema: 99")
    (folder.root / "config.yaml").write_text(text)
    with pytest.raises(ConfigError, match="was made by schema 99"):
        folder.settings()


def test_a_failed_write_leaves_the_old_file_and_no_part(folder, monkeypatch):
    folder.write_status(Status(state="running", epoch=1))

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(EnvironmentLacks, match="No space left on device"):
        folder.write_status(Status(state="running", epoch=2))
    assert folder.status().epoch == 1
    assert not list(folder.root.glob("*.part"))


def test_existing_finds_runs_by_identity(tmp_path, run):
    folder = RunDir(rundir.runs_folder(tmp_path, "toy") / f"oldname-s0-{run.identity}")
    folder.create(run.settings, variant="oldname")
    assert rundir.existing(tmp_path, "toy") == {run.identity: folder}
    assert rundir.existing(tmp_path, "paper") == {}


# -- per-image correctness ----------------------------------------------------------------------


def right(images, seed=0):
    return np.random.default_rng(seed).integers(0, 2, images).astype(np.uint8)


@pytest.mark.parametrize("images", [1, 7, 8, 9, 360, 10_000, 50_000])
def test_correctness_comes_back_image_by_image(folder, images):
    for seed in range(3):
        folder.write_correct(right(images, seed))
        bits = np.frombuffer(folder.correct(images), np.uint8)
        assert (np.unpackbits(bits, count=images) == right(images, seed)).all()


@pytest.mark.parametrize("images", [8, 360])
def test_a_damaged_byte_is_refused_or_changes_nothing(folder, images):
    folder.write_correct(right(images))
    content, bits = folder.correct_bits.read_bytes(), np.packbits(right(images)).tobytes()
    refused = 0
    for place in range(len(content)):
        for flip in (0x01, 0xFF):
            damaged = bytearray(content)
            damaged[place] ^= flip
            folder.correct_bits.write_bytes(damaged)
            try:
                assert folder.correct(images) == bits
            except ValueError:
                refused += 1
    assert refused > len(content), "most bytes are checked"


@pytest.mark.parametrize("cut", [0, 1, 40, 300, -1])
def test_torn_correctness_is_unreadable(folder, cut):
    folder.write_correct(right(360))
    folder.correct_bits.write_bytes(folder.correct_bits.read_bytes()[:cut])
    with pytest.raises(ValueError, match=r"correct.npz: is unreadable"):
        folder.correct(360)


@pytest.mark.parametrize("images", [None, -1, 0, 1, 359, 361, 10**12])
def test_another_number_of_images_is_refused(folder, images):
    folder.write_correct(right(360))
    with pytest.raises(ValueError, match=f"holds 360 images, the result says {images}"):
        folder.correct(images)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_correctness_of_other_writers_is_read(folder, save):
    """Another NumPy may pad or order the file otherwise."""
    save(folder.correct_bits, count=np.int32(360), bits=np.packbits(right(360)), more=np.zeros(3))
    assert folder.correct(360) == np.packbits(right(360)).tobytes()


def test_pickled_objects_are_never_read(folder):
    np.savez(folder.correct_bits, bits=np.array([{}], dtype=object), count=np.int64(8))
    with pytest.raises(ValueError, match="is unreadable"):
        folder.correct(8)


@pytest.mark.parametrize("name", ["result.json", "status.json", "config.yaml", "metrics.jsonl"])
def test_a_pipe_in_place_of_a_file_does_not_hang(folder, name):
    (folder.root / name).unlink(missing_ok=True)
    os.mkfifo(folder.root / name)
    assert folder.status().state == "waiting"
    for read in (folder.result, folder.settings, folder.metrics):
        with contextlib.suppress(ConfigError):
            read()


def give_away(link, monkeypatch):
    """Make a link look as if another user had made it."""
    if os.geteuid() == 0:
        os.chown(link, 65534, 65534, follow_symlinks=False)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)


def test_links_of_other_users_are_not_followed(folder, tmp_path, monkeypatch):
    mine = tmp_path / "mine.txt"
    mine.write_text("kept")
    for name in (".lock", "owner.json", "status.json", "metrics.jsonl", "config.yaml"):
        (folder.root / name).unlink(missing_ok=True)
        (folder.root / name).symlink_to(mine)
        give_away(folder.root / name, monkeypatch)
    with pytest.raises(EnvironmentLacks, match="a link that another user made"), folder.owned():
        pass
    with pytest.raises(EnvironmentLacks):
        folder.log_metrics({"epoch": 1, "attempt": 1})
    with pytest.raises(ConfigError):
        folder.settings()
    folder.write_status(Status(state="failed"))  # takes the link's place
    assert mine.read_text() == "kept"


def test_a_folder_that_is_another_users_link_is_no_run(folder, monkeypatch):
    linked = folder.root.with_name("elsa-s0-0123456789")
    linked.symlink_to(folder.root)
    tier = folder.root.parents[1]
    give_away(linked, monkeypatch)
    assert RunDir(linked) not in rundir.run_folders(tier.parent, tier.name)


def test_an_edited_configuration_is_named(folder):
    path = folder.root / "config.yaml"
    path.write_text(path.read_text().replace("  seed: 0", "  seed: 7"))
    with pytest.raises(ConfigError, match=r"config.yaml was edited .*; undo that"):
        folder.settings()


def test_the_umask_is_followed(folder, run):
    before = os.umask(0o002)
    try:
        shared = RunDir(folder.root.with_name("swin-s0-shared") / folder.root.name)
        shared.create(run.settings, variant="swin")
        with shared.owned() as (mine, attempt):
            mine.log_metrics({"epoch": 1, "attempt": attempt})
            checkpoint.save(mine, {})
        closed = [path for path in shared.root.rglob("*") if not path.stat().st_mode & 0o040]
        assert not closed
    finally:
        os.umask(before)
