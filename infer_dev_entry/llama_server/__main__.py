"""Serve one model until a stop signal, drain, exit 0; a server that cannot start says why in one line."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from infer_dev_entry.errors import EntryError
from infer_dev_entry.llama_server.arguments import parse_args
from infer_dev_entry.llama_server.drain import STOP_SIGNALS, catch_stop_signals, drain, wait_for_stop
from infer_dev_entry.llama_server.library import (
    check_gguf,
    check_port,
    import_library,
    load,
    read_api_keys,
    render_params,
)
from infer_dev_entry.llama_server.messages import say
from infer_dev_entry.llama_server.model_package import find_model


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until a stop signal; return the exit code."""
    args = parse_args(argv)
    for number in STOP_SIGNALS:
        # The library holds the GIL while it loads, so only the default action ends a load promptly.
        signal.signal(number, signal.SIG_DFL)
    try:
        serve(args)
    except EntryError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    return 0


def serve(args: argparse.Namespace) -> None:
    """Load the model, serve until asked to stop, drain.

    The port is bound while the model loads (`/health` 503, then 200). A stop signal before "listening on" is logged
    ends the process at once, by that signal.

    Raises:
        EntryError: the server cannot start.
    """
    library = import_library()
    check_port(args.host, args.port)
    keys = read_api_keys(Path(args.api_key_file)) if args.api_key_file else ()
    model = find_model(args)
    check_gguf(model)
    params = render_params(library, args, model, keys)
    say(f"loading model {model}")
    started = time.monotonic()
    server = load(library, params, args, model)
    address = str(server.listening_address)
    wake = catch_stop_signals()
    say(f"listening on {address} (model loaded in {time.monotonic() - started:.1f} s)")
    say(f"{wait_for_stop(wake)}: closing the port; requests in flight complete")
    drain(server, int(address.rpartition(":")[2]), metrics=args.metrics)
    say("drained; exiting")


if __name__ == "__main__":
    code = main()
    # Past this point the library has been seen to hang in its destructor.
    with suppress(OSError):
        sys.stdout.flush()
    os._exit(code)
