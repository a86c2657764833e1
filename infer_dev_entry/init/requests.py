"""What the control socket's requests do: read the fleet, or wish something of it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from infer_dev_entry.errors import ConfigError, EntryError
from infer_dev_entry.fleet import Fleet, is_down, is_healthy
from infer_dev_entry.fleet.observations import PlanWish, StartWish, StopWish
from infer_dev_entry.init.loop import FleetLoop
from infer_dev_entry.render import DaemonSpec, render_conf
from infer_dev_entry.spec import Plan, parse_plan
from infer_dev_entry.status import status_rows


class Requests:
    """Answers requests; `stage` and the boot error are what `status` tells while there is no fleet."""

    def __init__(self, *, keeper: bool, planning: Mapping[str, str]) -> None:
        self.keeper = keeper
        self._planning = dict(planning)
        self.stage = "starting"
        self.boot_error: EntryError | None = None
        self._loop: FleetLoop | None = None
        self._source = ""
        self._stop_all = False
        self._refusal = ""

    def attach(self, loop: FleetLoop, *, run_dir: str, fleet_id: str) -> None:
        """Let requests reach the fleet."""
        self._loop = loop
        self._planning |= {"run_dir": run_dir, "fleet_id": fleet_id}

    def refuse_plans(self, reason: str) -> None:
        """Start no servers in this life of the entry, for this reason."""
        self._refusal = reason

    def take_boot_error(self, error: EntryError) -> None:
        """Remember why boot failed, for `status` and `health`."""
        self.stage = "failed"
        self.boot_error = error

    def apply(self, plan: Plan) -> None:
        """Make the fleet be this plan."""
        if self._loop is not None:
            self._source = plan.source
            self._stop_all = False
            self._loop.wish(PlanWish(specs=plan.servers))

    def is_over(self) -> bool:
        """True when a hand-started fleet was told to stop and has."""
        return self._stop_all and self._loop is not None and is_down(self._loop.fleet)

    def status(self) -> dict[str, Any]:
        """Return the whole state as JSON data."""
        fleet = self._loop.fleet if self._loop else Fleet()
        error = self.boot_error
        return {
            "ok": True,
            "pid": os.getpid(),
            "stage": self.stage,
            "boot_error": str(error) if error else None,
            "exit_code": error.exit_code if error else 0,
            "healthy": error is None and self.stage == "running" and is_healthy(fleet),
            "shutting_down": fleet.shutting_down,
            "source": self._source,
            "turn": self._loop.turns if self._loop else 0,
            # What whoever plans an update must take from us, so that equal servers stay equal.
            "planning": self._planning,
            "servers": status_rows(fleet),
        }

    def handle(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Answer one request: {"op": "status" | "launch" | "plan" | "start" | "stop", …}."""
        op = request.get("op")
        if op == "status":
            return self.status()
        if op == "launch":
            return self._launch(request.get("name"))
        if self._loop is None or self._loop.fleet.shutting_down:
            return {"ok": False, "error": "the entry is shutting down"}
        if op == "plan":
            return self._take_plan(request)
        if op in ("start", "stop"):
            return self._take_names(op, request.get("names"))
        return {"ok": False, "error": f"unknown request {op!r}"}

    def _launch(self, name: object) -> dict[str, Any]:
        """How a server is started: its words, which hold no secrets, and the paths of its private files."""
        servers = self._loop.fleet.servers if self._loop else ()
        for server in servers:
            if server.spec.name == name:
                files = [file.path for file in server.spec.files]
                return {"ok": True, "argv": list(server.spec.argv), "files": files}
        return {"ok": False, "error": f"no server is called {name}", "kind": "unknown-server"}

    def _take_plan(self, request: Mapping[str, Any]) -> dict[str, Any]:
        if self._refusal:
            return {"ok": False, "error": self._refusal}
        try:
            plan = parse_plan(json.dumps(request.get("plan")))
            # What supervisord cannot express is refused now, before a server is touched.
            render_conf(plan.servers, DaemonSpec(run_dir="/"))
        except ConfigError as error:
            return {"ok": False, "error": str(error)}
        except ValueError as error:
            return {"ok": False, "error": f"cannot parse plan: {error}"}
        self.boot_error = None
        self.stage = "running"
        self.apply(plan)
        return {"ok": True, "turn": self._loop.turns if self._loop else 0}

    def _take_names(self, op: str, names: object) -> dict[str, Any]:
        assert self._loop is not None
        known = [server.spec.name for server in self._loop.fleet.servers]
        if names is not None:
            if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                return {"ok": False, "error": "names must be a list of strings"}
            unknown = [name for name in names if name not in known]
            if unknown:
                listed = ", ".join(known) or "none"
                text = f"no server is called {', '.join(unknown)}; there are: {listed}"
                return {"ok": False, "error": text, "kind": "unknown-server"}
        wanted = None if names is None else tuple(names)
        self._stop_all = op == "stop" and names is None
        self._loop.wish(StopWish(names=wanted) if op == "stop" else StartWish(names=wanted))
        return {"ok": True, "names": known if names is None else names}
