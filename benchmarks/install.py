"""A fresh install, of wheels and of conda packages, against the bare tools; and its memory, for two sizes of bundle."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

from benchmarks.bundles import Bundle, make_pixi_pack, make_wheelhouse, work_dir
from benchmarks.installers import (
    MAX_CRASHES,
    CrashedError,
    Peak,
    check_env,
    clear,
    hash_script,
    measure_peak,
    our_argv,
    our_environ,
    rattler_script,
    shell_argv,
    tidy_script,
    time_s,
    unpack_script,
    uv_script,
)
from benchmarks.tables import Row, Table

ROUNDS = 5
WHEELS = 72
CONDA_PACKAGES = 48
# The archives of these are of about 100 and 400 MB.
SMALL_COUNT, LARGE_COUNT = 36, 144
SPEED = 0.9  # of the speed of the same work with bare tools
GROWTH_MB = 8.0
NEED_BYTES = 6 * 1000**3

OURS = "infer-dev install"


def run() -> tuple[Table, ...]:
    """Measure the two backends, every way in turn in every round, then memory."""
    with work_dir(NEED_BYTES) as folder:
        wheels = _measure_speed(folder, "install_wheels", "uv", make_wheelhouse(folder / "wheels", WHEELS), uv_script)
        clear(folder)
        conda = make_pixi_pack(folder / "conda", CONDA_PACKAGES)
        rattler = _measure_speed(folder, "install_conda", "py-rattler", conda, rattler_script)
        clear(folder)
        return wheels, rattler, _measure_memory(folder)


def _measure_speed(
    folder: Path, name: str, tool: str, bundle: Bundle, install_script: Callable[[Path, Path], str]
) -> Table:
    work = folder / "work"
    unpacked = work / "content"
    unpack, install = unpack_script(bundle, work), install_script(work, unpacked)
    fair, by_hand = f"tar xf, {tool}", f"sha256, tar xf, {tool}, rm, sync, python"
    ways = {
        OURS: our_argv(bundle.archive, work / "project"),
        f"{tool}, of unpacked files": shell_argv(install_script(work, bundle.content)),
        fair: shell_argv(unpack + install),
        by_hand: shell_argv(hash_script(bundle) + unpack + install + tidy_script(work)),
    }
    times: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(ROUNDS + 1):
        # There and back, as what a machine does for another may last longer than one way does.
        for way in list(ways) if number % 2 else reversed(ways):
            if not number and way not in (OURS, fair):
                continue
            took = _time_again(ways[way], work, may_crash=way != OURS)
            check_env(work / ("project/env" if way == OURS else "env"), bundle)
            if number:  # the first only warms the page cache, which those two ways do for all
                times[way].append(took)
    ours = tuple(times.pop(OURS))
    rows = (
        Row(who=OURS, samples=ours, ours=True, limit=median(times[by_hand]) / SPEED),
        Row(who=f"the same, held to: {fair}", samples=ours, ours=True, limit=median(times[fair]) / SPEED),
        *(Row(who=way, samples=tuple(found)) for way, found in times.items()),
    )
    notes = (
        f"the archive: {bundle.describe()}; in {folder.parent}; caches of the tool cold, page cache warm",
        f"the first limit is {SPEED:g} of the speed of: {by_hand}, which leaves what we leave, as surely",
        f"the second is the same of: {fair}; that hashes no archive, deletes, syncs and tries nothing",
    )
    return Table(name=name, title=f"a fresh install, against bare {tool}", unit="s", rows=rows, notes=notes)


def _time_again(argv: Sequence[str], work: Path, *, may_crash: bool) -> float:
    """Time a way in a fresh directory; a bare tool that crashed is measured once more, our own crash is a failure."""
    for _ in range(MAX_CRASHES if may_crash else 1):
        clear(work)
        try:
            return time_s(argv, our_environ(work / "run"))
        except CrashedError as error:
            crash = error
    raise crash


def _measure_memory(folder: Path) -> Table:
    bundles = [make_wheelhouse(folder / str(count), count) for count in (SMALL_COUNT, LARGE_COUNT)]
    work = folder / "work"
    ours: list[Peak] = []
    peer: list[Peak] = []
    for bundle in bundles:
        clear(work)
        ours.append(measure_peak(our_argv(bundle.archive, work / "project"), our_environ(work / "run")))
        clear(work)
        argv = shell_argv(unpack_script(bundle, work) + uv_script(work, work / "content"))
        peer.append(measure_peak(argv, our_environ(work / "run")))
    sizes = [f"{bundle.size_bytes / 1e6:.0f} MB" for bundle in bundles]
    limits = (None, ours[0].alone_mb + GROWTH_MB)
    rows = (
        *(
            Row(who=f"infer-dev itself, {size}", samples=(peak.alone_mb,), ours=True, limit=limit)
            for size, peak, limit in zip(sizes, ours, limits, strict=True)
        ),
        *(
            Row(who=f"infer-dev with its children, {size}", samples=(peak.tree_mb,), ours=True)
            for size, peak in zip(sizes, ours, strict=True)
        ),
        *(
            Row(who=f"tar xf, uv: all processes, {size}", samples=(peak.tree_mb,))
            for size, peak in zip(sizes, peer, strict=True)
        ),
    )
    return Table(
        name="install_memory",
        title="the most resident memory of an install of wheels",
        unit="MB",
        rows=rows,
        notes=(
            f"flat: at most {GROWTH_MB:g} MB more for four times the bundle and its files",
            "the ratios say nothing: they compare with ourselves alone at the smaller size",
        ),
    )
