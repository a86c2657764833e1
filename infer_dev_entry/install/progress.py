"""Where a long install reports: a bar on a terminal, a log line every few seconds elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

LOG_PERIOD_S = 5.0
BAR_PERIOD_S = 0.1
_BAR_WIDTH = 28


class Meter:
    """The arithmetic of one stage: how much is done, how fast, and whether it is time to say so."""

    def __init__(self, period_s: float, clock: Callable[[], float]) -> None:
        self._period_s = period_s
        self._clock = clock
        self.begin("", 0, "B")

    def begin(self, name: str, total: int, unit: str) -> None:
        """A new stage."""
        self.name, self.total, self.unit = name, total, unit
        self.done = 0
        self._began = self._said = self._clock()

    def add(self, amount: int) -> bool:
        """Count it; True when the last report is old enough for a new one."""
        self.done += amount
        now = self._clock()
        if now - self._said < self._period_s:
            return False
        self._said = now
        return True

    @property
    def seconds(self) -> float:
        """How long the stage has taken."""
        return self._clock() - self._began

    @property
    def percent(self) -> int:
        """How much of a known total is done, 0 to 100."""
        return min(100, self.done * 100 // self.total) if self.total else 0

    def describe(self) -> str:
        """`1.2 of 4.0 GB, 310 MB/s`, or `12 of 60 packages`."""
        if self.unit != "B":
            return f"{self.done} of {self.total} {self.unit}" if self.total else f"{self.done} {self.unit}"
        speed = f"{self.done / 1e6 / max(self.seconds, 1e-3):.0f} MB/s"
        amount = f"{self.done / 1e9:.2f} of {self.total / 1e9:.2f} GB" if self.total else f"{self.done / 1e9:.2f} GB"
        return f"{amount}, {speed}"


class LogProgress:
    """Writes structured lines: one a stage, then one every few seconds."""

    def __init__(self, log: Any, clock: Callable[[], float] = time.monotonic) -> None:
        self._log = log
        self._meter = Meter(LOG_PERIOD_S, clock)

    def stage(self, name: str, total: int = 0, unit: str = "B") -> None:
        """A new stage begins; `total` 0 means unknown."""
        self._meter.begin(name, total, unit)
        self._log.info("install.stage", stage=name)

    def advance(self, amount: int) -> None:
        """So much more of the stage is done."""
        meter = self._meter
        if meter.add(amount):
            percent = {"percent": meter.percent} if meter.total else {}
            self._log.info("install.progress", stage=meter.name, done=meter.describe(), **percent)

    def note(self, message: str) -> None:
        """Say something worth a line."""
        self._log.info("install.note", message=message)

    def close(self) -> None:
        """Nothing is left open."""


class BarProgress:
    """Draws one line on a terminal and redraws it; every stage leaves a line behind."""

    def __init__(self, out: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._out = out
        self._meter = Meter(BAR_PERIOD_S, clock)
        self._drawn = False

    def stage(self, name: str, total: int = 0, unit: str = "B") -> None:
        """A new stage begins; `total` 0 means unknown."""
        self.close()
        self._meter.begin(name, total, unit)
        self._draw()

    def advance(self, amount: int) -> None:
        """So much more of the stage is done."""
        if self._meter.add(amount):
            self._draw()

    def note(self, message: str) -> None:
        """Say something worth a line."""
        self._out.write(f"\r\x1b[K{message}\n")
        if self._drawn:
            self._draw()
        self._out.flush()

    def close(self) -> None:
        """Leave the last stage's line as it ended."""
        if self._drawn:
            self._draw()
            self._out.write(f"  {self._meter.seconds:.1f} s\n")
            self._out.flush()
            self._drawn = False

    def _draw(self) -> None:
        meter = self._meter
        self._drawn = True
        bar = ""
        if meter.total:
            filled = _BAR_WIDTH * meter.percent // 100
            bar = f" [{'#' * filled}{'.' * (_BAR_WIDTH - filled)}] {meter.percent:3d} %"
        amount = f"  {meter.describe()}" if meter.done else ""
        self._out.write(f"\r\x1b[K{meter.name}{bar}{amount}")
        self._out.flush()


def make_progress(log: Any, log_format: str) -> LogProgress | BarProgress:
    """Return a bar when stderr is a terminal and no log format says otherwise, else the log."""
    return BarProgress(sys.stderr) if sys.stderr.isatty() and log_format != "json" else LogProgress(log)
