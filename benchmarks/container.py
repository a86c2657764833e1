"""In a container with all gates off: how much later does the command run than in the same image under tini?

The containers are made beforehand; what is timed is `docker start --attach` to the command's first byte, which holds
the engine's own half second. The difference is taken per round, so that a slow moment of the engine hits both sides.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from benchmarks.managers import private_dir
from benchmarks.processes import now_s
from benchmarks.tables import PEERS_MEND, Row, Table

ROUNDS = 20
LIMIT_MS = 150.0
TIMEOUT_S = 60
_ENGINE_MEND = "skipped: no engine answers with the image {image}; docker/build-image.sh -t {image}"
_OURS, _TINI, _BARE = "infer-dev entry", "tini", "no init"
_COMMAND = ("echo", "x")


def run() -> tuple[Table, ...]:
    """Measure all inits in turn in every round, a new container each time."""
    image = os.environ.get("INFER_DEV_IMAGE", "infer-dev:latest")
    if not _has_image(image):
        return (_table(Row(who=_OURS, remark=_ENGINE_MEND.format(image=image))),)
    with _tini_image(image) as tini:
        inits = {_OURS: (image,), _BARE: ("--entrypoint", "", image)} | ({_TINI: (tini,)} if tini else {})
        for init in inits.values():
            _time_ms(init)  # warms the page cache
        times: dict[str, list[float]] = {name: [] for name in inits}
        for _ in range(ROUNDS):
            for name, init in inits.items():
                times[name].append(_time_ms(init))
    return (_table(*_rows(times)),)


def _rows(times: Mapping[str, list[float]]) -> Iterator[Row]:
    for name, found in times.items():
        yield Row(who=name, samples=tuple(found), ours=name == _OURS)
    if _TINI in times:
        over = tuple(ours - tini for ours, tini in zip(times[_OURS], times[_TINI], strict=True))
        yield Row(who=f"{_OURS} − {_TINI}", samples=over, limit=LIMIT_MS, ours=True)
    else:
        yield Row(who=_TINI, remark=PEERS_MEND)


def _table(*rows: Row) -> Table:
    return Table(
        name="container",
        title="docker start to the command's first byte",
        unit="ms",
        rows=rows,
        notes=("the figures include the engine's own work, the same for all",),
    )


def _docker(*words: str) -> str:
    """Run docker and return what it printed.

    Raises:
        CalledProcessError: it failed.
    """
    run = subprocess.run(("docker", *words), check=True, capture_output=True, text=True, timeout=TIMEOUT_S)
    return run.stdout.strip()


def _has_image(image: str) -> bool:
    try:
        return bool(_docker("image", "inspect", "--format", "{{.Id}}", image))
    except (OSError, subprocess.CalledProcessError):
        return False


@contextmanager
def _tini_image(image: str) -> Iterator[str]:
    """Build the same image with this machine's tini as its entrypoint, and remove it; "" without a tini."""
    program = shutil.which("tini")
    if not program:
        yield ""
        return
    tag = f"infer-dev-benchmark-tini:{os.getpid()}"
    with private_dir() as directory:
        shutil.copy(Path(program).resolve(), directory / "tini")
        (directory / "Dockerfile").write_text(
            f'FROM {image}\nCOPY tini /usr/local/bin/tini\nENTRYPOINT ["tini", "--"]\nHEALTHCHECK NONE\n'
        )
        _docker("build", "-q", "-t", tag, str(directory))
    try:
        yield tag
    finally:
        _docker("image", "rm", "-f", tag)


def _time_ms(init: tuple[str, ...]) -> float:
    # Without the health check: the engine would start it for every container, in the midst of what is measured.
    container = _docker("create", "--no-healthcheck", "--network", "none", *init, *_COMMAND)
    try:
        began = now_s()
        with subprocess.Popen(("docker", "start", "--attach", container), stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            first = process.stdout.read(1)
            took = now_s() - began
            process.wait(TIMEOUT_S)
    finally:
        _docker("rm", "-f", container)
    if first != b"x" or process.returncode != 0:
        raise RuntimeError(f"{' '.join(init)} did not run the command: status {process.returncode}")
    return took * 1000
