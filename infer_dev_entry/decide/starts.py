"""Start what is due, adopt the new process, and take in that leftovers are swept."""

from __future__ import annotations

from dataclasses import replace

from infer_dev_entry.decide.due import can_start_but_for_time, is_warmed_for, leaving_holder, missing_dependencies
from infer_dev_entry.decide.failures import fail
from infer_dev_entry.decide.probes import LOADING_NOTE_PERIOD_S
from infer_dev_entry.decide.stops import fresh, stop
from infer_dev_entry.decide.turn import Turn
from infer_dev_entry.diagnosis.model import PORT_IN_USE, Policy
from infer_dev_entry.fleet import Server, State, find_server
from infer_dev_entry.fleet.actions import LookAtGpus, Start
from infer_dev_entry.fleet.observations import StartSeen, SweepSeen
from infer_dev_entry.gpu_wait import needs_look


def start_if_due(turn: Turn, server: Server) -> None:
    """Start a server that is wanted, swept, cleared and due."""
    fleet = turn.fleet
    waiting_state = server.state in (State.WAITING_GPU, State.STARTING, State.BACKOFF)
    if server.wanted and not server.pid and not server.starting and waiting_state:
        missing = missing_dependencies(fleet, server)
        if missing and server.state is State.STARTING:
            turn.put(replace(server, reason=f"waits until {', '.join(missing)} is ready"))
            return
        if is_warmed_for(fleet, server):
            turn.put(replace(server, reason=f"waits until {server.spec.warm_after} has read the model from disk"))
            return
        if holder := leaving_holder(fleet, server):
            turn.put(replace(server, reason=f"waits until {holder} has stopped, which holds a port of it"))
            return
    if not can_start_but_for_time(fleet, server):
        return
    due = max(server.due_at, fleet.last_start_at + server.spec.start_stagger_s)
    if turn.seen.now < due:
        return
    if needs_look(server.spec) and not server.gpu_clear:
        turn.actions.append(LookAtGpus(spec=server.spec))
        turn.put(replace(server, gpu_looking=True))
        return
    turn.actions.append(Start(spec=server.spec))
    turn.fleet = replace(fleet, last_start_at=turn.seen.now)
    turn.put(replace(server, starting=True, state=State.STARTING))


def take_start(turn: Turn, server: Server, seen: StartSeen) -> None:
    """Take in the outcome of a start."""
    if not server.starting:
        return  # supervisord was lost meanwhile; this start belongs to its past
    server = replace(server, starting=False)
    if seen.problem:
        kind, policy = (PORT_IN_USE, Policy.WAIT) if seen.outside else (seen.kind, seen.policy)
        fail(turn, server, seen.problem, seen.mend, kind=kind, policy=policy, died=not seen.outside)
        return
    adopt(turn, replace(server, past=seen.past), seen.pid)
    server = find_server(turn.fleet, seen.name) or server
    if not server.wanted or server.removing or server.successor:
        stop(turn, server)


def adopt(turn: Turn, server: Server, pid: int) -> None:
    """A process of this server runs now, started by us or by the user through supervisorctl."""
    # The successor spec stays pending: this process still runs with the old one.
    server = replace(fresh(replace(server, successor=None)), successor=server.successor)
    turn.put(
        replace(
            server,
            pid=pid,
            runs=server.runs + 1,
            state=State.STARTING,
            statename="STARTING",
            reason="",
            mend="",
            started_at=turn.seen.now,
            log_at=turn.seen.now,
            probe_at=turn.seen.now + 0.1,
            note_at=turn.seen.now + LOADING_NOTE_PERIOD_S,
            swept=False,
        )
    )
    turn.report("info", "server.started", server, pid=pid, port=server.spec.port)


def take_sweep(turn: Turn, server: Server, seen: SweepSeen) -> None:
    """Take in what a sweep has ended, and what survived it."""
    if seen.killed:
        turn.report("warning", "server.leftovers_ended", server, processes=", ".join(seen.killed))
    if seen.survivors:
        turn.report("error", "server.leftovers_survive", server, processes=", ".join(seen.survivors))
    server = replace(server, sweeping=False)
    if not server.pid:
        server = replace(server, swept=True)
    turn.put(server)
