"""What users see of a fleet: the rows of `status`, their table, and the curl line that works. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from infer_dev_entry.fleet import Fleet, Server, State

# The keys of `status --json`, in order; the control socket carries more.
STATUS_KEYS = (
    "name", "engine", "state", "statename", "pid", "restarts", "ready_since", "url", "gpu_ids", "reason", "mend",
)  # fmt: skip


def status_row(server: Server) -> dict[str, Any]:
    """Return one server as JSON data. `pid` is null without a process, `gpu_ids` null for all GPUs."""
    spec = server.spec
    return {
        "name": spec.name,
        "engine": spec.engine,
        "state": str(server.state),
        "statename": server.statename,
        "pid": server.pid or None,
        "restarts": server.restarts,
        "ready_since": server.ready_since,
        "url": spec.url,
        "gpu_ids": None if spec.gpu_ids is None else list(spec.gpu_ids),
        "reason": server.reason or server.notice,
        "mend": server.mend if server.reason else server.notice_mend,
        "log_file": spec.log_file,
        "wanted": server.wanted,
        "phase": server.phase,
        "class": server.kind if server.state in (State.BACKOFF, State.FAILED) else "",
    }


def status_rows(fleet: Fleet) -> list[dict[str, Any]]:
    """Return all servers in start order."""
    return [status_row(server) for server in fleet.servers]


def render_status_table(rows: Sequence[Mapping[str, Any]], now: float) -> str:
    """Render rows as an aligned table; reasons and mends follow below it, as they are long. `now` is Unix time."""
    head = ("NAME", "STATE", "UP", "PID", "RESTARTS", "GPUS", "URL")
    body = [_cells(row, now) for row in rows]
    widths = [max(len(line[column]) for line in (head, *body)) for column in range(len(head))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in (head, *body)
    ]
    lines += [_reason_line(row) for row in rows if row["reason"]]
    return "\n".join(lines)


def _reason_line(row: Mapping[str, Any]) -> str:
    kind = f"{row['class']}: " if row.get("class", "unknown") not in ("", "unknown") else ""
    return f"{row['name']}: {kind}{row['reason']}" + (f" → {row['mend']}" if row["mend"] else "")


def _cells(row: Mapping[str, Any], now: float) -> tuple[str, ...]:
    gpus = "all" if row["gpu_ids"] is None else ",".join(row["gpu_ids"]) or "none"
    up = render_duration(now - row["ready_since"]) if row["ready_since"] else "-"
    return (row["name"], row["state"], up, str(row["pid"] or "-"), str(row["restarts"]), gpus, row["url"] or "-")


def render_duration(seconds: float) -> str:
    """Render seconds for people: 42s, 3m10s, 5h02m, 3d04h."""
    whole = max(0, int(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02d}h"


def render_curl(url: str) -> str:
    """Return a command line that gets a chat answer from the server at `url`."""
    body = json.dumps({"messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 32})
    return f"curl -s {url}/v1/chat/completions -H 'Content-Type: application/json' -d '{body}'"


def render_ready(rows: Sequence[Mapping[str, Any]], now: float) -> Iterable[str]:
    """Yield the lines that greet the user when everything serves."""
    yield from render_status_table(rows, now).splitlines()
    ready = [row for row in rows if row["state"] == "ready" and row["url"]]
    yield from (f"try:  {render_curl(row['url'])}" for row in ready[:1])
