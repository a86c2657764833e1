"""Parse JSON from outside strictly: what Python's parser lets through is refused as well. Pure."""

from __future__ import annotations

import json

_REASON_CHARACTERS = 120


def parse_json(text: str, limit: int, *, raw_controls: bool = False) -> object:
    """Parse one document of at most `limit` characters: no NaN, no key twice in an object, nothing around it.

    With `raw_controls` texts may hold control characters as they are: xgrammar 0.2.1 lets a model write them in texts
    of bounded length, in which it takes no escapes.

    Raises:
        ValueError: it is none; the message fits a line.
    """
    if len(text) > limit:
        raise ValueError(f"it has {len(text)} characters, more than {limit}")
    try:
        return json.loads(
            text, strict=not raw_controls, object_pairs_hook=_unique_pairs, parse_constant=_refuse_constant
        )
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    except ValueError as error:
        raise ValueError(str(error)[:_REASON_CHARACTERS]) from error


def _unique_pairs(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("an object has the same key twice")
    return found


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is no number of JSON's")
