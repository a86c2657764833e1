"""The backend `rattler`: pixi-pack's conda packages by py-rattler, its wheels by uv; nothing is solved or fetched."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from infer_dev_entry.bundle.model import PIXI_PACK, UnpackedBundle
from infer_dev_entry.errors import InstallError
from infer_dev_entry.install.activation import SYSTEM_PATH, Variables
from infer_dev_entry.install.conda_activation import read_activation
from infer_dev_entry.install.model import InstallRequest, Progress
from infer_dev_entry.install.prefix import check_prefix
from infer_dev_entry.install.store import Store
from infer_dev_entry.install.uv import find_uv, install_wheels

if TYPE_CHECKING:
    from rattler import RepoDataRecord

INSTALL_TIMEOUT_S = 3600.0
READ_TIMEOUT_S = 300.0  # the list of files lies at an unknown place of a .tar.bz2, which may have gigabytes

# One read is mostly waiting for rattler's threads: 200 packages took 0.12 s eight at a time, 0.8 s one by one.
_READ_AT_ONCE = 8


class RattlerBackend:
    """Installs a pixi-pack layout with py-rattler and uv, both in this package's own environment.

    Hashes are not checked here: py-rattler takes a local package whatever its sha256 is, so the caller has hashed all.
    A package is code, and runs as soon as its environment is activated: the hashes are what it is trusted by.
    """

    name = "rattler"

    def problem(self, bundle: UnpackedBundle) -> str:
        """Say why this backend cannot install that bundle here (with the mend), or ""."""
        if bundle.info.kind != PIXI_PACK:
            return f"it installs {PIXI_PACK} bundles, and this one is of kind {bundle.info.kind}"
        if importlib.util.find_spec("rattler") is None:
            return "py-rattler is not installed; install it with: pip install py-rattler"
        if not bundle.info.conda_packages:
            return "the bundle holds no conda packages; build it again"
        if bundle.info.wheels and not _has_python(bundle):
            return "the bundle holds wheels but no python package; build it from an environment that has one"
        if bundle.info.wheels and not find_uv():
            return "the bundle holds wheels and there is no uv; install it with: pip install uv"
        return ""

    def install(self, bundle: UnpackedBundle, prefix: str, request: InstallRequest, progress: Progress) -> None:
        """Install into `prefix`; see `Backend.install`.

        Files are hardlinked from a cache beside the environments that starts empty and is left in staging, to be
        deleted: one that stayed would share its inodes with the environment, and hand an edited file on to the next.

        Raises:
            InstallError: the prefix or the bundle will not do, or rattler or uv failed.
        """
        check_prefix(prefix)
        records = read_records(bundle)
        _check_paths(bundle)
        store = Store(request.project_dir)
        cache_dir = f"{store.cache_dir}/rattler"
        store.remove(cache_dir)
        _link_packages(records, prefix, cache_dir, progress)
        _note_link_scripts(records, prefix, progress)
        if not bundle.info.wheels:
            store.discard(cache_dir)
            return
        store.remove(cache_dir)  # at once: where it could not be linked from, it takes the room of the wheels
        if not all(wheel.sha256 for wheel in bundle.info.wheels):
            progress.note("the bundle records no hashes of its wheels; they are held to those of the files as unpacked")
        install_wheels(bundle, python=f"{prefix}/bin/python", project_dir=request.project_dir, progress=progress)

    def activation(self, prefix: str) -> Variables:
        """Return what activation sets: rattler's script, which calls the packages' own, is run once, here.

        Raises:
            InstallError: a script fails.
        """
        return read_activation(prefix, _activation_script(prefix))


def read_records(bundle: UnpackedBundle) -> list[RepoDataRecord]:
    """Return the channel's own record of every conda package of the bundle, each pointing at its unpacked file.

    Raises:
        InstallError: a record is missing or cannot be read, a name occurs twice, or Python is missing.
    """
    known: dict[str, RepoDataRecord] = {}
    for folder in sorted({os.path.dirname(package.path) for package in bundle.info.conda_packages}):
        known.update(_read_channel(bundle.root, folder))
    records = []
    for package in bundle.info.conda_packages:
        record = known.get(package.path)
        if record is None:
            raise InstallError(f"cannot install {package.path}: repodata.json does not list it; build the bundle again")
        # Set here, as repodata.json may name another base for its addresses.
        record.url = Path(bundle.root, package.path).as_uri()
        records.append(record)
    _check_records(records)
    return records


def _read_channel(root: str, folder: str) -> dict[str, RepoDataRecord]:
    from rattler import Channel, RepoData

    path = Path(root, folder, "repodata.json")
    try:
        channel = Channel(path.parent.parent.as_uri())
        records = RepoData.from_path(path).into_repo_data(channel)
    except Exception as error:  # py-rattler's exceptions have no common base
        raise InstallError(f"cannot read {folder}/repodata.json: {_one_line(error)}; build the bundle again") from error
    return {f"{folder}/{record.file_name}": record for record in records}


def _check_records(records: Sequence[RepoDataRecord]) -> None:
    names = Counter(record.name.normalized for record in records)
    twice = sorted(name for name, count in names.items() if count > 1)
    if twice:
        raise InstallError(f"cannot install {twice[0]}: the bundle holds it more than once; build the bundle again")
    orphan = next((record.name.normalized for record in records if record.noarch.python), "")
    if orphan and "python" not in names:
        raise InstallError(
            f"cannot install {orphan}: it is a Python package, and the bundle holds no python; "
            "build the bundle from an environment that has one"
        )


def _check_paths(bundle: UnpackedBundle) -> None:
    """Refuse a package that lists files outside of its prefix: py-rattler 0.28 would write them there, or abort us."""

    gate = asyncio.Semaphore(_READ_AT_ONCE)

    async def check(path: str) -> None:
        async with gate:
            outside = find_outside(await _read_paths(bundle, path))
        if outside:
            raise InstallError(f"cannot install {path}: it lists {outside!r}; do not trust this bundle")

    async def work() -> None:
        await asyncio.gather(*(check(package.path) for package in bundle.info.conda_packages))

    asyncio.run(work())


async def _read_paths(bundle: UnpackedBundle, path: str) -> list[str]:
    from rattler.package_streaming import PackageArchive

    try:
        archive = await PackageArchive.from_path(Path(bundle.root, path))
        reading = archive.read_files(("info/paths.json", "info/files"))
        listed = await asyncio.wait_for(reading, READ_TIMEOUT_S)
        return parse_paths(listed["info/paths.json"], listed["info/files"])
    except Exception as error:
        raise InstallError(f"cannot read {path}: {_explain(error)}") from error


def parse_paths(paths_json: bytes | None, files: bytes | None) -> list[str]:
    """Parse the paths that a package installs: of paths.json, and of the older plain list, which may stand in for it.

    Raises:
        ValueError: paths.json is something else.
    """
    listed = files.decode(errors="surrogateescape").splitlines() if files else []
    if paths_json is None:
        return listed
    try:
        return listed + [str(entry["_path"]) for entry in json.loads(paths_json)["paths"]]
    except (TypeError, KeyError) as error:
        raise ValueError("a package's info/paths.json is not one") from error


def find_outside(paths: Iterable[str]) -> str:
    """Return the first path that is absolute or climbs with `..`; "" when all stay where they belong."""
    return next((path for path in paths if path.startswith("/") or ".." in path.split("/")), "")


def _link_packages(records: Sequence[RepoDataRecord], prefix: str, cache_dir: str, progress: Progress) -> None:
    from rattler.install import install

    sizes = {record.name.normalized: record.size or 1 for record in records}
    progress.stage("install conda packages", sum(sizes.values()))

    async def work() -> None:
        linking = install(
            list(records),
            prefix,
            cache_dir=Path(cache_dir),
            installed_packages=[],
            execute_link_scripts=False,  # a package may not run programs while it is installed
            show_progress=False,
            reporter=_Reporter(sizes, progress),  # type: ignore[arg-type]
        )
        await asyncio.wait_for(linking, INSTALL_TIMEOUT_S)

    try:
        os.makedirs(cache_dir, exist_ok=True)
        asyncio.run(work())
    except TimeoutError as error:
        raise InstallError(
            f"cannot install conda packages into {prefix}: not done after {INSTALL_TIMEOUT_S:g} s; "
            "check the speed of the workspace's disk"
        ) from error
    except Exception as error:
        raise InstallError(f"cannot install conda packages into {prefix}: {_explain(error)}") from error


class _Reporter:
    """Turns rattler's callbacks, which come from its own threads, into progress: half of a package's size when it is
    unpacked, the rest when it is linked."""

    def __init__(self, sizes: Mapping[str, int], progress: Progress) -> None:
        self._sizes = sizes
        self._progress = progress
        self._lock = threading.Lock()
        self._names: list[str] = []  # rattler hands back the index that a start callback returned

    def on_populate_cache_start(self, operation: int, package_name: str) -> int:  # noqa: ARG002 - rattler's signature
        return self._remember(package_name)

    def on_populate_cache_complete(self, cache_entry: int) -> None:
        self._advance(cache_entry, linked=False)

    def on_link_start(self, operation: int, package_name: str) -> int:  # noqa: ARG002
        return self._remember(package_name)

    def on_link_complete(self, index: int) -> None:
        self._advance(index, linked=True)

    def _remember(self, name: str) -> int:
        with self._lock:
            self._names.append(name)
            return len(self._names) - 1

    def _advance(self, index: int, *, linked: bool) -> None:
        with self._lock:
            size = self._sizes.get(self._names[index], 0)
            self._progress.advance(size - size // 2 if linked else size // 2)


def _explain(error: Exception) -> str:
    """Return rattler's chain of causes in one line, with the mend."""
    reason = _one_line(error)
    if "os error 28" in reason or "os error 122" in reason:
        return f"{reason}; free space on the workspace's filesystem"
    if "os error 13" in reason or "os error 30" in reason:
        return f"{reason}; make the workspace writable for uid {os.geteuid()}"
    return f"{reason}; verify the bundle with: infer-dev bundle verify"


def _one_line(error: Exception) -> str:
    parts = [line.removeprefix("Caused by:").strip().rstrip(".:") for line in str(error).splitlines()]
    return ": ".join(dict.fromkeys(part for part in parts if part)) or type(error).__name__


def _note_link_scripts(records: Sequence[RepoDataRecord], prefix: str, progress: Progress) -> None:
    """Say which packages wanted to run a script at install: it was not run, and they may miss its work."""
    names = (record.name.normalized for record in records)
    left = [name for name in names if os.path.exists(f"{prefix}/bin/.{name}-post-link.sh")]
    if left:
        progress.note(f"post-link scripts are never run; these packages have one: {', '.join(left)}")


def _has_python(bundle: UnpackedBundle) -> bool:
    return any(package.name == "python" for package in bundle.info.conda_packages)


def _activation_script(prefix: str) -> str:
    from rattler.shell import ActivationVariables, PathModificationBehavior, Shell, activate

    # A PATH of its own, as rattler would else take the installer's.
    before = ActivationVariables(None, SYSTEM_PATH.split(":"), PathModificationBehavior.Replace)
    try:
        return activate(Path(prefix), before, Shell.bash).script
    except Exception as error:
        raise InstallError(
            f"cannot activate {prefix}: {_one_line(error)}; see the files in {prefix}/etc/conda"
        ) from error
