"""Makes bundles to measure with: wheelhouses, pixi-pack layouts and `.sh` files, quickly and of any size."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import random
import struct
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from infer_dev_entry.bundle.model import SIDECAR_NAME, WHEELS
from infer_dev_entry.bundle.sidecar import render_sidecar
from infer_dev_entry.bundle.unpack import machine_platform

PYTHON_MINOR = f"{sys.version_info.major}.{sys.version_info.minor}"
SMALL_BYTES = 20_000
LARGE_BYTES = 30_000_000
FILES_PER_PACKAGE = 100
LARGE_EVERY = 6  # each sixth package holds one large library

_SHM = "/dev/shm"
# Sixteen letters deflate to a half of their size, and the repeated part to nothing: together 0.3, as a CUDA stack does.
_LETTERS = bytes(ord("@") | (value & 15) for value in range(256))
_RANDOM_BYTES = 2_400
_REPEATED = b"the same few words again " * 64
_SHELL_HEADER = (
    "#!/bin/bash\n# laid out as pixi-pack's own, for a reader that does not run it\nexit 1\n@@END_HEADER@@\n\n"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """A bundle as an archive, and its content as it lies unpacked; `files` is what an environment of it holds."""

    archive: Path
    content: Path
    files: int

    @property
    def size_bytes(self) -> int:
        """The archive's size."""
        return self.archive.stat().st_size

    def describe(self) -> str:
        """Say how large it is."""
        return f"{self.size_bytes / 1e6:.0f} MB, {self.files} files to install"


@contextmanager
def work_dir(need_bytes: int) -> Iterator[Path]:
    """Make a directory for both sides, and remove it: below $TMPDIR, else in memory if that has room, else in /tmp."""
    chosen = os.environ.get("TMPDIR", "")
    if not chosen:
        chosen = _SHM if _fits(_SHM, need_bytes) else "/tmp"
    if not _fits(chosen, need_bytes):
        raise RuntimeError(
            f"{chosen} has no {need_bytes / 1e9:.0f} GB free for programs; set TMPDIR to another directory"
        )
    with tempfile.TemporaryDirectory(prefix="ib-", dir=chosen) as name:
        yield Path(name)


def _fits(folder: str, need_bytes: int) -> bool:
    try:
        found = os.statvfs(folder)
    except OSError:
        return False
    return found.f_bavail * found.f_frsize >= need_bytes and not found.f_flag & os.ST_NOEXEC


def make_data(size: int, seed: int) -> bytes:
    """Make data that compresses about as well as libraries do."""
    source = random.Random(seed)
    pieces = -(-size // (_RANDOM_BYTES + len(_REPEATED)))
    return b"".join(source.randbytes(_RANDOM_BYTES).translate(_LETTERS) + _REPEATED for _ in range(pieces))[:size]


# -- wheels


@dataclass(frozen=True, slots=True, kw_only=True)
class _Blob:
    """A file's data as a wheel holds it."""

    size: int
    crc: int
    digest: str
    deflated: bytes


def _make_blob(data: bytes) -> _Blob:
    packer = zlib.compressobj(1, zlib.DEFLATED, -15)
    digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
    return _Blob(size=len(data), crc=zlib.crc32(data), digest=digest, deflated=packer.compress(data) + packer.flush())


@cache
def _blobs() -> tuple[_Blob, _Blob]:
    """A small and a large file, deflated once: to deflate a bundle's every file would outlast the measuring."""
    return _make_blob(make_data(SMALL_BYTES, 1)), _make_blob(make_data(LARGE_BYTES, 2))


def make_wheelhouse(folder: Path, count: int) -> Bundle:
    """Make a wheelhouse of so many packages, of 9 MB each on average, 3 MB packed."""
    content = folder / "content"
    (content / "wheels").mkdir(parents=True)
    lines, digests = [], {}
    for number in range(count):
        name = f"pkg{number:03}"
        path = content / "wheels" / f"{name}-1.0-py3-none-any.whl"
        _write_wheel(path, name, has_large=number % LARGE_EVERY == 0)
        digests[f"wheels/{path.name}"] = sha256_of(path)
        lines.append(f"{name}==1.0 \\\n    --hash=sha256:{digests[f'wheels/{path.name}']}\n")
    requirements = content / "requirements.txt"
    requirements.write_text("".join(lines), encoding="utf-8")
    sidecar = render_sidecar(
        kind=WHEELS,
        platform=machine_platform(),
        python=PYTHON_MINOR,
        created_by="benchmarks",
        files=digests | {requirements.name: sha256_of(requirements)},
    )
    (content / SIDECAR_NAME).write_text(sidecar, encoding="utf-8")
    large = -(-count // LARGE_EVERY)
    return Bundle(
        archive=pack(content, folder / "bundle.tar"), content=content, files=count * FILES_PER_PACKAGE + large
    )


def _write_wheel(path: Path, name: str, *, has_large: bool) -> None:
    small, large = _blobs()
    blobs = {f"{name}/data/{number}.py": small for number in range(FILES_PER_PACKAGE)}
    if has_large:
        blobs[f"{name}/lib{name}.so"] = large
    info = f"{name}-1.0.dist-info"
    blobs[f"{info}/METADATA"] = _make_blob(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n".encode())
    blobs[f"{info}/WHEEL"] = _make_blob(b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
    rows = "".join(f"{file},sha256={blob.digest},{blob.size}\n" for file, blob in blobs.items())
    blobs[f"{info}/RECORD"] = _make_blob(f"{rows}{info}/RECORD,,\n".encode())
    with path.open("wb") as file:
        _write_zip(file, blobs)


def _write_zip(file: io.BufferedWriter, blobs: Mapping[str, _Blob]) -> None:
    """Write a zip of data that is deflated already, which `zipfile` cannot take."""
    directory = b""
    for name, blob in blobs.items():
        encoded = name.encode()
        # version, flags, deflate, time, date, crc, sizes, lengths of name and extra field
        common = struct.pack("<5H3I2H", 20, 0, 8, 0, 0x5021, blob.crc, len(blob.deflated), blob.size, len(encoded), 0)
        # comment's length, disk, attributes inside, attributes outside (a plain file, 0644), where it begins
        rest = struct.pack("<3H2I", 0, 0, 0, 0o100644 << 16, file.tell())
        directory += b"PK\1\2" + struct.pack("<H", 20 | 3 << 8) + common + rest + encoded
        file.write(b"PK\3\4" + common + encoded + blob.deflated)
    end = struct.pack("<4H2IH", 0, 0, len(blobs), len(blobs), len(directory), file.tell(), 0)
    file.write(directory + b"PK\5\6" + end)


# -- conda packages


def make_pixi_pack(folder: Path, count: int) -> Bundle:
    """Make a pixi-pack layout of so many conda packages; one is a `python` that links to the machine's own."""
    content = folder / "content"
    platform = machine_platform()
    channel = content / "channel" / platform
    channel.mkdir(parents=True)
    records = dict(_write_conda(channel, number) for number in range(count))
    for subdir, found in ((platform, records), ("noarch", {})):
        repodata = {"info": {"subdir": subdir}, "packages": {}, "packages.conda": found, "repodata_version": 2}
        (content / "channel" / subdir).mkdir(exist_ok=True)
        (content / "channel" / subdir / "repodata.json").write_text(json.dumps(repodata), encoding="utf-8")
    described = {"version": "1", "pixi-pack-version": "0.7.2", "platform": platform}
    (content / "pixi-pack.json").write_text(json.dumps(described), encoding="utf-8")
    (content / "environment.yml").write_text("channels:\n  - ./channel\n", encoding="utf-8")
    large = -(-count // LARGE_EVERY)
    return Bundle(
        archive=pack(content, folder / "bundle.tar"), content=content, files=count * FILES_PER_PACKAGE + large
    )


def _write_conda(folder: Path, number: int) -> tuple[str, dict[str, Any]]:
    """Write one package, and return its file's name and its record in repodata.json."""
    name = f"pkg{number:03}" if number else "python"
    sizes = {f"share/{name}/{index}.txt": SMALL_BYTES for index in range(FILES_PER_PACKAGE)}
    if number % LARGE_EVERY == 0:
        sizes[f"lib/lib{name}.so"] = LARGE_BYTES
    # Data of its own for each file, as zstd's window would find copies within the package.
    files = {file: make_data(size, 1000 * number + index) for index, (file, size) in enumerate(sizes.items())}
    links = {"bin/python": os.path.realpath(sys.executable)} if name == "python" else {}
    index = {
        "name": name,
        "version": "1.0",
        "build": "h0_0",
        "build_number": 0,
        "depends": [],
        "subdir": machine_platform(),
        "timestamp": 1_700_000_000_000,
    }
    paths = [
        {"_path": file, "path_type": "hardlink", "sha256": hashlib.sha256(data).hexdigest(), "size_in_bytes": len(data)}
        for file, data in files.items()
    ] + [{"_path": link, "path_type": "softlink"} for link in links]
    info = {
        "info/index.json": json.dumps(index).encode(),
        "info/paths.json": json.dumps({"paths": paths, "paths_version": 1}).encode(),
        "info/files": "".join(f"{path['_path']}\n" for path in paths).encode(),
    }
    stem = f"{name}-1.0-h0_0"
    package = folder / f"{stem}.conda"
    with zipfile.ZipFile(package, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("metadata.json", json.dumps({"conda_pkg_format_version": 2}))
        archive.writestr(f"pkg-{stem}.tar.zst", _zstd_tar(files, links))
        archive.writestr(f"info-{stem}.tar.zst", _zstd_tar(info, {}))
    return package.name, index | {"sha256": sha256_of(package), "size": package.stat().st_size}


def _zstd_tar(files: Mapping[str, bytes], links: Mapping[str, str]) -> bytes:
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        for name, target in links.items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, target
            tar.addfile(member)
    return bytes(zstd.compress(buffer.getvalue(), 1))


# -- archives


def pack(content: Path, target: Path) -> Path:
    """Pack a directory as an uncompressed tar."""
    with tarfile.open(target, "w") as archive:
        for path in sorted(content.rglob("*")):
            archive.add(path, str(path.relative_to(content)), recursive=False)
    return target


def write_shell(archive: Path, target: Path) -> Path:
    """Write the `.sh` of a tar: base64 on a single line between the marks, and a stand-in for the program behind it."""
    step = 3 << 20  # a multiple of three bytes needs no padding but at the end
    with archive.open("rb") as source, target.open("wb") as file:
        file.write(_SHELL_HEADER.encode())
        while piece := source.read(step):
            file.write(base64.b64encode(piece))
        file.write(b"\n@@END_ARCHIVE@@\n" + base64.b64encode(bytes(1 << 20)) + b"\n")
    return target


def sha256_of(path: Path) -> str:
    """Return a file's sha256."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
