"""One real SGLang through its life: load, serve, lose each of its processes, hang, drain."""

from __future__ import annotations

import json
import os
import signal
import socket
import urllib.error
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fleet import free_port, get
from real_sglang import (
    HANG_S,
    LONG_TOKENS,
    READY_TIMEOUT_S,
    SglangFleet,
    Stream,
    chat,
    copy_model,
    make_fleet,
    read_nccl_port,
    wait_pieces,
)

pytestmark = pytest.mark.timeout(1500)

KEY = "sk-life-0123456789abcdef"
ADMIN_KEY = "sk-admin-0123456789abcdef"

# Runs in SGLang's main process before SGLang does: a child in a session of its own, which nothing but its mark and its
# descent ties to the server. SGLang's own children are in its process group.
_ESCAPE = """
import subprocess, sys
if "sglang.launch_server" in sys.orig_argv:
    subprocess.Popen(["sleep", "7654321"], start_new_session=True, stdin=subprocess.DEVNULL)
"""


@pytest.fixture(scope="module")
def port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def started(home: Path, port: int) -> Iterator[SglangFleet]:
    """The fleet of one server, after its first start."""
    with make_fleet(home) as fleet:
        (fleet.base / "site").mkdir()
        (fleet.base / "site" / "sitecustomize.py").write_text(_ESCAPE)
        model = copy_model(home, fleet.base / "model", max_position_embeddings=4096)  # room for a long answer
        flags = {"model_path": str(model), "api_key": KEY, "admin_api_key": ADMIN_KEY}
        env = {"PYTHONPATH": str(fleet.base / "site")}
        fleet.write_sglang(fleet.sglang("chat", port, flags=flags, env=env), drain_timeout_s=90.0)
        fleet.start()
        fleet.note_states("chat")
        yield fleet


@pytest.fixture
def fleet(started: SglangFleet) -> SglangFleet:
    """The same fleet, ready again whatever the test before did to it."""
    started.ask("start", names=["chat"])  # a server that runs is left alone
    started.wait_loaded("chat")
    return started


@pytest.fixture
def stopped(fleet: SglangFleet) -> Iterator[SglangFleet]:
    """The same fleet with its server stopped, before and after."""
    fleet.ask("stop", names=["chat"])
    fleet.wait_state("chat", "stopped", timeout_s=120)
    yield fleet
    fleet.ask("stop", names=["chat"])
    fleet.wait_state("chat", "stopped", timeout_s=120)


@pytest.mark.core
def test_start_goes_through_loading_to_ready(fleet: SglangFleet, port: int) -> None:
    assert fleet.states[-2:] == ["loading", "ready"]
    assert fleet.events("server.started", "chat")
    # The port is bound only when the model is loaded; the log tells the phases meanwhile.
    assert any(f"port {port} refuses connections" in reason for reason in fleet.reasons)
    assert any("import for " in reason for reason in fleet.reasons)
    ready = fleet.events("server.ready", "chat")[0]
    notes = [note["elapsed_s"] for note in fleet.events("server.loading", "chat")]
    assert ready["after_s"] >= max(notes, default=0)
    assert notes or ready["after_s"] < 30  # they come every 15 s
    row = fleet.row("chat")
    assert row["reason"] == ""
    assert not fleet.events("server.probe_failed", "chat")


@pytest.mark.core
def test_chat_answers_with_the_key_alone(fleet: SglangFleet, port: int) -> None:
    assert get(port, timeout_s=30)[0] == 200  # the probe's path needs no key
    assert chat(port, key=KEY)
    with pytest.raises(urllib.error.HTTPError) as refused:
        chat(port, key="sk-wrong")
    assert refused.value.code == 401


@pytest.mark.core
def test_keys_are_in_no_command_line_no_answer_and_no_log_of_ours(fleet: SglangFleet) -> None:
    shown = {
        "command lines": "\n".join(" ".join(member.argv) for member in fleet.members()),
        "status": fleet.cli("status").stdout,
        "status --json": fleet.cli("status", "--json").stdout,
        "control socket": repr(fleet.ask()),
        "our log": fleet.event_log.read_text() + fleet.stdout.read_text(),
        "ctl status": fleet.cli("ctl", "status").stdout,
    }
    assert all(shown.values())
    assert [what for what, text in shown.items() if KEY in text or ADMIN_KEY in text] == []
    # What supervisord is configured with, and the file that carries the keys, are for nobody else.
    private = [path for path in fleet.run_dir.rglob("*") if KEY in read_if_file(path)]
    assert [path.relative_to(fleet.run_dir) for path in private] == [Path("config/chat.yaml")]
    assert private[0].stat().st_mode & 0o777 == 0o600


@pytest.mark.core
def test_keys_that_sglang_logs_are_redacted_in_what_we_show(fleet: SglangFleet) -> None:
    assert KEY in fleet.log_of("chat")  # SGLang prints its arguments at each start
    assert (fleet.log_dir / "sglang-server-chat.log").stat().st_mode & 0o777 == 0o600
    log = fleet.cli("logs", "chat", "-n", "100000").stdout
    assert "server_args=" in log
    assert KEY not in log
    assert ADMIN_KEY not in log


@pytest.mark.parametrize(
    "title", [pytest.param("sglang::scheduler", marks=pytest.mark.core), "sglang::detokenizer", "main"]
)
def test_process_that_is_killed_ends_in_a_ready_server_and_no_leftovers(
    fleet: SglangFleet, port: int, title: str
) -> None:
    before = fleet.row("chat")
    old = fleet.server_pids()
    held = fleet.segments()
    assert held
    assert len(fleet.find_processes("sleep", "7654321")) == 1  # the escaped one
    crashes = len(fleet.events("server.crashed", "chat"))
    victim = fleet.host_pid(before["pid"]) if title == "main" else fleet.part(title).pid
    fleet.kill(victim)
    crash = fleet.wait_event("server.crashed", "chat", count=crashes + 1, timeout_s=30)
    assert "SIGKILL" in crash["reason"]
    fleet.wait_gone(old)
    after = fleet.wait_again("chat", before["pid"], timeout_s=READY_TIMEOUT_S)
    assert after["restarts"] == before["restarts"] + 1
    assert chat(port, key=KEY)
    assert [path for path in held if path.exists()] == []  # they are never used again, and /dev/shm is small
    assert len(fleet.find_processes("sleep", "7654321")) == 1


def read_if_file(path: Path) -> str:
    """Return a file's text; "" for what is none, or has gone meanwhile."""
    try:
        return path.read_text(errors="replace") if path.is_file() else ""
    except FileNotFoundError:
        return ""


def find_dossier(fleet: SglangFleet, kind: str) -> dict[str, Any] | None:
    """The last one of this class."""
    dossiers = json.loads(fleet.cli("crashes", "chat", "--json").stdout)
    return next((item for item in reversed(dossiers) if item["class"] == kind), None)


@pytest.mark.core
def test_scheduler_that_stands_still_is_a_hang_found_in_time_and_recovered(fleet: SglangFleet, port: int) -> None:
    before = fleet.row("chat")
    old = fleet.server_pids()
    hangs = len(fleet.events("server.hung", "chat"))
    stream = Stream(port, LONG_TOKENS, key=KEY)  # a request that runs is no proof of life when none of its tokens come
    wait_pieces(stream, 5)
    fleet.kill(fleet.part("sglang::scheduler").pid, signal.SIGSTOP)
    # A path that a flag answers says nothing of it.
    assert get(port, "/ready", timeout_s=30)[0] == 200
    hung = fleet.wait_event("server.hung", "chat", count=hangs + 1, timeout_s=HANG_S + 30)
    assert "4 probes in a row failed" in hung["reason"]
    fleet.wait_gone(old)
    assert fleet.events("server.evidence", "chat")[-1]
    dossier = fleet.wait(lambda: find_dossier(fleet, "hung"), 60, "the dossier, which is written beside the restart")
    assert KEY not in json.dumps(dossier)
    assert "launch_server" in dossier["stacks"]
    assert "sglang::scheduler" in dossier["stacks"]  # where it stands, although its main process is well
    fleet.wait_again("chat", before["pid"], timeout_s=READY_TIMEOUT_S)
    assert chat(port, key=KEY)


@pytest.mark.parametrize("use", ["http", "nccl"])
def test_port_that_is_taken_at_a_start_is_named_before_the_model_loads(
    stopped: SglangFleet, port: int, use: str
) -> None:
    needed = port if use == "http" else read_nccl_port(stopped)
    loads = stopped.log_of("chat").count("server_args=")
    with socket.create_server(("127.0.0.1", needed)):
        stopped.ask("start", names=["chat"])
        row = stopped.wait_state("chat", "backoff", reason=f"port {needed} is taken by", timeout_s=20)
    assert row["mend"]
    assert stopped.log_of("chat").count("server_args=") == loads


@pytest.mark.core
def test_container_stop_completes_the_stream_in_flight_and_exits_0(fleet: SglangFleet, port: int) -> None:
    stream = Stream(port, LONG_TOKENS, key=KEY)
    wait_pieces(stream, 20)
    held = fleet.segments()
    assert held
    scheduler = fleet.part("sglang::scheduler").pid
    fleet.kill(scheduler, signal.SIGSTOP)  # in flight for as long as we look, however fast the machine is
    os.kill(fleet.pid, signal.SIGTERM)
    fleet.wait_state("chat", "draining")
    assert not stream.complete
    fleet.kill(scheduler, signal.SIGCONT)
    stream.join(90)
    assert (stream.failure, stream.complete, stream.completion_tokens) == (None, True, LONG_TOKENS)
    assert fleet.wait_exit(60) == 0
    assert fleet.wait_event("entry.stopped")["had_to_kill"] == []  # it left by itself
    assert fleet.members() == []
    assert [path for path in held if path.exists()] == []
