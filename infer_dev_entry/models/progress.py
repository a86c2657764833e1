"""Where a download reports: a bar on a terminal, a line every few seconds elsewhere, with rate and time to go."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any, Protocol, TextIO

LOG_PERIOD_S = 5.0
BAR_PERIOD_S = 0.2
_BAR_WIDTH = 28
_RATE_WINDOW_S = 20.0


class ModelProgress(Protocol):
    """Where it reports."""

    def stage(self, name: str, total: int = 0) -> None:
        """A new stage begins; `total` 0 means unknown."""

    def advance(self, amount: int) -> None:
        """So much more of the stage is done; less than nothing takes back."""

    def note(self, message: str) -> None:
        """Say something worth a line."""

    def close(self) -> None:
        """Leave the terminal as it should be."""


class Rate:
    """The arithmetic of one stage: amount, percent, rate over the last seconds, time to go."""

    def __init__(self, name: str, total: int, clock: Callable[[], float]) -> None:
        self.name, self.total, self.done = name, total, 0
        self._clock = clock
        self._marks = [(clock(), 0)]

    def add(self, amount: int) -> None:
        """Count it."""
        self.done += amount
        now = self._clock()
        if now - self._marks[-1][0] >= 1.0:
            self._marks.append((now, self.done))
            self._marks = [mark for mark in self._marks if now - mark[0] <= _RATE_WINDOW_S] or [(now, self.done)]

    @property
    def percent(self) -> int:
        """How much of a known total is done, 0 to 100."""
        return max(0, min(100, self.done * 100 // self.total)) if self.total else 0

    @property
    def bytes_per_s(self) -> float:
        """The rate over the last seconds; 0 while it is not known."""
        began, done = self._marks[0]
        seconds = self._clock() - began
        return max(0.0, (self.done - done) / seconds) if seconds >= 0.5 else 0.0

    @property
    def left_s(self) -> float | None:
        """The seconds to go at that rate; None while nobody can know."""
        rate = self.bytes_per_s
        return (self.total - self.done) / rate if self.total and rate > 0 else None

    def describe(self) -> str:
        """`1.20 of 4.00 GB, 310.2 MB/s, 9s to go`."""
        amount = f"{_shown(self.done)} of {_shown(self.total)}" if self.total else _shown(self.done)
        left = f", {render_left(self.left_s)} to go" if self.left_s is not None else ""
        return f"{amount}, {self.bytes_per_s / 1e6:.1f} MB/s{left}"


def _shown(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def render_left(seconds: float | None) -> str:
    """Render seconds for people: 42s, 3m10s, 5h02m."""
    whole = int(min(seconds or 0.0, 359_999))
    if whole < 60:
        return f"{whole}s"
    return f"{whole // 60}m{whole % 60:02d}s" if whole < 3600 else f"{whole // 3600}h{whole % 3600 // 60:02d}m"


class LogProgress:
    """Writes structured lines: one a stage, then one every few seconds."""

    def __init__(self, log: Any, clock: Callable[[], float] = time.monotonic) -> None:
        self._log, self._clock = log, clock
        self._rate = Rate("", 0, clock)
        self._said = clock()

    def stage(self, name: str, total: int = 0) -> None:
        """A new stage begins."""
        self._rate = Rate(name, total, self._clock)
        self._said = self._clock()
        self._log.info("model.stage", stage=name, **({"total_bytes": total} if total else {}))

    def advance(self, amount: int) -> None:
        """So much more of the stage is done."""
        rate = self._rate
        rate.add(amount)
        if self._clock() - self._said < LOG_PERIOD_S:
            return
        self._said = self._clock()
        left = {"left_s": round(rate.left_s)} if rate.left_s is not None else {}
        self._log.info(
            "model.progress",
            stage=rate.name,
            done=rate.describe(),
            done_bytes=rate.done,
            percent=rate.percent,
            bytes_per_s=round(rate.bytes_per_s),
            **left,
        )

    def note(self, message: str) -> None:
        """Say something worth a line."""
        self._log.info("model.note", message=message)

    def close(self) -> None:
        """Nothing is left open."""


class LineProgress(LogProgress):
    """Prints plain lines; for a command whose output is no terminal."""

    def __init__(self, out: TextIO) -> None:
        super().__init__(None)
        self._out = out

    def stage(self, name: str, total: int = 0) -> None:
        """A new stage begins."""
        self._rate = Rate(name, total, self._clock)
        self._said = self._clock()
        self.note(name)

    def advance(self, amount: int) -> None:
        """So much more of the stage is done."""
        self._rate.add(amount)
        if self._clock() - self._said >= LOG_PERIOD_S:
            self._said = self._clock()
            self.note(f"{self._rate.name}: {self._rate.percent} %, {self._rate.describe()}")

    def note(self, message: str) -> None:
        """Say something worth a line."""
        print(message, file=self._out, flush=True)


class BarProgress:
    """Draws one line on a terminal and redraws it; every stage leaves a line behind."""

    def __init__(self, out: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._out, self._clock = out, clock
        self._rate = Rate("", 0, clock)
        self._drawn = 0.0
        self._open = False

    def stage(self, name: str, total: int = 0) -> None:
        """A new stage begins."""
        self.close()
        self._rate = Rate(name, total, self._clock)
        self._draw()

    def advance(self, amount: int) -> None:
        """So much more of the stage is done."""
        self._rate.add(amount)
        if self._clock() - self._drawn >= BAR_PERIOD_S:
            self._draw()

    def note(self, message: str) -> None:
        """Say something worth a line."""
        self._out.write(f"\r\x1b[K{message}\n")
        if self._open:
            self._draw()
        self._out.flush()

    def close(self) -> None:
        """Leave the last stage's line as it ended."""
        if self._open:
            self._draw()
            self._out.write("\n")
            self._out.flush()
            self._open = False

    def _draw(self) -> None:
        self._drawn, self._open = self._clock(), True
        filled = _BAR_WIDTH * self._rate.percent // 100
        bar = f" [{'#' * filled}{'.' * (_BAR_WIDTH - filled)}] {self._rate.percent:3d} %" if self._rate.total else ""
        amount = f"  {self._rate.describe()}" if self._rate.done else ""
        self._out.write(f"\r\x1b[K{self._rate.name}{bar}{amount}")
        self._out.flush()


def make_progress(log: Any, log_format: str) -> ModelProgress:
    """Return a bar when stderr is a terminal and no log format says otherwise, else the log."""
    return BarProgress(sys.stderr) if sys.stderr.isatty() and log_format != "json" else LogProgress(log)


def make_display(out: TextIO) -> ModelProgress:
    """Return what fits a command's stream."""
    return BarProgress(out) if out.isatty() else LineProgress(out)
