"""Install a bundle into the workspace: once, verified, and never half. The one way in for boot and command alike."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace

from infer_dev_entry.bundle.model import UnpackedBundle
from infer_dev_entry.errors import BundleError, InstallError, SettingsError
from infer_dev_entry.install.activation import merge_activation
from infer_dev_entry.install.backends import choose_backend
from infer_dev_entry.install.disk import Sync, check_first_room, check_room
from infer_dev_entry.install.known import (
    Identity,
    find_complete,
    find_in_use,
    find_without_bundle,
    identify,
    keep_in_use,
)
from infer_dev_entry.install.lock import LockRefusedError, install_lock
from infer_dev_entry.install.marker import (
    EnvRecord,
    installed_env,
    read_fast,
    stat_bundle,
)
from infer_dev_entry.install.model import InstalledEnv, InstallRequest, Progress
from infer_dev_entry.install.records import write_complete
from infer_dev_entry.install.settle import Settling
from infer_dev_entry.install.store import Store, explain_os_error
from infer_dev_entry.install.switch import put_in_use
from infer_dev_entry.install.verify import Verified, verify_env


def install(request: InstallRequest, progress: Progress, environ: Mapping[str, str] | None = None) -> InstalledEnv:
    """Have the bundle's environment in use, and return it; most often there is nothing to do.

    `environ` (default: ours) is what the bundle's verify command sees below the activation.

    Raises:
        SettingsError: no bundle is named.
        BundleError: the bundle cannot be read or trusted.
        InstallError: it cannot be installed. Whatever served before still does.
    """
    if not request.bundle_path:
        raise SettingsError(
            "cannot install: no bundle is named; set AUTO_INFER_SGLANG_BUNDLE_PATH to a bundle, or give --bundle"
        )
    try:
        done = read_fast(request) or find_without_bundle(request, progress)
        return done or _install(request, progress, dict(os.environ if environ is None else environ))
    except OSError as error:
        raise InstallError(f"cannot install into {request.project_dir}: {explain_os_error(error)}") from error


def _install(request: InstallRequest, progress: Progress, environ: Mapping[str, str]) -> InstalledEnv:
    store = Store(request.project_dir)
    bundle = identify(request, store, progress)
    in_use = find_in_use(store, bundle.digest)
    try:
        with install_lock(request.project_dir, progress):
            return _install_locked(request, store, bundle, progress, environ)
    except LockRefusedError:
        if in_use is None:
            raise
        # A read-only workspace with the right environment in it is all that is wanted.
        progress.note(f"{request.project_dir} cannot be written; its environment is the bundle's and is used as it is")
        return installed_env(request.project_dir, in_use.record, was_installed=False)


def _install_locked(
    request: InstallRequest, store: Store, bundle: Identity, progress: Progress, environ: Mapping[str, str]
) -> InstalledEnv:
    """Look again, as we may have waited for another who installed it; then install."""
    done = read_fast(request)
    if done is not None:
        return done
    if not bundle.digest or stat_bundle(request.bundle_path) != bundle.seen:
        bundle = identify(request, store, progress)
    in_use = find_in_use(store, bundle.digest)
    if in_use is not None:
        return keep_in_use(request, store, in_use, bundle, progress)
    if store.prepare():
        progress.note("removed what an earlier install had left unfinished")
    complete = find_complete(store, bundle.digest)
    if complete is not None:
        name, record = complete
        progress.note(f"the environment of this bundle is there already: {store.prefix(name)}")
        record = replace(record, bundle_path=request.bundle_path, bundle=bundle.seen)
    else:
        name, record = _make_env(request, store, progress, environ)
    put_in_use(store, name, record, progress)
    return installed_env(store.project_dir, record, was_installed=True)


def _make_env(
    request: InstallRequest, store: Store, progress: Progress, environ: Mapping[str, str]
) -> tuple[str, EnvRecord]:
    """Unpack, install, verify, and declare complete; return the new environment's name and record.

    Raises:
        EntryError: any of it failed; nothing of it is left.
    """
    began = time.monotonic()
    seen = stat_bundle(request.bundle_path)
    check_first_room(request.bundle_path, seen.size, store.project_dir)
    staging = store.make_staging()
    with _cleaned_up(store, staging):
        bundle = _unpack(request, staging, progress)
        check_room(bundle, store.project_dir)
        backend = choose_backend(request, bundle)
        name = store.free_prefix(bundle.digest)
        prefix = store.prefix(name)
        with _cleaned_up(store, prefix, store.cache_dir):
            backend.install(bundle, prefix, request, progress)
            with Settling(store, lambda: Sync(store.envs_dir)) as settling:
                activation = merge_activation(backend.activation(prefix), bundle.info.activation, prefix)
                verified = _verify(request, prefix, bundle, activation, environ, progress)
                progress.stage("write to disk")
                settling.finish(progress)
            seconds = time.monotonic() - began
            record = EnvRecord(
                prefix=prefix,
                bundle_path=request.bundle_path,
                bundle_sha256=bundle.digest,
                bundle=seen,
                backend=backend.name,
                versions=_versions(bundle, verified),
                activation=activation,
                installed_at_unix=round(time.time(), 3),
                verify_output=verified.output,
                seconds=round(seconds, 2),
                mb_per_s=round(bundle.size_bytes / 1e6 / seconds, 2),
                warnings=(*bundle.info.warnings, *verified.warnings),
            )
            write_complete(record)
    return name, record


def _unpack(request: InstallRequest, staging: str, progress: Progress) -> UnpackedBundle:
    """Unpack the bundle and hold every package against its record, before anything is installed from it."""
    from infer_dev_entry.bundle.unpack import check_packages, check_platform, machine_platform, unpack_bundle

    try:
        bundle = unpack_bundle(request.bundle_path, staging, expected_sha256=request.expected_sha256, progress=progress)
        check_platform(bundle.info, machine_platform())
        check_packages(bundle)
    except BundleError as error:
        # Its place in staging is gone by the time that the message is read.
        raise BundleError(str(error).replace(staging, request.bundle_path)) from error
    for warning in bundle.info.warnings:
        progress.note(warning)
    return bundle


def _verify(
    request: InstallRequest,
    prefix: str,
    bundle: UnpackedBundle,
    activation: tuple[tuple[str, str], ...],
    environ: Mapping[str, str],
    progress: Progress,
) -> Verified:
    if request.skip_verify:
        progress.note("the environment is not verified, as that was asked for")
        return Verified(output="skipped", versions={}, gpus=0, warnings=("the environment was not verified",))
    progress.stage("verify")
    verified = verify_env(prefix, bundle.info, activation, environ, require_gpu=request.require_gpu, progress=progress)
    for warning in verified.warnings:
        progress.note(warning)
    return verified


def _versions(bundle: UnpackedBundle, verified: Verified) -> tuple[tuple[str, str], ...]:
    """Every package's version as the bundle says, and over it what the environment itself told."""
    versions = {package.name: package.version for package in bundle.info.packages}
    versions.update({name: version for name, version in verified.versions.items() if version})
    return tuple(sorted(versions.items()))


@contextlib.contextmanager
def _cleaned_up(store: Store, *paths: str) -> Iterator[None]:
    """Delete the paths when the work below fails. One that is told to end leaves them to the next run, and is quick."""
    try:
        yield
    except Exception:
        for path in paths:
            with contextlib.suppress(InstallError):
                store.remove(path)
        raise
