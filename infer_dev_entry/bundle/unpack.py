"""The door to bundles: unpack one with every file hashed, and hold it to its own records and to this machine."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping

from infer_dev_entry.bundle.contents import find_root, naming
from infer_dev_entry.bundle.decode import SHELL
from infer_dev_entry.bundle.directory import digest_of, hash_directory, list_directory
from infer_dev_entry.bundle.extract import Extractor
from infer_dev_entry.bundle.layout import ROOT_MARKS, find_faults, parse_layout
from infer_dev_entry.bundle.listing import Listing as Listing
from infer_dev_entry.bundle.listing import read_info as read_info
from infer_dev_entry.bundle.listing import read_listing as read_listing
from infer_dev_entry.bundle.metadata import MAX_METADATA_BYTES, is_metadata
from infer_dev_entry.bundle.model import BundleInfo, UnpackedBundle
from infer_dev_entry.bundle.source import Source
from infer_dev_entry.errors import BundleError, InstallError
from infer_dev_entry.install.model import Progress

_MAX_SHOWN_FAULTS = 20
_SHA256 = re.compile(r"(?:sha256:)?([0-9a-f]{64})")
_MACHINES = {"x86_64": "64", "i686": "32"}


def unpack_bundle(path: str, target: str, *, expected_sha256: str = "", progress: Progress) -> UnpackedBundle:
    """Unpack a bundle into `target`, a missing or empty directory, in one pass that hashes the archive and its members.

    A directory is hashed where it lies, and `target` is left alone. On an error everything that was written is removed;
    an interrupt leaves it to the caller.

    Raises:
        BundleError: the bundle is missing, damaged, hostile, of a wrong version or digest, or changes meanwhile.
        InstallError: `target` cannot be written, or the disk is too small.
    """
    expected = parse_digest(expected_sha256)
    with naming(path):
        if os.path.isdir(path):
            return _take_directory(os.path.abspath(path), expected, progress)
        with Source(path, on_read=progress.advance) as source, _target_directory(target):
            progress.stage("unpack", source.size_bytes)
            return _unpack(source, os.path.abspath(target), expected)


def hash_bundle(path: str, on_read: Callable[[int], None] | None = None) -> tuple[str, int]:
    """Return a bundle's digest and size as `UnpackedBundle` defines them; `on_read` is told of progress in bytes.

    Raises:
        BundleError: it is missing, cannot be read, is no kind of bundle, or changes meanwhile.
    """
    with naming(path):
        if os.path.isdir(path):
            entries = list_directory(path)
            return digest_of(hash_directory(path, entries, on_read)), sum(entry.size for entry in entries)
        with Source(path, on_read=on_read) as source:
            source.read_all()
            return source.finish(), source.size_bytes


def check_packages(bundle: UnpackedBundle) -> None:
    """Hold the bundle's files to its own records: repodata, requirements.txt, sidecar.

    Raises:
        BundleError: packages are missing, corrupt or recorded nowhere; the message names them all, a line each.
    """
    digests = dict(bundle.files)
    with naming(bundle.root):
        layout = parse_layout(_read_texts(bundle.root, digests), digests)
        faults = find_faults(layout, digests, _read_sizes(bundle.root, digests))
        if faults:
            raise BundleError(_render_faults(faults))


def check_platform(info: BundleInfo, platform: str, python: str = "") -> None:
    """Check that a bundle is for this platform (`linux-64`) and, where its wheels bind it, this Python (`3.12`).

    Raises:
        BundleError: it is for another.
    """
    if info.platform not in ("", "noarch", platform):
        raise BundleError(
            f"cannot use bundle: it is for {info.platform}, this machine is {platform}; "
            f"build it with infer-dev bundle build --platform {platform}"
        )
    if python and info.python not in ("", python):
        raise BundleError(
            f"cannot use bundle: its wheels are for Python {info.python}, this one is {python}; "
            f"build it with infer-dev bundle build --python {python}, or set AUTO_INFER_SGLANG_PYTHON to another one"
        )


def machine_platform() -> str:
    """Return this machine's platform in conda's words, such as linux-64 or linux-aarch64."""
    machine = os.uname().machine
    return f"linux-{_MACHINES.get(machine, machine)}"


def parse_digest(text: str) -> str:
    """Return a sha256 given by a user in lower case, without a `sha256:` in front; "" stays "".

    Raises:
        BundleError: it is no sha256.
    """
    word = text.strip().lower()
    match = _SHA256.fullmatch(word)
    if word and not match:
        raise BundleError(
            f"cannot use the expected digest {text[:80]!r}: it is no sha256 (64 hex digits); "
            "correct AUTO_INFER_SGLANG_BUNDLE_SHA256"
        )
    return match[1] if match else ""


def _unpack(source: Source, target: str, expected: str) -> UnpackedBundle:
    # Packages are compressed already, so that an archive takes about its own size; base64 is a third larger.
    about_bytes = source.size_bytes * 3 // 4 if source.container == SHELL else source.size_bytes
    with Extractor(target, about_bytes) as extractor:
        extractor.extract(source.open_tar())
    digest = source.finish()
    _check_digest(digest, expected)
    prefix = find_root(extractor.digests, ROOT_MARKS)
    digests = {path.removeprefix(prefix): sha256 for path, sha256 in extractor.digests.items()}
    root = os.path.join(target, prefix).rstrip("/")
    return _describe(root, digests, digest, source.size_bytes)


def _take_directory(path: str, expected: str, progress: Progress) -> UnpackedBundle:
    entries = list_directory(path)
    size_bytes = sum(entry.size for entry in entries)
    progress.stage("hash", size_bytes)
    digests = hash_directory(path, entries, progress.advance)
    digest = digest_of(digests)
    _check_digest(digest, expected)
    return _describe(path, digests, digest, size_bytes)


def _describe(root: str, digests: Mapping[str, str], digest: str, size_bytes: int) -> UnpackedBundle:
    info = parse_layout(_read_texts(root, digests), digests).info
    files = tuple(sorted(digests.items()))
    return UnpackedBundle(root=root, info=info, digest=digest, size_bytes=size_bytes, files=files)


def _check_digest(digest: str, expected: str) -> None:
    if expected and digest != expected:
        raise BundleError(
            f"its sha256 is {digest}, expected was {expected}; copy it anew, or correct AUTO_INFER_SGLANG_BUNDLE_SHA256"
        )


@contextlib.contextmanager
def _target_directory(target: str) -> Iterator[None]:
    """Make the directory, or see that it is empty; on an error leave it as it was found."""
    was_there = os.path.isdir(target)
    try:
        os.makedirs(target, 0o755, exist_ok=True)
        names = os.listdir(target)
    except OSError as error:
        raise InstallError(
            f"cannot unpack into {target}: {error.strerror}; make it writable or set AUTO_INFER_SGLANG_PIXI_PROJECT_DIR"
        ) from error
    if names:
        raise InstallError(f"cannot unpack into {target}: it is not empty; give another directory")
    try:
        yield
    except Exception:
        _empty(target)
        if not was_there:
            with contextlib.suppress(OSError):
                os.rmdir(target)
        raise


def _empty(folder: str) -> None:
    for entry in tuple(os.scandir(folder)):
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                os.unlink(entry.path)


def _read_texts(root: str, digests: Mapping[str, str]) -> dict[str, bytes]:
    """Return path → text of the metadata among those files.

    Raises:
        BundleError: one is too large, cannot be read, or is no longer what was hashed.
    """
    return {path: _read_text(root, path, digests[path]) for path in digests if is_metadata(path)}


def _read_text(root: str, path: str, sha256: str) -> bytes:
    try:
        with open(os.path.join(root, path), "rb") as file:
            text = file.read(MAX_METADATA_BYTES + 1)
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}; unpack it again") from error
    if len(text) > MAX_METADATA_BYTES:
        raise BundleError(f"{path} is larger than {MAX_METADATA_BYTES} bytes; build the bundle again")
    if hashlib.sha256(text).hexdigest() != sha256:
        raise BundleError(f"{path} changed since it was hashed; leave the bundle alone while it is installed")
    return text


def _read_sizes(root: str, digests: Mapping[str, str]) -> dict[str, int]:
    try:
        return {path: os.stat(os.path.join(root, path)).st_size for path in digests}
    except OSError as error:
        raise BundleError(f"{error.filename} cannot be read: {error.strerror}; unpack it again") from error


def _render_faults(faults: tuple[str, ...]) -> str:
    count = f"{len(faults)} faults" if len(faults) > 1 else "1 fault"
    more = (f"… and {len(faults) - _MAX_SHOWN_FAULTS} more",) if len(faults) > _MAX_SHOWN_FAULTS else ()
    lines = (f"{count}; copy it anew or build it again:", *faults[:_MAX_SHOWN_FAULTS], *more)
    return "\n  ".join(lines)
