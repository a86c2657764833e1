"""The keys in force: those of the file, or the last good ones; the log that a gateway writes is made and rotated."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest

from infer_dev_entry.init.access_log import AccessLog
from infer_dev_entry.init.keys_watch import KeysWatch

KEY, OTHER = "sk-0123456789abcdef", "sk-fedcba9876543210"


class Log:
    """Keeps what was logged."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str, dict[str, Any]]] = []

    def __getattr__(self, level: str) -> Any:
        return lambda event, **fields: self.lines.append((level, event, fields))


def names(watch: KeysWatch, path: Path) -> list[str] | None:
    keys = watch.read(str(path))
    return None if keys is None else [key.name for key in keys]


def put(path: Path, text: str) -> None:
    fresh = path.with_suffix(".new")
    fresh.write_text(text)
    fresh.chmod(0o600)
    fresh.replace(path)


def test_keys_are_read_anew_only_when_the_file_has_changed(tmp_path: Path) -> None:
    log, path = Log(), tmp_path / "keys"
    watch = KeysWatch(log)
    put(path, f"alice: {KEY}")
    assert watch.has_changed(str(path))
    assert names(watch, path) == ["alice"]
    assert not watch.has_changed(str(path))
    names(watch, path)
    put(path, f"bob: {OTHER}")
    assert watch.has_changed(str(path))
    assert names(watch, path) == ["bob"]
    told = [fields for _, event, fields in log.lines if event == "gateway.keys"]
    assert told == [{"keys": 1, "added": 1, "revoked": 0}, {"keys": 1, "added": 1, "revoked": 1}]


@pytest.mark.parametrize("bad", ["", "alice: short", None, "directory"])
def test_bad_file_leaves_the_last_good_keys_in_force_until_it_is_mended(tmp_path: Path, bad: str | None) -> None:
    log, path = Log(), tmp_path / "keys"
    watch = KeysWatch(log)
    put(path, f"alice: {KEY}")
    names(watch, path)
    path.unlink()
    if bad == "directory":
        path.mkdir()
    elif bad is not None:
        put(path, bad)
    assert names(watch, path) == ["alice"]
    assert watch.problem and "the 1 old keys stay in force" in watch.problem.reason
    assert not watch.has_changed(str(path))  # said once, not at every look
    if path.is_dir():
        path.rmdir()
    put(path, f"bob: {OTHER}")
    assert names(watch, path) == ["bob"]
    assert watch.problem is None
    assert KEY not in str(log.lines) and OTHER not in str(log.lines)


def test_bad_file_without_good_keys_lets_nobody_in(tmp_path: Path) -> None:
    watch = KeysWatch(Log())
    assert names(watch, tmp_path / "missing") == []
    assert watch.problem and "nobody gets in" in watch.problem.reason


def test_another_file_brings_none_of_the_old_keys_along(tmp_path: Path) -> None:
    watch = KeysWatch(Log())
    put(tmp_path / "one", f"alice: {KEY}")
    names(watch, tmp_path / "one")
    assert names(watch, tmp_path / "two") == []
    assert watch.read("") is None and watch.problem is None


def test_file_that_all_can_read_is_warned_of(tmp_path: Path) -> None:
    log, path = Log(), tmp_path / "keys"
    put(path, KEY)
    path.chmod(0o644)
    KeysWatch(log).read(str(path))
    assert [event for level, event, _ in log.lines if level == "warning"] == ["gateway.keys_open"]


# ------------------------------------------------------------------------------------------------- the log of requests


def test_log_is_made_for_its_group_at_most_and_never_through_a_link(tmp_path: Path) -> None:
    log = AccessLog(None)
    log.make("")
    log.make(str(tmp_path / "d" / "log"))
    assert stat.S_IMODE((tmp_path / "d" / "log").stat().st_mode) & 0o027 == 0
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "pipe"):
        with pytest.raises(OSError):
            log.make(str(tmp_path / name))
    assert not (tmp_path / "elsewhere").exists()


def test_log_rotates_when_it_is_full_and_keeps_so_many(tmp_path: Path) -> None:
    log, path = AccessLog(None), tmp_path / "log"
    path.write_text("one")
    assert not log.rotate(str(path), 10, 2) and not log.rotate(str(path), 0, 2) and not log.rotate("", 10, 2)
    for text in ("one", "two", "three", "four"):
        path.write_text(text)
        assert log.rotate(str(path), 3, 2)
        assert path.read_text() == ""
    kept = {file.name: file.read_text() for file in tmp_path.iterdir()}
    assert kept == {"log": "", "log.1": "four", "log.2": "three"}


def test_log_without_backups_begins_anew_and_one_that_was_moved_is_made_again(tmp_path: Path) -> None:
    log, path = AccessLog(None), tmp_path / "log"
    path.write_text("full")
    assert log.rotate(str(path), 3, 0)
    assert [file.name for file in tmp_path.iterdir()] == ["log"]
    path.unlink()
    assert log.rotate(str(path), 3, 0)
    assert path.exists()
