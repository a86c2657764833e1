"""What a download tells: amounts, percent, rate, time to go."""

from __future__ import annotations

import io
from typing import Any

from infer_dev_entry.models.progress import BarProgress, LogProgress, Rate, render_left


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Log:
    def __init__(self) -> None:
        self.lines: list[tuple[str, dict[str, Any]]] = []

    def info(self, event: str, **fields: Any) -> None:
        self.lines.append((event, fields))


def test_rate_is_of_the_last_seconds_and_tells_the_time_to_go() -> None:
    clock = Clock()
    rate = Rate("download", 400_000_000, clock)
    assert rate.left_s is None
    for _ in range(100):
        clock.now += 1
        rate.add(1_000_000)
    for _ in range(40):
        clock.now += 1
        rate.add(2_000_000)
    assert round(rate.bytes_per_s / 1e6, 1) == 2.0
    assert rate.percent == 45
    assert rate.describe() == "180.0 MB of 400.0 MB, 2.0 MB/s, 1m50s to go"


def test_rate_of_a_stalled_download_knows_no_end() -> None:
    clock = Clock()
    rate = Rate("download", 10, clock)
    rate.add(5)
    for _ in range(60):
        clock.now += 1
        rate.add(0)
    assert rate.bytes_per_s == 0
    assert rate.left_s is None
    rate.add(-5)
    assert rate.percent == 0


def test_log_says_something_every_few_seconds() -> None:
    clock, log = Clock(), Log()
    progress = LogProgress(log, clock)
    progress.stage("download org/m", 20_000_000)
    for _ in range(12):
        clock.now += 1
        progress.advance(1_000_000)
    assert [event for event, _ in log.lines] == ["model.stage", "model.progress", "model.progress"]
    assert log.lines[-1][1]["percent"] == 50
    assert log.lines[-1][1]["left_s"] == 10


def test_bar_is_redrawn_and_left_behind() -> None:
    out, clock = io.StringIO(), Clock()
    progress = BarProgress(out, clock)
    progress.stage("download", 100)
    clock.now += 1
    progress.advance(50)
    progress.note("a line")
    progress.close()
    assert "[##############..............]  50 %" in out.getvalue()
    assert "\r\x1b[Ka line\n" in out.getvalue()
    assert out.getvalue().endswith("\n")


def test_time_to_go_for_people() -> None:
    assert [render_left(seconds) for seconds in (5, 190, 18_120, 1e12)] == ["5s", "3m10s", "5h02m", "99h59m"]
