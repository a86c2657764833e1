"""Hostile archives, hand-made and random, change nothing outside their target; memory stays flat whatever the size."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import stat
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from make_bundle import (
    CONTAINERS,
    head_of_big_tar,
    member,
    pixi_files,
    sha256_of,
    tar_of,
    tar_of_members,
    unpack,
    wheels_files,
    with_sidecar,
    write_files,
)

from infer_dev_entry.bundle.unpack import (
    check_packages,
    read_info,
    read_listing,
)
from infer_dev_entry.errors import BundleError, InstallError

SIX = "wheels/six-1.17.0-py2.py3-none-any.whl"


def snapshot(root: Path) -> dict[str, tuple[int, int, bytes | str]]:
    """Return everything about a tree that an archive could change."""
    found: dict[str, tuple[int, int, bytes | str]] = {}
    for path in sorted(root.rglob("*")):
        info = path.lstat()
        content: bytes | str = ""
        if path.is_symlink():
            content = os.readlink(path)
        elif path.is_file():
            content = path.read_bytes()
        found[str(path.relative_to(root))] = (info.st_mode, info.st_nlink, content)
    return found


# ---- hostile archives


HOSTILE = {
    "absolute": [member("/etc/cron.d/x", data=b"evil")],
    "climbing": [member("../escaped", data=b"evil")],
    "climbing inside": [member("wheels/../../escaped", data=b"evil")],
    "absolute symlink": [member("l", tarfile.SYMTYPE, linkname="/etc")],
    "climbing symlink": [member("l", tarfile.SYMTYPE, linkname="../outside/secret")],
    "write through symlink": [member("l", tarfile.SYMTYPE, linkname="../outside"), member("l/new", data=b"evil")],
    "write through inner symlink": [member("l", tarfile.SYMTYPE, linkname="."), member("l/new", data=b"evil")],
    "symlink maze": [
        member("a", tarfile.SYMTYPE, linkname="."),
        member("a/b", tarfile.SYMTYPE, linkname=".."),
        member("a/b/new", data=b"evil"),
    ],
    "symlink over file": [
        member("x", data=b"1"),
        member("x", tarfile.SYMTYPE, linkname="../outside/secret"),
        member("x", data=b"evil"),
    ],
    "file over symlink": [member("x", tarfile.SYMTYPE, linkname="y"), member("y"), member("x", data=b"evil")],
    "symlink to itself": [member("x", tarfile.SYMTYPE, linkname="x")],
    "symlink to folder": [member("d", tarfile.DIRTYPE), member("x", tarfile.SYMTYPE, linkname="d")],
    "hard link out": [member("x", tarfile.LNKTYPE, linkname="../outside/secret")],
    "absolute hard link": [member("x", tarfile.LNKTYPE, linkname="/etc/passwd")],
    "hard link to nothing": [member("x", tarfile.LNKTYPE, linkname="y")],
    "links in a circle": [member("x", tarfile.SYMTYPE, linkname="y"), member("y", tarfile.LNKTYPE, linkname="x")],
    "device": [member("x", tarfile.CHRTYPE, devmajor=1, devminor=3)],
    "block device": [member("x", tarfile.BLKTYPE, devmajor=8)],
    "fifo": [member("x", tarfile.FIFOTYPE)],
    "duplicate": [member("x", data=b"1"), member("x", data=b"2")],
    "case": [member("readme", data=b"1"), member("README", data=b"2")],
    "unicode": [member("caf\u00e9", data=b"1"), member("cafe\u0301", data=b"2")],
    "file as folder": [member("x", data=b"1"), member("x/y", data=b"2")],
    "folder as file": [member("x/y", data=b"2"), member("x", data=b"1")],
    "long name": [member("n" * 5000, data=b"1")],
    "deep name": [member("n/" * 500 + "x", data=b"1")],
    "newline": [member("a\nb", data=b"1")],
    "escape sequence": [member("a\x1b]0;x\x07", data=b"1")],
    "root as file": [member(".", data=b"1")],
    "empty name": [member("", data=b"1")],
    "sparse": [member("x", tarfile.GNUTYPE_SPARSE)],
}


@contextlib.contextmanager
def guarded(tmp_path: Path) -> Iterator[Path]:
    """Yield a target beside a tree that must not change; only BundleError and InstallError may come out."""
    write_files(tmp_path / "outside", {"secret": b"keep", "deep/er": b"keep"})
    before = snapshot(tmp_path / "outside")
    siblings = sorted(path.name for path in tmp_path.iterdir())
    with contextlib.suppress(BundleError, InstallError):
        yield tmp_path / "target"
        return
    assert snapshot(tmp_path / "outside") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == siblings  # the target is gone as well


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("tar_format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_unpack_hostile_archive_is_refused_and_changes_nothing(tmp_path: Path, name: str, tar_format: int) -> None:
    honest = [member(path, data=data) for path, data in pixi_files().items()]
    for members in ([*honest, *HOSTILE[name]], [*HOSTILE[name], *honest]):
        (tmp_path / "b.tar").write_bytes(tar_of_members(members, tar_format))
        with guarded(tmp_path) as target:
            unpack(tmp_path / "b.tar", target)
            pytest.fail("it was unpacked")
        with pytest.raises(BundleError):
            read_listing(str(tmp_path / "b.tar"))


NAMES = st.lists(
    st.sampled_from(["a", "b", "A", "..", ".", "", "é", "outside", "target", "secret", "pixi-pack.json"]),
    min_size=1,
    max_size=4,
).map("/".join) | st.sampled_from(["/etc/x", "../outside/secret", "../outside/new", "a" * 300])
KINDS = st.sampled_from(
    [tarfile.REGTYPE] * 3 + [tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE]
)


@settings(max_examples=150)
@given(
    members=st.lists(
        st.tuples(NAMES, KINDS, st.binary(max_size=20), NAMES, st.integers(0, 0o7777)), min_size=1, max_size=6
    ),
    tar_format=st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
    kind=st.sampled_from(sorted(CONTAINERS)),
)
def test_unpack_random_archive_changes_nothing_outside(
    members: list[tuple[str, bytes, bytes, str, int]], tar_format: int, kind: str
) -> None:
    made = [
        member(name, kind, data if kind == tarfile.REGTYPE else b"", linkname=link, mode=mode)
        for name, kind, data, link, mode in members
    ]
    honest = [member("pixi-pack.json", data=pixi_files()["pixi-pack.json"])]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "b").write_bytes(CONTAINERS[kind](tar_of_members([*honest, *made], tar_format)))
        write_files(Path(folder) / "outside", {"secret": b"keep"})
        before = snapshot(Path(folder) / "outside")
        try:
            bundle = unpack(Path(folder) / "b", Path(folder) / "target")
        except (BundleError, InstallError) as error:
            assert str(error).replace("\n", "").isprintable()
            assert sorted(os.listdir(folder)) == ["b", "outside"]
        else:
            assert sorted(os.listdir(folder)) == ["b", "outside", "target"]
            for path in Path(folder, "target").rglob("*"):
                mode = path.lstat().st_mode
                assert stat.S_ISREG(mode) or stat.S_ISDIR(mode)
                assert not mode & (stat.S_ISUID | stat.S_ISGID | stat.S_ISVTX | stat.S_IWOTH)
            for name, digest in bundle.files:
                assert sha256_of(Path(bundle.root, name).read_bytes()) == digest
        assert snapshot(Path(folder) / "outside") == before


@settings(max_examples=100)
@given(flips=st.lists(st.tuples(st.floats(0, 0.9999), st.integers(0, 255)), min_size=1, max_size=5))
@pytest.mark.parametrize("kind", sorted(CONTAINERS))
def test_unpack_damaged_archive_raises_only_our_errors(kind: str, flips: list[tuple[float, int]]) -> None:
    data = bytearray(CONTAINERS[kind](tar_of(with_sidecar(pixi_files()))))
    for at, value in flips:
        data[int(len(data) * at)] = value
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "b").write_bytes(data)
        with contextlib.suppress(BundleError, InstallError):
            check_packages(unpack(Path(folder) / "b", Path(folder) / "target"))
        assert set(os.listdir(folder)) <= {"b", "target"}


@pytest.mark.parametrize("where", ["out", "folder", "nothing", "fifo"])
def test_unpack_directory_with_odd_member_is_refused(tmp_path: Path, where: str) -> None:
    root = write_files(tmp_path / "b", wheels_files())
    write_files(tmp_path, {"outside/secret": b"keep"})
    if where == "fifo":
        os.mkfifo(root / "odd")
    else:
        target = {"out": "../outside/secret", "folder": "wheels", "nothing": "missing"}[where]
        os.symlink(target, root / "odd")
    for act in (lambda path: unpack(path, tmp_path / "target"), lambda path: read_info(str(path))):
        with pytest.raises(BundleError, match="odd"):
            act(root)


def test_unpack_directory_with_link_inside_is_hashed_as_its_file(tmp_path: Path) -> None:
    root = write_files(tmp_path / "b", wheels_files())
    os.symlink(SIX, root / "copy")
    bundle = unpack(root, tmp_path / "target")
    assert dict(bundle.files)["copy"] == dict(bundle.files)[SIX]


# ---- size


def measure_unpack(archive: Path, target: Path) -> tuple[int, str]:
    """Unpack in a child; return by how many MiB its peak memory grew, and what it printed."""
    code = (
        "import sys; from make_bundle import SilentProgress; from infer_dev_entry.bundle import unpack\n"
        "from infer_dev_entry.errors import EntryError\n"
        "def peak(): return next(int(l.split()[1]) for l in open('/proc/self/status') if l.startswith('VmHWM'))\n"
        "before = peak()\n"
        "try: print(len(unpack.unpack_bundle(sys.argv[1], sys.argv[2], progress=SilentProgress()).files))\n"
        "except EntryError as error: print(error)\n"
        "print(peak() - before)"
    )
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-c", code, str(archive), str(target)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environ, check=True)
    *text, grown = run.stdout.splitlines()
    return int(grown) // 1024, "\n".join(text)


@pytest.mark.parametrize(("kind", "megabytes"), [("tar", 300), ("tar.gz", 128), ("tar.zst", 128), ("sh", 128)])
def test_unpack_large_archive_takes_flat_memory(tmp_path: Path, kind: str, megabytes: int) -> None:
    size = megabytes * 2**20
    archive = tmp_path / "b"
    head = head_of_big_tar(pixi_files(), "pypi/big-1-py3-none-any.whl", size)
    if kind == "tar":
        with archive.open("wb") as file:
            file.write(head)
            file.truncate(len(head) + size + 10240)
    else:
        archive.write_bytes(CONTAINERS[kind](head + bytes(size + 10240)))
    grown, printed = measure_unpack(archive, tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    assert printed == "8"
    assert grown < 50


def test_unpack_bomb_is_refused_in_flat_memory(tmp_path: Path) -> None:
    from backports import zstd

    big, _ = member("pypi/big-1-py3-none-any.whl")
    big.size = 10**15
    options = {zstd.CompressionParameter.compression_level: 1}
    out = io.BytesIO()
    compressor = zstd.ZstdCompressor(options=options)
    out.write(compressor.compress(big.tobuf(tarfile.GNU_FORMAT)))
    for _ in range(64):
        out.write(compressor.compress(bytes(1 << 20)))
    out.write(compressor.flush())
    (tmp_path / "b").write_bytes(out.getvalue())
    grown, printed = measure_unpack(tmp_path / "b", tmp_path / "out")
    assert "1000000.00 GB more are needed" in printed
    assert grown < 50
    with pytest.raises(BundleError, match="truncated"):
        read_info(str(tmp_path / "b"))


@pytest.mark.parametrize("kind", sorted(CONTAINERS))
def test_read_listing_decompression_bomb_is_named(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infer_dev_entry.bundle.source.MIN_BOMB_BYTES", 4 << 20)
    head = head_of_big_tar(pixi_files(), "pypi/big-1-py3-none-any.whl", 16 << 20)
    (tmp_path / "b").write_bytes(CONTAINERS[kind](head + bytes((16 << 20) + 10240)))
    if kind in ("tar", "sh"):
        assert read_info(str(tmp_path / "b")).find_version("big") == "1"
        return
    with pytest.raises(BundleError, match="unpacks to more than 200 times its size"):
        read_info(str(tmp_path / "b"))
