"""What a tracker holds of a run, read from its own files, and what it should hold."""

import importlib.util
import json
import os
import sqlite3
import struct

import pytest

EVERY = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(
            importlib.util.find_spec(name) is None, reason=f"{name} is not installed"
        ),
    )
    for name in ("tensorboard", "wandb", "trackio")
]

needs_tensorboard = pytest.mark.skipif(
    importlib.util.find_spec("tensorboard") is None, reason="tensorboard is not installed"
)


def record(epoch, attempt=1, **changes):
    """One line of ``metrics.jsonl``."""
    known = {"step": 3 * epoch, "acc1": 10.0 + epoch / 8, "ema_acc1": None, "lr": 0.5**epoch}
    return {"epoch": epoch, "attempt": attempt, **known, **changes}


def curve_of(folder):
    """What a tracker should show, from the lines of ``metrics.jsonl``."""
    return {
        line["epoch"]: {
            {"step": "steps"}.get(name, name): pytest.approx(value, rel=1e-6)
            for name, value in line.items()
            if name != "epoch" and value is not None
        }
        for line in folder.metrics()
    }


def plant(monkeypatch, folder, code):
    """Have ``import trackio`` run this code, here and in processes that are started."""
    (folder / "trackio.py").write_text(code)
    monkeypatch.syspath_prepend(folder)
    paths = [str(folder), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))


class Shown:
    """A curve ``{epoch: {name: value}}`` with its hyperparameters and final result.

    ``judged``: by which names TensorBoard compares runs.
    """

    def __init__(self, curve, settings, result, judged=()):
        self.curve, self.settings, self.result = curve, settings, result
        self.judged = [*judged]


def read(tracker, folder):
    return {"tensorboard": _tensorboard, "wandb": _wandb, "trackio": _trackio}[tracker](
        folder.tracking / tracker
    )


def _tensorboard(folder):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    (file,) = folder.iterdir()
    events = accumulator.EventAccumulator(str(file))
    events.Reload()
    curve = {}
    for name in events.Tags()["scalars"]:
        for event in events.Scalars(name):
            # A doubled epoch must not hide behind the dictionary.
            assert name not in curve.setdefault(event.step, {})
            curve[event.step][name] = event.value

    def data(name):
        content = events.SummaryMetadata(f"_hparams_/{name}").plugin_data.content
        return HParamsPluginData.FromString(content)

    found = data("session_start_info").session_start_info.hparams
    judged = [info.name.tag for info in data("experiment").experiment.metric_infos]
    settings = {key: getattr(value, value.WhichOneof("kind")) for key, value in found.items()}
    result = {}
    if "result" in events.Tags()["tensors"]:
        (text,) = events.Tensors("result")[0].tensor_proto.string_val
        result = dict(line.strip().split(": ", 1) for line in text.decode().split("\n"))
    return Shown(curve, settings, result, judged)


def _wandb(folder):
    pb = pytest.importorskip("wandb.proto.wandb_internal_pb2")
    (path,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    curve, settings, result = {}, {}, {}
    for data in _records(path.read_bytes()):
        record = pb.Record.FromString(data)
        if record.WhichOneof("record_type") == "history":
            values = _items(record.history.item)
            epoch = record.history.step.num
            assert epoch not in curve
            curve[epoch] = {k: v for k, v in values.items() if not k.startswith("_")}
        settings |= _items(record.run.config.update)
        result |= _items(record.summary.update)
    result = {k.removeprefix("result/"): v for k, v in result.items() if k.startswith("result/")}
    return Shown(curve, settings, result)


def _items(items):
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def _records(content):
    """The records of LevelDB's log format: blocks of 32 KiB, records in one or more pieces."""
    assert content[:4] == b":W&B"
    at, whole = 7, b""
    while at + 7 <= len(content):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        length, kind = struct.unpack_from("<HB", content, at + 4)
        whole += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield whole
            whole = b""


def _trackio(folder):
    (path,) = folder.glob("*.db")
    database = sqlite3.connect(path)
    curve, result = {}, {}
    for epoch, text in database.execute("select step, metrics from metrics order by id"):
        values = json.loads(text)
        ends = {k.removeprefix("result/"): v for k, v in values.items() if k.startswith("result/")}
        if ends:
            result |= ends
        else:
            assert epoch not in curve
            curve[epoch] = values
    (config,) = database.execute("select config from configs").fetchone()
    database.close()
    return Shown(curve, json.loads(config), result)
