"""`infer-dev crashes`: what was kept of the servers' failures."""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Mapping, Sequence

from infer_dev_entry.dossier import Dossier, crash_dir, read_dossiers, to_json
from infer_dev_entry.errors import EntryError
from infer_dev_entry.rundir import client_run_dir
from infer_dev_entry.status import render_duration

DESCRIPTION = """Show why servers died. Of each server two dossiers are kept, the first of its failures in a row and the
latest; without NAME they are listed, with NAME shown whole: the diagnosis, the command, the log, the processes, the
counters. They outlive the entry, and hold no secrets and no values of the environment."""
EXAMPLES = """  infer-dev crashes
  infer-dev crashes glm
  infer-dev crashes glm --json | jq -r '.[0].log[]'

exit codes: 0 done (also when there are none), 1 they may not be read"""

LIST_REASON_CHARS = 160


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("name", nargs="?", default="", help="show the dossiers of this server whole")
    parser.add_argument("--json", action="store_true", help="print a list of objects, oldest first")


def run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Print the dossiers."""
    run_dir = client_run_dir(environ)
    folder = crash_dir(run_dir)
    if os.path.exists(folder) and not os.access(folder, os.R_OK | os.X_OK):
        raise EntryError(f"cannot read {folder}: permission denied; run as root or as the servers' user")
    found = read_dossiers(run_dir, args.name)
    if args.json:
        print(json.dumps([to_json(dossier) for dossier in found]))
    elif not found:
        print(f"no crashes of {args.name} are known" if args.name else "no crashes are known")
    elif args.name:
        print("\n\n".join(render_dossier_text(dossier, time.time()) for dossier in found))
    else:
        print(render_crash_table(found, time.time()))
    return 0


def render_crash_table(dossiers: Sequence[Dossier], now: float) -> str:
    """Render one line a dossier, oldest first. `now` is Unix time."""
    head = ("NAME", "AGO", "CLASS", "IN A ROW", "REASON")
    rows = [
        (item.server, render_duration(now - item.ended_at), item.kind, str(item.failures), _cut(item.reason))
        for item in dossiers
    ]
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head) - 1)]
    lines = []
    for row in (head, *rows):
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        lines.append("  ".join((*cells, row[-1])))
    return "\n".join(lines)


def _cut(text: str) -> str:
    return text if len(text) <= LIST_REASON_CHARS else text[: LIST_REASON_CHARS - 1] + "…"


def render_dossier_text(dossier: Dossier, now: float) -> str:
    """Render a dossier for people; the log comes last, as it is the longest."""
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(dossier.ended_at))
    ran = "" if dossier.ran_s is None else f" after {render_duration(dossier.ran_s)}"
    gpus = "all" if dossier.gpu_ids is None else ",".join(dossier.gpu_ids) or "none"
    lines = [
        f"{dossier.server}: {dossier.kind}, {render_duration(now - dossier.ended_at)} ago",
        f"  reason    {dossier.reason}",
        f"  mend      {dossier.mend}",
        f"  ended     {when}{ran}, run {dossier.run}, failure {dossier.failures} in a row ({dossier.policy})",
        f"  command   {dossier.command}",
        f"  gpus      {gpus}",
        f"  log file  {dossier.log_file}",
    ]
    parts = {
        "processes that it left": dossier.processes,
        "counters": dossier.counters,
        "limits": dossier.limits,
        "names in its environment": (" ".join(dossier.environment),) if dossier.environment else (),
        "nvidia-smi": tuple(dossier.nvidia_smi.splitlines()),
        "stacks": tuple(dossier.stacks.splitlines()),
        "log": dossier.log,
    }
    for title, texts in parts.items():
        lines += [f"  {title}:", *(f"    {text}" for text in texts)] if texts else []
    return "\n".join(lines)
