"""Bundles and archives in memory for tests: honest ones in every container, and tars that no honest tool writes."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from infer_dev_entry.bundle.model import UnpackedBundle
from infer_dev_entry.bundle.unpack import unpack_bundle

SHELL_HEADER = (
    '#!/usr/bin/env bash\nset -euo pipefail\narchive_begin=$(grep -anm 1 "^@@END_HEADER@@" "$0")\ntouch /tmp/was-run\n'
    "exit 0\n@@END_HEADER@@\n\n"
)


class SilentProgress:
    """Counts what a Progress is told."""

    def __init__(self) -> None:
        self.total = 0
        self.done = 0

    def stage(self, name: str, total: int = 0, unit: str = "B") -> None:
        self.total = total

    def advance(self, amount: int) -> None:
        self.done += amount

    def note(self, message: str) -> None:
        pass


def sha256_of(data: bytes) -> str:
    """Return the hex digest."""
    return hashlib.sha256(data).hexdigest()


def json_of(value: object) -> bytes:
    """Return JSON as bytes."""
    return json.dumps(value).encode()


def conda_record(data: bytes, name: str = "demo", version: str = "1.0", **changes: Any) -> dict[str, Any]:
    """Return a repodata record of a package file with that content."""
    record = {"name": name, "version": version, "sha256": sha256_of(data), "size": len(data), "subdir": "linux-64"}
    return record | changes


def pixi_files(**changes: bytes | None) -> dict[str, bytes]:
    """Return the files of a small pixi-pack bundle; `changes` maps path → content, or None to leave it out."""
    demo, tool, wheel = b"conda demo" * 100, b"conda tool" * 50, b"wheel"
    files: dict[str, bytes] = {
        "channel/linux-64/demo-1.0-h_0.conda": demo,
        "channel/linux-64/repodata.json": json_of({"packages.conda": {"demo-1.0-h_0.conda": conda_record(demo)}}),
        "channel/noarch/tool-2.0-py_0.tar.bz2": tool,
        "channel/noarch/repodata.json": json_of(
            {"packages": {"tool-2.0-py_0.tar.bz2": conda_record(tool, "tool", "2.0")}, "packages.conda": {}}
        ),
        "pypi/six-1.17.0-py2.py3-none-any.whl": wheel,
        "environment.yml": b"channels: []\n",
        "pixi-pack.json": json_of({"version": "1", "pixi-pack-version": None, "platform": "linux-64"}),
    }
    return _changed(files, changes)


def wheels_files(**changes: bytes | None) -> dict[str, bytes]:
    """Return the files of a small wheels bundle with a sidecar that records them all."""
    six, numpy = b"six" * 100, b"numpy" * 100
    requirements = (
        f"# resolved\nsix==1.17.0 \\\n    --hash=sha256:{sha256_of(six)} \\\n"
        f"    --hash=sha256:{'0' * 64}\n    # via x\n"
        f"NumPy==2.1 --hash=sha256:{sha256_of(numpy)}\n"
    ).encode()
    files: dict[str, bytes] = {
        "wheels/six-1.17.0-py2.py3-none-any.whl": six,
        "wheels/numpy-2.1-cp312-cp312-manylinux_2_28_x86_64.whl": numpy,
        "requirements.txt": requirements,
    }
    return with_sidecar(_changed(files, changes), kind="wheels", platform="linux-64", python="3.12")


def with_sidecar(files: Mapping[str, bytes], **fields: Any) -> dict[str, bytes]:
    """Return the files with a sidecar that records all of them."""
    hashes = {path: sha256_of(data) for path, data in files.items()}
    sidecar = {"version": 1, "kind": "pixi-pack", "created_by": "test", "files": hashes} | fields
    return {**files, "infer-dev-bundle.json": json_of(sidecar)}


def _changed(files: dict[str, bytes], changes: Mapping[str, bytes | None]) -> dict[str, bytes]:
    return {path: data for path, data in (files | dict(changes)).items() if data is not None}


def tar_of(files: Mapping[str, bytes], tar_format: int = tarfile.GNU_FORMAT) -> bytes:
    """Return an honest tar."""
    return tar_of_members([member(path, data=data) for path, data in files.items()], tar_format)


def member(name: str, kind: bytes = tarfile.REGTYPE, data: bytes = b"", **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    """Return a member of any kind for `tar_of_members`."""
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, len(data)
    for key, value in fields.items():
        setattr(info, key, value)
    return info, data


def tar_of_members(members: Iterable[tuple[tarfile.TarInfo, bytes]], tar_format: int = tarfile.GNU_FORMAT) -> bytes:
    """Return a tar of exactly those members, however odd."""
    blocks = blocks_of(members, tar_format) + bytes(1024)
    return blocks + bytes(-len(blocks) % 10240)


def blocks_of(members: Iterable[tuple[tarfile.TarInfo, bytes]], tar_format: int = tarfile.GNU_FORMAT) -> bytes:
    """Return the members as they stand in a tar, without its end."""
    out = io.BytesIO()
    for info, data in members:
        out.write(info.tobuf(tar_format, "utf-8", "surrogateescape"))
        out.write(data + bytes(-len(data) % 512))
    return out.getvalue()


def head_of_big_tar(files: Mapping[str, bytes], name: str, size: int) -> bytes:
    """Return a tar up to where the data of its last, large member begins; zeros are to follow."""
    big, _ = member(name)
    big.size = size
    return blocks_of([*(member(path, data=data) for path, data in files.items()), (big, b"")])


def gzip_of(data: bytes) -> bytes:
    """Return gzip, with no time in it."""
    return gzip.compress(data, compresslevel=1, mtime=0)


def zstd_of(data: bytes) -> bytes:
    """Return one zstd frame with a checksum."""
    from backports import zstd

    return zstd.compress(data, options={zstd.CompressionParameter.checksum_flag: 1})


def shell_of(data: bytes) -> bytes:
    """Return what pixi-pack --create-executable makes of a tar."""
    unpacker = base64.b64encode(b"\x7fELF the unpacker")
    return SHELL_HEADER.encode() + base64.b64encode(data) + b"\n@@END_ARCHIVE@@\n" + unpacker


CONTAINERS = {"tar": bytes, "tar.gz": gzip_of, "tar.zst": zstd_of, "sh": shell_of}


def unpack(path: Path, target: Path, expected_sha256: str = "") -> UnpackedBundle:
    """Unpack without anyone watching."""
    return unpack_bundle(str(path), str(target), expected_sha256=expected_sha256, progress=SilentProgress())


def write_files(root: Path, files: Mapping[str, bytes]) -> Path:
    """Write files below a directory."""
    for path, data in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)
    return root
