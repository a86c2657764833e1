"""Whether a bundle fits, before it is tried."""

from __future__ import annotations

import io
import shutil
import subprocess
import zipfile
from collections import namedtuple
from pathlib import Path

import pytest
from install_fakes import FakeProgress, make_unpacked

from infer_dev_entry.errors import InstallError
from infer_dev_entry.install import disk
from infer_dev_entry.install.disk import Sync, check_first_room, check_room, find_filesystem

Usage = namedtuple("Usage", "total used free")


def set_free(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**12, 0, free))


def make_wheel(root: Path, size: int) -> None:
    (root / "wheels").mkdir()
    with zipfile.ZipFile(root / "wheels" / "a-1-py3-none-any.whl", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.bin", b"\0" * size)


def test_archive_that_cannot_fit_is_refused_with_need_and_have(monkeypatch: pytest.MonkeyPatch) -> None:
    set_free(monkeypatch, 10**9)
    with pytest.raises(InstallError, match=r"into /w: 1\.52 GB are needed, 1\.00 GB are free; free space there"):
        check_first_room("/b.tar", 10**9, "/w")


def test_directory_bundle_needs_no_room_in_staging(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_free(monkeypatch, 10**9)
    check_first_room(str(tmp_path), 10**9, "/w")


def test_wheels_need_what_their_directories_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_wheel(tmp_path, 200 * 10**6)
    set_free(monkeypatch, 150 * 10**6)
    with pytest.raises(InstallError, match=r"0\.22 GB are needed, 0\.15 GB are free"):
        check_room(make_unpacked(str(tmp_path)), "/w")
    set_free(monkeypatch, 250 * 10**6)
    check_room(make_unpacked(str(tmp_path)), "/w")


def test_broken_or_missing_wheel_is_left_to_the_backend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_free(monkeypatch, 10**9)
    check_room(make_unpacked(str(tmp_path)), "/w")
    (tmp_path / "wheels").mkdir()
    (tmp_path / "wheels" / "a-1-py3-none-any.whl").write_text("no zip")
    check_room(make_unpacked(str(tmp_path)), "/w")


MOUNTS = """\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/root rw
30 22 0:26 / /dev/shm rw,nosuid shared:5 master:2 - tmpfs tmpfs rw,size=1g
31 22 0:27 /sub\\040folder /mnt rw - fuse.sshfs user@host:/tmpfs rw
"""


@pytest.mark.parametrize(
    ("device", "filesystem"), [("254:0", "ext4"), ("0:26", "tmpfs"), ("0:27", "fuse.sshfs"), ("0:2", ""), ("22", "")]
)
def test_filesystem_is_found_by_its_number(device: str, filesystem: str) -> None:
    assert find_filesystem(MOUNTS, device) == filesystem


class Recorder:
    """Stands in for the processes that sync."""

    def __init__(self) -> None:
        self.count = 0
        self.returncode = 0
        self.stderr = io.StringIO()

    def __call__(self, *_args: object, **_options: object) -> Recorder:
        self.count += 1
        self.stderr = io.StringIO()
        return self

    def poll(self) -> int:
        return self.returncode


@pytest.mark.parametrize(("filesystem", "syncs"), [("tmpfs", 0), ("ramfs", 0), ("ext4", 2), ("overlay", 2), ("", 2)])
def test_sync_is_spared_in_memory_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, filesystem: str, syncs: int
) -> None:
    recorder = Recorder()
    monkeypatch.setattr(subprocess, "Popen", recorder)
    monkeypatch.setattr(disk, "find_filesystem", lambda mountinfo, device: filesystem)
    Sync(str(tmp_path)).finish(FakeProgress())
    assert recorder.count == syncs


def test_sync_without_a_list_of_mounts_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "_MOUNTS", str(tmp_path / "none"))
    assert not disk.lies_in_memory(str(tmp_path))
