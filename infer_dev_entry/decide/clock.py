"""The passing of time: drains, deadlines, probes and starts that are due."""

from __future__ import annotations

from dataclasses import replace

from infer_dev_entry.decide.due import is_probed
from infer_dev_entry.decide.failures import end_hung
from infer_dev_entry.decide.probes import probe
from infer_dev_entry.decide.starts import start_if_due
from infer_dev_entry.decide.stops import KILL_RETRY_S, kill_after_drain
from infer_dev_entry.decide.supervisor import start_supervisor_if_due
from infer_dev_entry.decide.turn import Turn
from infer_dev_entry.fleet import Ending, Server, State
from infer_dev_entry.fleet.actions import Kill
from infer_dev_entry.startup import describe_stall

# Probes may come this share of their period early, so that servers are probed together: eight probes one by one cost an
# idle PID 1 twice the CPU time of eight at once.
PROBE_SLACK = 0.1


def take_time(turn: Turn) -> None:
    """Do what is due by now."""
    for server in turn.fleet.servers:
        if server.pid:
            _take_time_running(turn, server)
    start_supervisor_if_due(turn)
    for server in turn.fleet.servers:
        start_if_due(turn, server)


def _take_time_running(turn: Turn, server: Server) -> None:
    now = turn.seen.now
    if turn.fleet.cut_short and server.kill_at is None:
        kill_after_drain(turn, server, "the stop was cut short")
    elif server.drain_until is not None and now >= server.drain_until:
        kill_after_drain(turn, server, f"it did not stop within {server.spec.drain_timeout_s:g} s")
    elif server.kill_at is not None and now >= server.kill_at:
        turn.report("error", "server.survives_sigkill", server, pid=server.pid)
        turn.actions.append(Kill(name=server.spec.name, evidence=False))
        turn.put(replace(server, kill_at=now + KILL_RETRY_S, sweeping=True))
    elif server.ready_at is None and _is_past_startup(server, now):
        deadline = server.spec.probe.startup_deadline_s
        last = f" ({server.reason})" if server.reason else ""
        end_hung(turn, server, f"not ready {deadline:g} s after its start{last}")
    elif is_probed(server) and (stall := describe_stall(server, now)):
        end_hung(turn, server, stall)
    elif is_probed(server) and now >= server.probe_at - _probe_slack_s(server):
        probe(turn, server)


def _probe_slack_s(server: Server) -> float:
    """How much too early a ready server may be probed: one wake-up then serves all that are due about now."""
    return 0.0 if server.ready_at is None else PROBE_SLACK * server.spec.probe.period_s


def _is_past_startup(server: Server, now: float) -> bool:
    return (
        server.ending is Ending.NONE
        and not server.spec.probe.by_pid
        and server.state is not State.DRAINING
        and (now >= server.started_at + server.spec.probe.startup_deadline_s)
    )
