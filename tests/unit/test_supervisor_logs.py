"""The logs that supervisord shows: whole lines without secrets, whatever part of a log is asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
from supervisor import options

from infer_dev_entry.supervisor_logs import LONGEST_LINE_BYTES, find_line_start, read_file, tail_file

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
    assert read_file(log, 2, length).decode().startswith("first line"[: length + 2])
    text, end, _ = tail_file(log, 0, length)
    plain = options.tailFile(log, 0, length)
    assert [end] == plain[1:2]
    assert SECRET[4:] not in text
    assert text.endswith("third line\n"[-length:]) or not plain[0]


@pytest.mark.parametrize(("offset", "length"), [(-1, 5), (0, -1), (-5, -5)])
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
