"""The last lines of a log for `infer-dev logs`, also of one that is rotated meanwhile."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from infer_dev_entry.cli.logs import read_last_lines
from infer_dev_entry.errors import EntryError


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        pytest.param(1, b"six\n", id="in-the-new-one"),
        pytest.param(2, b"five\nsix\n", id="torn-by-the-rotation"),
        pytest.param(4, b"three\nfour\nfive\nsix\n", id="in-both"),
        pytest.param(50, b"one\ntwo\nthree\nfour\nfive\nsix\n", id="all-there-are"),
        pytest.param(0, b"", id="none"),
    ],
)
def test_last_lines_of_a_log_that_was_rotated_go_on_from_the_file_before_it(
    tmp_path: Path, count: int, expected: bytes
) -> None:
    log = tmp_path / "a.log"
    (tmp_path / "a.log.1").write_bytes(b"one\ntwo\nthree\nfour\nfi")
    log.write_bytes(b"ve\nsix\n")
    assert read_last_lines(str(log), count) == (expected, 7)


@pytest.mark.parametrize("make", [Path.touch, lambda path: None], ids=["empty", "missing"])
def test_last_lines_of_a_log_that_is_rotated_just_now_are_those_before(tmp_path: Path, make) -> None:
    make(tmp_path / "a.log")
    (tmp_path / "a.log.1").write_bytes(b"one\ntwo\n")
    assert read_last_lines(str(tmp_path / "a.log"), 1) == (b"two\n", 0)


@pytest.mark.parametrize(
    "plant",
    [
        pytest.param(os.mkfifo, id="fifo"),
        pytest.param(Path.mkdir, id="directory"),
        pytest.param(lambda path: path.symlink_to("/etc/passwd"), id="link"),
        pytest.param(lambda path: path.hardlink_to(path.with_suffix("")), id="the-same-file"),
    ],
)
def test_last_lines_whatever_is_in_place_of_the_file_before_are_the_logs_own(tmp_path: Path, plant) -> None:
    log = tmp_path / "a.log"
    log.write_bytes(b"one\n")
    plant(tmp_path / "a.log.1")
    assert read_last_lines(str(log), 50) == (b"one\n", 4)


def test_last_lines_of_a_long_log_are_read_from_it_alone(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    log.write_bytes(b"".join(b"line %d\n" % number for number in range(50_000)))
    (tmp_path / "a.log.1").write_bytes(b"older\n")
    text, end = read_last_lines(str(log), 2)
    assert (text, end) == (b"line 49998\nline 49999\n", log.stat().st_size)


@pytest.mark.timeout(20)
def test_last_lines_of_a_fifo_are_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.log")
    with pytest.raises(EntryError, match=r"cannot read .*a\.log: it is not a file"):
        read_last_lines(str(tmp_path / "a.log"), 5)
