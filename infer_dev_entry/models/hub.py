"""What the downloader needs of a hub: a listing and byte streams; and what can go wrong with it, as data. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from infer_dev_entry.models.listing import Listing
from infer_dev_entry.models.wish import ModelWish
from infer_dev_entry.redact import redact_line

# Worth another try: the hub or the way to it may be well again in a moment.
PASSING = ("busy", "server", "connection")

INSTALL_MEND = "pip install 'infer-dev-entry[models]'"


class HubError(Exception):
    """A request failed. `kind` is `auth`, `gated`, `repo`, `revision`, `file`, `range`, `other`, or one of PASSING.

    The message is a clause without secrets; `retry_after_s` is what the hub asked for, 0 when it asked for nothing.
    """

    def __init__(self, kind: str, message: str, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.kind = kind
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """A file's bytes from `offset` on, which is 0 where the hub did not heed the asked one.

    `total` is the whole file's size by the answer's headers, None when they do not say. Reading `pieces` raises
    HubError.
    """

    offset: int
    total: int | None
    pieces: Iterator[bytes]


class Hub(Protocol):
    """One hub. Every method raises HubError, is bounded in time, and may be called from several threads."""

    def list_files(self, wish: ModelWish, /) -> Listing:
        """Resolve the revision to a commit and list the files there."""

    def open_file(self, wish: ModelWish, commit: str, path: str, offset: int, /) -> AbstractContextManager[Stream]:
        """Begin to read one file of that commit."""


def kind_of_status(status: int) -> str:
    """Return the kind of trouble that an HTTP status alone tells."""
    kinds = {401: "auth", 403: "auth", 404: "file", 408: "connection", 416: "range", 425: "busy", 429: "busy"}
    return kinds.get(status, "server" if status >= 500 else "other")


def parse_retry_after(text: str | None, now_unix: float) -> float:
    """Parse the Retry-After header: seconds, or a date; 0 for anything else."""
    from email.utils import parsedate_to_datetime

    word = (text or "").strip()
    if word.isdecimal() and len(word) < 9:
        return float(word)
    try:
        return max(0.0, parsedate_to_datetime(word).timestamp() - now_unix)
    except (ValueError, TypeError, OverflowError):
        return 0.0


def parse_content_range(text: str | None) -> tuple[int, int | None] | None:
    """Parse `bytes 10-99/100` to its first byte and the whole size (None for `*`)."""
    unit, _, rest = (text or "").strip().partition(" ")
    span, slash, whole = rest.partition("/")
    first = span.partition("-")[0]
    if unit.lower() != "bytes" or not slash or not first.isdecimal() or not (whole == "*" or whole.isdecimal()):
        return None
    return int(first), None if whole == "*" else int(whole)


def stream_of(response: Any, pieces: Iterator[bytes]) -> Stream:
    """Read the headers of an answer of httpx or requests: where its body begins, and how large the file is.

    Raises:
        HubError: a partial answer does not say which part it is.
    """
    if response.status_code == 206:
        found = parse_content_range(response.headers.get("Content-Range"))
        if found is None:
            raise HubError("range", "a partial answer that does not say which part it is")
        return Stream(offset=found[0], total=found[1], pieces=pieces)
    length = response.headers.get("Content-Length", "")
    encoded = response.headers.get("Content-Encoding", "identity").lower() != "identity"
    return Stream(offset=0, total=int(length) if length.isdecimal() and not encoded else None, pieces=pieces)


def one_line(error: BaseException) -> str:
    """Return an error's text on one line, cut to a readable length, and without what looks like a secret."""
    return redact_line(" ".join(str(error).split()))[:200]
