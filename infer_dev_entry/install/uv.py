"""The one way wheels get into an environment: linked by uv, offline, each held to its sha256, nothing resolved."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Callable
from urllib.parse import quote

from infer_dev_entry.bundle.model import Package, UnpackedBundle
from infer_dev_entry.errors import InstallError
from infer_dev_entry.install.activation import SYSTEM_PATH
from infer_dev_entry.install.model import Progress
from infer_dev_entry.install.processes import ToolResult, run_tool
from infer_dev_entry.install.store import Store

INSTALL_TIMEOUT_S = 3600.0

_REASON_MAX_CHARS = 600
# uv and pixi draw a tree of causes beside their words (`×`, `╰─▶`, `│`), and say what went well before.
_DRAWING = re.compile(r"^(?:error:|Caused by:|[×╰├│─▶>\s]+)\s*")
_NOT_A_REASON = ("warning:", "Using ", "Resolved ", "Prepared ")


def find_uv() -> str:
    """Return uv's path: the one of the `uv` package, else the one on PATH, else ""."""
    with contextlib.suppress(ImportError, FileNotFoundError):
        from uv import find_uv_bin

        return str(find_uv_bin())
    return shutil.which("uv") or ""


def install_wheels(bundle: UnpackedBundle, *, python: str, project_dir: str, progress: Progress) -> None:
    """Install every wheel of the bundle, and nothing else, into the environment of the interpreter `python`.

    uv links files out of its cache. What a crash left there may lack its data, and serves no later install either, as
    uv finds wheels by path: so each install has a fresh one, which is left in staging, to be deleted.

    Raises:
        InstallError: uv is missing or failed. The environment is then unusable: the next run of uv would not notice a
            package that it had copied by half.
    """
    uv = find_uv()
    if not uv:
        raise InstallError("cannot install wheels: uv is neither installed nor on PATH; pip install uv")
    store = Store(project_dir)
    cache = f"{store.cache_dir}/uv"
    store.remove(cache)
    os.makedirs(cache)
    requirements = f"{cache}/requirements.txt"
    with open(requirements, "w", encoding="utf-8") as file:
        file.write(render_requirements(bundle))
    total = len(bundle.info.wheels)
    progress.stage("install wheels", total, "wheels")
    argv = render_uv_argv(uv, python, requirements, link_mode="hardlink" if can_link(cache) else "copy")
    ticks = _count_entries(f"{cache}/archive-v0", total, progress)
    result = run_tool(argv, env=render_uv_environment(cache), timeout_s=INSTALL_TIMEOUT_S, on_tick=ticks)
    if result.returncode != 0:
        raise InstallError(f"cannot install the wheels of the bundle: {explain_uv(result)}")
    store.discard(cache)


def render_requirements(bundle: UnpackedBundle) -> str:
    """Render one line a wheel with its path and hash: the recorded one, or that of the file as it was unpacked."""
    found = dict(bundle.files)
    return "".join(_render_requirement(bundle.root, wheel, found) for wheel in bundle.info.wheels)


def _render_requirement(root: str, wheel: Package, found: dict[str, str]) -> str:
    digest = wheel.sha256 or found.get(wheel.path, "")
    return f"{wheel.name} @ file://{quote(f'{root}/{wheel.path}')} --hash=sha256:{digest}\n"


def render_uv_argv(uv: str, python: str, requirements: str, *, link_mode: str) -> tuple[str, ...]:
    """Render the command line. A conda Python may be marked as externally managed; its manager is us."""
    return (
        *(uv, "pip", "install", "--offline", "--no-index", "--no-deps", "--no-config", "--require-hashes"),
        *("--no-build", "--no-progress", "--break-system-packages", "--link-mode", link_mode),
        *("--python", python, "-r", requirements),
    )


def render_uv_environment(cache: str) -> dict[str, str]:
    """Render uv's whole environment: no UV_*, PIP_* or proxy variable of a user reaches it; it writes below `cache`."""
    return {
        "PATH": SYSTEM_PATH,
        "HOME": cache,
        "TMPDIR": cache,
        "LANG": "C.UTF-8",
        "NO_COLOR": "1",
        "UV_CACHE_DIR": cache,
        "UV_PYTHON_DOWNLOADS": "never",
    }


def join_causes(result: ToolResult) -> str:
    """Return the chain of causes that a tool drew on its last lines as one line; else how it ended."""
    lines = [_DRAWING.sub("", line.strip()) for line in result.tail]
    told = [line.rstrip(".:") for line in lines if line and not line.startswith(_NOT_A_REASON)]
    return ": ".join(told)[:_REASON_MAX_CHARS] or result.ending


def explain_uv(result: ToolResult) -> str:
    """Return uv's reason with the mend."""
    reason = join_causes(result)
    lowered = reason.lower()
    if "no space left" in lowered or "quota exceeded" in lowered:
        return f"{reason}; free space on the workspace's filesystem"
    if "hash mismatch" in lowered:
        return f"{reason}; copy the bundle again, or build it anew"
    if "permission denied" in lowered or "read-only" in lowered:
        return f"{reason}; make the workspace writable for uid {os.geteuid()}"
    return f"{reason}; verify the bundle with: infer-dev bundle verify"


def can_link(folder: str) -> bool:
    """Say whether the filesystem has hardlinks; exFAT, some network and FUSE filesystems do not."""
    probe = f"{folder}/link-probe"
    try:
        with open(probe, "wb"):
            pass
        os.link(probe, f"{probe}-2")
    except OSError:
        return False
    return True


def _count_entries(folder: str, total: int, progress: Progress) -> Callable[[], None]:
    """Return a look-up of how many wheels lie unpacked in uv's cache; uv itself says nothing until the end."""
    seen = 0

    def look() -> None:
        nonlocal seen
        with contextlib.suppress(OSError):
            now = min(total, len(os.listdir(folder)))
            progress.advance(now - seen)
            seen = now

    return look
