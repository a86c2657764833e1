"""Where a build reports: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from typing import Protocol, TextIO

from infer_dev_entry.install.model import Progress
from infer_dev_entry.install.progress import BarProgress, Meter

LINE_PERIOD_S = 5.0


class Display(Progress, Protocol):
    """A progress that can be closed."""

    def close(self) -> None:
        """Leave the terminal as it should be."""


class LineProgress:
    """Prints one line a stage, and one every few seconds; for pipes and CI logs."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._meter = Meter(LINE_PERIOD_S, time.monotonic)

    def stage(self, name: str, total: int = 0, unit: str = "B") -> None:
        """A new stage begins; `total` 0 means unknown."""
        self._meter.begin(name, total, unit)
        self.note(name)

    def advance(self, amount: int) -> None:
        """So much more of the stage is done."""
        if self._meter.add(amount):
            percent = f" ({self._meter.percent} %)" if self._meter.total else ""
            self.note(f"{self._meter.name}: {self._meter.describe()}{percent}")

    def note(self, message: str) -> None:
        """Say something worth a line."""
        print(message, file=self._out, flush=True)

    def close(self) -> None:
        """Nothing is left open."""


def make_display(out: TextIO) -> Display:
    """Return what fits the stream."""
    return BarProgress(out) if out.isatty() else LineProgress(out)
