"""Logs that are closed to other users are made so, and stay so when they are made anew."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from infer_dev_entry.private_log import ClosedLogs, close_log, log_file_problem


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_log_is_made_for_us_alone(tmp_path: Path) -> None:
    assert close_log(str(tmp_path / "a.log"), None) == ""
    assert mode(tmp_path / "a.log") == 0o600


def test_log_that_is_there_is_closed_and_keeps_its_text(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_text("before")
    path.chmod(0o644)
    assert close_log(str(path), os.getgid()) == ""
    assert (mode(path), path.read_text()) == (0o640, "before")


@pytest.mark.parametrize("kind", ["symlink", "hardlink", "fifo", "directory"])
def test_what_is_no_plain_file_of_its_own_is_left_as_it_is(tmp_path: Path, kind: str) -> None:
    target, path = tmp_path / "target", tmp_path / "a.log"
    target.touch(0o644)
    target.chmod(0o644)
    {
        "symlink": lambda: path.symlink_to(target),
        "hardlink": lambda: path.hardlink_to(target),
        "fifo": lambda: os.mkfifo(path),
        "directory": path.mkdir,
    }[kind]()
    assert close_log(str(path), None)
    assert mode(target) == 0o644


def test_closed_log_stays_closed_after_a_rotation_and_after_it_is_cleared(tmp_path: Path) -> None:
    path, logs = tmp_path / "a.log", ClosedLogs()
    close_log(str(path), None)
    logs(str(path), "ab").close()
    path.rename(tmp_path / "a.log.1")
    logs(str(path), "wb").close()
    assert mode(path) == 0o600
    path.unlink()
    logs(str(path), "ab").close()
    assert mode(path) == 0o600


def test_log_that_others_may_read_stays_so_and_the_umask_is_untouched(tmp_path: Path) -> None:
    path, logs = tmp_path / "a.log", ClosedLogs()
    before = os.umask(0o022)
    try:
        logs(str(path), "ab").close()
        assert os.umask(0o022) == 0o022
    finally:
        os.umask(before)
    assert mode(path) == 0o644


def test_closed_log_that_cannot_be_opened_is_an_error_and_the_umask_is_untouched(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    path, logs = folder / "a.log", ClosedLogs()
    close_log(str(path), None)
    logs(str(path), "ab").close()
    path.unlink()
    folder.rmdir()
    before = os.umask(0o022)
    try:
        with pytest.raises(FileNotFoundError):
            logs(str(path), "ab")
        assert os.umask(0o022) == 0o022
    finally:
        os.umask(before)


def test_fifo_and_directory_are_refused_at_once_and_streams_are_not(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path, problem in ((tmp_path / "fifo", "is a FIFO"), (tmp_path, "is a directory")):
        assert log_file_problem(str(path)) == problem
        with pytest.raises(OSError, match=problem):
            ClosedLogs()(str(path), "ab")
    for path in (tmp_path / "none", Path("/dev/null"), Path("/dev/stdout")):
        assert log_file_problem(str(path)) is None
