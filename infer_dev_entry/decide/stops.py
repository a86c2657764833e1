"""Bring servers down on purpose, and clear up after a process that is gone."""

from __future__ import annotations

from dataclasses import replace

from infer_dev_entry.decide.turn import Turn
from infer_dev_entry.fleet import Ending, Server, State
from infer_dev_entry.fleet.actions import Kill, Stop
from infer_dev_entry.gpu_wait import GpuWait

# A process that survives SIGKILL this long (uninterruptible sleep in a driver) is signalled and reported again.
KILL_RETRY_S = 10.0


def stop(turn: Turn, server: Server) -> None:
    """Bring a server down gracefully, whatever it is doing."""
    if server.pid and server.ending is not Ending.STOP:
        server = replace(
            server,
            state=State.DRAINING,
            ending=Ending.STOP,
            drain_until=turn.seen.now + server.spec.drain_timeout_s,
        )
        turn.actions.append(Stop(name=server.spec.name))
        turn.report("info", "server.draining", server, drain_timeout_s=server.spec.drain_timeout_s)
    elif not server.pid and not server.starting:
        server = replace(server, state=State.STOPPED, ready_since=None)
    turn.put(server)


def take_stopped(turn: Turn, server: Server, by_user: bool) -> None:
    """Take in a stop that was wished for: stay stopped, or start again with the new spec."""
    turn.report("info", "server.stopped", server)
    if server.removing:
        forget(turn, server)
        return
    changed = server.successor is not None
    again = server.wanted and not by_user and not turn.fleet.shutting_down
    server = fresh(server)
    if again:
        server = replace(server, state=State.STARTING, due_at=turn.seen.now, failures=0, unready_failures=0)
    else:
        reason = "stopped by supervisorctl" if by_user else server.reason
        server = replace(server, state=State.STOPPED, wanted=False, reason=reason)
    turn.put(server)
    if changed:
        turn.configure()


def kill_after_drain(turn: Turn, server: Server, why: str) -> None:
    """End a server whose drain is over, and remember its name for the report at the end."""
    name = server.spec.name
    if name not in turn.fleet.had_to_kill:
        turn.fleet = replace(turn.fleet, had_to_kill=(*turn.fleet.had_to_kill, name))
    turn.report("warning", "server.killed", server, reason=why, pid=server.pid)
    turn.actions.append(Kill(name=name, evidence=False))
    turn.put(replace(server, drain_until=None, kill_at=turn.seen.now + KILL_RETRY_S, sweeping=True))


def forget(turn: Turn, server: Server) -> None:
    """Drop a server that the plan no longer has."""
    name = server.spec.name
    servers = tuple(other for other in turn.fleet.servers if other.spec.name != name)
    turn.fleet = replace(turn.fleet, servers=servers)
    turn.configure()


def fresh(server: Server) -> Server:
    """Clear what belonged to the process that is gone, and move on to the successor spec if there is one."""
    return replace(
        server,
        spec=server.successor or server.spec,
        served=server.served and server.successor is None,
        successor=None,
        ready_at=None,
        ready_since=None,
        probing=False,
        probe_failures=0,
        counters=None,
        unproved=0,
        phase="",
        phases=(),
        ending=Ending.NONE,
        ending_reason="",
        drain_until=None,
        kill_at=None,
        gpu_clear=False,
        # The answer to a look at other GPUs will not be taken.
        gpu_looking=server.gpu_looking and not _moves(server),
        room_problem="",
        # What is known of other GPUs says nothing of the new ones.
        gpu_wait=GpuWait() if _moves(server) else server.gpu_wait,
    )


def _moves(server: Server) -> bool:
    return server.successor is not None and server.successor.gpu_ids != server.spec.gpu_ids
