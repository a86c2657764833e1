"""`infer-dev health`: the answer for a container's HEALTHCHECK."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping
from typing import Any

from infer_dev_entry.control_client import ask
from infer_dev_entry.errors import NotRunningError
from infer_dev_entry.rundir import client_run_dir, control_socket
from infer_dev_entry.settings import parse_settings

DESCRIPTION = """Exit 0 when everything that should serve is ready, else 1 with the reason.

With all gates off nothing has to serve, and the container is healthy. A server that the user stopped does not count."""
EXAMPLES = """  HEALTHCHECK --interval=10s --timeout=5s --start-period=30m CMD ["infer-dev", "health"]
  infer-dev health && echo serving

exit codes: 0 healthy, 1 not"""

TIMEOUT_S = 4.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--json", action="store_true", help='print {"healthy": …, "reasons": […]}')


def run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Ask and judge."""
    reasons = _find_reasons(environ)
    if args.json:
        print(json.dumps({"healthy": not reasons, "reasons": reasons}))
    else:
        print("; ".join(reasons) if reasons else "healthy", file=sys.stderr if reasons else sys.stdout)
    return 1 if reasons else 0


def _find_reasons(environ: Mapping[str, str]) -> list[str]:
    try:
        answer = ask(environ, {"op": "status"}, TIMEOUT_S)
    except NotRunningError as error:
        # A socket without an answer: there is a fleet, started by hand perhaps, and it hangs or has died.
        started = os.path.exists(control_socket(client_run_dir(environ)))
        return [str(error)] if started or parse_settings(environ).any_gate else []
    if answer["healthy"]:
        return []
    if answer["boot_error"]:
        return [f"boot failed: {answer['boot_error']}"]
    return [_describe(row) for row in answer["servers"] if row["wanted"] and row["state"] != "ready"] or [
        "the gateway does not yet know who is ready"
        if answer["stage"] == "running"
        else f"the entry is {answer['stage']}"
    ]


def _describe(row: Mapping[str, Any]) -> str:
    return f"{row['name']} is {row['state']}" + (f": {row['reason']}" if row["reason"] else "")
