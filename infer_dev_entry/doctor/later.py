"""Start a read that may never return (a hung network disk, a wedged driver) and wait for it with a bound."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class LateError(Exception):
    """The read did not return in time, or failed in a way that no check expects; the message is a clause."""


class Later(Generic[T]):
    """A read in a thread of its own: one that hangs in the kernel cannot be ended, and must not hold up our exit."""

    def __init__(self, read: Callable[[], T], limit_s: float) -> None:
        self._read = read
        self._limit_s = limit_s
        self._deadline = time.monotonic() + limit_s
        self._values: list[T] = []
        self._error = ""
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._values.append(self._read())
        except Exception as error:  # a row must say it: a traceback helps nobody who came for a diagnosis
            self._error = f"{type(error).__name__}: {error}"

    def get(self) -> T:
        """Wait for the value.

        Raises:
            LateError: time is up, or the read failed.
        """
        self._thread.join(max(0.0, self._deadline - time.monotonic()))
        if self._values:
            return self._values[0]
        raise LateError(self._error or f"no answer in {self._limit_s:g} s; is a disk or the driver hung?")
