"""Build a pixi-pack bundle on a host with pixi: lock, verify, pack with retries, and add the sidecar.

All of it happens in a copy of the template, so that the template never grows a `.pixi/`.
"""

from __future__ import annotations

import os
import platform as host_platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from infer_dev_entry import __version__
from infer_dev_entry.bundle.build_archive import BuiltBundle, write_error
from infer_dev_entry.bundle.build_manifest import VERIFY_TASK, Manifest, parse_manifest
from infer_dev_entry.bundle.build_repack import repack
from infer_dev_entry.bundle.build_tools import ToolRun, redact, retry, run_build_tool
from infer_dev_entry.bundle.model import PIXI_PACK
from infer_dev_entry.bundle.sidecar import render_sidecar
from infer_dev_entry.errors import BuildError
from infer_dev_entry.install.model import Progress

_TOOL_TIMEOUT_S = 4 * 3600.0
_HOSTS = {("linux", "x86_64"): "linux-64", ("linux", "aarch64"): "linux-aarch64"}


@dataclass(frozen=True, slots=True, kw_only=True)
class PixiRequest:
    """What to build. Paths are absolute, "" when not given; `pixi` and `pixi_pack` are programs, "" to find them."""

    template_dir: str
    output: str
    cache_dir: str
    environment: str = "default"
    platform: str = "linux-64"
    directory_only: bool = False
    create_executable: bool = False
    ignore_pypi_non_wheel: bool = False
    rattler_config: str = ""
    rattler_cache_dir: str = ""
    pixi_pack_cache_dir: str = ""
    pixi: str = ""
    pixi_pack: str = ""
    retries: int = 3
    retry_sleep_s: float = 5.0
    skip_verify: bool = False
    update_lock: bool = False


def build_pixi(request: PixiRequest, environ: Mapping[str, str], progress: Progress) -> BuiltBundle:
    """Build the bundle; `request.output` appears when it is complete.

    Raises:
        BuildError: the template cannot be used, a tool is missing or fails, or the bundle cannot be written.
    """
    manifest = _read_manifest(request)
    for warning in manifest.warnings:
        progress.note(f"warning: {warning}")
    pixi = _find_tool("pixi", request.pixi, environ)
    packer = _find_packer(request.pixi_pack, pixi, environ)
    caches = _Caches(request)
    try:
        os.makedirs(caches.work_parent, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="build-", dir=caches.work_parent) as work:
            run = _Runner(caches.environ(environ), work, progress)
            _copy_template(request, work)
            _lock(request, run, pixi, work)
            _verify(request, manifest, run, pixi, progress)
            packed = _pack(request, run, packer, work, caches, progress)
            return repack(packed, request.output, _extra_files(work), _render(request, manifest), progress)
    except OSError as error:
        raise write_error(caches.work_parent, error) from error


class _Caches:
    """Where the tools keep what they download, so that the next build finds it."""

    def __init__(self, request: PixiRequest) -> None:
        self.work_parent = os.path.join(request.cache_dir, "work")
        self.rattler = request.rattler_cache_dir or os.path.join(request.cache_dir, "rattler")
        self.pack = request.pixi_pack_cache_dir or os.path.join(request.cache_dir, "pixi-pack")

    def environ(self, environ: Mapping[str, str]) -> dict[str, str]:
        """Return the tools' environment; pixi looks at PIXI_CACHE_DIR before RATTLER_CACHE_DIR."""
        fixed = {"RATTLER_CACHE_DIR": self.rattler, "PIXI_CACHE_DIR": self.rattler, "NO_COLOR": "1"}
        # A build started inside `pixi run` or `pixi shell` must not take that project for its own.
        own = {name: value for name, value in environ.items() if not name.startswith("PIXI_PROJECT_")}
        return own | fixed | {"PIXI_NO_PROGRESS": "1"}


class _Runner:
    """Runs the tools of one build and shows their lines, redacted."""

    def __init__(self, environ: Mapping[str, str], work: str, progress: Progress) -> None:
        self._environ = environ
        self._work = work
        self._progress = progress

    def run(self, argv: Sequence[str]) -> ToolRun:
        """Run a tool and return how it ended."""
        self._progress.note("$ " + redact(" ".join(argv)))
        return run_build_tool(
            argv, environ=self._environ, cwd=self._work, timeout_s=_TOOL_TIMEOUT_S, on_line=self._progress.note
        )

    def retry(self, attempt: Callable[[], ToolRun], what: str, request: PixiRequest) -> None:
        """Run a tool that needs the network, again when it fails."""
        retry(attempt, what=what, retries=request.retries, sleep_s=request.retry_sleep_s, note=self._progress.note)


def _read_manifest(request: PixiRequest) -> Manifest:
    path = os.path.join(request.template_dir, "pixi.toml")
    try:
        with open(path, encoding="utf-8") as file:
            return parse_manifest(file.read(), request.environment, request.platform)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise BuildError(f"cannot read template {path}: {reason}; choose the folder with --template-dir") from error


def _find_tool(name: str, given: str, environ: Mapping[str, str]) -> str:
    """Return a program's path.

    Raises:
        BuildError: it is not there.
    """
    variable = f"{name.replace('-', '_').upper()}_BIN"
    wanted = given or environ.get(variable, "") or name
    found = shutil.which(wanted, path=environ.get("PATH"))
    if not found:
        raise BuildError(
            f"cannot find {wanted}: it is not on PATH; install it, name it with --{name} or {variable}, "
            "or build a bundle of wheels, which needs no pixi: --kind wheels"
        )
    return os.path.abspath(found)


def _find_packer(given: str, pixi: str, environ: Mapping[str, str]) -> tuple[str, ...]:
    """Return the words that run pixi-pack: the program, or pixi, which fetches it for the occasion."""
    if given or environ.get("PIXI_PACK_BIN") or shutil.which("pixi-pack", path=environ.get("PATH")):
        return (_find_tool("pixi-pack", given, environ),)
    return pixi, "exec", "pixi-pack"


def _copy_template(request: PixiRequest, work: str) -> None:
    """Copy the template; a rattler config goes where pixi looks for a project's own."""
    shutil.copytree(request.template_dir, work, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".pixi"))
    if request.rattler_config:
        os.makedirs(os.path.join(work, ".pixi"))
        try:
            shutil.copyfile(request.rattler_config, os.path.join(work, ".pixi", "config.toml"))
        except OSError as error:
            raise BuildError(f"cannot read --rattler-config {request.rattler_config}: {error.strerror}") from error


def _lock(request: PixiRequest, run: _Runner, pixi: str, work: str) -> None:
    """Make pixi.lock, or bring the template's up to date; give it back when that is asked for."""
    manifest = os.path.join(work, "pixi.toml")
    run.retry(lambda: run.run((pixi, "lock", "--manifest-path", manifest)), "lock the template", request)
    if request.update_lock:
        shutil.copyfile(os.path.join(work, "pixi.lock"), os.path.join(request.template_dir, "pixi.lock"))


def _verify(request: PixiRequest, manifest: Manifest, run: _Runner, pixi: str, progress: Progress) -> None:
    """Run the verify task in the locked environment, on this host, if it can."""
    if request.skip_verify or not manifest.has_verify_task:
        progress.note("the environment is not verified here" + (": --skip-verify" if request.skip_verify else ""))
        return
    here = _HOSTS.get((sys.platform, host_platform.machine()), "")
    if here != request.platform:
        progress.note(f"the environment is not verified here: this host is no {request.platform}")
        return
    argv = (pixi, "run", "--locked", "--environment", request.environment, VERIFY_TASK)
    ended = run.run(argv)
    if ended.returncode:
        raise BuildError(
            f"cannot verify environment {request.environment!r}: {ended.reason}; mend pixi.toml, or pass --skip-verify "
            "when this host lacks what the task needs (a GPU?)"
        )


def _pack(
    request: PixiRequest, run: _Runner, packer: tuple[str, ...], work: str, caches: _Caches, progress: Progress
) -> str:
    """Run pixi-pack until it succeeds; return what it made, beside the work copy."""
    packed = os.path.join(work, ".packed" + (".sh" if request.create_executable else ""))
    argv = (*packer, "--environment", request.environment, "--platform", request.platform)
    argv += ("--output-file", packed, "--use-cache", caches.pack)
    argv += ("--config", os.path.join(work, ".pixi", "config.toml")) if request.rattler_config else ()
    argv += ("--ignore-pypi-non-wheel",) if request.ignore_pypi_non_wheel else ()
    argv += ("--create-executable",) if request.create_executable else ()
    argv += ("--directory-only",) if request.directory_only else ()
    progress.stage("pack")

    def attempt() -> ToolRun:
        _remove(packed)  # the half of an attempt that failed
        return run.run((*argv, os.path.join(work, "pixi.toml")))

    run.retry(attempt, "pack the environment", request)
    if not os.path.exists(packed):
        raise BuildError("cannot pack the environment: pixi-pack succeeded without an output; is its version 0.7?")
    return packed


def _remove(path: str) -> None:
    if os.path.isdir(path):
        shutil.rmtree(path)
    elif os.path.lexists(path):
        os.unlink(path)


def _extra_files(work: str) -> dict[str, str]:
    """Return the manifest and the lock, which the `pixi` installer needs and pixi-pack leaves out."""
    found = {}
    for name in ("pixi.toml", "pixi.lock"):
        path = os.path.join(work, name)
        if os.path.exists(path):
            with open(path, encoding="utf-8") as file:
                found[name] = file.read()
    return found


def _render(request: PixiRequest, manifest: Manifest) -> Callable[[Mapping[str, str]], str]:
    return lambda files: render_sidecar(
        kind=PIXI_PACK,
        platform=request.platform,
        python="",
        created_by=f"infer-dev {__version__}",
        files=files,
        activation=dict(manifest.activation),
        verify=manifest.verify,
    )
