"""Fetch wheels into a cache named by sha256, in parallel, with retries; what is there is not fetched again."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from threading import Event
from urllib.parse import unquote, urlsplit

from infer_dev_entry.bundle.build_archive import COPY_BYTES, check_space
from infer_dev_entry.bundle.build_lock import Wheel
from infer_dev_entry.bundle.build_tools import ToolRun, backoff_s, run_build_tool
from infer_dev_entry.errors import BuildError
from infer_dev_entry.install.model import Progress

# pip starts in 1.4 s, so small wheels share one; a batch that is killed is lost as a whole, so large ones do not.
_BATCH = 6
_LARGE_BYTES = 64 * 1024 * 1024
_BATCH_TIMEOUT_S = 3600.0
_STALE_S = 24 * 3600.0
# uv takes the newest that the index has; from 25.1 on a broken download goes on where it broke.
_PIP = "pip>=23.1"


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchRequest:
    """Where wheels go, for which target, and how hard to try. `uv` and `cache_dir` are absolute paths."""

    uv: str
    cache_dir: str
    python: str
    tags: tuple[str, ...]
    jobs: int
    retries: int
    retry_sleep_s: float


def cached_path(cache_dir: str, wheel: Wheel) -> str:
    """Return where the cache keeps a wheel."""
    return os.path.join(cache_dir, "wheels", wheel.sha256, wheel.filename)


def cached_size(cache_dir: str, wheel: Wheel) -> int:
    """Return the size of a wheel that the cache has, else 0."""
    with suppress(OSError):
        return os.stat(cached_path(cache_dir, wheel)).st_size
    return 0


def pip_platforms(machine: str, glibc: str) -> tuple[str, ...]:
    """Return the platform tags that a Linux of that glibc can install; pip takes each of them literally."""
    newest = int(glibc.partition(".")[2])
    tags = [f"manylinux_2_{minor}_{machine}" for minor in range(newest, 4, -1)]
    return *tags, f"manylinux2014_{machine}", f"manylinux2010_{machine}", f"manylinux1_{machine}", f"linux_{machine}"


def fetch_wheels(
    wheels: Sequence[Wheel], request: FetchRequest, environ: Mapping[str, str], progress: Progress
) -> None:
    """Bring every wheel into the cache, each checked against its sha256.

    Raises:
        BuildError: some cannot be had after all retries (every one is named), or there is no room for them.
    """
    missing = _check_cache(wheels, request.cache_dir, progress)
    if not missing:
        return
    _make_room(missing, request.cache_dir)
    known = sum(wheel.size for wheel in missing) if all(wheel.size for wheel in missing) else 0
    progress.stage(f"fetch {len(missing)} wheels", known)
    for number in range(request.retries + 1):
        # A batch fails as a whole, so a second try has one wheel each.
        batches = make_batches(missing) if number == 0 else [[wheel] for wheel in missing]
        reasons = _fetch_round(missing, batches, request, environ, progress)
        missing = [wheel for wheel in missing if not cached_size(request.cache_dir, wheel)]
        if not missing:
            return
        if number < request.retries:
            pause_s = backoff_s(request.retry_sleep_s, number)
            reason = next(iter(reasons), "no reason given")
            progress.note(f"{len(missing)} wheels failed ({reason}); attempt {number + 2} in {pause_s:g} s")
            time.sleep(pause_s)
    names = ", ".join(f"{wheel.name} {wheel.version}" for wheel in missing)
    raise BuildError(
        f"cannot fetch {len(missing)} of {len(wheels)} wheels: {names}: {next(iter(reasons), 'no reason given')}; "
        "what was fetched is kept, build again to go on"
    )


def _check_cache(wheels: Sequence[Wheel], cache_dir: str, progress: Progress) -> list[Wheel]:
    """Return the wheels that the cache has not; one that is damaged there is removed."""
    progress.stage("check the cache", sum(cached_size(cache_dir, wheel) for wheel in wheels))
    missing = []
    for wheel in wheels:
        path = cached_path(cache_dir, wheel)
        if not os.path.exists(path):
            missing.append(wheel)
        elif hash_file(path, progress) != wheel.sha256:
            progress.note(f"{wheel.filename} is damaged in the cache and is fetched again")
            os.unlink(path)
            missing.append(wheel)
    return missing


def hash_file(path: str, progress: Progress) -> str:
    """Return the sha256 of a file, in flat memory."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while data := file.read(COPY_BYTES):
            digest.update(data)
            progress.advance(len(data))
    return digest.hexdigest()


def _make_room(missing: Sequence[Wheel], cache_dir: str) -> None:
    """Check the space (pip needs a large wheel twice for a moment) and clear what killed builds left."""
    try:
        os.makedirs(os.path.join(cache_dir, "wheels"), exist_ok=True)
        os.makedirs(os.path.join(cache_dir, "tmp"), exist_ok=True)
        for entry in os.scandir(os.path.join(cache_dir, "tmp")):
            if time.time() - entry.stat().st_mtime > _STALE_S:
                shutil.rmtree(entry.path, ignore_errors=True)
    except OSError as error:
        raise BuildError(
            f"cannot write cache {cache_dir}: {error.strerror}; choose another one with --cache-dir"
        ) from error
    sizes = [wheel.size for wheel in missing]
    check_space(cache_dir, sum(sizes) + max(sizes, default=0))


def make_batches(wheels: Sequence[Wheel]) -> list[list[Wheel]]:
    """Split the work: a large wheel alone and first, the others in sixes, neighbours (all of NVIDIA's) apart."""
    large = sorted((wheel for wheel in wheels if wheel.size > _LARGE_BYTES), key=lambda wheel: -wheel.size)
    small = [wheel for wheel in wheels if wheel.size <= _LARGE_BYTES]
    count = -(-len(small) // _BATCH)
    return [[wheel] for wheel in large] + [small[start::count] for start in range(count)]


def _fetch_round(
    missing: Sequence[Wheel],
    batches: Sequence[Sequence[Wheel]],
    request: FetchRequest,
    environ: Mapping[str, str],
    progress: Progress,
) -> list[str]:
    """Try every batch once; return why some failed."""
    folder = tempfile.mkdtemp(dir=os.path.join(request.cache_dir, "tmp"))
    stop = Event()
    pool = ThreadPoolExecutor(max_workers=request.jobs)
    try:
        futures = [
            pool.submit(_fetch_batch, batch, os.path.join(folder, str(number)), request, environ, stop)
            for number, batch in enumerate(batches)
        ]
        _watch(futures, missing, folder, request.cache_dir, progress)
        return [future.result() for future in futures if future.result()]
    finally:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)
        shutil.rmtree(folder, ignore_errors=True)


def _watch(
    futures: Sequence[Future[str]], missing: Sequence[Wheel], folder: str, cache_dir: str, progress: Progress
) -> None:
    """Report the bytes that arrive until all is done; the first unexpected error is raised at once."""
    seen = 0
    pending = set(futures)
    while pending:
        done, pending = wait(pending, timeout=0.5, return_when=FIRST_COMPLETED)
        for future in done:
            future.result()
        arrived = sum(cached_size(cache_dir, wheel) for wheel in missing) + _bytes_under(folder)
        progress.advance(max(0, arrived - seen))
        seen = max(seen, arrived)


def _bytes_under(folder: str) -> int:
    """Return the size of what pip is downloading; files come and go meanwhile."""
    total = 0
    for path, _, names in os.walk(folder):
        if f"{os.sep}out" not in path[len(folder) :]:  # pip's copy of what it has finished
            for name in names:
                with suppress(OSError):
                    total += os.stat(os.path.join(path, name)).st_size
    return total


def _fetch_batch(
    batch: Sequence[Wheel], folder: str, request: FetchRequest, environ: Mapping[str, str], stop: Event
) -> str:
    """Fetch a batch with one pip; return "" or why it failed. What came is in the cache either way."""
    if stop.is_set():
        return "stopped"
    local = [wheel for wheel in batch if _local_path(wheel.url)]
    if local:
        reasons = [_copy_local(wheel, request.cache_dir, folder) for wheel in local]
        rest = [wheel for wheel in batch if wheel not in local]
        reasons += [_fetch_batch(rest, folder, request, environ, stop)] if rest else []
        return next((reason for reason in reasons if reason), "")
    out, scratch = os.path.join(folder, "out"), os.path.join(folder, "tmp")
    os.makedirs(out)
    os.makedirs(scratch)
    lines = [f"{wheel.name} @ {wheel.url} --hash=sha256:{wheel.sha256}" for wheel in batch]
    list_path = os.path.join(folder, "requirements.txt")  # a file, as URLs may hold credentials and argv is public
    with open(list_path, "w", encoding="utf-8", opener=_private) as file:
        file.write("\n".join(lines) + "\n")
    run = _run_pip(list_path, out, request, dict(environ) | {"TMPDIR": scratch}, stop)
    for wheel in batch:
        _keep(os.path.join(out, wheel.filename), wheel, request.cache_dir)
    shutil.rmtree(folder, ignore_errors=True)
    return "" if run.returncode == 0 else run.reason


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _local_path(url: str) -> str:
    """Return the path of a wheel in a folder of this host (find-links), else ""."""
    if url.startswith("file://"):
        return unquote(urlsplit(url).path)
    return "" if "://" in url else os.path.abspath(url)


def _copy_local(wheel: Wheel, cache_dir: str, folder: str) -> str:
    """Copy a wheel of this host into the cache; return "" or why it failed."""
    copy = os.path.join(folder, wheel.filename)
    sha256 = hashlib.sha256()
    try:
        os.makedirs(folder, exist_ok=True)
        with open(_local_path(wheel.url), "rb") as source, open(copy, "wb") as target:
            while data := source.read(COPY_BYTES):
                sha256.update(data)
                target.write(data)
    except OSError as error:
        return f"{error.filename or wheel.filename}: {error.strerror}"
    if sha256.hexdigest() != wheel.sha256:
        return f"{wheel.filename}: its sha256 is not {wheel.sha256}"
    _keep(copy, wheel, cache_dir)
    return ""


def _run_pip(list_path: str, out: str, request: FetchRequest, environ: Mapping[str, str], stop: Event) -> ToolRun:
    # uv has no download of its own; pip goes on with a broken download, and knows proxies, netrc and keyrings.
    argv = [request.uv, "tool", "run", "--from", _PIP, "pip", "download", "--no-deps", "--require-hashes"]
    argv += ["--only-binary=:all:", "--implementation", "cp", "--python-version", request.python]
    argv += [word for tag in request.tags for word in ("--platform", tag)]
    argv += ["--no-cache-dir", "--progress-bar", "off", "-d", out, "-r", list_path]
    return run_build_tool(argv, environ=environ, timeout_s=_BATCH_TIMEOUT_S, stop=stop)


def _keep(path: str, wheel: Wheel, cache_dir: str) -> None:
    """Move a wheel that pip has checked into the cache, as a whole."""
    target = cached_path(cache_dir, wheel)
    if os.path.isfile(path):
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.replace(path, target)
