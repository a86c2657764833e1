"""Crashes, hangs and starts that failed: back off, give up, and have a dossier kept."""

from __future__ import annotations

from dataclasses import replace

from infer_dev_entry.decide.stops import KILL_RETRY_S, forget, fresh
from infer_dev_entry.decide.turn import Turn
from infer_dev_entry.diagnosis.model import GPU_LOST, UNKNOWN, Policy
from infer_dev_entry.fleet import Ending, Server, State
from infer_dev_entry.fleet.actions import Kill, Record
from infer_dev_entry.spec import RestartSpec


def end_hung(turn: Turn, server: Server, reason: str) -> None:
    """Have a hung server ended, with evidence."""
    turn.report("error", "server.hung", server, reason=reason, pid=server.pid)
    turn.actions.append(Kill(name=server.spec.name, evidence=True))
    turn.put(
        replace(
            server,
            state=State.UNHEALTHY,
            ending=Ending.HUNG,
            ending_reason=reason,
            reason=reason,
            kill_at=turn.seen.now + KILL_RETRY_S,
            sweeping=True,
        )
    )


def fail(
    turn: Turn,
    server: Server,
    reason: str,
    mend: str,
    *,
    kind: str,
    policy: Policy,
    died: bool = True,
    ran_s: float | None = None,
) -> None:
    """A crash, a hang or a start that failed: back off, or give up; what does not count is waited out for ever.

    `died` tells a process that ended, after `ran_s` if that is known, from one that there never was.
    """
    restart = server.spec.restart
    was_ready = server.ready_at is not None
    settled = was_ready and turn.seen.now - (server.ready_at or 0.0) >= restart.reset_after_s
    failures = 1 if settled else server.failures + 1
    # What has served once can serve again: what it misses comes back, or the log showed what a prompt said.
    stops = kind == GPU_LOST or (policy in (Policy.HOLD, Policy.NEVER) and not server.served)
    outside = policy is Policy.WAIT or (policy is Policy.HOLD and server.served)
    unready = 1 if was_ready else server.unready_failures + int(not outside)
    changed = server.successor is not None
    if died:
        _record(turn, replace(server, reason=reason, mend=mend, kind=kind, failures=failures), policy, ran_s)
    server = replace(fresh(server), failures=failures, unready_failures=unready, reason=reason, mend=mend, kind=kind)
    if not server.wanted or turn.fleet.shutting_down:
        turn.report("info", "server.stopped", server, reason=reason)
        turn.put(replace(server, state=State.STOPPED))
        if server.removing:
            forget(turn, server)
    elif stops and not changed:
        _give_up(turn, server, reason)
    elif restart.max_restarts and unready > restart.max_restarts:
        _give_up(turn, server, f"{unready} starts in a row never became ready; the last: {reason}")
    else:
        delay = backoff_s(restart, failures, turn.seen.jitter)
        told = {"class": kind, "reason": reason, "mend": mend}
        turn.report("error", "server.crashed", server, **told, retry_in_s=round(delay, 2))
        turn.put(replace(server, state=State.BACKOFF, due_at=turn.seen.now + delay))
    if changed:
        turn.configure()


def _record(turn: Turn, server: Server, policy: Policy, ran_s: float | None) -> None:
    """Have a dossier kept of this failure, unless somebody wanted the server to end anyway."""
    if not server.wanted or turn.fleet.shutting_down:
        return
    turn.actions.append(
        Record(
            spec=server.spec,
            kind=server.kind,
            policy=policy,
            reason=server.reason,
            mend=server.mend,
            failures=server.failures,
            run=server.runs,
            ran_s=ran_s,
        )
    )


def _give_up(turn: Turn, server: Server, reason: str) -> None:
    name = server.spec.name
    cause = server.mend if server.kind != UNKNOWN else f"read infer-dev logs {name}, mend the cause"
    mend = f"{cause}; then run infer-dev start {name}"
    turn.report("error", "server.failed", server, **{"class": server.kind, "reason": reason, "mend": mend})
    turn.put(replace(server, state=State.FAILED, reason=reason, mend=mend))


def backoff_s(restart: RestartSpec, failures: int, jitter: float) -> float:
    """Return the delay before the next start after `failures` (≥ 1) crashes in a row, in seconds.

    Doubles from `backoff_initial_s` up to `backoff_max_s`; `jitter` in [0, 1) takes off up to a tenth, so that servers
    which died together do not load together.
    """
    doublings = min(max(0, failures - 1), 60)  # 2**60 seconds is beyond any maximum; no overflow
    delay = min(restart.backoff_max_s, restart.backoff_initial_s * 2.0**doublings)
    return delay * (1.0 - 0.1 * jitter)
