"""`infer-dev start`: start servers that were stopped or have failed."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

from infer_dev_entry.control_client import ask

DESCRIPTION = "Start servers that were stopped, have failed or wait for their back-off; running ones are left alone."
EXAMPLES = """  infer-dev start glm
  infer-dev start            # all

exit codes: 0 requested, 14 no fleet is running, 15 no such server"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("names", nargs="*", metavar="NAME", help="the servers (default: all)")


def run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Send the wish."""
    answer = ask(environ, {"op": "start", "names": args.names or None})
    print(f"starting: {', '.join(answer['names']) or 'nothing'}")
    return 0
