"""Wait for a fact with a bound, in place of a sleep."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

_PERIOD_S = 0.02


def wait_until(predicate: Callable[[], T], timeout_s: float = 10.0, what: str = "") -> T:
    """Return the first true value of `predicate`; it is asked every 20 ms, and once more when time is up.

    Raises:
        AssertionError: it did not become true; the message names `what` was waited for and the last value.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        late = time.monotonic() >= deadline
        value = predicate()
        if value:
            return value
        if late:
            raise AssertionError(f"waited {timeout_s:g} s in vain for {what or predicate}; last: {value!r}")
        time.sleep(_PERIOD_S)
