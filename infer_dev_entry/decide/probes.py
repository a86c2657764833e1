"""Probe servers, and tell loading, serving, slow and hung from the answers."""

from __future__ import annotations

from dataclasses import replace

from infer_dev_entry.counters import describe_counters, is_working, remember
from infer_dev_entry.decide.failures import end_hung
from infer_dev_entry.decide.turn import Turn
from infer_dev_entry.fleet import Ending, Server, State
from infer_dev_entry.fleet.actions import Probe, Remember
from infer_dev_entry.fleet.observations import ProbeSeen
from infer_dev_entry.startup import describe_start, left_s, take_log, take_readiness

# While a server starts it is probed this often, whatever its liveness period: readiness is news, and a refused
# connection costs nothing.
STARTUP_PROBE_PERIOD_S = 1.0
# Counters stand in for a probe when their server still ran this share of the period ago. The next probe comes as much
# earlier, so that a hang is found as soon as without them.
FRESH_SHARE = 0.05
# A long load says this often that it still goes on.
LOADING_NOTE_PERIOD_S = 15.0


def probe(turn: Turn, server: Server) -> None:
    """Probe a server now."""
    probe = server.spec.probe
    starting = server.ready_at is None
    period = min(STARTUP_PROBE_PERIOD_S, probe.period_s) if starting else probe.period_s
    path = probe.startup_path if starting else probe.liveness_path
    turn.actions.append(
        Probe(
            spec=server.spec,
            pid=server.pid,
            path=path,
            starting=starting,
            # What frozen children hide behind moving counters is found by the probe that comes at least this often.
            trusts=probe.counters_first
            and not starting
            and not server.probe_failures
            and server.unproved < probe.failure_threshold - 1,
            before=server.counters,
            fresh_s=FRESH_SHARE * probe.period_s,
        )
    )
    turn.put(replace(server, probing=True, probe_at=turn.seen.now + period))


def take_probe(turn: Turn, server: Server, seen: ProbeSeen) -> None:
    """Take in the outcome of a probe of the present process."""
    if not server.pid or seen.pid != server.pid:
        return
    server = replace(server, probing=False)
    if server.ending is not Ending.NONE or server.state is State.DRAINING:
        turn.put(server)
    elif seen.ok:
        _take_good_probe(turn, server, seen)
    elif server.ready_at is None:
        _take_startup_probe(turn, server, seen)
    else:
        _take_bad_probe(turn, server, seen)


def _take_startup_probe(turn: Turn, server: Server, seen: ProbeSeen) -> None:
    """Not ready yet, as expected; say so now and then."""
    server = take_log(server, seen, turn.seen.now)
    if turn.seen.now >= server.note_at:
        _note_loading(turn, server, seen)
        server = replace(server, note_at=turn.seen.now + LOADING_NOTE_PERIOD_S)
    state = State.LOADING if seen.status else server.state
    where = describe_start(server, turn.seen.now)
    turn.put(replace(server, state=state, reason=f"{seen.reason}; {where}" if where else seen.reason))


def _note_loading(turn: Turn, server: Server, seen: ProbeSeen) -> None:
    fields: dict[str, str | int] = {"elapsed_s": round(turn.seen.now - server.started_at)}
    if server.phase:
        fields |= {"phase": server.phase, "phase_s": round(turn.seen.now - server.phase_at)}
        left = left_s(server, turn.seen.now)
        fields |= {} if left is None else {"left_s": round(left)}
    turn.report("info", "server.loading", server, **fields, probe=seen.reason)


def _take_good_probe(turn: Turn, server: Server, seen: ProbeSeen) -> None:
    unproved = server.unproved + 1 if seen.by_counters else 0
    server = replace(server, counters=remember(server.counters, seen.counters), unproved=unproved)
    if seen.by_counters:
        server = replace(server, probe_at=server.probe_at - FRESH_SHARE * server.spec.probe.period_s)
    if server.ready_at is None:
        server = take_readiness(take_log(server, seen, turn.seen.now), turn.seen.now)
        if server.phases:
            turn.actions.append(Remember(spec=server.spec, start=server.phases))
        server = replace(_ready(turn, server), served=True)
        # From here the liveness period counts.
        server = replace(server, probe_at=turn.seen.now + server.spec.probe.period_s)
    elif server.state is State.UNHEALTHY:
        turn.report("info", "server.recovered", server, failed_probes=server.probe_failures)
    since = server.ready_since if server.state is State.READY else turn.seen.wall
    turn.put(replace(server, state=State.READY, ready_since=since, probe_failures=0, reason="", mend=""))


def take_life(turn: Turn, server: Server) -> None:
    """The process of a server that is watched by it alone has lived past supervisord's `startsecs`: it is ready.

    That proves no configuration, so `served` stays false; and it is never given up for want of readiness, as it may
    only wait for another machine.
    """
    turn.put(
        replace(_ready(turn, server), state=State.READY, ready_since=turn.seen.wall, reason=server.spec.note, mend="")
    )


def _ready(turn: Turn, server: Server) -> Server:
    took_s = round(turn.seen.now - server.started_at, 1)
    at = {"url": server.spec.url} if server.spec.serves else {"note": server.spec.note}
    turn.report("info", "server.ready", server, **at, after_s=took_s)
    return replace(server, ready_at=turn.seen.now, unready_failures=0)


def _take_bad_probe(turn: Turn, server: Server, seen: ProbeSeen) -> None:
    before = server.counters
    server = replace(server, counters=remember(before, seen.counters), unproved=0)
    if seen.counters is not None and is_working(before, seen.counters):
        _take_slow_probe(turn, server, seen)
        return
    threshold = server.spec.probe.failure_threshold
    failures = server.probe_failures + 1
    reason = f"{failures} of {threshold} probes failed: {seen.reason}"
    server = replace(server, state=State.UNHEALTHY, probe_failures=failures, reason=reason, ready_since=None)
    turn.report("warning", "server.probe_failed", server, reason=seen.reason, failures=failures, of=threshold)
    if failures >= threshold:
        idle = "; its counters did not move" if seen.counters is not None else ""
        end_hung(turn, server, f"hung: {failures} probes in a row failed ({seen.reason}){idle}")
    else:
        turn.put(server)


def _take_slow_probe(turn: Turn, server: Server, seen: ProbeSeen) -> None:
    """It failed the probe but works at its requests, as in a long prefill: it serves, and the count starts anew."""
    held = describe_counters(seen.counters or ())
    turn.report("warning", "server.slow", server, reason=seen.reason, counters=held)
    since = server.ready_since if server.state is State.READY else turn.seen.wall
    reason = f"slow: {seen.reason}, but its counters move ({held})"
    turn.put(replace(server, state=State.READY, ready_since=since, probe_failures=1, reason=reason, mend=""))
