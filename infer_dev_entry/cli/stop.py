"""`infer-dev stop`: drain and stop servers, and with no name a hand-started fleet as a whole."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping

from infer_dev_entry.control_client import ask
from infer_dev_entry.errors import NotRunningError

DESCRIPTION = """Drain and stop servers; they stay stopped until `infer-dev start`.

Running requests are completed within each server's drain_timeout_s. Without a name every server is stopped, and a
fleet that `infer-dev serve` started in the background ends."""
EXAMPLES = """  infer-dev stop glm
  infer-dev stop             # all

exit codes: 0 stopped, 1 still running after its drain deadline, 14 no fleet is running, 15 no such server"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("names", nargs="*", metavar="NAME", help="the servers (default: all)")
    parser.add_argument("--timeout", type=float, default=600.0, metavar="SECONDS", help="wait at most this long")


def run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Send the wish and wait until it is true."""
    names = ask(environ, {"op": "stop", "names": args.names or None})["names"]
    deadline = time.monotonic() + args.timeout
    while time.monotonic() < deadline:
        try:
            rows = ask(environ, {"op": "status"})["servers"]
        except NotRunningError:
            rows = []  # a hand-started fleet has ended as a whole
        # One whose start is under way has no pid yet, and is stopped when it has.
        alive = [row["name"] for row in rows if row["name"] in names and row["state"] != "stopped"]
        if not alive:
            print(f"stopped: {', '.join(names) or 'nothing'}")
            return 0
        time.sleep(0.1)
    print(f"infer-dev stop: still running: {', '.join(alive)}", file=sys.stderr)
    return 1
