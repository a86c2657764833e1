"""`infer-dev serve`: start a fleet from a TOML, or make the running one match it."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any

from infer_dev_entry.control_client import ask, is_running
from infer_dev_entry.errors import EntryError, NotRunningError, RunDirError, with_exit_code
from infer_dev_entry.rundir import default_run_dir
from infer_dev_entry.settings import PREFIX, parse_settings
from infer_dev_entry.spec import render_plan
from infer_dev_entry.status import render_curl, render_status_table

DESCRIPTION = """Start the servers of a TOML config, add to them, or update them.

With an entry running (a container's PID 1), its fleet is made to match the config: unchanged servers keep running,
changed ones are drained and started again, others are added or removed. Without one, a fleet is started in the
background. A config with faults changes nothing."""
EXAMPLES = """  infer-dev serve /model-configs/sglang-glm-4.7-tp8.toml
  infer-dev serve --wait 600            # the config that AUTO_INFER_SGLANG_CONFIG names; return when all are ready

exit codes: 0 done, 1 not ready in time, 10 the config has faults, 11 no config is named"""

START_TIMEOUT_S = 90.0
UPDATE_TIMEOUT_S = 10.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("config", nargs="?", default="", help="the TOML file (default: $AUTO_INFER_SGLANG_CONFIG)")
    parser.add_argument(
        "--wait", type=float, metavar="SECONDS", default=0.0, help="wait until every server is ready, at most this long"
    )


def run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Start or update the fleet."""
    for warning in parse_settings(environ).warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if is_running(environ):
        _update(args.config, environ)
    else:
        _start(args.config, environ)
    rows = _wait_ready(environ, args.wait) if args.wait else ask(environ, {"op": "status"})["servers"]
    print(render_status_table(rows, time.time()))
    if not args.wait:
        print("watch it come up:  infer-dev status --watch")
        return 0
    if all(row["state"] == "ready" for row in rows if row["wanted"]):
        for row in [row for row in rows if row["state"] == "ready" and row["url"]][:1]:
            print("try:  " + render_curl(row["url"]))
        return 0
    print(f"infer-dev serve: not every server is ready after {args.wait:g} s", file=sys.stderr)
    return 1


def _update(config: str, environ: Mapping[str, str]) -> None:
    from infer_dev_entry.planner import make_update

    plan = make_update(environ, config)
    for warning in plan.warnings:
        print(f"note: {warning}", file=sys.stderr)
    turn = ask(environ, {"op": "plan", "plan": json.loads(render_plan(plan))})["turn"]
    deadline = time.monotonic() + UPDATE_TIMEOUT_S
    while ask(environ, {"op": "status"})["turn"] <= turn and time.monotonic() < deadline:
        time.sleep(0.02)


def _start(config: str, environ: Mapping[str, str]) -> None:
    """Start a keeper in the background, once the config is known to be good.

    Raises:
        EntryError: the config has faults, or the keeper does not come up.
    """
    from infer_dev_entry.planner import make_plan

    plan = make_plan(dict(environ) | {PREFIX + "MODEL_DOWNLOAD_ON_BOOT": "0"}, config)
    run_dir = default_run_dir(environ)
    child_environ = dict(environ) | {
        PREFIX + "ON_BOOT": "1",
        PREFIX + "BUNDLE_ON_BOOT": "0",
        PREFIX + "MODEL_DOWNLOAD_ON_BOOT": "0",
        PREFIX + "CONFIG": os.path.abspath(plan.source),
    }
    log_path = f"{run_dir}/entry.log"
    try:
        os.makedirs(run_dir, mode=0o755, exist_ok=True)
        with open(log_path, "ab") as log_file:
            keeper = subprocess.Popen(
                [sys.executable, "-m", "infer_dev_entry", "entry", "--keeper"],
                env=child_environ,
                stdin=subprocess.DEVNULL,
                stdout=log_file,
                stderr=log_file,
                start_new_session=True,
            )
    except OSError as error:
        raise RunDirError(
            f"cannot write {error.filename or run_dir}: {error.strerror}; set INFER_DEV_RUN_DIR to a writable directory"
        ) from error
    _wait_started(keeper, environ, log_path)
    print(f"started in the background: pid {keeper.pid}, log {log_path}; end it with: infer-dev stop")


def _wait_started(keeper: subprocess.Popen[bytes], environ: Mapping[str, str], log_path: str) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if keeper.poll() is not None:
            from infer_dev_entry.logtail import read_last_line

            text = f"cannot start the fleet: it exited with {keeper.returncode}: {read_last_line(log_path)}"
            raise with_exit_code(EntryError(text), keeper.returncode)
        try:
            answer = ask(environ, {"op": "status"})
        except NotRunningError:
            answer = {}
        if answer.get("boot_error"):
            raise with_exit_code(EntryError(str(answer["boot_error"])), answer["exit_code"])
        if answer.get("stage") == "running" and (answer["servers"] or answer["source"]):
            return
        time.sleep(0.05)
    raise EntryError(f"cannot start the fleet: it does not answer after {START_TIMEOUT_S:g} s; see {log_path}")


def _wait_ready(environ: Mapping[str, str], timeout_s: float) -> list[dict[str, Any]]:
    """Wait until every wanted server is ready or has failed; print each change of state."""
    deadline = time.monotonic() + timeout_s
    shown: dict[str, str] = {}
    while True:
        answer = ask(environ, {"op": "status"})
        rows: list[dict[str, Any]] = answer["servers"]
        for row in rows:
            if shown.get(row["name"]) != row["state"]:
                shown[row["name"]] = row["state"]
                print(
                    f"{row['name']}: {row['state']}" + (f" ({row['reason']})" if row["reason"] else ""), file=sys.stderr
                )
        states = {row["state"] for row in rows if row["wanted"]}
        # All may be ready a moment before the gateway knows of it.
        settled = states <= {"ready", "failed"} and ("failed" in states or answer["healthy"])
        if settled or time.monotonic() > deadline:
            return rows
        time.sleep(0.25)
