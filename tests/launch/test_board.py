"""The live view of a local queue: counts, runs under way, expected end; never wider than asked."""

import time

import pytest

from lsa_study.launch.board import Board
from lsa_study.record import Status

LONG = "a-run-with-a-long-name-s0-0123456789"


def board(**fields):
    now = time.monotonic()
    return Board(2, begun={LONG: now - 10, "b": now - 10}, **fields)


RUNNING = [
    (
        LONG,
        Status(epoch=3, epochs=12, acc1=45.25, eta_seconds=30),
    ),
    ("b", Status()),
]


def test_the_end_is_expected_at_the_pace_seen():
    assert board().left([("b", Status())], 4) is None
    # Of 40 s a run: 30 s of each that runs, and 4 more on two places.
    assert board().left(RUNNING, 4) == pytest.approx((30 + 30 + 4 * 40) / 2, abs=0.5)
    assert board().left(RUNNING, 0) == pytest.approx(30, abs=0.5)
    queue = board(seconds=[20.0])
    queue.end("b")
    assert (queue.done, len(queue.seconds)) == (1, 2)


@pytest.mark.parametrize("width", [40, 80, 120])
def test_what_is_shown(width):
    lines = board(done=5).shown(RUNNING, 34, width).plain.splitlines()
    assert lines[0].startswith("5 of 41 runs done, 2 running, 34 waiti")
    assert max(map(len, lines)) <= width
    assert len(lines) == 3
    if width >= 80:
        assert "ends about" in lines[0]
        assert "━━━" in lines[1]
        assert "3/12  top-1 45.25 %  0:00:30" in lines[1]


def test_each_run_shows_the_metric_of_its_task():
    detects = Status(epoch=3, epochs=12, metrics={"box_ap": 12.5, "mask_ap": 11.0})
    labels = Status(epoch=3, epochs=12, metrics={"miou": 33.25, "pixel_accuracy": 60.0})
    view = board().shown([(LONG, detects), ("b", labels)], 0, 120).plain
    assert "3/12  box AP 12.50  " in view
    assert "3/12  mIoU 33.25 %  " in view
