"""Run the benchmarks that are named, or all, and print their tables."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from importlib import import_module

from benchmarks.managers import is_unshare_allowed
from benchmarks.tables import Table, render_table, table_data

NAMES = (
    *("gates_off", "container", "respawn", "sweep", "spawn", "stop", "hang", "probe", "idle", "config256"),
    *("gateway", "sglang_flags", "sglang"),
    *("install", "reboot", "shell_archive"),
    "policy",
)


def main() -> int:
    """Print tables, or one JSON object; exit 0 when every limit holds, 1 when one is missed, 2 when we cannot run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__, epilog=f"all: {' '.join(NAMES)}")
    parser.add_argument("names", nargs="*", metavar="name", help="which to run (default: all)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    args = parser.parse_args()
    if unknown := set(args.names) - set(NAMES):
        parser.error(f"there is no benchmark {', '.join(sorted(unknown))}; there are: {', '.join(NAMES)}")
    if not is_unshare_allowed():
        print("benchmarks: cannot make PID namespaces with unshare; run as root", file=sys.stderr)
        return 2
    began = time.monotonic()
    if not args.json:
        print(_machine() + "\n", flush=True)
    tables: list[Table] = []
    for name in args.names or NAMES:
        found: tuple[Table, ...] = import_module(f"benchmarks.{name}").run()
        tables += found
        if not args.json:
            print("\n\n".join(map(render_table, found)) + "\n", flush=True)
    missed = [f"{table.name}: {row.who}" for table in tables for row in table.rows if row.verdict == "MISS"]
    if args.json:
        print(json.dumps({"machine": _machine(), "tables": [table_data(table) for table in tables]}, indent=2))
    else:
        print(f"{time.monotonic() - began:.0f} s; missed: {'; '.join(missed) or 'none'}")
    return 1 if missed else 0


def _machine() -> str:
    load = os.getloadavg()[0]
    return f"{os.cpu_count()} CPUs, Linux {platform.release()}, Python {platform.python_version()}, load {load:.2f}"


if __name__ == "__main__":
    sys.exit(main())
