"""Build a bundle of wheels for a target Python and Linux, on any host: resolve with uv, fetch with pip, pack."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace

from infer_dev_entry import __version__
from infer_dev_entry.bundle.build_archive import BuiltBundle, Source, write_archive, write_directory
from infer_dev_entry.bundle.build_fetch import FetchRequest, cached_path, cached_size, fetch_wheels, pip_platforms
from infer_dev_entry.bundle.build_lock import Pin, Wheel, is_lock, parse_pins, parse_pylock, render_requirements
from infer_dev_entry.bundle.build_tools import retry, run_build_tool
from infer_dev_entry.bundle.model import SIDECAR_NAME, WHEELS
from infer_dev_entry.bundle.sidecar import render_sidecar
from infer_dev_entry.errors import BuildError
from infer_dev_entry.install.model import Progress
from infer_dev_entry.install.uv import find_uv

# conda's word for a platform → the machine in wheel tags.
MACHINES = {"linux-64": "x86_64", "linux-aarch64": "aarch64"}
_RESOLVE_TIMEOUT_S = 1800.0


@dataclass(frozen=True, slots=True, kw_only=True)
class WheelsRequest:
    """What to build. `requirements` is a file: a lock (all pinned, with hashes) is taken as it is, others resolved."""

    requirements: str
    output: str
    cache_dir: str
    must_be_lock: bool = False
    overrides: str = ""
    exclude_newer: str = ""
    python: str = "3.12"
    platform: str = "linux-64"
    glibc: str = "2.35"
    directory_only: bool = False
    verify_command: tuple[str, ...] = ()
    activation: tuple[tuple[str, str], ...] = ()
    jobs: int = 4
    retries: int = 3
    retry_sleep_s: float = 5.0


def plan_wheels(request: WheelsRequest, environ: Mapping[str, str], progress: Progress) -> tuple[Wheel, ...]:
    """Resolve the requirements for the target and return one wheel a package, with sizes where somebody tells them.

    Raises:
        BuildError: they cannot be read or resolved, or a package has no wheel for the target.
    """
    _check_target(request)
    text = _read(request.requirements)
    locked = is_lock(text)
    if request.must_be_lock and not locked:
        raise BuildError(
            f"cannot use {request.requirements} as a lock: not every requirement is pinned with ==VERSION and --hash; "
            "resolve it with -r and --write-lock"
        )
    pins: dict[str, Pin] = {pin.name: pin for pin in parse_pins(text)} if locked else {}
    progress.stage("read the lock" if locked else "resolve")
    pylock = _resolve(request, environ, progress, no_deps=locked)
    wheels = parse_pylock(pylock, request.python, pins)
    if not wheels:
        raise BuildError(f"cannot build from {request.requirements}: it asks for no package on {request.platform}")
    return with_sizes(wheels, request.cache_dir)


def build_wheels(
    request: WheelsRequest, wheels: tuple[Wheel, ...], environ: Mapping[str, str], progress: Progress
) -> BuiltBundle:
    """Fetch the planned wheels and write the bundle; a build that was cut short goes on where it was.

    Raises:
        BuildError: a wheel cannot be had, or the bundle cannot be written.
    """
    fetch = FetchRequest(
        uv=require_uv(),
        cache_dir=request.cache_dir,
        python=request.python,
        tags=pip_platforms(MACHINES[request.platform], request.glibc),
        jobs=request.jobs,
        retries=request.retries,
        retry_sleep_s=request.retry_sleep_s,
    )
    fetch_wheels(wheels, fetch, index_environ(environ), progress)
    write = write_directory if request.directory_only else write_archive
    return write(request.output, _sources(request, wheels), progress)


def with_sizes(wheels: tuple[Wheel, ...], cache_dir: str) -> tuple[Wheel, ...]:
    """Return the wheels with the sizes that the cache knows, where the index told none."""
    return tuple(replace(wheel, size=wheel.size or cached_size(cache_dir, wheel)) for wheel in wheels)


def render_lock(request: WheelsRequest, wheels: tuple[Wheel, ...]) -> str:
    """Return the lock that builds the same bundle again: one hash a package, sizes as comments, no index."""
    as_of = f", as of {request.exclude_newer}" if request.exclude_newer else ""
    header = (
        f"For Python {request.python}, {request.platform}, glibc {request.glibc}{as_of}: wheels only, one hash each.",
        f"{len(wheels)} packages. Made by: infer-dev bundle build --dry-run --write-lock (see docs/bundles.md).",
    )
    return render_requirements(wheels, header=header, sizes=True)


def require_uv() -> str:
    """Return uv's path.

    Raises:
        BuildError: there is none.
    """
    found = find_uv()
    if not found:
        raise BuildError("cannot find uv: it is neither installed nor on PATH; run: pip install uv")
    return found


def index_environ(environ: Mapping[str, str]) -> dict[str, str]:
    """Return an environment in which uv and pip use the same indexes, whichever of the two the user configured.

    What would turn a download into an install, or change the target, is taken out.
    """
    child = {name: value for name, value in environ.items() if name not in _PIP_TRAPS}
    for ours, theirs, separator in _INDEX_NAMES:
        if child.get(theirs) and not child.get(ours):
            child[ours] = separator.join(child[theirs].replace(",", " ").split())
    return child | {"PIP_NO_INPUT": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "NO_COLOR": "1"}


# (the name to fill in, the one it is taken from, how the former separates values)
_INDEX_NAMES = (
    ("UV_DEFAULT_INDEX", "UV_INDEX_URL", " "),
    ("UV_DEFAULT_INDEX", "PIP_INDEX_URL", " "),
    ("PIP_INDEX_URL", "UV_DEFAULT_INDEX", " "),
    ("UV_EXTRA_INDEX_URL", "PIP_EXTRA_INDEX_URL", " "),
    ("PIP_EXTRA_INDEX_URL", "UV_EXTRA_INDEX_URL", " "),
    ("UV_FIND_LINKS", "PIP_FIND_LINKS", ","),
    ("PIP_FIND_LINKS", "UV_FIND_LINKS", " "),
    ("SSL_CERT_FILE", "PIP_CERT", " "),
)
_PIP_TRAPS = {
    *("PIP_TARGET", "PIP_PREFIX", "PIP_USER", "PIP_ROOT", "PIP_REQUIRE_VIRTUALENV", "PIP_NO_BINARY", "PIP_ONLY_BINARY"),
    *(
        "PIP_PLATFORM",
        "PIP_ABI",
        "PIP_DEST",
        "PIP_REQUIREMENT",
        "PIP_CONSTRAINT",
        "PIP_NO_INDEX",
        "PIP_FORCE_REINSTALL",
    ),
    *("UV_OFFLINE", "UV_PYTHON", "UV_CONSTRAINT", "UV_OVERRIDE", "UV_NO_BUILD", "UV_NO_BINARY", "UV_SYSTEM_PYTHON"),
    *("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"),
}


def _check_target(request: WheelsRequest) -> None:
    if request.platform not in MACHINES:
        known = ", ".join(MACHINES)
        raise BuildError(f"cannot build for {request.platform!r}: servers run on {known}; use -p with one of them")
    if not re.fullmatch(r"3\.\d{1,2}", request.python):
        raise BuildError(f"cannot build for Python {request.python!r}: expected a minor version such as 3.12")
    if not re.fullmatch(r"2\.\d{2}", request.glibc):
        raise BuildError(f"cannot build for glibc {request.glibc!r}: expected a version such as 2.35 (ldd --version)")


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise BuildError(f"cannot read requirements {path}: {reason}; name a file with -r") from error


def _resolve(request: WheelsRequest, environ: Mapping[str, str], progress: Progress, *, no_deps: bool) -> str:
    """Run uv's resolver for the target; return its pylock.toml, which names a URL and a hash for every wheel."""
    with tempfile.TemporaryDirectory() as folder:
        output = os.path.join(folder, "pylock.toml")
        target = f"{MACHINES[request.platform]}-manylinux_{request.glibc.replace('.', '_')}"
        argv = [require_uv(), "pip", "compile", "--quiet", "--no-build", "--no-header", "--no-annotate"]
        argv += ["--format", "pylock.toml", "--python-version", request.python, "--python-platform", target]
        argv += ["--no-python-downloads", "--output-file", output, os.path.abspath(request.requirements)]
        argv += ["--no-deps"] if no_deps else []
        argv += ["--exclude-newer", _as_instant(request.exclude_newer)] if request.exclude_newer else []
        argv += ["--overrides", os.path.abspath(request.overrides)] if request.overrides else []
        retry(
            lambda: run_build_tool(argv, environ=index_environ(environ), timeout_s=_RESOLVE_TIMEOUT_S),
            what=f"resolve {request.requirements}",
            retries=0,
            sleep_s=request.retry_sleep_s,
            note=progress.note,
        )
        return _read(output)


def _as_instant(date: str) -> str:
    """Return a date with a time zone; uv would take a bare one in the host's, and resolve otherwise elsewhere."""
    return f"{date}T00:00:00Z" if re.fullmatch(r"\d{4}-\d{2}-\d{2}", date) else date


def _sources(request: WheelsRequest, wheels: tuple[Wheel, ...]) -> tuple[Source, ...]:
    """Return the bundle's files: what describes it first, so that a reader of the stream knows early."""
    requirements = Source(path="requirements.txt", text=render_requirements(wheels))
    files = {f"wheels/{wheel.filename}": wheel for wheel in sorted(wheels, key=lambda wheel: wheel.filename)}
    sidecar = render_sidecar(
        kind=WHEELS,
        platform=request.platform,
        python=request.python,
        created_by=f"infer-dev {__version__}",
        files={path: wheel.sha256 for path, wheel in files.items()} | {requirements.path: requirements.digest},
        activation=dict(request.activation),
        verify=request.verify_command,
    )
    return (
        Source(path=SIDECAR_NAME, text=sidecar),
        requirements,
        *(
            Source(path=path, file=cached_path(request.cache_dir, wheel), sha256=wheel.sha256)
            for path, wheel in files.items()
        ),
    )
