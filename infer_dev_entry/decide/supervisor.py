"""supervisord itself: its loss, and its own back-off."""

from __future__ import annotations

from dataclasses import replace

from infer_dev_entry.decide.due import wants_supervisor
from infer_dev_entry.decide.stops import forget, fresh
from infer_dev_entry.decide.turn import Turn
from infer_dev_entry.fleet import Server, State, applied_specs
from infer_dev_entry.fleet.actions import StartSupervisor, Sweep
from infer_dev_entry.fleet.observations import SupervisorSeen

SUPERVISOR_BACKOFF_MAX_S = 10.0
SUPERVISOR_SETTLED_S = 60.0


def take_supervisor(turn: Turn, seen: SupervisorSeen) -> None:
    """Take in that supervisord answers, or is gone."""
    if seen.up:
        turn.fleet = replace(turn.fleet, supervisor_up=True, supervisor_starting=False, supervisor_up_at=turn.seen.now)
        return
    settled = turn.fleet.supervisor_up and turn.seen.now - turn.fleet.supervisor_up_at >= SUPERVISOR_SETTLED_S
    failures = 1 if settled else turn.fleet.supervisor_failures + 1
    delay = 0.0 if failures == 1 else min(SUPERVISOR_BACKOFF_MAX_S, 0.1 * 2.0 ** min(failures, 20))
    turn.fleet = replace(
        turn.fleet,
        supervisor_up=False,
        supervisor_starting=False,
        supervisor_failures=failures,
        supervisor_due_at=turn.seen.now + delay,
    )
    if not turn.fleet.shutting_down:
        turn.report("error", "supervisor.lost", reason=seen.reason, retry_in_s=round(delay, 1))
    for server in turn.fleet.servers:
        _orphan(turn, server, seen.reason)


def _orphan(turn: Turn, server: Server, reason: str) -> None:
    """supervisord is gone, so nobody owns this server's process: end what is left and start anew."""
    was_running = bool(server.pid) or server.starting
    server = replace(server, pid=0, starting=False, statename="STOPPED", ready_since=None)
    if was_running:
        server = replace(server, swept=False, sweeping=True)
        turn.actions.append(Sweep(name=server.spec.name))
    if server.removing:
        forget(turn, server)
        return
    server = fresh(server)
    if server.wanted and (was_running or server.state is State.STARTING):
        server = replace(server, state=State.STARTING, reason=reason, due_at=turn.seen.now)
    elif was_running:
        server = replace(server, state=State.STOPPED)
    turn.put(server)


def start_supervisor_if_due(turn: Turn) -> None:
    """Start supervisord when there is something to run and its back-off is over."""
    fleet = turn.fleet
    if wants_supervisor(fleet) and turn.seen.now >= fleet.supervisor_due_at:
        turn.actions.append(StartSupervisor(specs=applied_specs(fleet)))
        turn.fleet = replace(fleet, supervisor_starting=True)
