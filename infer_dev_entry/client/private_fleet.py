"""Start the servers of a config under an entry of their own, and end all of it. Blocking; `Runtime.start` uses it.

The entry follows this process (`entry --keeper-of PID`): it drains and ends when we die, also by SIGKILL. Who kills the
entry alone leaves its servers to `close`, which sweeps all that carries the fleet's mark.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from typing import Any

from infer_dev_entry.client.target import Target, choose_row, target_of_row
from infer_dev_entry.client.toml import render_toml
from infer_dev_entry.control_client import ask
from infer_dev_entry.errors import (
    ClientError,
    ConfigError,
    EntryError,
    NotReadyError,
    NotRunningError,
    RunDirError,
    with_exit_code,
)
from infer_dev_entry.logtail import read_last_line
from infer_dev_entry.proctree import end_leftovers, track
from infer_dev_entry.rundir import instance_tmp_dir, read_fleet_id, write_private
from infer_dev_entry.settings import PREFIX
from infer_dev_entry.spec import Plan

# What the process's own environment says of another fleet is not for this one.
_NOT_OURS = (
    *(PREFIX + name for name in ("ON_BOOT", "BUNDLE_ON_BOOT", "MODEL_DOWNLOAD_ON_BOOT", "CONFIG", "OVERRIDES")),
    *("INFER_DEV_STATUS_ADDR", "INFER_DEV_LOG_MIRROR", "INFER_DEV_RUN_DIR"),
)
_POLL_S = 0.1
_STOP_MARGIN_S = 15.0
_KILL_WAIT_S = 5.0
_LONGEST_TMP = 40  # a unix socket's path has room for 107 bytes, and supervisord wants 30 of them


class PrivateFleet:
    """One life of a fleet below a directory of its own. `close` may be called at any time, by any thread."""

    def __init__(
        self, config: str | os.PathLike[str] | Mapping[str, Any], *, name: str, environ: Mapping[str, str]
    ) -> None:
        self._config = config
        self._name = name
        self._environ = {key: value for key, value in environ.items() if key not in _NOT_OURS}
        self._run_dir = ""
        self._fleet_id = ""
        self._drain_s = 0.0
        self._entry: subprocess.Popen[bytes] | None = None
        self._lock = threading.RLock()
        self._closed = False

    def start(self, ready_timeout_s: float) -> Target:
        """Start it, wait until every server is ready, and return the one to ask.

        Raises:
            ConfigError: every fault of the config.
            NotReadyError: a server failed, or is not ready in time.
            EntryError: the entry cannot be started.
        """
        deadline = time.monotonic() + ready_timeout_s
        with self._lock:
            self._check_open()
            plan = self._prepare()
            try:
                self._spawn()
            except OSError as error:  # a full disk, no more processes
                raise EntryError(
                    f"cannot start the servers: their entry in {self._run_dir} cannot be started: {error.strerror}"
                ) from error
        rows = self._wait_ready(plan, deadline, ready_timeout_s)
        return target_of_row(choose_row(rows, self._name), api_key=None, environ=self._environ)

    def close(self) -> None:
        """Drain and end every server, kill what would not go, and remove the directory."""
        with self._lock:
            self._closed = True
            entry, self._entry = self._entry, None
            if entry is not None:
                self._end(entry)
            run_dir, self._run_dir = self._run_dir, ""
            if run_dir:
                if self._fleet_id:
                    _sweep(f"{self._fleet_id}/")
                    shutil.rmtree(instance_tmp_dir(self._environ, self._fleet_id), ignore_errors=True)
                shutil.rmtree(run_dir, ignore_errors=True)

    # -- the start

    def _check_open(self) -> None:
        if self._closed:
            raise ClientError("cannot start the servers: the runtime was closed meanwhile")

    def _prepare(self) -> Plan:
        """Make the directory, and the plan, so that a bad config is known before anything is started."""
        from infer_dev_entry.planner import make_plan  # reads configs; who only attaches does not need it

        try:
            base = self._environ.get("TMPDIR", "").strip() or "/tmp"
            self._run_dir = tempfile.mkdtemp(prefix="infer-dev-", dir=base if len(base) <= _LONGEST_TMP else "/tmp")
        except OSError as error:
            raise RunDirError(f"cannot make a directory for the servers: {error.strerror}; set TMPDIR") from error
        self._environ["INFER_DEV_RUN_DIR"] = self._run_dir
        self._fleet_id = read_fleet_id(self._run_dir)
        path = self._write_config()
        try:
            plan = make_plan(self._environ, path)
        except ConfigError as error:  # a mapping is known to nobody by the name of our file
            mine = path.startswith(f"{self._run_dir}/")
            raise ConfigError(
                tuple(fault.replace(path, "config") if mine else fault for fault in error.faults)
            ) from None
        names = [server.name for server in plan.servers]
        if not names:
            raise ClientError(f"cannot start the servers: {plan.source} has none that is enabled")
        if self._name and self._name not in names:
            raise ClientError(f"cannot ask {self._name!r}: the config has no such server; it has: {', '.join(names)}")
        self._drain_s = max(server.drain_timeout_s for server in plan.servers)
        self._environ |= {PREFIX + "ON_BOOT": "1", PREFIX + "CONFIG": path}
        return plan

    def _write_config(self) -> str:
        if not isinstance(self._config, Mapping):
            return os.path.abspath(os.fspath(self._config))
        path = f"{self._run_dir}/config.toml"
        write_private(path, render_toml(_with_log_dir(self._config, f"{self._run_dir}/log")))
        return path

    def _spawn(self) -> None:
        with open(f"{self._run_dir}/entry.log", "ab") as log:
            self._entry = subprocess.Popen(
                [sys.executable, "-m", "infer_dev_entry", "entry", "--keeper-of", str(os.getpid())],
                env=self._environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # a Ctrl-C is for us; we end it then
            )

    def _wait_ready(self, plan: Plan, deadline: float, ready_timeout_s: float) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        while time.monotonic() < deadline:
            with self._lock:
                self._check_open()
                self._check_alive()
            answer = self._ask_status()
            if answer.get("boot_error"):
                raise with_exit_code(EntryError(str(answer["boot_error"])), int(answer["exit_code"]))
            rows = answer.get("servers", [])
            for row in rows:
                if row["state"] == "failed":
                    raise NotReadyError(f"cannot start {row['name']}: {row['reason']}; {row['mend'] or _log_of(row)}")
            if len(rows) == len(plan.servers) and all(row["state"] == "ready" for row in rows):
                return rows
            time.sleep(_POLL_S)
        slow = "; ".join(
            f"{row['name']} is {row['state']} {row['reason']}".strip() for row in rows if row["state"] != "ready"
        )
        raise NotReadyError(
            f"cannot start the servers: not ready in {ready_timeout_s:g} s: {slow or 'the entry does not answer'}; "
            "give a longer ready_timeout_s"
        )

    def _ask_status(self) -> dict[str, Any]:
        try:
            return ask(self._environ, {"op": "status"})
        except NotRunningError:
            return {}

    def _check_alive(self) -> None:
        if self._entry is not None and self._entry.poll() is not None:
            code = self._entry.returncode
            last = read_last_line(f"{self._run_dir}/entry.log")
            raise with_exit_code(EntryError(f"cannot start the servers: their entry exited with {code}: {last}"), code)

    # -- the end

    def _end(self, entry: subprocess.Popen[bytes]) -> None:
        """Have it drain; a second SIGTERM cuts that short, and SIGKILL leaves the rest to the sweep."""
        for stop, wait_s in ((entry.terminate, self._drain_s + _STOP_MARGIN_S), (entry.terminate, _KILL_WAIT_S)):
            stop()
            with contextlib.suppress(subprocess.TimeoutExpired):
                entry.wait(wait_s)
                return
        entry.kill()
        entry.wait(_KILL_WAIT_S)


def _sweep(mark: str) -> None:
    """End all that carries the mark; in a thread of its own, as the caller's may run an event loop (a notebook's)."""
    thread = threading.Thread(target=lambda: asyncio.run(end_leftovers(track(mark, 0))))
    thread.start()
    thread.join()


def _with_log_dir(config: Mapping[str, Any], log_dir: str) -> Mapping[str, Any]:
    """Where a config from Python names no log directory, logs go with the fleet: /tmp may hold those of another."""
    instance = config.get("instance")
    control = instance.get("control", {}) if isinstance(instance, Mapping) else None
    if not isinstance(instance, Mapping) or not isinstance(control, Mapping) or "log_dir" in control:
        return config
    return {**config, "instance": {**instance, "control": {"log_dir": log_dir, **control}}}


def _log_of(row: Mapping[str, Any]) -> str:
    last = read_last_line(str(row["log_file"]))
    return f"its log ends with: {last}" if last else f"see {row['log_file']}"
