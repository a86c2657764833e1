"""What keeps a real SGLang from ever serving: found before it starts where that can be, explained where it cannot."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from fleet import free_port, free_ports
from real_sglang import READY_TIMEOUT_S, SglangFleet, copy_model, make_fleet, run_infer_dev

pytestmark = pytest.mark.timeout(1500)

# Tried once more and no oftener; what can never work is not tried twice at all.
RESTART = {"backoff_initial_s": 0.2, "backoff_max_s": 0.5, "max_restarts": 1}
# Server → what its reason must say. The flags stand in extra_args, which our own checks leave alone.
REFUSALS = {
    "flag": "unrecognized arguments: --no-such-flag",
    "choice": "argument --reasoning-parser: invalid choice: 'glm47'",
    "absent": "couldn't find them in the cached files",
    "unsupported": "NoSuchForCausalLM",
}


@pytest.fixture(scope="module")
def refused(home: Path) -> Iterator[SglangFleet]:
    """Four servers at once that cannot start, after the fleet has given them up."""
    with make_fleet(home) as fleet:
        ports = free_ports(len(REFUSALS))
        odd = copy_model(home, fleet.base / "odd", architectures=["NoSuchForCausalLM"])
        fleet.write_sglang(
            fleet.sglang("flag", ports[0], "--no-such-flag", "1", restart=RESTART),
            fleet.sglang("choice", ports[1], "--reasoning-parser", "glm47", restart=RESTART),
            fleet.sglang("absent", ports[2], flags={"model_path": "nobody/no-such-model"}, restart=RESTART),
            fleet.sglang("unsupported", ports[3], flags={"model_path": str(odd)}, restart=RESTART),
        )
        fleet.start()
        for name in REFUSALS:
            fleet.wait_state(name, "failed", timeout_s=READY_TIMEOUT_S)
        yield fleet


@pytest.mark.parametrize("name", REFUSALS)
def test_server_that_cannot_start_is_given_up_with_sglang_s_own_words(refused: SglangFleet, name: str) -> None:
    row = refused.row(name)
    assert row["state"] == "failed"
    assert row["pid"] is None
    assert REFUSALS[name] in row["reason"]
    assert row["mend"]
    assert len(refused.events("server.failed", name)) == 1


@pytest.mark.parametrize("name", REFUSALS)
def test_server_that_can_never_start_is_not_tried_twice(refused: SglangFleet, name: str) -> None:
    assert refused.row(name)["restarts"] == 0


def test_flags_that_the_installed_sglang_refuses_are_faults_before_any_start(home: Path) -> None:
    with make_fleet(home) as fleet:
        flags = {"max_model_len": 4096, "reasoning_parser": "glm47", "tp_size": "two", "model_path": "/models/absent"}
        config = fleet.write_sglang(fleet.sglang("a", free_port(), flags=flags))
        check = run_infer_dev(fleet, "config", "check", str(config))
    assert check.returncode == 10
    text = check.stdout + check.stderr
    for words in ("context_length", "glm45", "tp_size", "/models/absent"):
        assert words in text


def test_ports_that_are_taken_are_faults_before_any_start(home: Path) -> None:
    with make_fleet(home) as fleet, _listener() as http, _listener() as nccl:
        ports = [sock.getsockname()[1] for sock in (http, nccl)]
        config = fleet.write_sglang(fleet.sglang("a", ports[0], flags={"nccl_port": ports[1]}))
        check = run_infer_dev(fleet, "config", "check", str(config))
    assert check.returncode == 10
    text = check.stdout + check.stderr
    assert f"port {ports[0]} of a is in use by pid {os.getpid()}" in text
    assert f"nccl_port {ports[1]} of a is in use by pid {os.getpid()}" in text


def test_full_shared_memory_is_named_and_not_a_crash_loop(home: Path) -> None:
    with make_fleet(home) as fleet:
        fleet.write_sglang(fleet.sglang("a", free_port(), restart=RESTART))
        # A mapped page that the file system cannot back is a SIGBUS in the scheduler, at its first write.
        fleet.start(prelude="mount -t tmpfs -o size=64k tmpfs /dev/shm; head -c 64K /dev/zero >/dev/shm/fill")
        row = fleet.wait_state("a", "ready", "failed", timeout_s=READY_TIMEOUT_S)
    assert row["state"] == "failed"
    assert "/dev/shm" in row["reason"] + row["mend"]


def _listener(port: int = 0) -> socket.socket:
    """Hold a port as another program would."""
    return socket.create_server(("127.0.0.1", port))
