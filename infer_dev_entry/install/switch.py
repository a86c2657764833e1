"""Put an environment in use: flip `env`, write the marker, keep one environment to roll back to."""

from __future__ import annotations

import os
from dataclasses import replace

from infer_dev_entry.errors import InstallError
from infer_dev_entry.install.activation import conda_activation, plain_activation
from infer_dev_entry.install.lock import install_lock
from infer_dev_entry.install.marker import (
    COMPLETE_NAME,
    LEGACY,
    EnvRecord,
    Marker,
    RolledBack,
    installed_env,
    read_marker,
    read_record,
)
from infer_dev_entry.install.model import InstalledEnv, Progress
from infer_dev_entry.install.records import write_complete, write_marker
from infer_dev_entry.install.store import Store, legacy_name


def put_in_use(
    store: Store, name: str, record: EnvRecord, progress: Progress, *, rolled_back: RolledBack | None = None
) -> None:
    """Flip `env` to that environment, delete all but it and the one before it, and write the marker.

    The marker comes last: a crash before it leaves one that is not of the environment in use. Nobody trusts it then,
    and the next install finds the environment by its digest and comes here again.

    Raises:
        InstallError: the filesystem refused. Whatever `env` is, it is whole.
    """
    before = _name_in_use(store)
    previous = before if before != name else _previous_by_marker(store, name)
    if before.startswith(f"{LEGACY}-"):
        _seal_legacy(store)
    if record.backend == LEGACY:
        store.restore_real_env(name)
    elif before != name:
        store.flip(name, aside=before)
    if not os.path.isdir(store.prefix(previous)):
        previous = ""
    _prune(store, {name, previous}, progress)
    write_marker(store.project_dir, Marker(record=record, previous=previous, rolled_back=rolled_back))


def _previous_by_marker(store: Store, name: str) -> str:
    """Return what was in use before a flip that crashed ahead of its marker, or what the marker says."""
    marker = read_marker(store.project_dir)
    if marker is None:
        return ""
    record = marker.record
    marked = legacy_name(record) if record.backend == LEGACY else os.path.basename(record.prefix)
    return marked if marked != name else marker.previous


def _prune(store: Store, keep: set[str], progress: Progress) -> None:
    """Keep these environments alone. What cannot be deleted costs space, not the install."""
    try:
        for gone in store.prune(keep):
            progress.note(f"deleted the older environment {gone}")
    except InstallError as error:
        progress.note(str(error))


def _name_in_use(store: Store) -> str:
    """Return the name of what is in use; of a real `env/`, the name that it gets when it is moved aside."""
    if not store.has_real_env():
        return store.current_name()
    return legacy_name(_real_env_record(store))


def _real_env_record(store: Store) -> EnvRecord | None:
    record = read_record(store.link, store.project_dir)
    if record is not None:
        return record
    marker = read_marker(store.project_dir)
    return marker.record if marker is not None and marker.record.backend == LEGACY else None


def _seal_legacy(store: Store) -> None:
    """Leave in a real `env/` what a roll-back to it will need, while its prefix is still right."""
    record = _real_env_record(store)
    if record is not None and not os.path.exists(f"{store.link}/{COMPLETE_NAME}"):
        write_complete(with_legacy_activation(record))


def with_legacy_activation(record: EnvRecord) -> EnvRecord:
    """Return the record of a legacy environment with its activation, which the older installer did not store."""
    if record.backend != LEGACY or record.activation:
        return record
    is_conda = os.path.isdir(f"{record.prefix}/conda-meta")
    return replace(record, activation=(conda_activation if is_conda else plain_activation)(record.prefix))


def roll_back(project_dir: str, progress: Progress) -> InstalledEnv:
    """Put the environment before the one in use back, and remember which bundle that turned away from.

    A second roll-back returns to where the first began.

    Raises:
        InstallError: there is nothing to roll back to, or the workspace cannot be written.
    """
    with install_lock(project_dir, progress):
        store = Store(project_dir)
        store.prepare()
        marker = read_marker(project_dir)
        if marker is None or not marker.previous:
            raise InstallError(
                f"cannot roll back {project_dir}: there is no environment before the one in use; install another bundle"
            )
        record = read_record(store.prefix(marker.previous), project_dir)
        if record is None or not store.is_whole(marker.previous, record):
            raise InstallError(
                f"cannot roll back {project_dir}: {store.prefix(marker.previous)} is not complete, "
                "or was made elsewhere; install its bundle again"
            )
        put_in_use(store, marker.previous, record, progress, rolled_back=_turned_away(marker, record))
        progress.note(f"rolled back to {record.bundle_path} ({record.bundle_sha256[:12]})")
        return installed_env(project_dir, record, was_installed=True)


def _turned_away(marker: Marker, target: EnvRecord) -> RolledBack | None:
    """Return what the marker must remember; nothing when this roll-back undoes one."""
    if marker.rolled_back is not None and marker.rolled_back.bundle_sha256 == target.bundle_sha256:
        return None
    record = marker.record
    return RolledBack(bundle_path=record.bundle_path, bundle_sha256=record.bundle_sha256, bundle=record.bundle)
