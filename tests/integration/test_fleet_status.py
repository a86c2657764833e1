"""What users see: status, health, the HTTP endpoint, supervisorctl and the helper links."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fleet import INFER_DEV, PREFIX, Fleet, free_port, free_ports, only_child, server

pytest_plugins = ("fleet_fixtures",)

KEYS = ["name", "engine", "state", "statename", "pid", "restarts", "ready_since", "url", "gpu_ids", "reason", "mend"]


def test_status_json_has_exactly_the_keys_of_the_contract(fleet: Fleet) -> None:
    a, b = free_ports(2)
    fleet.write(server("a", a), server("b", b, control=fleet.wrap("b", "exit 1"), restart={"max_restarts": 1}))
    fleet.start()
    fleet.wait_ready("a")
    fleet.wait_state("b", "failed")
    fleet.wait(lambda: fleet.row("a")["statename"] == "RUNNING", what="supervisord to call it up")
    done = fleet.cli("status", "--json")
    assert done.returncode == 1
    rows = json.loads(done.stdout)
    assert [list(row) for row in rows] == [KEYS, KEYS]
    first, second = rows
    assert isinstance(first["pid"], int)
    assert isinstance(first["ready_since"], float)
    assert first | {"pid": 0, "ready_since": 0} == {
        "name": "a",
        "engine": "sglang",
        "state": "ready",
        "statename": "RUNNING",
        "pid": 0,
        "restarts": 0,
        "ready_since": 0,
        "url": f"http://127.0.0.1:{a}",
        "gpu_ids": [],
        "reason": "",
        "mend": "",
    }
    assert (second["pid"], second["ready_since"]) == (None, None)
    assert second["reason"]
    assert second["mend"]


def test_status_shows_a_table_with_reasons_and_watch_goes_on(fleet: Fleet) -> None:
    a, b = free_ports(2)
    fleet.write(server("a", a), server("b", b, "--answer-503"))
    fleet.start()
    fleet.wait_ready("a")
    fleet.wait_state("b", "loading", reason="/health answered 503")
    done = fleet.cli("status")
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["NAME", "STATE", "UP", "PID", "RESTARTS", "GPUS", "URL"]
    assert lines[1].split()[:2] == ["a", "ready"]
    assert lines[3].startswith("b: /health answered 503; import for ")
    out = fleet.base / "watched"
    with out.open("wb") as stdout:
        command = [*fleet.inside(), *INFER_DEV, "status", "--watch"]
        watcher = subprocess.Popen(command, env=fleet.environ, cwd=fleet.base, stdout=stdout, start_new_session=True)
    fleet.wait(lambda: out.read_text().count("NAME ") >= 3, what="three tables")
    os.kill(only_child(watcher.pid), signal.SIGINT)  # nsenter would die of it before its child
    assert watcher.wait(30) == 130


def test_health_tells_every_situation_apart(fleet: Fleet) -> None:
    fleet.hold()
    gates = {PREFIX + "ON_BOOT": "1", PREFIX + "CONFIG": str(fleet.config)}
    # Nothing runs: fine without gates, and not with them.
    assert fleet.cli("health").returncode == 0
    assert fleet.cli("health", **gates).returncode == 1
    port = free_port()
    hold = fleet.base / "hold"
    hold.touch()
    fleet.write(server("a", port, "--hang-file", str(hold)))
    fleet.start_inside()
    fleet.wait_state("a", "starting", "loading")
    loading = fleet.cli("health", "--json", **gates)
    assert loading.returncode == 1
    assert json.loads(loading.stdout)["healthy"] is False
    assert json.loads(loading.stdout)["reasons"][0].startswith("a is ")
    hold.unlink()
    fleet.wait_ready("a")
    ready = fleet.cli("health", **gates)
    assert (ready.returncode, ready.stdout, ready.stderr) == (0, "healthy\n", "")
    assert json.loads(fleet.cli("health", "--json").stdout) == {"healthy": True, "reasons": []}
    # A server that died is not healthy until it is back.
    hold.touch()
    fleet.kill_server("a")
    fleet.wait(lambda: fleet.row("a")["state"] != "ready", what="the death to be seen")
    assert fleet.cli("health").returncode == 1
    # One that the user stopped does not count.
    assert fleet.cli("stop", "a").returncode == 0
    assert fleet.cli("health").returncode == 0
    # An entry that stands still does not answer in time, whoever started it.
    os.kill(fleet.pid, signal.SIGSTOP)
    assert fleet.cli("health", timeout_s=30, **gates).returncode == 1
    assert fleet.cli("health", timeout_s=30).returncode == 1


def test_commands_without_a_fleet_exit_14_with_one_line(fleet: Fleet) -> None:
    fleet.hold()
    for command in (("status",), ("logs", "a"), ("start",), ("stop",), ("ctl", "status")):
        done = fleet.cli(*command)
        assert done.returncode == 14, command
        assert done.stderr.count("\n") == 1
        assert "infer-dev serve" in done.stderr
        assert done.stdout == ""


def ask_http(port: int, path: str, method: str = "GET") -> tuple[int, dict[str, Any]]:
    """Ask the status endpoint; (0, {}) when nobody listens yet."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, dict(json.load(answer))
    except OSError:
        return 0, {}
    finally:
        connection.close()


def test_status_endpoint_answers_status_and_health_and_nothing_else(fleet: Fleet) -> None:
    port, address = free_ports(2)
    hold = fleet.base / "hold"
    hold.touch()
    fleet.write(server("a", port, "--load-file", str(hold)))
    fleet.start(INFER_DEV_STATUS_ADDR=f"127.0.0.1:{address}")
    fleet.wait(lambda: ask_http(address, "/health")[0] == 503, what="503 while it loads")
    hold.unlink()
    fleet.wait_ready("a")
    assert ask_http(address, "/health") == (200, {"healthy": True, "boot_error": None})
    status, body = ask_http(address, "/status")
    assert status == 200
    assert [row["name"] for row in body["servers"]] == ["a"]
    assert ask_http(address, "/")[0] == 404
    assert ask_http(address, "/status", "POST")[0] == 404
    assert ask_http(address, "/stop", "DELETE")[0] == 404
    hold.touch()
    fleet.kill_server("a")
    fleet.wait(lambda: ask_http(address, "/health")[0] == 503, what="503 after the crash")
    hold.unlink()
    fleet.wait_ready("a")
    assert fleet.stop() == 0


def test_supervisorctl_finds_the_fleet_and_tails_a_log(fleet: Fleet) -> None:
    fleet.write(server("a", free_port(), "--print", "said by a"))
    fleet.start()
    fleet.wait_ready("a")
    status = fleet.cli("ctl", "status")
    assert status.stdout.split()[:2] in (["sglang:a", "RUNNING"], ["sglang:a", "STARTING"])
    fleet.wait(lambda: "said by a" in fleet.log_of("a"), what="supervisord to have written the log")
    assert "said by a" in fleet.cli("ctl", "tail", "sglang:a").stdout


def test_helper_links_call_infer_dev_by_their_names(fleet: Fleet) -> None:
    if not os.access(Path(sys.executable).with_name("infer-dev"), os.X_OK):
        pytest.skip("infer-dev is not installed as a script beside this interpreter")
    port = free_port()
    fleet.write(server("a", port))
    fleet.start()
    fleet.wait_ready("a")
    links = fleet.base / "soft" / "app"
    for _ in range(2):  # an image's build may run it again
        done = fleet.cli("helpers", "--dir", str(links))
        assert done.returncode == 0, done.stderr
    names = ["check-and-run-sglang.sh", "install-sglang-offline.sh", "logs", "smoke", "status"]
    assert sorted(path.name for path in links.iterdir()) == names

    def call(name: str, *words: str) -> subprocess.CompletedProcess[str]:
        # `docker exec` sets no PATH of ours, and starts anywhere.
        environ = fleet.environ | {"PATH": "/usr/bin:/bin"}
        command = [*fleet.inside(), str(links / name), *words]
        return subprocess.run(command, env=environ, cwd="/", capture_output=True, text=True, timeout=60)

    fleet.wait(lambda: "fake server on" in fleet.log_of("a"), what="supervisord to have written the log")
    assert call("status").stdout.splitlines()[1].split()[:2] == ["a", "ready"]
    assert call("logs", "a", "-n", "1").stdout == f"fake server on 127.0.0.1:{port}\n"
    more = fleet.write(server("a", port), server("b", free_port()), name="more.toml")
    assert call("check-and-run-sglang.sh", str(more), "--wait", "30").returncode == 0
    fleet.wait_ready("a", "b")


def test_helpers_into_a_place_that_cannot_be_written_exits_1_with_the_mend(fleet: Fleet) -> None:
    fleet.hold()
    (fleet.base / "file").touch()
    done = fleet.cli("helpers", "--dir", str(fleet.base / "file" / "below"))
    assert done.returncode == 1
    assert "--dir" in done.stderr
    assert done.stderr.count("\n") == 1
