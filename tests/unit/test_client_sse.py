"""Server-sent events out of bytes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infer_dev_entry.client.sse import LONGEST_EVENT_BYTES, EventSplitter
from infer_dev_entry.errors import BrokenAnswerError


def split(*parts: bytes) -> list[str]:
    splitter = EventSplitter()
    return [event for part in parts for event in splitter.feed(part)]


def test_events_come_as_their_blank_lines_do() -> None:
    assert split(b"data: a\n", b"\ndata: b\n\nda", b"ta:c\n\n") == ["a", "b", "c"]


def test_event_over_several_lines_is_joined_and_other_fields_are_left_out() -> None:
    assert split(b": ping\n\nevent: x\nid: 1\ndata: a\ndata: b\nretry: 3\n\n") == ["a\nb"]


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_lines_may_end_as_windows_ends_them(end: bytes) -> None:
    assert split(end.join([b"data: a", b"", b"data: b", b"", b""])) == ["a", "b"]


def test_end_without_a_blank_line_gives_nothing() -> None:
    assert split(b"data: cut") == []


@given(st.lists(st.text(alphabet="ab é{}:", min_size=1), max_size=5), st.data())
def test_cuts_between_bytes_change_nothing(events: list[str], data: st.DataObject) -> None:
    raw = b"".join(b"data: " + event.encode() + b"\r\n\r\n" for event in events)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=6)))
    parts = [raw[start:end] for start, end in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
    assert split(*parts) == events


def test_event_without_end_is_refused() -> None:
    splitter = EventSplitter()
    with pytest.raises(BrokenAnswerError, match="4 MiB"):
        for _ in range(LONGEST_EVENT_BYTES // 65536 + 1):
            splitter.feed(b"a" * 65536)
    lines = EventSplitter()
    with pytest.raises(BrokenAnswerError, match="4 MiB"):
        for _ in range(LONGEST_EVENT_BYTES // 65536 + 1):
            lines.feed(b"data: " + b"a" * 65536 + b"\n")
