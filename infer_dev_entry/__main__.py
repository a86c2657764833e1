"""The process's edge: read argv and environment once, dispatch, and map errors to exit codes."""

from __future__ import annotations

import os
import sys

# Called through a helper link under /soft/app/sglang, the name says the command.
HELPERS = {
    "check-and-run-sglang.sh": ("serve",),
    "install-sglang-offline.sh": ("install",),
    "status": ("status",),
    "logs": ("logs",),
    "smoke": ("smoke",),
}


def main() -> int:
    """Run the command line and return the exit code; the console script exits with it."""
    called_as = sys.argv[0].rpartition("/")[2]
    argv = [*HELPERS.get(called_as, ()), *sys.argv[1:]]
    if argv[:1] == ["entry"] and not {"-h", "--help"} & set(argv[1:2]):
        # PID 1 loses every signal that it has no handler for: block them all before the imports, which take a while.
        import signal

        mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        # The way to CMD stays free of argparse: its import alone costs as much as the rest.
        from infer_dev_entry.init.entry import run_entry

        rest = argv[1:]
        keeper = rest[:1] in (["--keeper"], ["--keeper-of"])
        parent = int(rest.pop(1)) if rest[:1] == ["--keeper-of"] else 0
        command = rest[1:] if keeper else rest
        if command[:1] == ["--"]:
            command = command[1:]
        return run_entry(command, os.environ, mask, keeper=keeper, parent=parent)
    from infer_dev_entry.cli import main as run_cli

    code = run_cli(argv, os.environ)
    if "rattler" in sys.modules:
        # Its threads have been seen to crash in the interpreter's end: a finished install would exit with 139.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


if __name__ == "__main__":
    sys.exit(main())
