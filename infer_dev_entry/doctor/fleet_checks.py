"""Judge what is running: the entry, its servers, and the ports that the config's servers need. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from infer_dev_entry.doctor.rows import Row, fail, ok, skip, warn

_BAD_STATES = {"failed": fail, "unhealthy": warn, "backoff": warn, "waiting-gpu": warn}


def check_entry(status: Mapping[str, Any] | None, problem: str) -> list[Row]:
    """Judge the running entry by its own status; `problem` is why there is none."""
    if status is None:
        return [skip("entry", problem)]
    seen = f"pid {status.get('pid')}, {status.get('stage')}, {len(_servers(status))} servers"
    error = status.get("boot_error")
    if error:
        return [fail("entry", f"{seen}: boot failed: {error}", "mend that, then restart the container")]
    rows = [ok("entry", seen) if status.get("stage") == "running" else warn("entry", f"{seen}: not up yet")]
    return [*rows, *(_check_server(server) for server in _servers(status))]


def states_of(status: Mapping[str, Any] | None) -> dict[str, str]:
    """Return server → state, of those that run."""
    return {str(server.get("name")): str(server.get("state")) for server in _servers(status or {})}


def _servers(status: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    servers = status.get("servers")
    return [server for server in servers if isinstance(server, dict)] if isinstance(servers, list) else []


def _check_server(server: Mapping[str, Any]) -> Row:
    state = str(server.get("state"))
    restarts = server.get("restarts")
    seen = f"{state}{f', {restarts} restarts' if restarts else ''}"
    reason = f": {server.get('reason')}" if server.get("reason") else ""
    judge = _BAD_STATES.get(state)
    check = f"server {server.get('name')}"
    return judge(check, seen + reason, str(server.get("mend") or "")) if judge else ok(check, seen + reason)


def check_ports(holders: Sequence[tuple[str, str, int, str | None]]) -> list[Row]:
    """Judge ports, given as (server, use, port, holder); the fleet's own processes hold none here."""
    taken = [
        fail(f"{use} of {server}", f"{port} is in use by {holder}", "stop that process, or choose another port")
        for server, use, port, holder in holders
        if holder
    ]
    free = [str(port) for _, _, port, holder in holders if not holder]
    more = f" and {len(free) - 12} more" if len(free) > 12 else ""
    return [*taken, *([ok("ports", f"{', '.join(free[:12])}{more}: free, or this fleet's own")] if free else [])]
