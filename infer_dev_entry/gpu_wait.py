"""Is the GPU memory that a dead server held free again, and is there enough to start? The rule alone. Pure.

A process can be gone while the driver still gives back its memory, and a server that starts into that finds less than
it needs. In a container the driver's pids may be the host's or be hidden, so the rule rests on totals: what no visible
process accounts for must be back to what it was before the server's first start.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass, replace
from itertools import pairwise

from infer_dev_entry.spec import ServerSpec

# The driver's own use of a GPU moves by a few hundred MB with the number of processes on it.
SLACK_BYTES = 512 * 1024**2
# Memory that nobody accounts for and that has not shrunk for so long is not being given back: on an H200 a killed
# server's was free 0.3 s later. Somebody else's then, whom the driver does not show.
FLAT_S = 2.0
FLAT_BYTES = 64 * 1024**2
POLL_S = 0.2
POLL_LATE_S = 5.0
# SGLang's own choice without mem_fraction_static is near this share of a GPU. The share is taken of what it finds, so
# it also starts into less; into less than half of it a start is only worth its crash.
DEFAULT_SHARE = 0.85
NEED_OF_SHARE = 0.5
_SHARE_FLAG = "mem-fraction-static"


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """A living process with memory on a GPU; `server` is the mark of one of our servers, or "". Hidden sizes are 0."""

    pid: int
    name: str
    used_bytes: int
    server: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuMemory:
    """The memory of one GPU or MIG slice now; `gpu` is its UUID, `label` what people call it."""

    gpu: str
    label: str
    used_bytes: int
    total_bytes: int
    holders: tuple[Holder, ...] = ()

    @property
    def free_bytes(self) -> int:
        return self.total_bytes - self.used_bytes

    @property
    def unaccounted_bytes(self) -> int:
        """What no living process that we can see holds: the driver's own, a dead process's, a hidden one's."""
        return max(0, self.used_bytes - sum(holder.used_bytes for holder in self.holders))


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuLook:
    """The answer of the driver about a server's GPUs. `lost` names those that it has given up, with its words.

    `problem` says why there is no answer at all. `is_there` is false on a machine without a driver.
    """

    gpus: tuple[GpuMemory, ...] = ()
    lost: tuple[str, ...] = ()
    problem: str = ""
    is_there: bool = True


NO_DRIVER = GpuLook(is_there=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuWait:
    """What is remembered of a server's GPUs from look to look.

    `baseline` holds each GPU's unaccounted bytes before the last start, `least` the fewest in this wait, last lowered
    at `fell_at`. `since` is when this wait began, None without one. `most` is the most bytes in use in this wait.
    """

    baseline: tuple[tuple[str, int], ...] = ()
    since: float | None = None
    least: tuple[tuple[str, int], ...] = ()
    fell_at: float = 0.0
    most: int = 0
    late: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Siblings:
    """The servers that stay beside one on its GPUs, by name; those that `sure` use one hold memory there."""

    names: frozenset[str] = frozenset()
    sure: frozenset[str] = frozenset()


NO_SIBLINGS = Siblings()


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Whether the server may start. `reason` says why not, or what could not be seen. `lost`: waiting is in vain."""

    may_start: bool
    reason: str = ""
    mend: str = ""
    lost: bool = False
    retry_s: float = POLL_S


def needs_look(spec: ServerSpec) -> bool:
    """True when this server may use a GPU."""
    return spec.gpu_ids != ()


def needed_share(spec: ServerSpec, look: GpuLook) -> float:
    """Return the share of each of its GPUs that must be free for a start to be worth it.

    0 where that is not known: other engines fit their layers, and a server that sees more GPUs than it takes chooses.
    """
    if spec.engine != "sglang" or (spec.gpu_ids is None and spec.min_gpus < max(1, len(look.gpus))):
        return 0.0
    return NEED_OF_SHARE * _given_share(spec)


def _given_share(spec: ServerSpec) -> float:
    words = [part for word in spec.argv for part in word.split("=", 1)]
    words += [part.strip() for file in spec.files for line in file.text.splitlines() for part in line.split(":", 1)]
    for flag, value in pairwise(words):
        if flag.removeprefix("--") == _SHARE_FLAG:
            with contextlib.suppress(ValueError):
                return min(1.0, max(0.0, float(value)))
    return DEFAULT_SHARE


def judge(
    wait: GpuWait, look: GpuLook, *, now: float, share: float, wait_s: float, siblings: Siblings = NO_SIBLINGS
) -> tuple[GpuWait, Verdict]:
    """Take in a look and say whether the server may start. `share` of every GPU must be free (see `needed_share`).

    What `siblings` hold is as good as free: they are there to stay, and were given their parts. Where the driver does
    not tell what they hold, nothing is said about the rest.
    """
    if not look.is_there:
        return wait, Verdict(may_start=True)
    wait = _take_look(wait, look, now)
    late = now - (now if wait.since is None else wait.since) >= wait_s
    verdict = _judge(wait, look, now=now, share=share, siblings=siblings, late=late)
    if verdict.may_start:
        baseline = tuple((gpu.gpu, gpu.unaccounted_bytes) for gpu in look.gpus)
        return GpuWait(baseline=baseline or wait.baseline), verdict
    return replace(wait, late=late), replace(verdict, retry_s=POLL_LATE_S if late else POLL_S)


def _is_enough(gpu: GpuMemory, share: float, siblings: Siblings) -> bool:
    held: dict[str, int] = {}
    for holder in gpu.holders:
        if holder.server in siblings.names:
            held[holder.server] = held.get(holder.server, 0) + holder.used_bytes
    if (siblings.names and not gpu.holders) or not all(held.get(name) for name in siblings.sure):
        return True
    return gpu.free_bytes + sum(held.values()) >= share * gpu.total_bytes


def _judge(wait: GpuWait, look: GpuLook, *, now: float, share: float, siblings: Siblings, late: bool) -> Verdict:
    missing = _missing(wait, look)
    if look.lost or (wait.baseline and late and (look.problem or missing)):
        return _lost(look, missing)
    if look.problem:
        # A driver that never answered us is no reason to keep a server down: it may need none of what we ask for.
        reason = f"the NVIDIA driver does not answer: {look.problem}"
        return Verdict(may_start=not wait.baseline, reason=reason)
    if missing:
        return Verdict(may_start=False, reason=f"waits for a GPU that the driver no longer tells of: {missing}")
    freeing = [gpu for gpu in look.gpus if _is_freeing(wait, gpu, now)]
    if freeing:
        over = ", ".join(f"{_gb(gpu.unaccounted_bytes)} on {gpu.label}" for gpu in freeing)
        return Verdict(may_start=False, reason=f"waits until the driver has given back its memory: {over}")
    for gpu in look.gpus:
        if not _is_enough(gpu, share, siblings):
            return _too_little(gpu, share)
    return Verdict(may_start=True)


def _missing(wait: GpuWait, look: GpuLook) -> str:
    """Name the GPUs that this server had at its last start, and that the driver no longer answers for."""
    if look.problem:
        return ""
    present = {gpu.gpu for gpu in look.gpus}
    return ", ".join(gpu for gpu, _ in wait.baseline if gpu not in present)


def _take_look(wait: GpuWait, look: GpuLook, now: float) -> GpuWait:
    if wait.since is None:
        wait = replace(wait, since=now, fell_at=now)
    least = dict(wait.least)
    for gpu in look.gpus:
        if gpu.unaccounted_bytes < least.get(gpu.gpu, gpu.unaccounted_bytes + FLAT_BYTES + 1) - FLAT_BYTES:
            wait = replace(wait, fell_at=now)
            least[gpu.gpu] = gpu.unaccounted_bytes
    used = sum(gpu.used_bytes for gpu in look.gpus)
    return replace(wait, least=tuple(least.items()), most=max(wait.most, used))


def _is_freeing(wait: GpuWait, gpu: GpuMemory, now: float) -> bool:
    """True while memory that this server may have held is not back; before its first start there is none."""
    before = dict(wait.baseline).get(gpu.gpu)
    if before is None or gpu.unaccounted_bytes <= before + SLACK_BYTES:
        return False
    return now - wait.fell_at < FLAT_S


def _too_little(gpu: GpuMemory, share: float) -> Verdict:
    need = f"{_gb(gpu.free_bytes)} of {gpu.label} are free, and a start needs about {_gb(int(share * gpu.total_bytes))}"
    who = ", ".join(_describe(holder) for holder in sorted(gpu.holders, key=lambda item: -item.used_bytes)[:3])
    if not who:
        who = f"{_gb(gpu.unaccounted_bytes)} by a process that cannot be seen from here"
        mend = (
            "find it with nvidia-smi on the host and end it, or give this server other gpu_ids "
            '("auto" moves it to a GPU with room)'
        )
    else:
        mend = 'end that process, or give this server other gpu_ids ("auto" moves it to a GPU with room)'
    return Verdict(may_start=False, reason=f"waits for GPU memory: {need}; held: {who}", mend=mend)


def _describe(holder: Holder) -> str:
    what = f"server {holder.server}" if holder.server else holder.name
    size = f"{_gb(holder.used_bytes)} by " if holder.used_bytes else "an unknown part by "
    return f"{size}pid {holder.pid} ({what})"


def _lost(look: GpuLook, missing: str) -> Verdict:
    silent = f"the NVIDIA driver no longer answers: {look.problem}"
    reason = "; ".join(look.lost) or (f"the NVIDIA driver no longer tells of {missing}" if missing else silent)
    mend = (
        "run nvidia-smi on the host; if the GPU is well there, re-create the container (docker compose up "
        "--force-recreate), else reset it or reboot; then infer-dev start"
    )
    return Verdict(may_start=False, reason=reason, mend=mend, lost=True)


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB"


def render_look(look: GpuLook) -> str:
    """Render a look as one line of JSON, for its way from the child that asks the driver."""
    gpus = [
        [
            gpu.gpu,
            gpu.label,
            gpu.used_bytes,
            gpu.total_bytes,
            [[item.pid, item.name, item.used_bytes, item.server] for item in gpu.holders],
        ]
        for gpu in look.gpus
    ]
    return json.dumps({"gpus": gpus, "lost": look.lost, "problem": look.problem, "is_there": look.is_there})


def parse_look(text: str) -> GpuLook:
    """Parse what `render_look` wrote.

    Raises:
        ValueError: the text is not a look.
    """
    try:
        data = json.loads(text)
        return GpuLook(
            gpus=tuple(
                GpuMemory(
                    gpu=gpu,
                    label=label,
                    used_bytes=used,
                    total_bytes=total,
                    holders=tuple(
                        Holder(pid=pid, name=name, used_bytes=size, server=server)
                        for pid, name, size, server in holders
                    ),
                )
                for gpu, label, used, total, holders in data["gpus"]
            ),
            lost=tuple(data["lost"]),
            problem=data["problem"],
            is_there=data["is_there"],
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"cannot parse a look at the GPUs: {error}") from error
