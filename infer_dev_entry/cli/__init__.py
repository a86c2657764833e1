"""The command line: one module a command, imported only when it is called, so that `entry` and `health` start fast."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from importlib import import_module

from infer_dev_entry.errors import EntryError

# command → (module, one line of help). A module has `DESCRIPTION`, `EXAMPLES`, `add_arguments(parser)` and
# `run(args, environ) -> int`.
COMMANDS: dict[str, tuple[str, str]] = {
    "entry": ("infer_dev_entry.cli.entry", "run as the container's entrypoint: boot, supervise, drain"),
    "install": ("infer_dev_entry.cli.install", "install the bundle into the workspace, or roll back"),
    "bundle": ("infer_dev_entry.cli.bundle", "build, inspect or verify an offline bundle"),
    "serve": ("infer_dev_entry.cli.serve", "start a fleet from a TOML, or update the running one"),
    "status": ("infer_dev_entry.cli.status", "show every server's state, reason and mend"),
    "logs": ("infer_dev_entry.cli.logs", "print or follow a server's log"),
    "crashes": ("infer_dev_entry.cli.crashes", "show why servers died: the first failure in a row and the latest"),
    "start": ("infer_dev_entry.cli.start", "start servers that were stopped or have failed"),
    "stop": ("infer_dev_entry.cli.stop", "drain and stop servers, or the whole hand-started fleet"),
    "ctl": ("infer_dev_entry.cli.ctl", "supervisorctl with the right socket"),
    "health": ("infer_dev_entry.cli.health", "exit 0 when everything that should serve is ready (for HEALTHCHECK)"),
    "config": ("infer_dev_entry.cli.config", "check, show or render a TOML config; print its JSON Schema"),
    "doctor": ("infer_dev_entry.cli.doctor", "look for what keeps servers from serving, and how to mend it"),
    "smoke": ("infer_dev_entry.cli.smoke", "check what a server does for its users, as they ask it"),
    "policy": ("infer_dev_entry.cli.policy", "choose a policy by expected free energy, of a model's or a file's"),
    "helpers": ("infer_dev_entry.cli.helpers", "install the helper links for docker exec"),
    "demo": ("infer_dev_entry.cli.demo", "run a small real model on this machine's CPU"),
}


def main(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """Run one command and return its exit code; expected errors become one line on stderr and their own code."""
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0 if argv else 2
    if argv[0] in ("-V", "--version", "version"):
        from infer_dev_entry import __version__

        print(f"infer-dev {__version__}")
        return 0
    if argv[0] not in COMMANDS:
        print(f"infer-dev: {_unknown(argv[0])}", file=sys.stderr)
        return 2
    try:
        return _run(argv[0], argv[1:], environ)
    except EntryError as error:
        print(f"infer-dev {argv[0]}: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        return 141  # the reader of our pipe went away (`infer-dev logs x | head`): 128 + SIGPIPE, as the shell says
    except KeyboardInterrupt:
        return 130


def _run(name: str, argv: Sequence[str], environ: Mapping[str, str]) -> int:
    import argparse

    module = import_module(COMMANDS[name][0])
    parser = argparse.ArgumentParser(
        prog=f"infer-dev {name}",
        description=module.DESCRIPTION,
        epilog=f"examples:\n{module.EXAMPLES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    module.add_arguments(parser)
    return int(module.run(parser.parse_args(list(argv)), environ))


def _overview() -> str:
    rows = "\n".join(f"  {name:<9} {text}" for name, (_, text) in COMMANDS.items())
    return f"""usage: infer-dev COMMAND [options]

Keeps local LLM servers (SGLang, llama.cpp) serving, from a container's PID 1 or on a bare machine.

commands:
{rows}

`infer-dev COMMAND --help` shows options, examples and exit codes. All variables: docs/reference.md."""


def _unknown(name: str) -> str:
    from difflib import get_close_matches

    near = get_close_matches(name, list(COMMANDS), n=1)
    hint = f"did you mean {near[0]}?" if near else "see infer-dev --help"
    return f"there is no command {name!r}; {hint}"
