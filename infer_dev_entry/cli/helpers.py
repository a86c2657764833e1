"""`infer-dev helpers`: the links under /soft/app/sglang that `docker exec` users call."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping

from infer_dev_entry.__main__ import HELPERS
from infer_dev_entry.errors import EntryError
from infer_dev_entry.settings import parse_settings

DESCRIPTION = "Install the helper links, which call infer-dev by another name. An image's build runs this once."
EXAMPLES = """  infer-dev helpers
  infer-dev helpers --dir /opt/helpers
  docker exec CONTAINER /soft/app/sglang/status

exit codes: 0 done, 1 the directory cannot be written"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--dir", default="", help="where (default: $INFER_DEV_HELPER_DIR or /soft/app/sglang)")


def run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Make the links and print them."""
    directory = args.dir or parse_settings(environ).helper_dir
    target = find_program()
    for name in HELPERS:
        link = f"{directory}/{name}"
        try:
            os.makedirs(directory, exist_ok=True)
            temporary = f"{link}.{os.getpid()}.new"
            os.symlink(target, temporary)
            os.replace(temporary, link)
        except OSError as error:
            raise EntryError(
                f"cannot make {link}: {error.strerror}; run as root, or choose another place with --dir"
            ) from error
        print(f"{link} -> {target}")
    return 0


def find_program() -> str:
    """Return the path of the installed infer-dev.

    Raises:
        EntryError: it is not installed beside this interpreter.
    """
    path = os.path.join(os.path.dirname(sys.executable), "infer-dev")
    if not os.access(path, os.X_OK):
        raise EntryError(f"cannot make helper links: {path} does not exist; install the package with its scripts")
    return path
