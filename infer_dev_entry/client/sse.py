"""Cut a stream of bytes into server-sent events (the WHATWG's event stream format). Pure."""

from __future__ import annotations

from infer_dev_entry.errors import BrokenAnswerError

DONE = "[DONE]"
LONGEST_EVENT_BYTES = 4 * 1024 * 1024


class EventSplitter:
    """Takes bytes as they come and gives the data of every event that is complete."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []
        self._size = 0

    def feed(self, part: bytes) -> tuple[str, ...]:
        """Return the data of the events that these bytes complete.

        Raises:
            BrokenAnswerError: an event is longer than 4 MiB.
        """
        *lines, self._rest = (self._rest + part).replace(b"\r\n", b"\n").split(b"\n")
        found = [event for line in lines if (event := self._take(line)) is not None]
        if len(self._rest) + self._size > LONGEST_EVENT_BYTES:
            raise BrokenAnswerError(
                f"cannot use the stream: one of its events has more than {LONGEST_EVENT_BYTES >> 20} MiB"
            )
        return tuple(found)

    def _take(self, line: bytes) -> str | None:
        """Take one line; the empty one ends an event. Comments and other fields mean nothing to us."""
        if line.startswith(b"data:"):
            self._data.append(line[5:].removeprefix(b" "))
            self._size += len(line)
            return None
        if line or not self._data:
            return None
        text = b"\n".join(self._data).decode("utf-8", "replace")
        self._data, self._size = [], 0
        return text
