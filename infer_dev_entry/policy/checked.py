"""Check what callers give: states as JSON has them, levels in [0, 1], distributions. Pure; nothing given is changed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Integral, Real

from infer_dev_entry.config.faults import Faults, Path, shown
from infer_dev_entry.policy.energy import SUM_TOLERANCE
from infer_dev_entry.policy.model import Levels

LEVEL_NAMES = ("dopamine", "serotonin", "cortisol")
MAX_STATE_CHARACTERS = 65536  # of one state's JSON
MAX_NODES = 10_000
MAX_DEPTH = 32
MAX_OUTCOMES = 10_000
_INT_LIMIT = 2**63


class _TooLargeError(Exception):
    """A state has too many values; the walk over it ends here."""


def parse_levels(value: object, faults: Faults, path: Path, *, required: Sequence[str] = LEVEL_NAMES) -> Levels:
    """Check neurotransmitter levels; those that are not `required` may be missing."""
    if not isinstance(value, Mapping):
        faults.add(path, f"expected a mapping with {', '.join(LEVEL_NAMES)}, got {shown(value)}")
        return Levels()
    found: dict[str, float] = {}
    for name in LEVEL_NAMES:
        if name in value:
            level = parse_level(value[name], faults, (*path, name))
            found |= {} if level is None else {name: level}
        elif name in required:
            faults.add((*path, name), "missing", "give a number in [0, 1]")
    return Levels(**found)


def parse_level(value: object, faults: Faults, path: Path) -> float | None:
    """Check one level: a finite number in [0, 1], no bool."""
    number = as_number(value)
    if number is None or not 0 <= number <= 1:
        faults.add(path, f"expected a number in [0, 1], got {shown(value)}")
        return None
    return number


def as_number(value: object) -> float | None:
    """Return a real number of Python's or NumPy's as a float, else None; one beyond floats is infinite."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf


def parse_distribution(value: object, faults: Faults, path: Path) -> tuple[tuple[str, ...] | None, tuple[float, ...]]:
    """Check a distribution, a mapping from names or a list, and return its names and its numbers, which sum to 1.

    Numbers are finite and ≥ 0. A sum within 1e-6 of 1 is normalised, any other is a fault, as it may be anything else.
    """
    value = as_list(value)
    names: tuple[str, ...] | None = None
    if isinstance(value, Mapping):
        if any(not isinstance(name, str) or not name.strip() for name in value):
            faults.add(path, "expected names that are not empty")
            return None, ()
        names, value = tuple(value), list(value.values())
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_OUTCOMES:
        faults.add(path, f"expected 1 to {MAX_OUTCOMES} probabilities, by name or as a list, got {_kind(value)}")
        return None, ()
    numbers = [as_number(item) for item in value]
    for index, number in enumerate(numbers):
        if number is None or not 0 <= number < math.inf:
            key = names[index] if names else f"[{index}]"
            faults.add((*path, key), f"expected a finite number ≥ 0, got {shown(value[index])}")
            return None, ()
    known = [number for number in numbers if number is not None]
    total = math.fsum(known)
    if abs(total - 1) > SUM_TOLERANCE:
        faults.add(path, f"expected probabilities of sum 1 (± {SUM_TOLERANCE:g}), got {total:.9g}")
        return None, ()
    return names, tuple(number / total for number in known)


def as_list(value: object) -> object:
    """Return a NumPy array or a tuple as a list, anything else as it is."""
    tolist = getattr(value, "tolist", None)
    if callable(tolist):
        return tolist()
    return list(value) if isinstance(value, tuple) else value


def copy_json(value: object, faults: Faults, path: Path) -> object:
    """Return a copy of plain dicts, lists, strings and numbers, as JSON has them; what JSON lacks is a fault.

    Depth and number of values are bounded, so that a list that holds itself ends too.
    """
    try:
        return _copy(value, faults, path, [MAX_NODES], MAX_DEPTH)
    except _TooLargeError:
        faults.add(path, f"holds more than {MAX_NODES} values", "leave out what the choice does not need")
        return None


def _copy(value: object, faults: Faults, path: Path, left: list[int], depth: int) -> object:
    left[0] -= 1
    if left[0] < 0:
        raise _TooLargeError
    if isinstance(value, Mapping | list | tuple) and depth == 0:
        faults.add(path[:4], f"is nested deeper than {MAX_DEPTH} levels")
        return None
    if isinstance(value, Mapping):
        return {
            key: _copy(item, faults, (*path, key), left, depth - 1)
            for key, item in value.items()
            if _is_key(key, faults, path)
        }
    if isinstance(value, list | tuple):
        return [_copy(item, faults, (*path, f"[{i}]"), left, depth - 1) for i, item in enumerate(value)]
    return _copy_scalar(value, faults, path)


def _copy_scalar(value: object, faults: Faults, path: Path) -> object:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        if is_text(value):
            return value
        faults.add(path, "holds half of a surrogate pair, which is no text")
    elif isinstance(value, Integral):
        if abs(int(value)) < _INT_LIMIT:
            return int(value)
        faults.add(path, "is a whole number beyond 64 bits")
    elif isinstance(value, Real):
        if math.isfinite(number := float(value)):
            return number
        faults.add(path, f"expected a finite number, got {float(value)}")
    else:
        faults.add(path, f"expected what JSON can hold, got a {type(value).__name__}")
    return None


def is_text(value: str) -> bool:
    """Whether a string can be encoded: Python's may hold lone surrogates, as those of JSON escapes."""
    return not any("\ud800" <= character <= "\udfff" for character in value)


def _is_key(key: object, faults: Faults, path: Path) -> bool:
    if isinstance(key, str) and is_text(key):
        return True
    faults.add(path, f"expected text as a key, got {ascii(key)[:60]}")
    return False


def _kind(value: object) -> str:
    return f"{len(value)}" if isinstance(value, list) else shown(value)
