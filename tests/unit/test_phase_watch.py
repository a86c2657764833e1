"""Following a log that grows, rotates, is cut, or is no log at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from infer_dev_entry.init.phase_watch import LogFollower


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A log with an earlier start in it."""
    path = tmp_path / "a.log"
    path.write_bytes(b"Load weight begin\nLoad weight end\nUvicorn running on http\n")
    return path


def follower_of(path: Path) -> LogFollower:
    return LogFollower.at_end("sglang", str(path))


def append(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)


def test_earlier_starts_do_not_count(log: Path) -> None:
    follower = follower_of(log)
    assert follower.follow() is False
    assert follower.phase == "import"


def test_growth_is_read_once_and_a_marker_in_two_pieces_is_found(log: Path) -> None:
    follower = follower_of(log)
    append(log, b"[now] Load wei")
    assert (follower.follow(), follower.phase) == (True, "import")
    append(log, b"ght begin. avail mem")
    assert (follower.follow(), follower.phase) == (True, "weights")
    assert follower.follow() is False


def test_missing_log_appears(tmp_path: Path) -> None:
    follower = follower_of(tmp_path / "a.log")
    assert follower.follow() is False
    (tmp_path / "a.log").write_bytes(b"Load weight begin")
    assert (follower.follow(), follower.phase) == (True, "weights")


def test_rotated_log_is_read_from_its_beginning(log: Path) -> None:
    follower = follower_of(log)
    log.rename(log.with_suffix(".log.1"))
    log.write_bytes(b"Load weight begin")
    assert (follower.follow(), follower.phase) == (True, "weights")


def test_cut_log_is_read_from_its_beginning(log: Path) -> None:
    follower = follower_of(log)
    log.write_bytes(b"Load weight begin")
    assert (follower.follow(), follower.phase) == (True, "weights")


def test_flood_is_not_read_whole(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    follower = follower_of(log)
    append(log, b"Load weight begin" + b"x" * 5_000_000 + b"Load weight end")
    sizes: list[int] = []
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda handle, size, at: sizes.append(size) or pread(handle, size, at))
    assert (follower.follow(), follower.phase) == (True, "kv-cache")
    assert sizes == [256 * 1024]


@pytest.mark.parametrize("kind", ["fifo", "directory"])
def test_what_is_no_file_is_not_waited_for(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.log"
    os.mkfifo(path) if kind == "fifo" else path.mkdir()
    assert follower_of(path).follow() is None
