"""Servers that die, hang, flap or load slowly: what is said of it, and how they come back."""

from __future__ import annotations

import signal
import time
from datetime import datetime

from fleet import Fleet, Watcher, free_port, free_ports, get, server

pytest_plugins = ("fleet_fixtures",)


def moment(event: dict[str, str]) -> float:
    """Return the time of an event."""
    return datetime.fromisoformat(event["timestamp"]).timestamp()


def test_server_killed_is_back_after_its_backoff_and_the_other_never_stopped_answering(fleet: Fleet) -> None:
    a, b = free_ports(2)
    fleet.write(server("a", a, restart={"backoff_initial_s": 1.0}), server("b", b))
    fleet.start()
    before = fleet.wait_ready("a", "b")
    with Watcher(b) as other:
        old_pid = fleet.kill_server("a")
        row = fleet.wait_again("a", old_pid)
    crashed = fleet.wait_event("server.crashed", "a")
    started = fleet.wait_event("server.started", "a", count=2)
    assert crashed["reason"].startswith("was killed by SIGKILL")
    assert 0.9 <= crashed["retry_in_s"] <= 1.0
    # The pause runs from what was seen; an event may be logged a little later.
    assert moment(started) - moment(crashed) >= crashed["retry_in_s"] / 2
    assert other.never_failed, other.failures
    assert row["restarts"] == 1
    assert fleet.row("b")["pid"] == before["b"]["pid"]
    assert not fleet.events("server.crashed", "b")


def test_server_stopped_by_sigstop_is_found_hung_in_time_and_replaced(fleet: Fleet) -> None:
    period_s, timeout_s, threshold = 1.0, 0.5, 3
    probe = {"period_s": period_s, "timeout_s": timeout_s, "failure_threshold": threshold}
    port = free_port()
    fleet.write(server("a", port, "--print", "the model is warm", probe=probe))
    fleet.start()
    fleet.wait_ready("a")
    stopped_at = time.time()
    old_pid = fleet.kill_server("a", signal.SIGSTOP)
    fleet.wait_event("server.probe_failed", "a")
    hung = fleet.wait_event("server.hung", "a")
    # Twice the bound of the design: the machine has other things to do as well.
    assert moment(hung) - stopped_at <= 2 * (threshold * period_s + timeout_s)
    # How long it waited is not told here: a late look at the counters takes its time from the probe.
    assert hung["reason"].startswith(f"hung: {threshold} probes in a row failed (no answer on /health in ")
    evidence = fleet.wait_event("server.evidence", "a")
    assert any("the model is warm" in line for line in evidence["log_tail"])
    row = fleet.wait_again("a", old_pid)
    assert row["restarts"] == 1
    assert fleet.wait_event("server.crashed", "a")["reason"].startswith("hung: ")
    assert not fleet.host_pid(old_pid)


def test_servers_that_exit_are_started_again_with_status_and_last_line_told(fleet: Fleet) -> None:
    a, b, c = free_ports(3)
    fleet.write(
        server("zero", a, "--exit-after-s", "0.5", "--exit-code", "0"),
        server("two", b, "--exit-after-s", "0.5", "--exit-code", "2", control=fleet.wrap("two", "echo no more memory")),
        server("segv", c, "--exit-after-s", "0.5", "--die-by-signal", str(int(signal.SIGSEGV))),
    )
    fleet.start()
    for name, reason in (
        ("zero", "exited with status 0"),
        ("two", "exited with status 2; last log line: "),
        ("segv", "was killed by SIGSEGV"),
    ):
        crashed = fleet.wait_event("server.crashed", name, count=2)
        assert crashed["reason"].startswith(reason)
        assert crashed["mend"] == f"see infer-dev logs {name}"
        assert fleet.row(name)["restarts"] >= 1


def test_server_that_dies_before_it_serves_tells_its_last_log_line(fleet: Fleet) -> None:
    script = "echo 'RuntimeError: CUDA out of memory'; exit 2"
    fleet.write(server("a", free_port(), control=fleet.wrap("a", script)))
    fleet.start()
    crashed = fleet.wait_event("server.crashed", "a")
    assert crashed["reason"] == "exited with status 2: CUDA out of memory; log line: RuntimeError: CUDA out of memory"
    assert crashed["class"] == "cuda-oom"
    assert crashed["mend"].startswith("lower mem_fraction_static, ")
    assert fleet.wait_state("a", "backoff", reason=crashed["reason"])["pid"] is None


def test_server_whose_program_cannot_be_executed_says_so(fleet: Fleet) -> None:
    program = fleet.base / "python-for-another-machine"
    program.write_bytes(b"\x7fELF of another kind")
    program.chmod(0o755)
    fleet.write(server("a", free_port(), control={"python_path": str(program)}))
    fleet.start()
    failed = fleet.wait_event("server.failed", "a")
    assert failed["reason"].startswith("exited with status 127: its program cannot be run; log line: ")
    assert str(program) in failed["reason"]
    assert failed["class"] == "not-installed"


def test_server_that_flaps_backs_off_longer_each_time_then_fails_until_it_is_started(fleet: Fleet) -> None:
    permit = fleet.base / "permit"
    restart = {"backoff_initial_s": 0.2, "backoff_max_s": 0.8, "max_restarts": 4}
    fleet.write(server("a", free_port(), control=fleet.wrap("a", f"[ -e {permit} ] || exit 3"), restart=restart))
    fleet.start()
    row = fleet.wait_state("a", "failed")
    delays = [event["retry_in_s"] for event in fleet.events("server.crashed", "a")]
    assert len(delays) == 4
    # Jitter takes off up to a tenth.
    assert all(full * 0.9 - 0.01 <= delay <= full for delay, full in zip(delays, (0.2, 0.4, 0.8, 0.8), strict=True))
    assert "5 starts in a row never became ready" in row["reason"]
    assert "infer-dev start a" in row["mend"]
    assert fleet.wait_event("server.failed", "a")["mend"] == row["mend"]
    assert fleet.cli("health").returncode == 1
    permit.touch()
    assert fleet.cli("start", "a").returncode == 0
    row = fleet.wait_state("a", "ready")
    assert row["reason"] == row["mend"] == ""
    assert fleet.cli("health").returncode == 0


def test_server_with_max_restarts_0_never_gives_up(fleet: Fleet) -> None:
    restart = {"backoff_initial_s": 0.05, "backoff_max_s": 0.05, "max_restarts": 0}
    fleet.write(server("a", free_port(), control=fleet.wrap("a", "exit 1"), restart=restart))
    fleet.start()
    fleet.wait_event("server.crashed", "a", count=15, timeout_s=60)
    assert not fleet.events("server.failed")


def test_server_past_its_startup_deadline_is_ended_and_started_again(fleet: Fleet) -> None:
    probe = {"startup_deadline_s": 4}
    fleet.write(server("a", free_port(), "--load-s", "600", probe=probe))
    fleet.start()
    hung = fleet.wait_event("server.hung", "a")
    assert hung["reason"].startswith("not ready 4 s after its start (port ")
    fleet.wait_event("server.started", "a", count=2)
    assert not fleet.host_pid(hung["pid"])


def test_server_that_answers_503_is_loading_until_it_is_ready(fleet: Fleet) -> None:
    a, b = free_ports(2)
    hold = fleet.base / "hold"
    hold.touch()
    fleet.write(server("late", a, "--load-file", str(hold)), server("busy", b, "--loading-503-file", str(hold)))
    fleet.start()
    fleet.wait_state("busy", "loading", reason="/health answered 503")
    fleet.wait_state("late", "loading", reason=f"port {a} refuses connections")
    assert not fleet.events("server.ready")
    hold.unlink()
    for name, row in fleet.wait_ready("late", "busy").items():
        assert row["reason"] == ""
        assert row["restarts"] == 0
        assert fleet.wait_event("server.ready", name)["after_s"] > 0
        assert abs(row["ready_since"] - time.time()) < 60


def test_server_that_answers_503_for_a_while_is_unhealthy_and_recovers_without_a_restart(fleet: Fleet) -> None:
    pause = fleet.base / "pause"
    port = free_port()
    probe = {"period_s": 0.5, "timeout_s": 0.4, "failure_threshold": 60}
    fleet.write(server("a", port, "--hang-file", str(pause), probe=probe))
    fleet.start()
    pid = fleet.wait_ready("a")["a"]["pid"]
    pause.touch()
    fleet.wait_state("a", "unhealthy", reason="of 60 probes failed")
    pause.unlink()
    row = fleet.wait_state("a", "ready")
    assert (row["pid"], row["restarts"], row["reason"]) == (pid, 0, "")
    assert fleet.wait_event("server.recovered", "a")


def test_server_whose_port_is_taken_at_its_restart_waits_and_recovers_when_it_is_free(fleet: Fleet) -> None:
    port = free_port()
    restart = {"backoff_initial_s": 1.0, "backoff_max_s": 1.0}
    fleet.write(server("a", port, restart=restart))
    fleet.start()
    fleet.wait_ready("a")
    # It takes the port as soon as the server has lost it, long before the server's back-off is over.
    holder = f"""import pathlib, socket, time
pathlib.Path({str(fleet.base / "waiting")!r}).touch()
while True:
    try:
        listener = socket.create_server(("127.0.0.1", {port}))
        break
    except OSError:
        time.sleep(0.01)
time.sleep(600)"""
    foreign = fleet.spawn_inside("-c", holder)
    fleet.wait((fleet.base / "waiting").exists, what="the foreign process to want the port")
    old_pid = fleet.kill_server("a")
    row = fleet.wait_state("a", "backoff", reason="taken")
    inner_pid = next(p.inner_pid for p in fleet.find_processes("-c", holder))
    assert row["reason"].startswith(f"port {port} is taken by pid {inner_pid} (python")
    assert row["mend"] == "end that process, or set another port"
    foreign.kill()
    for process in fleet.find_processes("-c", holder):
        fleet.kill(process.pid)
    assert fleet.wait_again("a", old_pid)["reason"] == ""
    assert get(port)[0] == 200
