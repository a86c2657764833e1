"""Probe servers: counters, a request to the health endpoint and the log, all in the time of one probe."""

from __future__ import annotations

import asyncio
import hashlib
import threading
import time
from contextlib import suppress
from dataclasses import replace

from infer_dev_entry.counters import Counters, has_served, parse_counters
from infer_dev_entry.errors import RunDirError
from infer_dev_entry.fleet.actions import Probe
from infer_dev_entry.fleet.observations import ProbeSeen
from infer_dev_entry.init.phase_watch import LogFollower
from infer_dev_entry.phases import (
    Durations,
    History,
    first_phase,
    parse_history,
    render_history,
    starts_of,
    with_start,
)
from infer_dev_entry.probe import read_page, run_probe
from infer_dev_entry.redact import api_key_of
from infer_dev_entry.rundir import read_text, write_private
from infer_dev_entry.spec import ServerSpec

# Counters come from memory, or from a scheduler between two steps. A hung server must not cost the probe its time.
COUNTERS_TIMEOUT_S = 2.0
COUNTERS_SHARE = 0.2
# The server says that it has no such page, or not for us: 501 is llama.cpp's word for "switched off".
_NOT_OFFERED = (401, 403, 404, 405, 501)
_HISTORY_BYTES = 1024 * 1024


class Prober:
    """Probes each server once at a time. Remembers which counters a process offers, and follows the logs of starts."""

    def __init__(self, run_dir: str) -> None:
        self._paths: dict[str, tuple[int, tuple[str, ...]]] = {}  # name → pid, and the pages that are left to try
        self._followers: dict[str, LogFollower] = {}
        self._history = StartHistory(f"{run_dir}/startup-history.json")

    # -- starts

    def expect_start(self, spec: ServerSpec) -> tuple[Durations, ...]:
        """Follow the log from here on, and return how long earlier starts took; blocks for a moment."""
        self._followers[spec.name] = LogFollower.at_end(spec.engine, spec.log_file)
        return self._history.starts_of(spec)

    def remember(self, spec: ServerSpec, start: Durations) -> None:
        """Keep how long this start took; blocks for a moment."""
        self._history.add(spec, start)

    # -- probes

    async def probe(self, ask: Probe) -> ProbeSeen:
        """Probe once, within the probe's timeout."""
        return await (self._probe_start(ask) if ask.starting else self._probe_life(ask))

    async def _probe_start(self, ask: Probe) -> ProbeSeen:
        spec = ask.spec
        seen = await self._request(ask, spec.probe.timeout_s)
        if first_phase(spec.engine) or spec.probe.stall_timeout_s:
            follower = self._followers.get(spec.name)
            if follower is None or follower.path != spec.log_file:  # started by supervisorctl
                follower = self._followers[spec.name] = LogFollower.at_end(spec.engine, spec.log_file)
            grew = await asyncio.to_thread(follower.follow)
            seen = replace(seen, phase=follower.phase, log_grew=grew)
        if not seen.ok:
            return seen
        self._followers.pop(spec.name, None)
        # What the counters are at readiness is what the first look at them is compared with.
        return replace(seen, counters=await self._read_counters(ask))

    async def _probe_life(self, ask: Probe) -> ProbeSeen:
        timeout_s = ask.spec.probe.timeout_s
        until = time.monotonic() + timeout_s
        counters = await self._read_counters(ask) if ask.trusts else None
        if has_served(ask.before, counters, since=time.time() - ask.fresh_s):
            reason = "its counters move"
            return _seen(ask, ok=True, status=200, reason=reason, counters=counters, by_counters=True)
        reserved_s = _share_s(timeout_s) if self._pages(ask) else 0.0
        left_s = until - time.monotonic() if ask.trusts else timeout_s
        seen = await self._request(ask, left_s - reserved_s)
        if not seen.ok:
            counters = await self._read_counters(ask, until)
        return replace(seen, counters=counters)

    async def _request(self, ask: Probe, timeout_s: float) -> ProbeSeen:
        timeout_s = max(0.0, round(timeout_s, 1 if timeout_s >= 1 else 2))  # people read it
        result = await run_probe(*_address(ask.spec), ask.path, timeout_s)
        return _seen(ask, ok=result.ok, status=result.status, reason=result.reason)

    # -- counters

    def _pages(self, ask: Probe) -> tuple[str, ...]:
        pid, pages = self._paths.get(ask.spec.name, (0, ()))
        return pages if pid == ask.pid else ask.spec.probe.progress_paths

    async def _read_counters(self, ask: Probe, until: float = float("inf")) -> Counters | None:
        """Read the first page of counters that this process offers; what it does not offer is not asked for again.

        Before 0.5.17 SGLang's scheduler itself answers `/v1/loads`, and not within a long step; `/metrics` may then.
        """
        spec = ask.spec
        until = min(until, time.monotonic() + _share_s(spec.probe.timeout_s))
        pages = self._pages(ask)
        for number, path in enumerate(pages):
            left_s = max(0.0, until - time.monotonic())
            page = await read_page(
                *_address(spec), path, left_s / (len(pages) - number), api_key=api_key_of(spec.files)
            )
            if page.status == 200 and (counters := parse_counters(page.text)):
                return counters
            if page.status not in _NOT_OFFERED:
                continue
            self._paths[spec.name] = (ask.pid, tuple(other for other in self._pages(ask) if other != path))
        return None


def _share_s(timeout_s: float) -> float:
    return min(COUNTERS_TIMEOUT_S, COUNTERS_SHARE * timeout_s)


def _address(spec: ServerSpec) -> tuple[str, int]:
    if spec.probe.port:
        return "127.0.0.1", spec.probe.port
    return {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(spec.host, spec.host), spec.port


def _seen(
    ask: Probe,
    *,
    ok: bool,
    status: int,
    reason: str,
    counters: Counters | None = None,
    by_counters: bool = False,
) -> ProbeSeen:
    return ProbeSeen(
        name=ask.spec.name,
        pid=ask.pid,
        ok=ok,
        status=status,
        reason=reason,
        counters=counters,
        by_counters=by_counters,
    )


class StartHistory:
    """The file that holds how long starts took. Losing it costs an estimate, so nothing about it is ever an error."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._history: History | None = None

    def starts_of(self, spec: ServerSpec) -> tuple[Durations, ...]:
        """Return the earlier starts of a server with this command line."""
        with self._lock:
            return starts_of(self._read(), spec.name, _hash(spec))

    def add(self, spec: ServerSpec, start: Durations) -> None:
        """Add a start, and write the file."""
        with self._lock, suppress(RunDirError):
            self._history = with_start(self._read(), spec.name, _hash(spec), start)
            write_private(self._path, render_history(self._history))

    def _read(self) -> History:
        if self._history is None:
            self._history = parse_history(read_text(self._path, _HISTORY_BYTES))
        return self._history


def _hash(spec: ServerSpec) -> str:
    return hashlib.sha256("\0".join(spec.argv).encode(errors="surrogateescape")).hexdigest()[:16]
