"""Make real bundles for tests: tiny wheels with a correct RECORD and a console script, and wheelhouses of them."""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import os
import sys
import tarfile
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

PYTHON_MINOR = f"{sys.version_info.major}.{sys.version_info.minor}"
PLATFORM = f"linux-{ {'x86_64': '64'}.get(os.uname().machine, os.uname().machine) }"


@dataclass(frozen=True)
class Wheel:
    """A wheel to be made. `files` are the modules' texts, `scripts` maps a command to `module:function`."""

    name: str
    version: str = "1.0"
    files: Mapping[str, str | bytes] = field(default_factory=dict)
    scripts: Mapping[str, str] = field(default_factory=dict)
    tag: str = "py3-none-any"

    @property
    def file_name(self) -> str:
        return f"{self.name.replace('-', '_')}-{self.version}-{self.tag}.whl"


def small_wheel(name: str, version: str = "1.0", *, files: int = 5, size: int = 2000) -> Wheel:
    """Describe a package with some modules, some data, and a command `<name>` that prints name and version."""
    package = name.replace("-", "_")
    texts: dict[str, str | bytes] = {
        f"{package}/__init__.py": f"__version__ = {version!r}\n\ndef main():\n    print({name!r}, __version__)\n"
    }
    for number in range(files):
        data = hashlib.sha256(f"{name}{version}{number}".encode()).digest()
        texts[f"{package}/data/{number}.bin"] = (data * (size // len(data) + 1))[:size]
    return Wheel(name, version, texts, {name: f"{package}:main"})


def make_wheel(folder: Path, wheel: Wheel) -> Path:
    """Write a wheel; the same description gives the same bytes."""
    package = wheel.name.replace("-", "_")
    info = f"{package}-{wheel.version}.dist-info"
    contents = {name: data.encode() if isinstance(data, str) else data for name, data in wheel.files.items()}
    contents[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: {wheel.name}\nVersion: {wheel.version}\n".encode()
    contents[f"{info}/WHEEL"] = (
        f"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: {wheel.tag}\n".encode()
    )
    if wheel.scripts:
        lines = "".join(f"{name} = {target}\n" for name, target in wheel.scripts.items())
        contents[f"{info}/entry_points.txt"] = f"[console_scripts]\n{lines}".encode()
    record = "".join(f"{name},{_record_hash(data)},{len(data)}\n" for name, data in contents.items())
    contents[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()
    path = folder / wheel.file_name
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in contents.items():
            archive.writestr(zipfile.ZipInfo(name, (2020, 1, 1, 0, 0, 0)), data, zipfile.ZIP_DEFLATED)
    return path


def _record_hash(data: bytes) -> str:
    return "sha256=" + base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


def make_wheelhouse(
    folder: Path,
    wheels: Iterable[Wheel],
    *,
    python: str = PYTHON_MINOR,
    platform: str = PLATFORM,
    verify: Sequence[str] = (),
    activation: Mapping[str, str] | None = None,
    extra_wheels: Iterable[Path] = (),
) -> Path:
    """Write a wheels bundle as a directory: `wheels/`, `requirements.txt` with hashes, and the sidecar."""
    wheels_dir = folder / "wheels"
    wheels_dir.mkdir(parents=True)
    for wheel in wheels:
        make_wheel(wheels_dir, wheel)
    for path in extra_wheels:
        os.link(path, wheels_dir / path.name)
    return describe_wheelhouse(folder, python=python, platform=platform, verify=verify, activation=activation)


def describe_wheelhouse(
    folder: Path,
    *,
    python: str = PYTHON_MINOR,
    platform: str = PLATFORM,
    verify: Sequence[str] = (),
    activation: Mapping[str, str] | None = None,
) -> Path:
    """Write requirements and sidecar of the wheels that lie there."""
    digests = {f"wheels/{path.name}": _sha256(path) for path in sorted((folder / "wheels").iterdir())}
    lines = []
    for path, digest in digests.items():
        name, version = path.removeprefix("wheels/").split("-")[:2]
        lines.append(f"{name.replace('_', '-')}=={version} \\\n    --hash=sha256:{digest}\n")
    (folder / "requirements.txt").write_text("".join(lines), encoding="utf-8")
    sidecar = {
        "version": 1,
        "kind": "wheels",
        "platform": platform,
        "python": python,
        "created_by": "tests",
        "files": digests | {"requirements.txt": _sha256(folder / "requirements.txt")},
        "activation": dict(activation or {}),
        "verify": list(verify),
    }
    (folder / "infer-dev-bundle.json").write_text(json.dumps(sidecar), encoding="utf-8")
    return folder


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def pack(folder: Path, target: Path, mode: str = "w") -> Path:
    """Pack a bundle's directory as a tar; the same files give the same bytes."""
    with tarfile.open(target, mode) as archive:  # type: ignore[call-overload]
        for path in sorted(folder.rglob("*")):
            info = archive.gettarinfo(str(path), str(path.relative_to(folder)))
            info.mtime, info.uid, info.gid, info.uname, info.gname = 1_600_000_000, 0, 0, "", ""
            with path.open("rb") if path.is_file() else open(os.devnull, "rb") as file:
                archive.addfile(info, file if path.is_file() else None)
    return target


def check_records(prefix: Path) -> int:
    """Hold every installed file against its package's RECORD; return how many packages were checked.

    Raises:
        AssertionError: a file is missing or differs.
    """
    records = list(prefix.glob("lib/python3*/site-packages/*.dist-info/RECORD"))
    for record in records:
        for name, expected, size in csv.reader(record.read_text(encoding="utf-8").splitlines()):
            path = record.parent.parent / name
            assert path.is_file(), f"{path} is missing"
            if expected:
                data = path.read_bytes()
                assert _record_hash(data) == expected and len(data) == int(size), f"{path} differs from its record"
    return len(records)
