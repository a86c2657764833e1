"""A boot with a bundle of 5 GB that is installed already: how long is the install phase, trusting or hashing?"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

from benchmarks.bundles import make_wheelhouse, work_dir
from benchmarks.installers import our_argv, our_environ, shell_argv, time_s
from benchmarks.managers import Events, entry_argv
from benchmarks.processes import Namespace, now_s
from benchmarks.tables import Row, Table
from infer_dev_entry.install.marker import read_fast
from infer_dev_entry.install.model import InstallRequest

BUNDLE_BYTES = 5 * 1000**3
WHEELS = 24
CALLS = 50
BOOTS = 8
HASH_ROUNDS = 2
PEER_BYTES = 1000**3  # coreutils without OpenSSL hash 0.2 GB a second
LIMIT_MS = 100.0
BOOT_TIMEOUT_S = 20.0
# The installer asks for as much as such a bundle may need, although this one is hollow.
NEED_BYTES = 9 * 1000**3


def run() -> tuple[Table, ...]:
    """Install a hollow bundle once, then look at what later boots cost."""
    with work_dir(NEED_BYTES) as folder:
        bundle = make_wheelhouse(folder, WHEELS).archive
        os.truncate(bundle, BUNDLE_BYTES)  # zeros behind a tar's end belong to it
        project = folder / "project"
        time_s(our_argv(bundle, project), our_environ(folder / "run"))
        fast = [_call_ms(bundle, project) for _ in range(CALLS)]
        cold = [_cold_ms(bundle, project) for _ in range(BOOTS)]
        boots = [_boot(bundle, project, folder / f"run-{number}") for number in range(BOOTS)]
        hashes = _hash_table(bundle, project, folder)
    rows = (
        Row(
            who="boot: entry.started → bundle.unchanged", samples=tuple(b[1] for b in boots), ours=True, limit=LIMIT_MS
        ),
        Row(who="read_fast", samples=tuple(fast), ours=True, limit=LIMIT_MS),
        Row(who="read_fast and its imports in a new Python", samples=tuple(cold), ours=True, limit=LIMIT_MS),
        Row(who="boot: fork → bundle.unchanged", samples=tuple(b[0] for b in boots), ours=True),
    )
    title = f"a boot with an installed bundle of {BUNDLE_BYTES / 1e9:g} GB (sparse)"
    return Table(name="reboot", title=title, unit="ms", rows=rows), hashes


def _call_ms(bundle: Path, project: Path) -> float:
    request = InstallRequest(bundle_path=str(bundle), project_dir=str(project))
    began = time.perf_counter()
    found = read_fast(request)
    took = time.perf_counter() - began
    if found is None:
        raise RuntimeError("the marker is not trusted")
    return 1000 * took


def _cold_ms(bundle: Path, project: Path) -> float:
    code = (
        "import sys, time; began = time.perf_counter(); from infer_dev_entry.install.marker import read_fast; "
        "from infer_dev_entry.install.model import InstallRequest; "
        "found = read_fast(InstallRequest(bundle_path=sys.argv[1], project_dir=sys.argv[2])); "
        "print(1000 * (time.perf_counter() - began) if found else 'nothing')"
    )
    argv = [sys.executable, "-c", code, str(bundle), str(project)]
    root = Path(__file__).parent.parent
    return float(subprocess.run(argv, cwd=root, check=True, capture_output=True, timeout=BOOT_TIMEOUT_S).stdout)


def _boot(bundle: Path, project: Path, run_dir: Path) -> tuple[float, float]:
    """Boot once; return the milliseconds up to `bundle.unchanged`, from the fork and from `entry.started`."""
    environ = our_environ(run_dir) | {
        "AUTO_INFER_SGLANG_BUNDLE_ON_BOOT": "1",
        "AUTO_INFER_SGLANG_BUNDLE_PATH": str(bundle),
        "AUTO_INFER_SGLANG_PIXI_PROJECT_DIR": str(project),
        "AUTO_INFER_SGLANG_ON_ERROR": "exit",
    }
    events = Events()
    reader, writer = os.pipe()
    began = now_s()
    try:
        space = Namespace(entry_argv(), environ=environ, stderr=writer)
    finally:
        os.close(writer)
    listener = threading.Thread(target=events.read, args=(reader,), daemon=True)
    listener.start()
    with space:
        started = events.wait("entry.started", timeout_s=BOOT_TIMEOUT_S)
        unchanged = events.wait("bundle.unchanged", timeout_s=BOOT_TIMEOUT_S)
    listener.join(BOOT_TIMEOUT_S)
    return 1000 * (unchanged.at_s - began), 1000 * (unchanged.at_s - started.at_s)


def _hash_table(bundle: Path, project: Path, folder: Path) -> Table:
    """BUNDLE_VERIFY=always hashes the whole bundle, as sha256sum does."""
    environ = our_environ(folder / "run") | {"AUTO_INFER_SGLANG_BUNDLE_VERIFY": "always"}
    quoted = shlex.quote(str(bundle))
    ways = {
        "infer-dev install": (our_argv(bundle, project), BUNDLE_BYTES),
        "sha256sum": (shell_argv(f"head -c {PEER_BYTES} {quoted} | sha256sum > /dev/null"), PEER_BYTES),
    }
    if shutil.which("openssl"):
        ways["openssl dgst -sha256"] = (shell_argv(f"openssl dgst -sha256 {quoted} > /dev/null"), BUNDLE_BYTES)
    times: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(HASH_ROUNDS):
        for way, (argv, size) in ways.items():
            times[way].append(time_s(argv, environ) * 1e9 / size)
    rows = (Row(who=way, samples=tuple(found), ours=way == "infer-dev install") for way, found in times.items())
    return Table(
        name="reboot_hash",
        title=f"the same with BUNDLE_VERIFY=always: all of {BUNDLE_BYTES / 1e9:g} GB is hashed",
        unit="s/GB",
        rows=tuple(rows),
        notes=("the bundle is sparse, so no disk is read: this is the speed of hashing, the start of Python included",),
    )
