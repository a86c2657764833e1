"""Two nodes of one real SGLang on this machine: they meet, answer, and come back together when one of them dies."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from fleet import free_port, get
from real_sglang import READY_TIMEOUT_S, SglangFleet, chat, make_fleet

pytestmark = [
    pytest.mark.timeout(1500),
    pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="each rank is bound to a core of its own"),
]

NOTE = "rank 1 of 2: watched by its process; rank 0 answers"
KEY = "sk-nodes-0123456789abcdef"


@pytest.fixture(scope="module")
def port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def meeting() -> int:
    return free_port()


@pytest.fixture(scope="module")
def started(home: Path, port: int, meeting: int) -> Iterator[SglangFleet]:
    """Both nodes as two servers of one fleet; on two machines each would be in a fleet of its own."""
    cores = sorted(os.sched_getaffinity(0))[:2]
    with make_fleet(home) as fleet:
        fleet.environ |= {"MEETING": f"127.0.0.1:{meeting}", "NODES_KEY": KEY}
        group = {"tp_size": 2, "nnodes": 2, "dist_init_addr": "${MEETING}", "api_key": "${NODES_KEY}"}
        env = {"SGLANG_CPU_OMP_THREADS_BIND": "|".join(map(str, cores))}
        nodes = [
            fleet.sglang(f"node{rank}", number, flags={**group, "node_rank": rank}, env=env)
            for rank, number in enumerate((port, free_port()))
        ]
        fleet.write_sglang(*nodes, drain_timeout_s=60.0)
        fleet.start()
        fleet.wait_loaded("node0", "node1")
        yield fleet


@pytest.fixture
def fleet(started: SglangFleet) -> SglangFleet:
    started.wait_loaded("node0", "node1")
    return started


def test_nodes_meet_and_the_first_one_answers_for_both(fleet: SglangFleet, port: int, meeting: int) -> None:
    assert chat(port, key=KEY)
    rows = fleet.rows()
    assert (rows["node1"]["reason"], rows["node1"]["url"]) == (NOTE, "")
    assert get(port, timeout_s=30)[0] == 200
    words = {name: next(m.argv for m in fleet.members() if m.inner_pid == rows[name]["pid"]) for name in rows}
    for argv in words.values():
        assert f"127.0.0.1:{meeting}" in argv
        assert "--nccl-port" not in argv
        assert KEY not in " ".join(argv)


@pytest.mark.parametrize("name", ["node1", "node0"])
def test_node_that_is_killed_takes_the_other_along_and_both_come_back(fleet: SglangFleet, port: int, name: str) -> None:
    before = {row["name"]: row["pid"] for row in fleet.rows().values()}
    crashes = len(fleet.events("server.crashed"))
    fleet.kill_server(name, signal.SIGKILL)

    def both_anew() -> bool:
        rows = fleet.rows()
        return all(rows[node]["state"] == "ready" and rows[node]["pid"] not in (None, before[node]) for node in before)

    fleet.wait(both_anew, READY_TIMEOUT_S, "both nodes in new processes")
    crashed = [event["server"] for event in fleet.events("server.crashed")[crashes:]]
    assert set(crashed) == {"node0", "node1"}
    assert chat(port, key=KEY)


def test_first_node_that_is_stopped_ends_the_other_which_then_waits_anew(fleet: SglangFleet) -> None:
    pid = fleet.row("node1")["pid"]
    fleet.ask("stop", names=["node0"])
    fleet.wait_state("node0", "stopped", timeout_s=90)
    row = fleet.wait_again("node1", pid, timeout_s=60)
    assert row["reason"] == NOTE
    fleet.ask("stop", names=["node1"])
    fleet.wait_state("node1", "stopped", timeout_s=90)
    assert not fleet.events("server.killed")
