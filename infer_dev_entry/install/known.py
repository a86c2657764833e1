"""What is installed already: find the bundle's environment among those in the workspace, by digest."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

from infer_dev_entry.errors import BundleError
from infer_dev_entry.install.marker import (
    COMPLETE_NAME,
    LEGACY,
    BundleStat,
    EnvRecord,
    Marker,
    installed_env,
    is_in_use,
    read_marker,
    stat_bundle,
)
from infer_dev_entry.install.model import InstalledEnv, InstallRequest, Progress
from infer_dev_entry.install.records import write_complete, write_marker
from infer_dev_entry.install.store import Store
from infer_dev_entry.install.switch import with_legacy_activation


def find_without_bundle(request: InstallRequest, progress: Progress) -> InstalledEnv | None:
    """A bundle that was deleted after its install, to save space, is not missed while its environment is in use."""
    if request.force or request.verify_always or os.path.lexists(request.bundle_path):
        return None
    marker = read_marker(request.project_dir)
    if marker is None or not is_in_use(request.project_dir, marker.record):
        return None
    record = marker.record
    if record.bundle_path != request.bundle_path or request.expected_sha256 not in ("", record.bundle_sha256):
        return None
    progress.note(f"the bundle {request.bundle_path} is gone; the environment that was installed from it is used")
    return installed_env(request.project_dir, record, was_installed=False)


@dataclass(frozen=True, slots=True)
class Identity:
    """A bundle as it was when it was looked at: its digest, "" if no environment here can be its, and how it looked.

    The look comes before the hash: a bundle that is replaced later then differs from what the marker will say.
    """

    digest: str
    seen: BundleStat


def identify(request: InstallRequest, store: Store, progress: Progress) -> Identity:
    """Look at the bundle, and hash it if one of the environments here may be its; else unpacking will hash it.

    Raises:
        BundleError: the bundle cannot be read, or is not the expected one.
    """
    seen = stat_bundle(request.bundle_path)
    if request.force or not any(one is None or one.size == seen.size for one in _known_stats(store)):
        return Identity("", seen)
    from infer_dev_entry.bundle.unpack import hash_bundle, parse_digest

    progress.stage("hash the bundle", seen.size)
    digest, _ = hash_bundle(request.bundle_path, progress.advance)
    if parse_digest(request.expected_sha256) not in ("", digest):
        raise BundleError(
            f"cannot trust bundle {request.bundle_path}: its sha256 is {digest}, expected {request.expected_sha256}; "
            "copy it again, or correct AUTO_INFER_SGLANG_BUNDLE_SHA256"
        )
    return Identity(digest, seen)


def _known_stats(store: Store) -> list[BundleStat | None]:
    """How the bundles of the environments here looked; None for one of which only the digest is known."""
    marker = read_marker(store.project_dir)
    stats = [record.bundle for _, record in store.records()]
    if marker is not None:
        stats.append(marker.record.bundle)
        stats += [marker.rolled_back.bundle] if marker.rolled_back else []
    return stats


def find_in_use(store: Store, digest: str) -> Marker | None:
    """Return the marker when this bundle's environment is in use, or the one that a roll-back chose in its place."""
    marker = read_marker(store.project_dir) if digest else None
    if marker is None:
        return None
    rolled_back = marker.rolled_back.bundle_sha256 if marker.rolled_back else ""
    if digest not in (marker.record.bundle_sha256, rolled_back):
        return None
    # The older installer's marker was written last as well, so its `env/` is complete without our `.complete`.
    old_style = marker.record.backend == LEGACY and store.has_real_env() and os.path.exists(f"{store.link}/bin/python")
    return marker if old_style or is_in_use(store.project_dir, marker.record) else None


def keep_in_use(
    request: InstallRequest, store: Store, marker: Marker, bundle: Identity, progress: Progress
) -> InstalledEnv:
    """Keep what is in use, and have the marker know the bundle as it looked: the next boot need not hash it.

    Raises:
        InstallError: the marker cannot be written.
    """
    record, rolled_back = marker.record, marker.rolled_back
    if bundle.digest == record.bundle_sha256:
        record = replace(with_legacy_activation(record), bundle_path=request.bundle_path, bundle=bundle.seen)
    elif rolled_back is not None:
        rolled_back = replace(rolled_back, bundle_path=request.bundle_path, bundle=bundle.seen)
        progress.note(f"{request.bundle_path} was rolled back and stays so; install it with: infer-dev install --force")
    if not os.path.exists(f"{record.prefix}/{COMPLETE_NAME}"):
        write_complete(record)
    wanted = replace(marker, record=record, rolled_back=rolled_back)
    if wanted != marker:
        write_marker(store.project_dir, wanted)
    return installed_env(store.project_dir, record, was_installed=False)


def find_complete(store: Store, digest: str) -> tuple[str, EnvRecord] | None:
    """Return name and record of a complete environment of that bundle that is not in use: of before, or of a crash."""
    for name, record in store.records():
        if digest and record.bundle_sha256 == digest and store.is_whole(name, record):
            return name, record
    return None
