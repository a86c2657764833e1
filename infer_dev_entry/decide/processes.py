"""supervisord's view of the processes: starts by users, stops, ends."""

from __future__ import annotations

from dataclasses import replace

from infer_dev_entry.decide.failures import fail
from infer_dev_entry.decide.probes import take_life
from infer_dev_entry.decide.starts import adopt
from infer_dev_entry.decide.stops import stop, take_stopped
from infer_dev_entry.decide.turn import Turn
from infer_dev_entry.diagnosis.model import HUNG, Policy
from infer_dev_entry.fleet import Ending, Server, State, find_server
from infer_dev_entry.fleet.actions import Sweep
from infer_dev_entry.fleet.observations import ProcessSeen


def take_processes(turn: Turn, processes: tuple[ProcessSeen, ...]) -> None:
    """Take in supervisord's view of every program."""
    for process in processes:
        server = find_server(turn.fleet, process.name)
        # An answer to a question asked before the start knows nothing of the new process.
        if server is not None and not server.starting and turn.seen.processes_at >= server.started_at:
            _take_process(turn, server, process)


def _take_process(turn: Turn, server: Server, process: ProcessSeen) -> None:
    if process.pid and process.pid != server.pid:
        _take_foreign_start(turn, server, process)
    elif process.pid:
        _take_running(turn, server, process)
    elif server.pid:
        _take_end(turn, replace(server, pid=0, statename=process.statename), process)
    else:
        turn.put(replace(server, statename=process.statename))


def _take_foreign_start(turn: Turn, server: Server, process: ProcessSeen) -> None:
    """A new process that we did not start: `supervisorctl start` or `restart` hands the server back to us."""
    if server.pid:
        turn.report("info", "server.replaced", server, old_pid=server.pid)
    turn.actions.append(Sweep(name=server.spec.name))  # of its predecessor; live programs are spared
    adopt(turn, replace(server, wanted=True, failures=0, unready_failures=0), process.pid)
    adopted = find_server(turn.fleet, process.name)
    if adopted and (turn.fleet.shutting_down or adopted.removing or adopted.successor):
        keep = not (turn.fleet.shutting_down or adopted.removing)
        stop(turn, replace(adopted, wanted=keep))  # it came up while it was to go


def _take_running(turn: Turn, server: Server, process: ProcessSeen) -> None:
    state, reason = server.state, server.reason
    if process.statename == "STOPPING" and server.ending is Ending.NONE:
        if state is not State.DRAINING:
            turn.report("info", "server.draining", server, by="supervisorctl")
        state, reason = State.DRAINING, "stopped by supervisorctl"
    elif process.statename == "RUNNING" and state is State.STARTING:
        state = State.LOADING
    turn.put(replace(server, statename=process.statename, state=state, reason=reason))
    if state is State.LOADING and server.spec.probe.by_pid:
        take_life(turn, replace(server, statename=process.statename))


def _take_end(turn: Turn, server: Server, process: ProcessSeen) -> None:
    """The process is gone: by our stop, by the user's, by our kill, or by itself."""
    turn.actions.append(Sweep(name=server.spec.name))
    server = replace(server, swept=False, sweeping=True)
    ran_s = round(turn.seen.now - server.started_at, 1)
    by_user = process.statename == "STOPPED" and server.ending is Ending.NONE
    if server.ending is Ending.STOP or by_user:
        take_stopped(turn, server, by_user)
    elif server.ending is Ending.HUNG:
        mend = f"see its log; if it was only slow, raise {_patience_key(server)}"
        fail(turn, server, server.ending_reason, mend, kind=HUNG, policy=Policy.RETRY, ran_s=ran_s)
    else:
        mend = process.mend or f"see infer-dev logs {server.spec.name}"
        fail(turn, server, process.ended, mend, kind=process.kind, policy=process.policy, ran_s=ran_s)


def _patience_key(server: Server) -> str:
    """Name the key that gives a server that was ended as hung more time."""
    if server.ready_at is not None:
        return "probe.failure_threshold"
    return "probe.stall_timeout_s" if server.ending_reason.startswith("stalled") else "probe.startup_deadline_s"
