"""What the unit tests of the installer share: a project directory with environments, a progress that records."""

from __future__ import annotations

import hashlib
from pathlib import Path

from infer_dev_entry.bundle.model import WHEELS, BundleInfo, Package, UnpackedBundle
from infer_dev_entry.install.marker import (
    BundleStat,
    EnvRecord,
    Marker,
    stat_bundle,
)
from infer_dev_entry.install.model import InstallRequest
from infer_dev_entry.install.records import write_complete, write_marker
from infer_dev_entry.install.store import Store


class FakeProgress:
    """Records what was said."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.stages: list[str] = []

    def stage(self, name: str, total: int = 0, unit: str = "B") -> None:
        self.stages.append(name)

    def advance(self, amount: int) -> None:
        return

    def note(self, message: str) -> None:
        self.notes.append(message)


def digest_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def make_bundle(path: Path, text: str) -> Path:
    """Write a "bundle": its text stands for its content."""
    path.write_text(text, encoding="utf-8")
    return path


def make_env(prefix: Path, text: str = "") -> Path:
    """Write the files of an environment, without `.complete`."""
    (prefix / "bin").mkdir(parents=True)
    (prefix / "bin" / "python").write_text(text, encoding="utf-8")
    return prefix


def make_record(prefix: Path | str, digest: str, bundle: Path | None = None, **changes: object) -> EnvRecord:
    known: dict[str, object] = {
        "prefix": str(prefix),
        "bundle_path": str(bundle or "/bundle.tar"),
        "bundle_sha256": digest,
        "bundle": stat_bundle(str(bundle)) if bundle else BundleStat(size=1, mtime_ns=2, inode=3),
        "backend": "wheelhouse",
        "versions": (("torch", "2.9.0"),),
        "activation": (("PATH", "/p/bin"),),
        "installed_at_unix": 1.5,
        "verify_output": "fine",
        "seconds": 2.0,
        "mb_per_s": 3.0,
        "warnings": ("one",),
    }
    return EnvRecord(**(known | changes))  # type: ignore[arg-type]


def put_installed(project: Path, bundle: Path, **changes: object) -> EnvRecord:
    """Leave the project directory as an install of that bundle does."""
    digest = digest_of(bundle.read_text(encoding="utf-8"))
    prefix = make_env(project / "envs" / digest[:12])
    record = make_record(prefix, digest, bundle, **changes)
    write_complete(record)
    (project / "env").symlink_to(f"envs/{digest[:12]}")
    write_marker(str(project), Marker(record=record))
    return record


def make_request(project: Path, bundle: Path, **changes: object) -> InstallRequest:
    known: dict[str, object] = {"bundle_path": str(bundle), "project_dir": str(project), "skip_verify": True}
    return InstallRequest(**(known | changes))  # type: ignore[arg-type]


def make_unpacked(
    root: str = "/bundle", kind: str = WHEELS, digest: str = "0" * 64, **changes: object
) -> UnpackedBundle:
    package = Package(kind="wheel", path="wheels/a-1-py3-none-any.whl", name="a", version="1", sha256="", size=0)
    known: dict[str, object] = {"kind": kind, "platform": "linux-64", "python": "3.11", "packages": (package,)}
    info = BundleInfo(**(known | changes))  # type: ignore[arg-type]
    return UnpackedBundle(root=root, info=info, digest=digest, size_bytes=10, files=())


def store_of(project: Path) -> Store:
    store = Store(str(project))
    store.prepare()
    return store
