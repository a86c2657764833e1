"""`infer-dev ctl`: supervisorctl with the right configuration."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping

from infer_dev_entry.errors import NotRunningError
from infer_dev_entry.rundir import client_run_dir, supervisor_socket

DESCRIPTION = """Run supervisorctl against this fleet's supervisord.

`stop NAME` is respected: the server stays stopped. `start NAME` hands it back to infer-dev."""
EXAMPLES = """  infer-dev ctl status
  infer-dev ctl tail -f sglang:glm
  infer-dev ctl stop sglang:glm

exit codes: those of supervisorctl; 14 no fleet is running"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="ARGUMENT", help="passed to supervisorctl")


def run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Become supervisorctl."""
    path = supervisor_socket(client_run_dir(environ))
    if not os.path.exists(path):
        raise NotRunningError(f"no supervisord is running ({path} does not exist); start a fleet with: infer-dev serve")
    # The fleet's own configuration holds secrets: its owner alone may read it. Without -c supervisorctl reads what lies
    # in the working directory or in /etc.
    conf = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "supervisorctl.conf")
    command = (sys.executable, "-m", "supervisor.supervisorctl", "-c", conf, "-s", f"unix://{path}", *args.arguments)
    os.execve(sys.executable, command, dict(environ))
    raise AssertionError("unreachable")
