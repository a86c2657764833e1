"""Slow or hung, loading or stalled: told apart by the server's own counters, and by its log."""

from __future__ import annotations

import json
import signal
import time
import urllib.request
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest
from fleet import Fleet, free_port, get, server

pytest_plugins = ("fleet_fixtures",)

# The counters get a tenth of the time of a probe, and a machine that does other things as well may take it away.
PERIOD_S, TIMEOUT_S, THRESHOLD = 2.0, 1.9, 3
PROBE = {"period_s": PERIOD_S, "timeout_s": TIMEOUT_S, "failure_threshold": THRESHOLD}
# Twice the bound of the design.
BOUND_S = 2 * (THRESHOLD * PERIOD_S + TIMEOUT_S)


def moment(event: dict[str, str]) -> float:
    """Return the time of an event."""
    return datetime.fromisoformat(event["timestamp"]).timestamp()


def start_one(fleet: Fleet, *words: str, **probe: object) -> int:
    """Start a fleet of one fake server, wait until it is ready, and return its port."""
    port = free_port()
    fleet.write(server("a", port, *words, probe={**PROBE, **probe}))
    fleet.start()
    fleet.wait_ready("a")
    return port


def test_server_in_a_long_prefill_is_slow_but_never_restarted(fleet: Fleet) -> None:
    prefill = fleet.base / "prefill"
    threshold = THRESHOLD + 1  # two looks at the counters in a row may fail
    start_one(fleet, "--loads", "--prefill-file", str(prefill), failure_threshold=threshold)
    pid = fleet.row("a")["pid"]
    prefill.touch()
    slow = fleet.wait_event("server.slow", "a", count=threshold + 1, timeout_s=60)
    assert slow["counters"].startswith("0 running, 0 queued, ")
    row = fleet.wait_state("a", "ready", reason="slow: no answer on /health in ")
    assert row["pid"] == pid
    assert fleet.cli("health").returncode == 0
    prefill.unlink()
    row = fleet.wait(lambda: (row := fleet.row("a")) and not row["reason"] and row, what="the prefill to be over")
    assert (row["state"], row["pid"], row["restarts"]) == ("ready", pid, 0)
    assert not fleet.events("server.hung")


def freeze(fleet: Fleet, frozen: Path) -> int:
    """The scheduler stops; SGLang goes on to serve its last counters."""
    frozen.touch()
    return int(fleet.row("a")["pid"])


def suspend(fleet: Fleet, _frozen: Path) -> int:
    """The whole server stops, its counters with it."""
    return fleet.kill_server("a", signal.SIGSTOP)


@pytest.mark.parametrize(("stop", "says"), [(freeze, "; its counters did not move"), (suspend, "")])
def test_server_without_progress_is_found_hung_in_time(
    fleet: Fleet, stop: Callable[[Fleet, Path], int], says: str
) -> None:
    frozen = fleet.base / "frozen"
    port = start_one(fleet, "--loads", "--freeze-file", str(frozen))
    stopped_at = time.time()
    pid = stop(fleet, frozen)
    hung = fleet.wait_event("server.hung", "a")
    assert moment(hung) - stopped_at <= BOUND_S
    assert hung["reason"].startswith(f"hung: {THRESHOLD} probes in a row failed (no answer on /health in ")
    assert hung["reason"].endswith(")" + says)
    frozen.unlink(missing_ok=True)
    assert fleet.wait_again("a", pid)["restarts"] == 1
    assert get(port)[0] == 200


def test_server_that_stops_in_the_middle_of_its_work_is_found_hung(fleet: Fleet) -> None:
    prefill, frozen = fleet.base / "prefill", fleet.base / "frozen"
    start_one(fleet, "--loads", "--prefill-file", str(prefill), "--freeze-file", str(frozen))
    prefill.touch()
    fleet.wait_event("server.slow", "a")
    stopped_at = time.time()
    freeze(fleet, frozen)
    assert moment(fleet.wait_event("server.hung", "a")) - stopped_at <= BOUND_S


def test_traffic_spares_the_server_the_generations_of_probes(fleet: Fleet) -> None:
    period_s = 1.0
    port = start_one(fleet, "--loads", period_s=period_s, timeout_s=0.9, failure_threshold=5)
    seen, since = health_checks(port), time.monotonic()

    def is_spared() -> bool:
        nonlocal seen, since
        chat(port)
        if (count := health_checks(port)) != seen:
            seen, since = count, time.monotonic()
        return time.monotonic() - since > 2.5 * period_s

    fleet.wait(is_spared, 40, "periods in which the server is asked for its counters alone")

    def is_probed() -> bool:
        chat(port)
        return health_checks(port) > seen

    fleet.wait(is_probed, 40, "the one of `failure_threshold` periods that is probed all the same")
    fleet.wait_state("a", "ready")
    assert not fleet.events("server.hung")


def test_server_without_traffic_is_made_to_generate_in_every_period(fleet: Fleet) -> None:
    # If it were spared, so high a threshold would make it wait for a minute.
    port = start_one(fleet, "--loads", period_s=0.5, timeout_s=0.4, failure_threshold=120)
    before = health_checks(port)
    fleet.wait(lambda: health_checks(port) - before >= 4, 30, "four probes")


def health_checks(port: int) -> int:
    """Return how often a server was asked for its health."""
    return int(get(port, "/fake/health_checks", timeout_s=5)[1] or 0)


def chat(port: int) -> None:
    """Have one chat with a server."""
    body = json.dumps({"messages": [{"role": "user", "content": "hello"}]}).encode()
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/chat/completions", body, timeout=5) as answer:
        answer.read()


def test_start_tells_its_phases_and_estimates_the_next_one_also_after_a_restart_of_the_entry(fleet: Fleet) -> None:
    phases = fleet.base / "phases"
    phases.mkdir()
    weights, capture = phases / "weights", phases / "graph-capture"
    fleet.write(server("a", free_port(), "--phases-s", "1.2", "--phase-files", str(phases)))
    weights.touch()
    capture.touch()
    fleet.start()
    row = fleet.wait_state("a", "loading", "starting", reason="; weights for ")
    assert row["phase"] == "weights"
    assert "left" not in row["reason"]
    weights.unlink()
    fleet.wait_state("a", "loading", reason="; graph-capture for ")
    capture.unlink()
    assert fleet.wait_ready("a")["a"]["phase"] == ""
    fleet.wait((fleet.run_dir / "startup-history.json").exists, what="the history")
    weights.touch()  # as long as it stays in this phase, the later ones are ahead of it
    old_pid = fleet.kill_server("a")
    fleet.wait_state("a", "starting", "loading", reason=" s left")
    weights.unlink()
    fleet.wait_again("a", old_pid)
    assert fleet.stop() == 0
    weights.touch()
    fleet.start()
    fleet.wait_state("a", "starting", "loading", reason=" s left")


def test_start_that_stalls_is_ended_and_tried_again(fleet: Fleet) -> None:
    fleet.write(server("a", free_port(), "--phases-s", "0.1", "--stall", probe={"stall_timeout_s": 4}))
    fleet.start()
    hung = fleet.wait_event("server.hung", "a")
    assert hung["reason"] == "stalled: its log says nothing for 4 s in phase weights"
    assert any("Load weight begin" in line for line in fleet.wait_event("server.evidence", "a")["log_tail"])
    crashed = fleet.wait_event("server.crashed", "a")
    assert "probe.stall_timeout_s" in crashed["mend"]
    fleet.wait_event("server.started", "a", count=2)
    assert not fleet.host_pid(hung["pid"])
