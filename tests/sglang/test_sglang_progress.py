"""A real SGLang that is busy and slow, and so answers its probes late, is told from one that hangs."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fleet import free_port, get
from real_sglang import Background, SglangFleet, copy_model, make_fleet, post

pytestmark = pytest.mark.timeout(1500)

PROMPT_TOKENS = 4000
CHUNK_TOKENS = 8
# The scheduler runs a twentieth of the time, as on a CPU that others use: a few chunks of the prompt each second.
RUN_S, REST_S = 0.1, 2.0
# SGLang 0.5.23 answers /health after the batch that runs, so it is late by one or two chunks. A hang must be found fast
# for that to look like one.
PROBE = {"period_s": 4.0, "timeout_s": 3.9, "failure_threshold": 3}
HANG_S = PROBE["failure_threshold"] * PROBE["period_s"] + PROBE["timeout_s"]


def test_long_prefill_on_a_slow_cpu_is_not_killed(home: Path) -> None:
    with make_fleet(home) as fleet:
        port = free_port()
        model = copy_model(home, fleet.base / "model", max_position_embeddings=8192)
        flags = {"model_path": str(model), "max_total_tokens": 8192, "chunked_prefill_size": CHUNK_TOKENS}
        fleet.write_sglang(fleet.sglang("busy", port, flags=flags, probe=PROBE))
        fleet.start()
        before = fleet.wait_loaded("busy")["busy"]
        body = {"input_ids": [7] * PROMPT_TOKENS, "sampling_params": {"max_new_tokens": 4, "ignore_eos": True}}
        with throttled(fleet, fleet.part("sglang::scheduler").pid):
            request = Background(lambda: post(port, "/generate", body, timeout_s=600))
            until = time.monotonic() + 4 * HANG_S
            fleet.wait(lambda: fleet.events("server.hung") or time.monotonic() > until, 5 * HANG_S)
            assert not fleet.events("server.hung")
            assert request.is_alive()  # the prefill was long enough to prove something
        assert request.finish(400)["meta_info"]["completion_tokens"] == 4
        row = fleet.wait_state("busy", "ready", timeout_s=60)
        assert (row["pid"], row["restarts"]) == (before["pid"], 0)
        assert get(port, timeout_s=30)[0] == 200


@contextmanager
def throttled(fleet: SglangFleet, pid: int) -> Iterator[None]:
    """Let a process run a part of the time while the block runs."""
    over = threading.Event()

    def throttle() -> None:
        with contextlib.suppress(ProcessLookupError):
            while not over.is_set():
                fleet.kill(pid, signal.SIGSTOP)
                over.wait(REST_S)
                fleet.kill(pid, signal.SIGCONT)
                over.wait(RUN_S)

    thread = threading.Thread(target=throttle, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(5)
