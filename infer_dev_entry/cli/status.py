"""`infer-dev status`: what every server is doing, why, and what to do about it."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping
from typing import Any

from infer_dev_entry.control_client import ask
from infer_dev_entry.status import STATUS_KEYS, render_status_table

DESCRIPTION = (
    "Show every server: state, uptime, pid, restarts, GPUs, URL, and where something is wrong, why and the mend."
)
EXAMPLES = """  infer-dev status
  infer-dev status --watch
  infer-dev status --json | jq '.[] | select(.state != "ready")'

exit codes: 0 all is well, 1 boot failed or a server is not ready, 14 no fleet is running"""

WATCH_PERIOD_S = 1.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "--json", action="store_true", help=f"print a list of objects with the keys {', '.join(STATUS_KEYS)}"
    )
    parser.add_argument("--watch", action="store_true", help="show it again every second until Ctrl-C")


def run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Print the status."""
    while True:
        answer = ask(environ, {"op": "status"})
        text = _render_json(answer) if args.json else _render_text(answer)
        if args.watch and sys.stdout.isatty() and not args.json:
            text = "\x1b[H\x1b[2J" + text  # home and clear, so that the table stays in place
        print(text, flush=True)
        if answer["boot_error"]:
            print(f"boot failed: {answer['boot_error']}", file=sys.stderr)
        if not args.watch:
            return 0 if answer["healthy"] else 1
        time.sleep(WATCH_PERIOD_S)


def _render_json(answer: Mapping[str, Any]) -> str:
    return json.dumps([{key: row[key] for key in STATUS_KEYS} for row in answer["servers"]])


def _render_text(answer: Mapping[str, Any]) -> str:
    if answer["servers"]:
        return render_status_table(answer["servers"], time.time())
    return f"no servers (the entry is {answer['stage']})"
