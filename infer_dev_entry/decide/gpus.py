"""May a server start on its GPUs yet, and would others do."""

from __future__ import annotations

from dataclasses import replace

from infer_dev_entry.decide.turn import Turn
from infer_dev_entry.fleet import Ending, Fleet, Server, State
from infer_dev_entry.fleet.actions import FindRoom
from infer_dev_entry.fleet.observations import GpuSeen, RoomSeen
from infer_dev_entry.gpu_wait import GpuWait, Siblings, Verdict, judge, needed_share
from infer_dev_entry.spec import ServerSpec

# How often other GPUs are looked for; the config is read and checked for that.
ROOM_PERIOD_S = 60.0
# Where a server's environment says which GPUs are its own.
_GPU_VARIABLES = ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER")


def take_gpus(turn: Turn, server: Server, seen: GpuSeen) -> None:
    """Clear the start, or wait on: what holds a GPU is outside the server, so it never counts as a failure."""
    if seen.gpu_ids != server.spec.gpu_ids:
        return  # those of a plan before; what is known of them says nothing of the present ones
    server = replace(server, gpu_looking=False)
    if server.pid or server.state not in (State.WAITING_GPU, State.STARTING, State.BACKOFF):
        turn.put(server)  # stopped, or started by the user, meanwhile
        return
    spec, before = server.spec, server.gpu_wait
    share, siblings = needed_share(spec, seen.look), find_siblings(turn.fleet, server)
    now = turn.seen.now
    wait, verdict = judge(before, seen.look, now=now, share=share, wait_s=spec.gpu_wait_s, siblings=siblings)
    _report_gpus(turn, server, wait, verdict, seen)
    server = replace(server, gpu_wait=wait)
    if verdict.may_start:
        turn.put(replace(server, gpu_clear=True, due_at=turn.seen.now))
        return
    state = State.FAILED if verdict.lost else State.WAITING_GPU
    due_at = turn.seen.now + verdict.retry_s
    server = replace(server, state=state, reason=verdict.reason, mend=verdict.mend, due_at=due_at)
    if wait.late and spec.gpu_auto and not verdict.lost and now >= server.room_at:
        turn.actions.append(FindRoom(spec=spec))
        server = replace(server, room_at=now + ROOM_PERIOD_S)
    turn.put(server)


def take_room(turn: Turn, server: Server, seen: RoomSeen) -> None:
    """Move a server that waits for its GPUs to others, where the config deals them and they have room for it."""
    if server.pid or server.starting or server.state is not State.WAITING_GPU or not server.gpu_wait.late:
        return  # stopped, started or moved meanwhile
    problem = seen.problem or (_why_not(turn.fleet, server, seen.spec) if seen.spec else "")
    if problem and problem != server.room_problem:
        server = replace(server, room_problem=problem)
        turn.put(server)
        turn.report("warning", "gpu.stays", server, reason=f"cannot move to another GPU: {problem}")
    if problem or seen.spec is None or not seen.look.gpus:
        return
    moved = replace(server, spec=seen.spec, gpu_wait=GpuWait(), gpu_clear=False, gpu_looking=False)
    share, siblings = needed_share(seen.spec, seen.look), find_siblings(turn.fleet, moved)
    now = turn.seen.now
    _, verdict = judge(GpuWait(), seen.look, now=now, share=share, wait_s=seen.spec.gpu_wait_s, siblings=siblings)
    if not verdict.may_start:
        return
    before, after = (",".join(spec.gpu_ids or ()) for spec in (server.spec, seen.spec))
    turn.report("info", "gpu.moved", server, **{"from": before, "to": after, "reason": server.reason})
    turn.put(replace(moved, state=State.STARTING, reason=f"moved to GPU {after}", mend="", due_at=now))
    turn.configure()


def _why_not(fleet: Fleet, server: Server, spec: ServerSpec) -> str:
    """Say why a server cannot become what the config now makes of it; "" when it can, or is that already."""
    if not spec.gpu_auto:
        return "the config does not deal its GPUs any more; infer-dev serve applies that"
    if spec == server.spec:
        return ""
    without = (replace(one, gpu_ids=(), environment=_other_variables(one)) for one in (server.spec, spec))
    if len(set(without)) > 1:
        return "the config, or the environment, makes another server of it now; infer-dev serve applies that"
    others = [other for other in fleet.servers if other.spec.name != spec.name]
    specs = [one for other in others for one in (other.spec, other.successor) if one]
    taken = {gpu for one in specs for gpu in one.gpu_ids or ()}
    shared = ", ".join(gpu for gpu in spec.gpu_ids or () if gpu in taken)
    return f"GPU {shared} is another server's" if shared else ""


def _other_variables(spec: ServerSpec) -> tuple[tuple[str, str], ...]:
    return tuple((name, value) for name, value in spec.environment if name not in _GPU_VARIABLES)


def _report_gpus(turn: Turn, server: Server, wait: GpuWait, verdict: Verdict, seen: GpuSeen) -> None:
    """Report the beginning of a wait, its deadline, and its end."""
    before, told = server.gpu_wait, {"reason": verdict.reason, "mend": verdict.mend}
    if verdict.lost:
        turn.report("error", "gpu.lost", server, **told)
    elif verdict.may_start and verdict.reason:
        turn.report("warning", "gpu.unseen", server, reason=verdict.reason)
    elif verdict.may_start:
        if seen.look.gpus and (server.runs or before.since is not None):
            used = sum(gpu.used_bytes for gpu in seen.look.gpus)
            waited_ms = round(1000 * (turn.seen.now - (before.since or turn.seen.now)))
            freed = max(0, before.most - used)
            turn.report("info", "gpu.free", server, used_bytes=used, freed_bytes=freed, waited_ms=waited_ms)
    elif wait.late and not before.late:
        turn.report("warning", "gpu.blocked", server, **told, after_s=server.spec.gpu_wait_s)
    elif before.since is None:
        turn.report("info", "gpu.waiting", server, **told)


def find_siblings(fleet: Fleet, server: Server) -> Siblings:
    """Return the other servers with a process that are to go on beside this one on one of its GPUs."""
    others = [
        other.spec
        for other in fleet.servers
        if other.spec.name != server.spec.name
        and (other.pid or other.starting)
        and other.ending is not Ending.STOP
        and _overlaps(server.spec.gpu_ids, other.spec.gpu_ids)
    ]
    # On "all" nobody knows whether llama.cpp takes any.
    sure = [spec.name for spec in others if spec.gpu_ids is not None or spec.min_gpus]
    return Siblings(names=frozenset(spec.name for spec in others), sure=frozenset(sure))


def _overlaps(one: tuple[str, ...] | None, other: tuple[str, ...] | None) -> bool:
    if one is None or other is None:
        return () not in (one, other)
    return not set(one).isdisjoint(other)
