"""The logs that supervisord shows: whole lines without secrets, whatever part of a log is asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
from supervisor import options
from supervisor.http import NOT_DONE_YET

from infer_dev_entry import supervisor_logs
from infer_dev_entry.supervisor_logs import (
    LONGEST_LINE_BYTES,
    MOST_BYTES,
    RedactedTail,
    find_line_start,
    read_file,
    tail_file,
)

SECRET = "a-l0ng-s3cret-key"
TEXT = f"first line\nserver_args=ServerArgs(port=1, api_key='{SECRET}', x=2)\nthird line\n"


@pytest.fixture
def log(tmp_path: Path) -> str:
    path = tmp_path / "a.log"
    path.write_text(TEXT)
    return str(path)


@pytest.mark.parametrize("offset", [*range(0, len(TEXT), 3), *range(-len(TEXT) - 5, 0)])
def test_no_part_of_a_log_shows_a_secret(log: str, offset: int) -> None:
    shown = read_file(log, offset, 0).decode()
    assert SECRET[4:] not in shown
    assert TEXT.replace(SECRET, "***").replace("'", "").endswith(shown.replace("'", ""))  # and nothing else is missing


@pytest.mark.parametrize("length", [1, 20, 55, 1000])
def test_part_of_a_log_has_at_least_the_bytes_that_were_asked_for(log: str, length: int) -> None:
    shown = read_file(log, 2, length).decode()
    assert shown.startswith("first line"[: length + 2])
    assert shown.endswith("\n")
    text, end, _ = tail_file(log, 0, length)
    assert end == options.tailFile(log, 0, length)[1]
    assert SECRET[4:] not in text


def test_end_of_a_part_shows_no_password_either(tmp_path: Path) -> None:
    """What tells a password in an address is the `@` behind it."""
    path = tmp_path / "a.log"
    text = "proxy http://user:hunter2secret@host/x\n"
    path.write_text(text)
    for length in range(1, len(text)):
        assert b"hunter2" not in read_file(str(path), 0, length)
    path.write_text("proxy http://user:hunter2secret")  # it is being written
    assert read_file(str(path), 0, 0) == b"proxy http://user:***"
    assert tail_file(str(path), 0, 1000)[0] == "proxy http://user:***"


def test_nothing_beyond_the_end_and_the_last_of_much(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_bytes(b"0123456789abcde\n" * (MOST_BYTES // 8))
    size = path.stat().st_size
    assert read_file(str(path), size, 0) == b""
    assert read_file(str(path), size + 5, 7) == b""
    assert read_file(str(path), 0, 0) == b"0123456789abcde\n" * (MOST_BYTES // 16)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(supervisor_logs.time, "monotonic", lambda: now[0])
    return now


class Request:
    """What a producer keeps a weak reference to."""


def test_followed_log_comes_in_whole_lines(tmp_path: Path, clock: list[float]) -> None:
    path = tmp_path / "a.log"
    path.write_text(f"old\napi_key='{SECRET}'\n")
    request = Request()
    tail = RedactedTail(request, str(path), 5)
    assert tail.more() == b"api_key=***\n"
    assert tail.more() is NOT_DONE_YET
    with path.open("a") as file:
        file.write("api_key='a-l0ng")
        file.flush()
        assert tail.more() is NOT_DONE_YET
        file.write("-s3cret-key'\n50 %\r51")
        file.flush()
        assert tail.more() == b"api_key=***\n50 %\r"
        clock[0] += 2
        assert tail.more() == b"51"  # nothing came behind it
        assert tail.more() is NOT_DONE_YET
        file.write(" %\n")
        file.flush()
        assert tail.more() == b"\n51 %\n"
        file.write("rest of the old file")
        file.flush()
        assert tail.more() is NOT_DONE_YET
    path.write_text("new\n")
    assert tail.more() == b"==> File truncated <==\n"
    assert tail.more() == b"new\n"
    tail.file.close()
    assert tail.more() == b""


def test_followed_log_that_has_grown_much_comes_in_parts(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.touch()
    request = Request()
    tail = RedactedTail(request, str(path), 0)
    path.write_bytes(b"0123456789abcde\n" * (MOST_BYTES // 8))
    assert [len(tail.more()) for _ in range(2)] == [MOST_BYTES, MOST_BYTES]
    assert tail.more() is NOT_DONE_YET
    path.write_bytes(path.read_bytes() + b"x" * (LONGEST_LINE_BYTES + 1))
    assert tail.more() == b"x" * (LONGEST_LINE_BYTES + 1)


@pytest.mark.parametrize(("offset", "length"), [(-1, 5), (0, -1), (-5, -5), (8, -2)])
def test_arguments_that_supervisord_refuses_are_refused(log: str, offset: int, length: int) -> None:
    with pytest.raises(ValueError, match="BAD_ARGUMENTS"):
        read_file(log, offset, length)


def test_log_that_is_not_there_is_supervisords_own_error(tmp_path: Path) -> None:
    for offset in (-5, 0, 5):
        with pytest.raises(ValueError, match="FAILED"):
            read_file(str(tmp_path / "absent"), offset, 0)
    assert tail_file(str(tmp_path / "absent"), 0, 5)[0] == ""


def test_endless_line_is_read_in_parts(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_bytes(b"x" * (3 * LONGEST_LINE_BYTES))
    assert find_line_start(str(path), 3 * LONGEST_LINE_BYTES) == 2 * LONGEST_LINE_BYTES


def test_no_more_is_read_than_is_shown_whatever_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.log"
    path.write_bytes(b"line\n" * (MOST_BYTES // 2))
    asked: list[int] = []
    for name in ("_read_file", "_tail_file"):
        original = getattr(supervisor_logs, name)

        def spy(filename: str, offset: int, length: int, original=original):
            asked.append(length)
            return original(filename, offset, length)

        monkeypatch.setattr(supervisor_logs, name, spy)
    text, end, overflow = tail_file(str(path), 0, 20_000_000)
    assert MOST_BYTES <= len(text) <= MOST_BYTES + LONGEST_LINE_BYTES
    assert end == path.stat().st_size
    assert overflow
    assert max(asked) <= MOST_BYTES + LONGEST_LINE_BYTES
