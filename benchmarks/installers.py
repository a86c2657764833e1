"""Runs an install, ours or a peer's, in a process of its own, and tells how long it took and what memory it needed."""

from __future__ import annotations

import os
import pwd
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.bundles import Bundle
from benchmarks.managers import entry_argv
from benchmarks.processes import children_of, read_status
from infer_dev_entry.install.uv import find_uv

TIMEOUT_S = 120.0
# py-rattler 0.28 may crash the interpreter at its end, when the work is done: 3 of 40 bare runs on a busy machine.
CRASHED = 128 + signal.SIGSEGV
MAX_CRASHES = 5

_ROOT = Path(__file__).parent.parent
_SAMPLE_S = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Peak:
    """The most memory that was resident, in MB (10⁶ bytes): of the process alone, and of it and all below it."""

    seconds: float
    alone_mb: float
    tree_mb: float


def our_argv(bundle: Path, project: Path) -> tuple[str, ...]:
    """Return the command of an install by us."""
    return (*entry_argv()[:-1], "install", "--bundle", str(bundle), "--project-dir", str(project))


def our_environ(run_dir: Path) -> dict[str, str]:
    """Return an environment in which nothing of the caller's leads us astray, and no user is changed."""
    kept = {name: text for name, text in os.environ.items() if not name.startswith(("AUTO_INFER_", "INFER_DEV_"))}
    return kept | {
        "AUTO_INFER_SGLANG_USER": pwd.getpwuid(os.geteuid()).pw_name,
        "INFER_DEV_RUN_DIR": str(run_dir),
        "INFER_DEV_LOG_FORMAT": "json",
    }


def uv_script(work: Path, content: Path) -> str:
    """Return the shell lines that make a venv of the wheels below `content` with uv, its cache cold."""
    uv, venv, cache = find_uv(), shlex.quote(f"{work}/env"), shlex.quote(f"{work}/cache")
    python = shlex.quote(str(getattr(sys, "_base_executable", "") or sys.executable))
    wheels, requirements = (shlex.quote(f"{content}/{name}") for name in ("wheels", "requirements.txt"))
    return (
        f"{uv} venv -q --offline --no-config --no-project --cache-dir {cache} --python {python} {venv}\n"
        f"{uv} pip install -q --offline --no-config --no-index --no-deps --require-hashes --cache-dir {cache} "
        f"--python {venv}/bin/python --find-links {wheels} -r {requirements}\n"
    )


def rattler_script(work: Path, content: Path) -> str:
    """Return the shell line that installs the conda packages below `content` with py-rattler, its cache cold."""
    words = (sys.executable, "-m", "benchmarks.bare_rattler", f"{content}/channel", f"{work}/env", f"{work}/cache")
    return f"{shlex.join(words)}\n"


def unpack_script(bundle: Bundle, work: Path) -> str:
    """Return the shell lines that unpack the archive to `<work>/content`."""
    target = shlex.quote(f"{work}/content")
    return f"mkdir {target}\ntar -xf {shlex.quote(str(bundle.archive))} -C {target}\n"


def hash_script(bundle: Bundle) -> str:
    """Return the shell line that hashes the archive: with OpenSSL, as coreutils may be built without it and be slow."""
    tool = "openssl dgst -sha256" if shutil.which("openssl") else "sha256sum"
    return f"{tool} {shlex.quote(str(bundle.archive))} > /dev/null\n"


def tidy_script(work: Path) -> str:
    """Return the shell lines that delete what an install leaves, put the rest on the disk, and try the interpreter."""
    env, content, cache = (shlex.quote(f"{work}/{name}") for name in ("env", "content", "cache"))
    return f"rm -r {content} {cache}\nsync -f {env}\n{env}/bin/python -c ''\n"


class CrashedError(RuntimeError):
    """A bare tool's process crashed."""


def time_s(argv: Sequence[str], environ: Mapping[str, str]) -> float:
    """Run a command to its end and return the seconds.

    Raises:
        CrashedError: it ended by SIGSEGV, itself or below a shell.
        RuntimeError: it failed; the end of what it wrote is in the message.
    """
    began = time.perf_counter()
    done = subprocess.run(argv, env=environ, cwd=_ROOT, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    took = time.perf_counter() - began
    if done.returncode in (CRASHED, -signal.SIGSEGV):
        raise CrashedError(f"{shlex.join(argv)[:200]}: SIGSEGV")
    if done.returncode != 0:
        raise RuntimeError(f"{shlex.join(argv)[:200]}: status {done.returncode}: {done.stderr[-500:]}")
    return took


def shell_argv(script: str) -> tuple[str, ...]:
    """Return the command that runs shell lines, up to the first that fails."""
    return ("sh", "-ec", script)


def measure_peak(argv: Sequence[str], environ: Mapping[str, str]) -> Peak:
    """Run a command to its end and watch its memory.

    Looked at a hundred times a second: the kernel's own record would begin with the memory of us, who forked it.

    Raises:
        RuntimeError: it failed, or is not done in time.
    """
    process = subprocess.Popen(argv, env=environ, cwd=_ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    began = time.monotonic()
    alone = tree = 0
    with process:
        while process.poll() is None:
            if time.monotonic() - began > TIMEOUT_S:
                process.kill()
                raise RuntimeError(f"{shlex.join(argv)[:200]}: not done in {TIMEOUT_S:g} s")
            alone = max(alone, _kilobytes(process.pid, "VmHWM"))
            tree = max(tree, sum(_kilobytes(pid, "VmRSS") for pid in _tree(process.pid)))
            time.sleep(_SAMPLE_S)
    took = time.monotonic() - began
    if process.returncode != 0:
        raise RuntimeError(f"{shlex.join(argv)[:200]}: status {process.returncode}")
    return Peak(seconds=took, alone_mb=alone * 1024 / 1e6, tree_mb=max(tree, alone) * 1024 / 1e6)


def _tree(pid: int) -> list[int]:
    found = [pid]
    for each in found:
        found += children_of(each)
    return found


def _kilobytes(pid: int, key: str) -> int:
    words = read_status(pid).get(key, "").split()
    return int(words[0]) if words else 0


def check_env(env: Path, bundle: Bundle) -> None:
    """Hold an environment to have every file of the bundle, so that nobody is quick by leaving some out.

    Raises:
        RuntimeError: files are missing.
    """
    patterns = ("lib/python*/site-packages/pkg???/data/*.py", "lib/python*/site-packages/pkg???/*.so")
    found = sum(1 for pattern in (*patterns, "share/*/*.txt", "lib/lib*.so") for _ in env.glob(pattern))
    if found != bundle.files:
        raise RuntimeError(f"{env} holds {found} files of the bundle's {bundle.files}")


def clear(folder: Path) -> None:
    """Delete what a run left, and make the folder again; never part of a measured time."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
