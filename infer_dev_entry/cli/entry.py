"""`infer-dev entry`: its help. The command itself is dispatched in `__main__`, before argparse is imported."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

from infer_dev_entry.init.entry import run_entry

DESCRIPTION = """Run as a container's PID 1.

The gates in the environment say what boot does (docs/reference.md). With all gates off and a command this is a pure
proxy, as tini and dumb-init are: signals go to the command's process group, orphans are reaped, its status is returned.
With a fleet, the command's end or SIGTERM/SIGINT drains every server; a second signal cuts that short.
Not as PID 1 it becomes a subreaper and does the same."""
EXAMPLES = """  ENTRYPOINT ["infer-dev", "entry", "--"]
  docker run -it IMAGE bash
  AUTO_INFER_SGLANG_ON_BOOT=1 AUTO_INFER_SGLANG_CONFIG=glm.toml infer-dev entry

exit codes: the command's (128+N when signal N killed it, 127 not found, 126 not executable), 0 after a stop without a
command; with AUTO_INFER_SGLANG_ON_ERROR=exit those of a failed boot: 10 config, 11 settings, 12 run
directory, 20 bundle, 21 install"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="-- CMD …", help="the container's command")


def run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Run the entry; reached only when the arguments begin with something unusual."""
    import signal

    return run_entry(args.command, environ, signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals()))
