"""Say as one of our errors what a server, or the way to it, said in its own words. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping

from infer_dev_entry.errors import (
    BadRequestError,
    BrokenAnswerError,
    ClientError,
    OverloadedError,
    RefusedKeyError,
    UnknownModelError,
)
from infer_dev_entry.redact import redact_line

_LONGEST_WORDS = 400


def failure_of_status(status: int, body: bytes) -> ClientError:
    """Return the error for an HTTP status that is none of 2xx; `body` may be anything."""
    return _failure(status, f"it answers {status}", _words(body))


def failure_of_event(error: object) -> ClientError:
    """Return the error for an `error` that came under the status 200, alone or in a stream."""
    status = error.get("code", error.get("status_code")) if isinstance(error, Mapping) else None
    words = _words(json.dumps({"error": error}, default=str).encode())
    if isinstance(status, str) and status.isdecimal():
        status = int(status[:4])
    usable = isinstance(status, int) and not isinstance(status, bool) and 400 <= status < 600
    return _failure(int(status) if usable and isinstance(status, int) else 0, "it reports an error", words)


def _failure(status: int, what: str, words: str) -> ClientError:
    said = f": {words}" if words else ""
    if status in (401, 403):
        return RefusedKeyError(f"{what}: it refuses the API key; give api_key, or set INFER_DEV_API_KEY")
    if status == 404:
        return UnknownModelError(f"{what}{said}; see models() for what is served, and the URL for a wrong path")
    if status in (429, 503):
        return OverloadedError(f"{what}{said}; it takes no more now: ask again later, or see infer-dev status")
    if status in (408, 504):
        return OverloadedError(f"{what}{said}; it, or what stands before it, gave up waiting: ask again later")
    if 400 <= status < 500:
        return BadRequestError(f"{what}{said}")
    if 300 <= status < 400:
        return BrokenAnswerError(f"{what}: it sends us elsewhere; give the URL of the server itself")
    return BrokenAnswerError(f"{what}{said}; see the server's log: infer-dev logs NAME")


def _words(body: bytes) -> str:
    """The server's own message out of the shapes that there are, on one line and cut; "" when there is none."""
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        data = body.decode("utf-8", "replace")
    for key in ("error", "message", "detail"):
        if isinstance(data, Mapping) and data.get(key):
            data = data[key]
    text = data if isinstance(data, str) else json.dumps(data)
    text = " ".join("".join(char if char.isprintable() else " " for char in text[: 4 * _LONGEST_WORDS]).split())
    return redact_line(text if len(text) <= _LONGEST_WORDS else text[:_LONGEST_WORDS] + "…")
