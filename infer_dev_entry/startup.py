"""What is known of a start under way: its phase, how long it takes, and whether it has stalled. Pure."""

from __future__ import annotations

from dataclasses import replace

from infer_dev_entry.fleet import Server
from infer_dev_entry.fleet.observations import ProbeSeen
from infer_dev_entry.phases import KEPT_STARTS, estimate_left_s


def take_log(server: Server, seen: ProbeSeen, now: float) -> Server:
    """Note what the log of a starting server has told; one that cannot be read never stalls."""
    if seen.log_grew is not False:
        server = replace(server, log_at=now)
    if not server.phase:
        return replace(server, phase=seen.phase, phase_at=server.started_at)
    if seen.phase == server.phase:
        return server
    return replace(_close_phase(server, now), phase=seen.phase, phase_at=now)


def take_readiness(server: Server, now: float) -> Server:
    """Close the last phase; the start now counts among the earlier ones."""
    if not server.phase:
        return server
    server = replace(_close_phase(server, now), phase="")
    return replace(server, past=(*server.past, server.phases)[-KEPT_STARTS:])


def _close_phase(server: Server, now: float) -> Server:
    return replace(server, phases=(*server.phases, (server.phase, round(now - server.phase_at, 1))))


def left_s(server: Server, now: float) -> float | None:
    """Estimate the time until the server is ready, if it has been started before."""
    return estimate_left_s(server.past, server.phase, now - server.phase_at)


def describe_start(server: Server, now: float) -> str:
    """Say where a start stands: "weights for 12 s, started 80 s ago, about 40 s left"; "" when its log is mute."""
    if not server.phase:
        return ""
    left = left_s(server, now)
    estimate = "" if left is None else f", about {left:.0f} s left" if left >= 1 else ", longer than before"
    whole = f", started {now - server.started_at:.0f} s ago" if server.phases else ""
    return f"{server.phase} for {now - server.phase_at:.0f} s{whole}{estimate}"


def describe_stall(server: Server, now: float) -> str:
    """Say how a starting server has stalled, or ""."""
    limit = server.spec.probe.stall_timeout_s
    if not limit or server.ready_at is not None or now < server.log_at + limit:
        return ""
    return f"stalled: its log says nothing for {limit:g} s" + (f" in phase {server.phase}" if server.phase else "")
