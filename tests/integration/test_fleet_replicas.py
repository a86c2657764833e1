"""What replicas and real starts do with ports, the page cache and keys: the resolved plan, carried out by processes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from pathlib import Path

from fleet import INFER_DEV, Fleet, free_ports, only_child, server
from test_fleet_order import order_of

pytest_plugins = ("fleet_fixtures",)

KEY = "integration-t0p-s3cret"
# Prints its arguments as SGLang does, the keys of its --config among them.
PRINT_CONFIG = """case "$*" in *--config*) for last; do :; done
"$PYTHON" -c 'import json, sys; path = sys.argv[sys.argv.index("--config") + 1]; key = json.load(open(path))["api-key"]
print(f"server_args=ServerArgs(api_key={key!r}, admin_api_key=None, port=1)", flush=True)' "$@" ;; esac"""


def nccl_port(fleet: Fleet, name: str) -> int:
    main_pid = fleet.row(name)["pid"]
    words = next(process.argv for process in fleet.members() if process.inner_pid == main_pid)
    return int(words[words.index("--nccl-port") + 1])


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def follow_log(fleet: Fleet) -> str:
    """Return what supervisorctl's `tail -f` prints until the key's line was there."""
    out = fleet.base / "followed"
    command = [*fleet.inside(), *INFER_DEV, "ctl", "tail", "-f", "sglang:a"]
    with out.open("wb") as stdout, subprocess.Popen(command, env=fleet.environ, stdout=stdout) as follower:
        try:
            fleet.wait(lambda: "admin_api_key=" in out.read_text(), what="the line with the key")
        finally:
            os.kill(only_child(follower.pid) or follower.pid, signal.SIGTERM)  # nsenter would die before its child
    return out.read_text()


def test_first_replica_loads_alone_and_the_others_follow_when_it_is_ready(fleet: Fleet) -> None:
    ports = free_ports(3)
    hold = fleet.base / "hold"
    hold.touch()
    fleet.write(server("glm", ports[0], "--hang-file", str(hold), control={"replicas": 3}))
    fleet.start()
    fleet.wait_state("glm-1", "starting", reason="waits until glm-0 has read the model from disk")
    hold.unlink()
    fleet.wait_ready("glm-0", "glm-1", "glm-2")
    order = order_of(fleet)
    assert order.index(("ready", "glm-0")) < min(order.index(("started", f"glm-{number}")) for number in (1, 2))
    before = fleet.rows()
    fleet.wait_again("glm-0", fleet.kill_server("glm-0"))
    assert [fleet.row(name)["pid"] for name in ("glm-1", "glm-2")] == [before["glm-1"]["pid"], before["glm-2"]["pid"]]


def test_first_replica_that_cannot_load_holds_nobody_up(fleet: Fleet) -> None:
    ports = free_ports(2)
    fails = fleet.wrap("fails", f'case "$*" in *"--port {ports[0]}"*) exit 3 ;; esac')
    fleet.write(server("glm", ports[0], control={"replicas": 2, **fails}))
    fleet.start()
    fleet.wait_ready("glm-1")
    assert fleet.row("glm-0")["state"] in ("backoff", "starting", "failed")


def test_nccl_port_that_is_taken_at_a_restart_is_named_before_the_start(fleet: Fleet) -> None:
    (port,) = free_ports(1)
    fleet.write(server("a", port, restart={"backoff_initial_s": 1.0, "backoff_max_s": 1.0}))
    fleet.start()
    fleet.wait_ready("a")
    taken = nccl_port(fleet, "a")
    holder = "import socket, time; s = socket.create_server(('127.0.0.1', %d)); time.sleep(600)" % taken  # noqa: UP031
    fleet.spawn_inside("-c", holder)
    foreign = fleet.wait(lambda: fleet.find_processes("-c", holder), what="the holder")[-1]
    fleet.wait(lambda: not _is_free(taken), what="the holder to listen")
    old_pid = fleet.kill_server("a")
    row = fleet.wait_state("a", "backoff", reason=f"port {taken} is taken by pid {foreign.inner_pid} (python")
    assert row["mend"] == "end that process, or set another port"
    fleet.kill(foreign.pid)
    fleet.wait_again("a", old_pid)


def test_key_of_a_file_reaches_the_server_and_nothing_that_is_shown(fleet: Fleet) -> None:
    key_file = fleet.base / "key"
    key_file.write_text(f"{KEY}\n")
    key_file.chmod(0o600)
    (port,) = free_ports(1)
    fleet.write(server("a", port, flags={"api_key_file": str(key_file)}, control=fleet.wrap("prints", PRINT_CONFIG)))
    fleet.start(INFER_DEV_LOG_MIRROR="1")
    fleet.wait_ready("a")
    fleet.wait(lambda: f"api_key='{KEY}'" in fleet.log_of("a"), what="the server, which has it, to print it")
    shown = fleet.cli("logs", "a").stdout
    assert "api_key=***, admin_api_key=None, port=1" in shown
    fleet.wait(lambda: "[a] server_args=" in fleet.stdout.read_text(errors="replace"), what="the mirror")
    command_lines = b"".join(Path(f"/proc/{member.pid}/cmdline").read_bytes() for member in fleet.members())
    followed = follow_log(fleet)
    tailed = {words: fleet.cli("ctl", "tail", *words, "sglang:a").stdout for words in ((), ("-60",), ("-45",))}
    assert all("api_key='***'" in text or "api_key=***" in text for text in (followed, *tailed.values())), tailed
    everything = {
        "logs": shown,
        "supervisorctl tail": followed + "".join(tailed.values()),
        "stdout": fleet.stdout.read_text(errors="replace"),
        "events": fleet.event_log.read_text(errors="replace"),
        "status": fleet.cli("status", "--json").stdout + fleet.cli("status").stdout,
        "config show": fleet.cli("config", "show", "--json", str(fleet.config)).stdout,
        "command lines": command_lines.decode(errors="replace"),
        "supervisord.conf": (fleet.run_dir / "supervisord.conf").read_text(errors="replace"),
    }
    assert [where for where, text in everything.items() if KEY in text] == []
    private = fleet.run_dir / "config" / "a.yaml"
    assert (private.stat().st_mode & 0o777, KEY in private.read_text()) == (0o600, True)
    fleet.kill_server("a")
    fleet.wait_event("server.crashed", "a")
    assert KEY not in fleet.event_log.read_text(errors="replace") + fleet.cli("status").stdout
