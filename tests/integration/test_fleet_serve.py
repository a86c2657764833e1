"""`infer-dev serve`: a running fleet is made to match a config, a bad one harms nothing, a keeper without an entry."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable

from fleet import PREFIX, Fleet, Watcher, free_port, free_ports, get, server

pytest_plugins = ("fleet_fixtures",)


def test_serve_adds_changes_and_removes_servers_and_leaves_the_unchanged_alone(fleet: Fleet) -> None:
    same, changed, removed, added = free_ports(4)
    fleet.write(server("same", same), server("changed", changed), server("removed", removed))
    fleet.start()
    before = fleet.wait_ready("same", "changed", "removed")
    config = fleet.write(
        server("added", added),
        server("same", same),
        server("changed", changed, env={"GREETING": "hello"}),
        name="b.toml",
    )
    with Watcher(same) as watcher:
        done = fleet.cli("serve", str(config), "--wait", "30")
    assert done.returncode == 0, done.stderr
    names = ["added", "changed", "same"]
    fleet.wait(lambda: sorted(fleet.rows()) == names, what="the removed one to be gone")
    after = fleet.wait_ready(*names)
    assert [after["same"][key] for key in ("pid", "restarts", "url")] == [
        before["same"][key] for key in ("pid", "restarts", "url")
    ]
    assert after["changed"]["pid"] != before["changed"]["pid"]
    assert get(removed)[0] == 0
    assert watcher.never_failed, watcher.failures
    # A change is no crash.
    assert not fleet.events("server.crashed")
    assert f"curl -s http://127.0.0.1:{added}/v1/chat/completions" in done.stdout
    # supervisord's own view is the same.
    listed = fleet.cli("ctl", "status").stdout
    assert sorted(line.split()[0] for line in listed.splitlines()) == [f"sglang:{name}" for name in names]
    assert fleet.stop() == 0


def test_serve_of_the_same_config_changes_nothing_and_tries_the_failed_again(fleet: Fleet) -> None:
    a, b = free_ports(2)
    permit = fleet.base / "permit"
    broken = server(
        "broken",
        b,
        control=fleet.wrap("broken", f"[ -e {permit} ] || exit 1"),
        restart={"backoff_initial_s": 0.1, "backoff_max_s": 0.1, "max_restarts": 1},
    )
    config = fleet.write(server("a", a), broken)
    fleet.start()
    fleet.wait_state("broken", "failed")
    before = fleet.wait_ready("a")
    permit.touch()
    done = fleet.cli("serve", str(config), "--wait", "30")
    assert done.returncode == 0, done.stderr
    after = fleet.wait_ready("a", "broken")
    assert after["a"]["pid"] == before["a"]["pid"]


def test_serve_moves_a_port_from_one_server_to_another(fleet: Fleet) -> None:
    one, two = free_ports(2)
    fleet.write(server("a", one), server("b", two))
    fleet.start()
    fleet.wait_ready("a", "b")
    config = fleet.write(server("a", two), server("b", one), name="swapped.toml")
    done = fleet.cli("serve", str(config), "--wait", "40")
    assert done.returncode == 0, done.stderr
    rows = fleet.wait_ready("a", "b")
    assert [rows[name]["url"].rpartition(":")[2] for name in ("a", "b")] == [str(two), str(one)]


def test_serve_again_while_a_changed_server_still_drains_ends_with_the_last_config(fleet: Fleet) -> None:
    port = free_port()
    control = {"drain_timeout_s": 120}
    fleet.write(server("a", port), control=control)
    fleet.start()
    fleet.wait_ready("a")
    first = fleet.host_pid(fleet.kill_server("a", signal.SIGSTOP))  # until it is told to go on, it hears no SIGTERM
    for greeting in ("one", "two"):
        config = fleet.write(server("a", port, env={"GREETING": greeting}), control=control, name=f"{greeting}.toml")
        assert fleet.cli("serve", str(config)).returncode == 0
        fleet.wait_state("a", "draining")
    fleet.kill(first, signal.SIGCONT)
    fleet.wait_event("server.started", "a", count=2)
    pid = fleet.wait_ready("a")["a"]["pid"]
    with open(f"/proc/{fleet.host_pid(pid)}/environ", "rb") as environ:
        assert b"GREETING=two" in environ.read().split(b"\0")
    assert not fleet.events("server.killed")


def test_serve_of_a_bad_config_exits_10_with_its_faults_and_harms_nothing(fleet: Fleet) -> None:
    a, b, taken = free_ports(3)
    patient = {"period_s": 30, "timeout_s": 29}  # one late answer would be a warning
    good = server("a", a, probe=patient) + server("b", b, probe=patient)
    fleet.write(good)
    fleet.start()
    before = fleet.wait_ready("a", "b")
    bad: dict[str, Callable[[], tuple[object, str]]] = {
        "broken": lambda: ("[instance.a.server\nport = 1\n", "line 1"),
        "empty": lambda: ("", "has no instance"),
        "latin-1": lambda: (b"# caf\xe9\n", "line 1: not UTF-8"),
        "long": lambda: ("#" * 5_000_000, "is 5000000 bytes large, and the limit is 1048576 bytes"),
        "unknown table": lambda: (good + "[instance.a.servre]\nport = 1\n", "did you mean server?"),
        "unknown key": lambda: (good + "[instance.a.control]\nlog_dri = '/tmp'\n", "did you mean log_dir?"),
        "unknown flag": lambda: (server("a", a, flags={"max_model_len": 1}), "sglang calls it context_length"),
        "wrong type": lambda: (server("a", a).replace(f"port = {a}", 'port = "30k"'), '"30k"'),
        "same port": lambda: (server("a", a) + server("b", a), f"port {a} of b is also used by a"),
        "taken port": lambda: (server("a", taken), f"port {taken} of a is in use by "),
        "no model": lambda: (server("a", a, flags={"model_path": "/no/such/model"}), '"/no/such/model"'),
        "no program": lambda: (server("a", a, control={"python_path": "/no/python"}), "/no/python"),
        "circle": lambda: (
            server("a", a, control={"depends_on": ["b"]}) + server("b", b, control={"depends_on": ["a"]}),
            "wait for each other",
        ),
        "newline": lambda: (server("a", a, env={"TEXT": "one\ntwo"}), "it holds a newline"),
    }
    with socket.create_server(("127.0.0.1", taken)), Watcher(a) as watcher:
        for kind, make in bad.items():
            content, expected = make()
            path = fleet.write(name=f"{kind.replace(' ', '-')}.toml")
            head = "" if kind in ("broken", "empty", "long") else path.read_text()
            path.write_bytes(content if isinstance(content, bytes) else (head + str(content)).encode())
            done = fleet.cli("serve", str(path))
            assert done.returncode == 10, (kind, done.stderr)
            fault = next((line for line in done.stderr.splitlines() if expected in line), "")
            assert fault, (kind, done.stderr)
            assert str(path) in fault, (kind, fault)
            assert "Traceback" not in done.stderr
        for kind, path in (("missing", "/no/such.toml"), ("directory", str(fleet.base))):
            done = fleet.cli("serve", path)
            assert (done.returncode, done.stderr.count("\n"), path in done.stderr) == (10, 1, True), (kind, done.stderr)
        done = fleet.cli("serve", str(fleet.config), **{PREFIX + "OVERRIDES": "{"})
        assert done.returncode == 10
        assert PREFIX + "OVERRIDES" in done.stderr
    assert watcher.never_failed, watcher.failures
    rows = fleet.wait_ready("a", "b")
    assert [rows[name]["pid"] for name in "ab"] == [before[name]["pid"] for name in "ab"]
    assert {event["event"] for event in fleet.events() if event["level"] in ("warning", "error")} == set()


def test_serve_without_a_config_exits_11_and_names_the_variable(fleet: Fleet) -> None:
    fleet.hold()
    done = fleet.cli("serve")
    assert done.returncode == 11
    assert PREFIX + "CONFIG" in done.stderr
    assert done.stderr.count("\n") == 1


def test_serve_without_an_entry_starts_a_keeper_that_stop_ends_wholly(fleet: Fleet) -> None:
    a, b = free_ports(2)
    config = fleet.write(server("a", a, "--fork-grandchild", "setsid"), server("b", b))
    fleet.hold()
    done = fleet.cli("serve", str(config), "--wait", "40")
    assert done.returncode == 0, done.stderr
    assert "started in the background: pid " in done.stdout
    before = fleet.wait_ready("a", "b")
    assert fleet.cli("health").returncode == 0
    # It is a fleet like any other: a second serve updates it, a crash is mended, a single stop leaves it running.
    assert fleet.cli("serve", str(config)).returncode == 0
    fleet.wait_again("a", fleet.kill_server("a"))
    assert fleet.cli("stop", "b").returncode == 0
    fleet.wait_state("a", "ready")
    assert fleet.row("b")["pid"] is None
    assert before["b"]["pid"]
    done = fleet.cli("stop")
    assert done.returncode == 0
    fleet.wait(lambda: [member.pid for member in fleet.members()] == [fleet.init_pid], what="the keeper to be gone")
    assert fleet.cli("status").returncode == 14
    assert not (fleet.run_dir / "control.sock").exists()
    # And it can be had again.
    assert fleet.cli("serve", str(config), "--wait", "40").returncode == 0
    assert fleet.cli("stop").returncode == 0


def test_serve_of_a_bad_config_without_an_entry_starts_nothing(fleet: Fleet) -> None:
    fleet.write(server("a", free_port(), control={"python_path": "/no/python"}))
    fleet.hold()
    done = fleet.cli("serve", str(fleet.config))
    assert done.returncode == 10
    assert "/no/python" in done.stderr
    assert [member.pid for member in fleet.members()] == [fleet.init_pid]


def test_keeper_outlives_the_command_that_started_it_and_drains_on_sigterm(fleet: Fleet) -> None:
    config = fleet.write(server("a", free_port()))
    fleet.hold()
    assert fleet.cli("serve", str(config), "--wait", "40").returncode == 0
    inner_pid = fleet.ask()["pid"]
    keeper = fleet.host_pid(inner_pid)
    # A terminal that is closed sends its session SIGHUP; the keeper has a session of its own.
    assert os.getsid(keeper) == keeper
    fleet.kill(keeper, signal.SIGTERM)
    fleet.wait(lambda: [member.pid for member in fleet.members()] == [fleet.init_pid], what="the keeper to be gone")


def test_serve_into_an_entry_whose_boot_failed_makes_it_healthy(fleet: Fleet) -> None:
    fleet.config.write_text("this is no TOML")
    fleet.start("sleep", "600")
    fleet.wait_event("boot.failed", exit_code=10)
    fleet.wait(fleet.ask, what="the entry to answer")
    assert fleet.cli("health").returncode == 1
    config = fleet.write(server("a", free_port()), name="mended.toml")
    done = fleet.cli("serve", str(config), "--wait", "30")
    assert done.returncode == 0, done.stderr
    assert fleet.cli("health").returncode == 0
    assert fleet.find_processes("sleep", "600")


def test_serve_from_a_shell_with_another_path_and_tmpdir_leaves_equal_servers_alone(fleet: Fleet) -> None:
    fleet.write(server("a", free_port()))
    fleet.start()
    pid = fleet.wait_ready("a")["a"]["pid"]
    other = {"TMPDIR": "/var/tmp", "PATH": "/usr/bin:/bin"}
    run = fleet.cli("serve", str(fleet.config), **other)
    assert run.returncode == 0, run.stderr
    row = fleet.wait_state("a", "ready")
    assert (row["pid"], row["restarts"]) == (pid, 0)


def test_serve_finds_the_port_of_a_server_that_lost_its_environment_its_own(fleet: Fleet) -> None:
    # As SGLang does with setproctitle: /proc shows an environment of zeroes then.
    wipes = fleet.wrap(
        "wipes",
        """exec "$PYTHON" -c 'import runpy, sys, setproctitle
setproctitle.setproctitle("sglang::server")
sys.argv = sys.argv[2:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)' "$@" """,
    )
    fleet.write(server("a", free_port(), control=wipes))
    fleet.start()
    pid = fleet.wait_ready("a")["a"]["pid"]
    run = fleet.cli("serve", str(fleet.config))
    assert run.returncode == 0, run.stderr
    assert fleet.row("a")["pid"] == pid
