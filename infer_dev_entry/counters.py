"""Counters of work that engines serve: they tell a busy server from a hung one. Pure.

An answer alone proves nothing: SGLang 0.5.17 and later serve `/v1/loads` from shared memory, and go on with the last
snapshot while the scheduler is stopped. Only what moves between two looks counts.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Rank:
    """One scheduler. `stamp` is its own clock (0: it tells none).

    `work` are counters of work, whoever asked for it; `traffic` are those that our own probes do not move (empty: there
    are none). They are compared for change alone, and only with those of the same `page`.
    """

    running: float
    queued: float
    used_tokens: float
    stamp: float = 0.0
    work: tuple[float, ...] = ()
    traffic: tuple[float, ...] = ()
    page: str = ""

    @property
    def is_busy(self) -> bool:
        """True when it holds requests. A prefill in chunks is neither running nor queued, but it holds tokens."""
        return self.running + self.queued + self.used_tokens > 0


Counters = tuple[Rank, ...]


def is_working(before: Counters | None, now: Counters | None) -> bool:
    """True when requests are held and worked at: a probe that failed meanwhile was slow, not refused.

    Work without requests is no excuse: it may be the failed probe's own, with an answer that never came back.
    """
    pairs = _pairs(before, now)
    return any(new.is_busy for _, new in pairs) and all(_advances(old, new) for old, new in pairs)


def has_served(before: Counters | None, now: Counters | None, *, since: float) -> bool:
    """True when every scheduler has worked for others than our probes, and still ran at `since`, in its clock's time.

    That is life which needs no further proof; one that was stopped after its work shows an older stamp.
    """
    pairs = _pairs(before, now)
    return bool(pairs) and all(new.stamp >= since and old.traffic != new.traffic for old, new in pairs)


def remember(before: Counters | None, now: Counters | None) -> Counters | None:
    """Return the last counters of each page: another one may answer next time."""
    if before is None or now is None:
        return now or before
    pages = {rank.page for rank in now}
    return (*(rank for rank in before if rank.page not in pages), *now)


def _pairs(before: Counters | None, now: Counters | None) -> list[tuple[Rank, Rank]]:
    pages = {rank.page for rank in now or ()}
    old = [rank for rank in before or () if rank.page in pages]
    if now is None or len(old) != len(now):
        return []
    return list(zip(old, now, strict=True))


def _advances(old: Rank, new: Rank) -> bool:
    """A busy scheduler must have worked; of an idle one among several, the clock must go on."""
    return old.work != new.work if new.is_busy else old.stamp != new.stamp


def describe_counters(counters: Counters) -> str:
    """Say what the server holds: "2 running, 1 queued, 512 tokens in use"."""
    running, queued, used = (
        sum(values)
        for values in zip(*((rank.running, rank.queued, rank.used_tokens) for rank in counters), strict=True)
    )
    return f"{running:g} running, {queued:g} queued, {used:.0f} tokens in use"


def parse_counters(text: str) -> Counters | None:
    """Parse what a progress endpoint answered: SGLang's `/v1/loads` (JSON) or Prometheus text; None: neither."""
    return _parse_loads(text) if text.lstrip().startswith("{") else _parse_metrics(text)


def _parse_loads(text: str) -> Counters | None:
    try:
        loads = json.loads(text)["loads"]
        return tuple(_parse_load(load) for load in loads) or None
    except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError):
        return None


def _parse_load(load: Mapping[str, object]) -> Rank:
    # 0.5.17 and later count, without the health checks' own batches. Before, the tokens in use are all that moves with
    # every step; but there the scheduler itself answers, and hangs with its answer.
    totals = [load.get("total_prefill_uncached_tokens"), load.get("total_prefill_busy_us")]
    moments = load.get("decode_moments")
    totals += moments if isinstance(moments, list) else []
    served = tuple(_number(total) for total in totals if total is not None)
    used = _number(load.get("num_used_tokens"))
    return Rank(
        running=_number(load["num_running_reqs"]),
        queued=_number(load.get("num_waiting_reqs")),
        used_tokens=used,
        stamp=_number(load.get("timestamp")),
        work=(used, *served),
        traffic=served,
        page="loads",
    )


def _number(value: object) -> float:
    """Return a number that can be compared; NaN, which never equals itself, would look like progress."""
    return float(value) if isinstance(value, int | float) and value == value else 0.0


_RUNNING = ("sglang:num_running_reqs", "llamacpp:requests_processing")
_QUEUED = ("sglang:num_queue_reqs", "llamacpp:requests_deferred")
_USED = ("sglang:num_used_tokens",)
_WORK = (
    "sglang:generation_tokens_total",
    "sglang:prompt_tokens_total",
    "sglang:realtime_tokens_total",
    "llamacpp:n_decode_total",
    "llamacpp:prompt_tokens_total",
    "llamacpp:tokens_predicted_total",
)


def _parse_metrics(text: str) -> Counters | None:
    """Sum the samples of each metric over its labels; all schedulers of a server count as one, and none has a clock."""
    wanted = (*_RUNNING, *_QUEUED, *_USED, *_WORK)
    found = _sum_samples(text.splitlines(), wanted)
    if not found.keys() & set(_RUNNING):
        return None

    def pick(names: Iterable[str]) -> tuple[float, ...]:
        return tuple(found[name] for name in names if name in found)

    used = pick(_USED)
    return (
        Rank(
            running=sum(pick(_RUNNING)),
            queued=sum(pick(_QUEUED)),
            used_tokens=sum(used),
            work=(*used, *pick(_WORK)),
            page="metrics",
        ),
    )


def _sum_samples(lines: Iterable[str], wanted: tuple[str, ...]) -> dict[str, float]:
    found: dict[str, float] = {}
    for line in lines:
        if not line.startswith(wanted):  # most lines are buckets of histograms
            continue
        name = line.partition("{")[0].partition(" ")[0]
        try:
            value = float(line.rpartition(" ")[2])
        except ValueError:
            continue
        if name in wanted:
            found[name] = found.get(name, 0.0) + _number(value)
    return found
