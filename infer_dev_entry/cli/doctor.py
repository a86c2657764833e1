"""`infer-dev doctor`: look at driver, GPUs, environment, models and limits, and say what keeps servers from serving."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

DESCRIPTION = """Look at everything that a fleet depends on, and say what is wrong and how to mend it: driver, CUDA,
GPUs and their memory, the installed environment, the models' files, /dev/shm, disks, ulimits, ports, the config, the
entry.

Nothing is started, changed or imported from the environment, and no weights are read. CONFIG defaults to
$AUTO_INFER_SGLANG_CONFIG, else to what the running entry serves."""
EXAMPLES = """  infer-dev doctor
  infer-dev doctor fleet.toml
  infer-dev doctor --json fleet.toml | jq -r '.rows[] | select(.verdict == "fail") | .mend'
  infer-dev doctor --require-gpu && infer-dev serve fleet.toml

exit codes: 0 no check failed (warnings are allowed), 1 a check failed, 2 bad usage"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("config", nargs="?", default="", metavar="CONFIG", help="the TOML config")
    parser.add_argument(
        "--json", action="store_true", help='print {"ok", "rows"}; a row has check, verdict, seen, mend'
    )
    parser.add_argument(
        "--require-gpu", action="store_true", help="a machine without a GPU fails, instead of a warning"
    )


def run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Examine, print, and return 1 when a check failed."""
    from infer_dev_entry.doctor.examine import examine
    from infer_dev_entry.doctor.rows import is_healthy, render_json, render_table

    rows = examine(environ, args.config, require_gpu=args.require_gpu)
    print(render_json(rows) if args.json else render_table(rows))
    return 0 if is_healthy(rows) else 1
