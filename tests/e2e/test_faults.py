"""Servers that are killed, hang or run out of memory: they come back, and the event says which it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engine import READY_TIMEOUT_S, Container, Engine, chat, mounts
from serving import serve
from wait import wait_until

# The image's own period would be 10 s. A restart takes longer than some checks, so that unhealthy is seen.
HEALTH = ("--health-interval", "1s", "--health-retries", "1")
# Shorter than an engine's own; a probe that a busy machine delays is no hang yet.
PROBE = {"period_s": 2.0, "timeout_s": 1.5, "failure_threshold": 5}
RESTART = {"backoff_initial_s": 8.0, "backoff_max_s": 8.0}
# All processes take 175 MB, of which 120 are the server's. What fills /dev/shm is more than what is left beside the
# server, and less than what is left without it.
MEMORY_MB, SHM_MB = 400, 290


def crashes(container: Container) -> list[dict[str, Any]]:
    """What was said of every end."""
    return container.events("server.crashed")


def wait_again(container: Container, old_pid: int) -> dict[str, Any]:
    """Wait until a new process is ready and the container healthy to the engine; return the server's row."""

    def new_row() -> dict[str, Any]:
        row = container.rows().get("gemma", {})
        return row if row.get("state") == "ready" and row["pid"] != old_pid else {}

    row = wait_until(new_row, READY_TIMEOUT_S, f"another process than {old_pid} to be ready")
    container.wait_health("healthy")
    return row


def test_killed_and_hung_servers_come_back_and_health_follows(engine: Engine, installed: Path) -> None:
    options = [*mounts(installed), *HEALTH, "-p", "127.0.0.1::30000"]
    with engine.container(options=options, environ=serve(probe=PROBE, restart=RESTART)) as container:
        container.wait_health("healthy")
        first_pid = container.wait_ready("gemma")["gemma"]["pid"]
        container.exec("kill", "-KILL", str(first_pid), check=True)
        container.wait_health("unhealthy")
        row = wait_again(container, first_pid)
        assert chat(container.port()).strip()
        container.exec("kill", "-STOP", str(row["pid"]), check=True)
        container.wait_health("unhealthy")
        row = wait_again(container, row["pid"])
        assert chat(container.port()).strip()
        killed, hung = crashes(container)
        assert killed["reason"].startswith("was killed by SIGKILL")
        assert hung["reason"].startswith(
            "hung: 5 probes in a row failed (no answer on /health in 1.2 s"
        )  # and 0.3 s for the counters
        assert container.events("server.hung")[0]["reason"] == hung["reason"]
        assert row["restarts"] == 2
        # supervisord is an ordinary process too: whoever kills it gets the fleet back.
        container.exec("pkill", "-KILL", "-f", "supervisor.supervisord", check=True)
        lost = container.wait_event("supervisor.lost")
        assert lost["reason"] == "supervisord was killed by SIGKILL"
        wait_again(container, row["pid"])
        assert chat(container.port()).strip()
        container.stop(90)
        assert container.exit_code == 0


def test_server_that_the_kernel_kills_for_memory_comes_back_and_the_event_says_so(
    engine: Engine, installed: Path
) -> None:
    memory = f"{MEMORY_MB}m"
    options = [
        *mounts(installed),
        *HEALTH,
        *("--memory", memory, "--memory-swap", memory, "--shm-size", memory, "-p", "127.0.0.1::30000"),
    ]
    with engine.container(options=options, environ=serve(restart=RESTART)) as container:
        container.wait_health("healthy")
        pid = container.wait_ready("gemma")["gemma"]["pid"]
        # What a killed process held is given back some milliseconds late. For who asks for memory meanwhile the kernel
        # kills once more: the one who asks, as it offers itself.
        fill = f"dd if=/dev/zero of=/dev/shm/full bs=1M count={SHM_MB}"
        # The room is there again long before the server is started anew, or it would be killed a second time.
        command = f"sh -c 'echo 100 >/proc/$$/oom_score_adj; exec {fill}'; rm -f /dev/shm/full"
        container.exec("sh", "-c", command)
        container.exec("rm", "-f", "/dev/shm/full", check=True)
        wait_until(lambda: crashes(container), 60, "the end of the server")
        # The kernel took the server first, and not PID 1.
        (crash,) = crashes(container)
        assert crash["reason"].startswith(
            f"was killed by the kernel: out of memory (the container's limit is {MEMORY_MB} MiB)"
        )
        assert "more memory" in crash["mend"]
        wait_again(container, pid)
        assert chat(container.port()).strip()
        assert len(container.events("entry.started")) == 1
        assert not container.events("supervisor.lost")
