"""Writing bundles: equal input gives equal bytes, damage is caught on the way in, and nothing half-done is left."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import tarfile
from pathlib import Path

import pytest

from infer_dev_entry.bundle.build_archive import Source, write_archive, write_directory
from infer_dev_entry.bundle.build_repack import repack
from infer_dev_entry.bundle.check import check_bundle
from infer_dev_entry.bundle.model import PIXI_PACK, SIDECAR_NAME, WHEELS
from infer_dev_entry.bundle.sidecar import render_sidecar
from infer_dev_entry.bundle.unpack import hash_bundle, unpack_bundle
from infer_dev_entry.errors import BuildError

WHEEL_NAME = "wheels/a-1-py3-none-any.whl"


class Silent:
    """A progress that counts."""

    def __init__(self) -> None:
        self.done = 0

    def stage(self, name: str, total: int = 0, unit: str = "B") -> None:
        """Nothing."""

    def advance(self, amount: int) -> None:
        """Count."""
        self.done += amount

    def note(self, message: str) -> None:
        """Nothing."""


def sources(folder: Path, content: bytes = b"wheel") -> tuple[Source, ...]:
    file = folder / "cached.whl"
    file.write_bytes(content)
    sha256 = hashlib.sha256(b"wheel").hexdigest()
    requirements = Source(path="requirements.txt", text=f"a==1 --hash=sha256:{sha256}\n")
    files = {WHEEL_NAME: sha256, requirements.path: requirements.digest}
    sidecar = render_sidecar(kind=WHEELS, platform="linux-64", python="3.12", created_by="test", files=files)
    wheel = Source(path=WHEEL_NAME, file=str(file), sha256=sha256)
    return Source(path=SIDECAR_NAME, text=sidecar), requirements, wheel


def test_archive_of_the_same_sources_has_the_same_bytes(tmp_path: Path) -> None:
    first = write_archive(str(tmp_path / "one.tar"), sources(tmp_path), Silent())
    os.utime(tmp_path / "cached.whl", (1, 1))
    second = write_archive(str(tmp_path / "deep" / "two.tar"), sources(tmp_path), Silent())
    assert first.digest == second.digest
    assert Path(first.path).read_bytes() == Path(second.path).read_bytes()
    assert (first.digest, first.size_bytes) == hash_bundle(first.path)
    with tarfile.open(first.path) as tar:
        assert {(item.mtime, item.uid, item.uname, item.mode) for item in tar} == {(0, 0, "", 0o644)}


@pytest.mark.parametrize("directory", [False, True])
def test_written_bundle_passes_the_readers_checks(tmp_path: Path, directory: bool) -> None:
    write = write_directory if directory else write_archive
    progress = Silent()
    built = write(str(tmp_path / "out"), sources(tmp_path), progress)
    checked = check_bundle(built.path, Silent(), expected_sha256=built.digest)
    assert (checked.faults, checked.digest, checked.file_count) == ((), built.digest, 3)
    assert (checked.info.kind, checked.info.python) == (WHEELS, "3.12")
    unpacked = unpack_bundle(built.path, str(tmp_path / "target"), progress=Silent())
    assert unpacked.digest == built.digest
    assert progress.done >= 5


def test_archive_of_a_damaged_cache_is_refused_and_the_cache_mended(tmp_path: Path) -> None:
    damaged = sources(tmp_path, b"evil!")
    with pytest.raises(BuildError, match="build again"):
        write_archive(str(tmp_path / "one.tar"), damaged, Silent())
    assert list(tmp_path.iterdir()) == []


def test_archive_that_does_not_fit_is_refused_before_it_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: os.terminal_size((0, 0)) and _Usage())
    with pytest.raises(BuildError, match=r"GB are needed, 0.00 GB are free"):
        write_archive(str(tmp_path / "one.tar"), sources(tmp_path), Silent())
    assert not (tmp_path / "one.tar").exists()


class _Usage:
    free = 1000


def test_directory_replaces_an_old_bundle_and_nothing_else(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_directory(str(out), sources(tmp_path), Silent())
    (out / "old").touch()
    write_directory(str(out), sources(tmp_path), Silent())
    assert not (out / "old").exists()
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").touch()
    with pytest.raises(BuildError, match="is no bundle"):
        write_directory(str(precious), sources(tmp_path), Silent())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cached.whl", "out", "precious"]


def pack_like_pixi() -> bytes:
    """Return a tar with the layout of pixi-pack: one conda package, one wheel whose hash nothing records."""
    record = {"name": "p", "version": "1", "build": "0", "sha256": hashlib.sha256(b"conda").hexdigest(), "size": 5}
    repodata = {"packages": {}, "packages.conda": {"p-1-0.conda": record}, "repodata_version": 2}
    files = {
        "channel/linux-64/p-1-0.conda": b"conda",
        "channel/linux-64/repodata.json": json.dumps(repodata).encode(),
        "pypi/a-1-py3-none-any.whl": b"wheel",
        "pixi-pack.json": b'{"version": "1", "pixi-pack-version": "0.7.6", "platform": "linux-64"}',
        "environment.yml": b"name: x\n",
    }
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for path, data in files.items():
            member = tarfile.TarInfo(path)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return out.getvalue()


def wrap_like_pixi(tar: bytes) -> bytes:
    """Return the tar within a script of the form that pixi-pack --create-executable writes."""
    return b"#!/bin/sh\necho 'header'\n@@END_HEADER@@\n\n" + base64.b64encode(tar) + b"\n@@END_ARCHIVE@@\nUFJPRw==\n"


def render(files: dict[str, str]) -> str:
    return render_sidecar(
        kind=PIXI_PACK, platform="linux-64", python="", created_by="test", files=files, verify=("python", "-V")
    )


@pytest.mark.parametrize("form", ["tar", "sh", "directory"])
def test_repacked_bundle_has_every_hash_and_the_added_files(tmp_path: Path, form: str) -> None:
    packed = tmp_path / "packed"
    if form == "directory":
        with tarfile.open(fileobj=io.BytesIO(pack_like_pixi())) as tar:
            tar.extractall(packed, filter="data")
    else:
        packed.write_bytes(pack_like_pixi() if form == "tar" else wrap_like_pixi(pack_like_pixi()))
    built = repack(str(packed), str(tmp_path / "out"), {"pixi.lock": "version: 7\n"}, render, Silent())
    checked = check_bundle(built.path, Silent(), expected_sha256=built.digest)
    assert (checked.faults, checked.info.warnings) == ((), ())
    assert checked.info.verify_command == ("python", "-V")
    assert {package.name for package in checked.info.packages} == {"p", "a"}
    assert all(package.sha256 for package in checked.info.packages)
    unpacked = unpack_bundle(built.path, str(tmp_path / "target"), progress=Silent())
    assert Path(unpacked.root, "pixi.lock").read_text() == "version: 7\n"
    assert built.digest == hash_bundle(built.path)[0]


def test_repacked_executable_keeps_its_script_and_program(tmp_path: Path) -> None:
    packed = tmp_path / "packed.sh"
    packed.write_bytes(wrap_like_pixi(pack_like_pixi()))
    built = repack(str(packed), str(tmp_path / "out.sh"), {}, render, Silent())
    lines = Path(built.path).read_bytes().split(b"\n")
    assert lines[:4] == [b"#!/bin/sh", b"echo 'header'", b"@@END_HEADER@@", b""]
    assert lines[5:] == [b"@@END_ARCHIVE@@", b"UFJPRw==", b""]
    with tarfile.open(fileobj=io.BytesIO(base64.b64decode(lines[4], validate=True))) as tar:
        assert tar.getnames()[-1] == SIDECAR_NAME
    assert os.access(built.path, os.X_OK)


@pytest.mark.parametrize("data", [b"", b"no tar", b"#!/bin/sh\nexit 0\n", wrap_like_pixi(pack_like_pixi())[:3000]])
def test_repack_of_something_else_is_an_error_and_leaves_nothing(tmp_path: Path, data: bytes) -> None:
    packed = tmp_path / "packed"
    packed.write_bytes(data)
    with pytest.raises(BuildError):
        repack(str(packed), str(tmp_path / "out"), {}, render, Silent())
    assert list(tmp_path.iterdir()) == [packed]


def test_check_names_every_fault(tmp_path: Path) -> None:
    built = write_directory(str(tmp_path / "out"), sources(tmp_path), Silent())
    (tmp_path / "out" / WHEEL_NAME).unlink()
    (tmp_path / "out" / WHEEL_NAME).write_bytes(b"evil!")
    (tmp_path / "out" / "wheels" / "b-1-py3-none-any.whl").write_bytes(b"stray")
    faults = check_bundle(built.path, Silent(), expected_sha256="0" * 64).faults
    assert len(faults) == 3
    assert "expected was 000" in faults[0]
    assert {"corrupt" in faults[1], "recorded nowhere" in faults[2]} == {True}
