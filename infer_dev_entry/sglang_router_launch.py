"""Run SGLang's router with the key of its control plane from a file: `sglang_router_launch.py OPTION …`.

Called by its path, by whichever interpreter has sglang-router. The router itself takes keys on its command line alone,
which every user of the machine can read. Standard library alone, beside the router.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module

KEY_OPTION = "--control-plane-key-file"
HERE = os.path.dirname(os.path.abspath(__file__))


def take_key(words: list[str]) -> tuple[list[str], str]:
    """Split our own option off the router's words, and read the key that it names.

    Raises:
        SystemExit: the key cannot be had; without it everybody could add workers.
    """
    try:
        at = words.index(KEY_OPTION)
        path = words[at + 1]
    except (ValueError, IndexError):
        raise SystemExit(f"cannot start the router: {KEY_OPTION} FILE is missing") from None
    try:
        with open(path, encoding="ascii") as file:
            key = file.readline(4096).strip()
    except (OSError, ValueError) as error:
        raise SystemExit(f"cannot start the router: cannot read {path}: {error}") from None
    if not key:
        raise SystemExit(f"cannot start the router: {path} holds no key; restart the gateway through infer-dev")
    return [*words[:at], *words[at + 2 :]], key


def main() -> None:
    """Start the router; returns when it has ended."""
    words, key = take_key(sys.argv[1:])
    # Python puts our directory first, and its modules' names are too common to be found bare.
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry or ".") != HERE]
    try:
        router = import_module("sglang_router.launch_router")
    except ImportError as error:
        raise SystemExit(f"cannot start the router: {error}; pip install sglang-router") from None
    control = ["--control-plane-api-keys", f"infer-dev:infer-dev:admin:{key}"]
    router.launch_router(router.parse_router_args([*words, *control]))


if __name__ == "__main__":
    main()
