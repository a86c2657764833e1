"""With all gates off, PID 1 is a proxy: how much later does the command run than under tini, dumb-init or no init?"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

from benchmarks.managers import entry_argv
from benchmarks.processes import UNSHARE, now_s
from benchmarks.tables import PEERS_MEND, Row, Table

ROUNDS = 30
LIMIT_MS = 60.0
_COMMAND = ("echo", "x")
# What any init in Python costs: an interpreter that only executes the command.
_FLOOR = (sys.executable, "-I", "-S", "-c", "import os, sys; os.execvp(sys.argv[1], sys.argv[1:])")


def run() -> tuple[Table, ...]:
    """Measure the time from the fork to the command's first byte, all inits in turn in every round."""
    inits: dict[str, tuple[str, ...]] = {"infer-dev entry": entry_argv(), "bare exec": ()}
    skipped = []
    for name in ("tini", "dumb-init"):
        if shutil.which(name):
            inits[name] = (name, "--")
        else:
            skipped.append(Row(who=name, remark=PEERS_MEND))
    inits["an empty Python"] = _FLOOR
    times: dict[str, list[float]] = {name: [] for name in inits}
    environ = {key: text for key, text in os.environ.items() if not key.startswith(("AUTO_INFER_", "INFER_DEV_"))}
    for init in inits.values():
        _time_ms(init, environ)  # warms the page cache
    for _ in range(ROUNDS):
        for name, init in inits.items():
            times[name].append(_time_ms(init, environ))
    rows = [Row(who=name, samples=tuple(found), ours=name == "infer-dev entry") for name, found in times.items()]
    if "tini" in times:
        # Per round, so that a slow moment of the machine hits both sides of the difference.
        over = tuple(ours - tini for ours, tini in zip(times["infer-dev entry"], times["tini"], strict=True))
        rows.append(Row(who="infer-dev − tini", samples=over, limit=LIMIT_MS, ours=True))
    return (
        Table(
            name="gates_off",
            title="fork to the command's first byte, as PID 1 of a new namespace",
            unit="ms",
            rows=(*rows, *skipped),
            notes=("the figures include unshare itself, about 2 ms",),
        ),
    )


def _time_ms(init: tuple[str, ...], environ: dict[str, str]) -> float:
    began = now_s()
    process = subprocess.Popen([*UNSHARE, *init, *_COMMAND], env=environ, stdout=subprocess.PIPE)
    assert process.stdout is not None
    with process:
        first = process.stdout.read(1)
        took = now_s() - began
    if first != b"x" or process.wait() != 0:
        raise RuntimeError(f"{init or 'bare exec'} did not run the command: status {process.returncode}")
    return took * 1000
