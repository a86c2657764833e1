"""pixi-pack's self-extracting `.sh`, read without being run: time and memory against the same content as a tar."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from statistics import median

from benchmarks.bundles import make_wheelhouse, work_dir, write_shell
from benchmarks.installers import clear, measure_peak, our_environ, shell_argv
from benchmarks.tables import Row, Table

ROUNDS = 3
SMALL_COUNT, LARGE_COUNT = 18, 72
NEED_BYTES = 3 * 1000**3
GROWTH_MB = 8.0
TIMEOUT_S = 120.0

# Times itself, so that the start of Python is in neither of the two; VmHWM is of this process's own memory alone.
_UNPACK = """
import json, re, sys, time
from infer_dev_entry.bundle.unpack import unpack_bundle
class Quiet:
    def stage(self, name, total=0, unit="B"): pass
    def advance(self, amount): pass
    def note(self, message): pass
began = time.perf_counter()
unpack_bundle(sys.argv[1], sys.argv[2], progress=Quiet())
took = time.perf_counter() - began
print(json.dumps([took, int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024 / 1e6]))
"""


def run() -> tuple[Table, ...]:
    """Unpack both, of two sizes, and the same with the system's tools."""
    times: dict[str, list[float]] = {}
    peaks: dict[str, list[float]] = {}
    with work_dir(NEED_BYTES) as folder:
        small, large = (make_wheelhouse(folder / str(count), count) for count in (SMALL_COUNT, LARGE_COUNT))
        scripts = [write_shell(bundle.archive, bundle.archive.with_suffix(".sh")) for bundle in (small, large)]
        sizes = [f"{bundle.size_bytes / 1e6:.0f} MB" for bundle in (small, large)]
        for number in range(ROUNDS + 1):
            for size, tar, shell in zip(sizes, (small.archive, large.archive), scripts, strict=True):
                for kind, archive in (("tar", tar), (".sh", shell)):
                    took, peak = _unpack(archive, folder / "work")
                    if number:
                        times.setdefault(f"{kind}, {size}", []).append(took)
                        peaks.setdefault(f"{kind}, {size}", []).append(peak)
            if number:
                _run_tools(folder / "work", large.archive, scripts[1], times, peaks)
        title = f"unpacked and hashed, as `.sh` and as tar of the same files ({', '.join(sizes)})"
    return _time_table(title, sizes[1], times), _memory_table(title, sizes, peaks)


def _unpack(archive: Path, work: Path) -> tuple[float, float]:
    """Unpack in a new process; return its seconds and its peak in MB."""
    clear(work)
    argv = [sys.executable, "-c", _UNPACK, str(archive), str(work / "content")]
    root = Path(__file__).parent.parent
    done = subprocess.run(argv, cwd=root, check=True, capture_output=True, timeout=TIMEOUT_S)
    took, peak = json.loads(done.stdout)
    return took, peak


def _run_tools(
    work: Path, tar: Path, shell: Path, times: dict[str, list[float]], peaks: dict[str, list[float]]
) -> None:
    # What the script itself would do, less its program: cut the archive out, decode it, untar it.
    cut = f"sed -n '/^@@END_HEADER@@$/,/^@@END_ARCHIVE@@$/p' {shlex.quote(str(shell))} | sed '1,2d;$d'"
    ways = {
        "sed, base64 -d, tar: .sh": f"{cut} | base64 -d | tar -xf - -C {work}",
        "tar: tar": f"tar -xf {shlex.quote(str(tar))} -C {work}",
    }
    environ = our_environ(work / "run")
    for way, script in ways.items():
        clear(work)
        peak = measure_peak(shell_argv(script), environ)
        times.setdefault(way, []).append(peak.seconds)
        peaks.setdefault(way, []).append(peak.tree_mb)


def _time_table(title: str, size: str, times: dict[str, list[float]]) -> Table:
    rows = [
        Row(who=f"infer-dev: .sh, {size}", samples=tuple(times[f".sh, {size}"]), ours=True),
        Row(who=f"infer-dev: tar, {size}", samples=tuple(times[f"tar, {size}"])),
        *(Row(who=way, samples=tuple(times[way])) for way in ("sed, base64 -d, tar: .sh", "tar: tar")),
    ]
    notes = ("ours hashes the archive and every file as well; the system's tools hash nothing",)
    return Table(name="shell_archive", title=title, unit="s", rows=tuple(rows), notes=notes)


def _memory_table(title: str, sizes: list[str], peaks: dict[str, list[float]]) -> Table:
    limit = median(peaks[f"tar, {sizes[0]}"]) + GROWTH_MB
    names = [f"{kind}, {size}" for kind in (".sh", "tar") for size in reversed(sizes)]
    rows = [Row(who=f"infer-dev: {name}", samples=tuple(peaks[name]), ours=True, limit=limit) for name in names]
    rows += [Row(who=way, samples=tuple(found)) for way, found in peaks.items() if way not in names]
    notes = (f"the limit is that of the smaller tar and {GROWTH_MB:g} MB", "the tools' is the sum of their processes")
    return Table(name="shell_archive_memory", title=title, unit="MB", rows=tuple(rows), notes=notes)
