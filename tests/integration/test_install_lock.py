"""The install lock, as flock gives it: who holds it is said, waiting ends, and what cannot be locked is explained."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest
from wait import wait_until

from infer_dev_entry.errors import InstallError
from infer_dev_entry.file_lock import lock_holder
from infer_dev_entry.install.lock import LockRefusedError, install_lock


class Notes:
    def __init__(self) -> None:
        self.notes: list[str] = []

    def stage(self, name: str, total: int = 0, unit: str = "B") -> None:
        return

    def advance(self, amount: int) -> None:
        return

    def note(self, message: str) -> None:
        self.notes.append(message)


def test_lock_says_who_holds_it(tmp_path: Path) -> None:
    with install_lock(str(tmp_path / "deep" / "project"), Notes()):
        data = json.loads((tmp_path / "deep" / "project" / ".install.lock").read_text())
    assert data["pid"] == os.getpid() and data["host"] == os.uname().nodename and data["since_unix"] > 0


def test_lock_that_is_held_is_waited_for_and_then_given(tmp_path: Path) -> None:
    notes, order = Notes(), []

    def wait() -> None:
        with install_lock(str(tmp_path), notes):
            order.append("second")

    with install_lock(str(tmp_path), Notes()):
        thread = threading.Thread(target=wait)
        thread.start()
        wait_until(lambda: notes.notes, 10, "the second to wait")
        order.append("first")
    thread.join(15)
    assert order == ["first", "second"]
    assert len(notes.notes) == 1 and f"pid {os.getpid()} on '{os.uname().nodename}' since " in notes.notes[0]


def test_lock_that_never_comes_free_is_given_up_with_the_holder(tmp_path: Path) -> None:
    with (
        install_lock(str(tmp_path), Notes()),
        pytest.raises(InstallError, match=rf"pid {os.getpid()} on .* has held it for over 0\.3 s; end that install"),
        install_lock(str(tmp_path), Notes(), timeout_s=0.3),
    ):
        pass


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": "x"}', '{"pid": 1, "host": "h", "since_unix": 1e300}'])
def test_lock_file_with_odd_content_is_another_process(tmp_path: Path, text: str) -> None:
    (tmp_path / "lock").write_text(text)
    handle = os.open(tmp_path / "lock", os.O_RDONLY)
    try:
        assert lock_holder(handle) == "another process"
    finally:
        os.close(handle)


def test_project_below_a_file_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(LockRefusedError, match="cannot lock project directory"),
        install_lock(str(tmp_path / "file" / "project"), Notes()),
    ):
        pass
