"""The bar and the log lines of a long install."""

from __future__ import annotations

import io
from typing import Any

from infer_dev_entry.install.progress import BarProgress, LogProgress


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class FakeLog:
    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []

    def info(self, event: str, **values: Any) -> None:
        self.lines.append({"event": event, **values})


def test_log_says_stage_then_a_line_every_five_seconds() -> None:
    clock, log = Clock(), FakeLog()
    progress = LogProgress(log, clock)
    progress.stage("unpack", 10**9)
    for _ in range(20):
        clock.now += 0.5
        progress.advance(50 * 10**6)
    assert [line["event"] for line in log.lines] == ["install.stage", "install.progress", "install.progress"]
    assert log.lines[1] | {"percent": 50} == log.lines[1]
    assert log.lines[1]["done"] == "0.50 of 1.00 GB, 100 MB/s"


def test_log_without_a_total_has_no_percent() -> None:
    clock, log = Clock(), FakeLog()
    progress = LogProgress(log, clock)
    progress.stage("verify")
    clock.now += 6
    progress.advance(0)
    assert "percent" not in log.lines[-1]


def test_bar_draws_amount_percent_and_seconds() -> None:
    clock, out = Clock(), io.StringIO()
    progress = BarProgress(out, clock)
    progress.stage("install wheels", 10, "wheels")
    clock.now += 2
    progress.advance(5)
    assert "] " in out.getvalue() and " 50 %  5 of 10 wheels" in out.getvalue()
    progress.close()
    assert out.getvalue().endswith("  2.0 s\n")


def test_bar_note_keeps_the_bar() -> None:
    out = io.StringIO()
    progress = BarProgress(out, Clock())
    progress.stage("verify")
    progress.note("no GPU")
    assert "no GPU\n" in out.getvalue() and out.getvalue().endswith("verify")


def test_bar_draws_ten_times_a_second_at_most() -> None:
    clock, out = Clock(), io.StringIO()
    progress = BarProgress(out, clock)
    progress.stage("unpack", 1000)
    for _ in range(1000):
        clock.now += 0.001
        progress.advance(1)
    assert out.getvalue().count("\r") <= 12


def test_percent_never_passes_a_hundred() -> None:
    clock, log = Clock(), FakeLog()
    progress = LogProgress(log, clock)
    progress.stage("unpack", 10)
    clock.now += 6
    progress.advance(25)
    assert log.lines[-1]["percent"] == 100
