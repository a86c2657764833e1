"""A node of SGLang beside the first: named by a variable of its machine, watched by its process, asked nothing."""

from __future__ import annotations

import signal
import socket
import time
from pathlib import Path

import pytest
from fleet import Fleet, free_port, server

pytest_plugins = ("fleet_fixtures",)

KEY = "sk-node-0123456789abcdef"
GROUP = {
    "device": "cpu",
    "tp_size": 2,
    "nnodes": "${NODES:-2}",
    "node_rank": "${NODE_RANK}",
    "dist_init_addr": "127.0.0.1:${MEETING_PORT}",
    "api_key": "${NODE_API_KEY}",
}
NOTE = "rank 1 of 2: watched by its process; rank 0 answers"


@pytest.fixture
def node(fleet: Fleet) -> Fleet:
    """Node 1, whose port never answers, while somebody holds the port at which the nodes meet."""
    with socket.create_server(("127.0.0.1", 0)) as meeting:
        # It would be ended as hung within 3 s, if it were probed.
        probe = {"startup_deadline_s": 3, "stall_timeout_s": 3}
        fleet.write(server("glm", free_port(), "--load-s", "3600", flags=GROUP, probe=probe))
        fleet.environ |= {"MEETING_PORT": str(meeting.getsockname()[1]), "NODE_API_KEY": KEY}
        fleet.start(NODE_RANK="1")
        fleet.wait_ready("glm")
        yield fleet


def test_node_that_never_answers_is_ready_and_stays(node: Fleet) -> None:
    row = node.row("glm")
    assert (row["state"], row["reason"], row["url"]) == ("ready", NOTE, "")
    time.sleep(max(0.0, 4.0 - (time.time() - row["ready_since"])))
    assert node.row("glm")["pid"] == row["pid"]
    assert not node.events("server.hung")
    assert node.cli("health").returncode == 0
    assert node.events("server.ready", "glm")[0]["note"] == NOTE
    assert node.events("fleet.ready")[0]["urls"] == ""
    shown = {
        "command lines": "\n".join(" ".join(member.argv) for member in node.members()),
        "status": node.cli("status").stdout,
        "control socket": repr(node.ask()),
        "config show": node.cli("config", "show", str(node.config), NODE_RANK="1").stdout,
        "log": node.event_log.read_text(),
    }
    assert all(shown.values())
    assert [what for what, text in shown.items() if KEY in text] == []
    private = [path for path in node.run_dir.rglob("*") if path.is_file() and KEY in path.read_text(errors="replace")]
    assert [path.relative_to(node.run_dir) for path in private] == [Path("config/glm.yaml")]


def test_node_that_dies_is_started_again(node: Fleet) -> None:
    pid = node.row("glm")["pid"]
    node.kill(node.host_pid(pid), signal.SIGKILL)
    row = node.wait_again("glm", pid)
    assert (row["reason"], row["restarts"]) == (NOTE, 1)


def test_node_that_waits_for_the_first_is_killed_when_its_drain_is_over(fleet: Fleet) -> None:
    group = {key: value for key, value in GROUP.items() if key != "api_key"}
    fleet.environ["MEETING_PORT"] = str(free_port())
    control = {"drain_timeout_s": 1.0}
    fleet.write(server("glm", free_port(), "--ignore-sigterm", flags=group, control=control))
    fleet.start(NODE_RANK="1")
    fleet.wait_ready("glm")
    fleet.wait(lambda: "fake server on" in fleet.log_of("glm"), what="the server to be deaf to SIGTERM")
    assert fleet.stop() == 0
    assert fleet.events("server.killed", "glm")


def test_variables_that_are_not_set_are_one_boot_error_with_all_of_them(fleet: Fleet) -> None:
    fleet.write(server("glm", free_port(), flags=GROUP))
    fleet.start("sleep", "600")
    reasons = fleet.wait(lambda: (answer := fleet.ask()) and answer.get("boot_error"), what="the boot error")
    for name in ("NODE_RANK", "MEETING_PORT", "NODE_API_KEY"):
        assert f"variable {name} is not set" in reasons
    assert fleet.cli("config", "check", "--static", str(fleet.config)).returncode == 0
