"""Install and serve by hand, without a network, and two containers on one workspace."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from engine import BUNDLE, CONFIG, INSTALL, PROJECT_DIR, WORKSPACE, Container, Engine, mounts
from inside import HEALTH, chat_inside
from serving import serve
from wait import wait_until

HELPERS = "/soft/app/sglang"
OFFLINE = ("--network", "none")
WAIT = ("--wait", "300")


def processes(container: Container) -> list[str]:
    """Return the command line of everything that runs there, but for ps."""
    lines = container.exec("ps", "-eo", "args=", check=True).stdout.splitlines()
    return [line for line in lines if not line.startswith("ps ")]


def states(container: Container, user: str) -> dict[str, str]:
    """Return the servers' states as that user is told them."""
    run = container.exec(f"{HELPERS}/status", "--json", options=("-u", user))
    return {row["name"]: row["state"] for row in json.loads(run.stdout or "[]")}


def wait_running(container: Container, *words: str, user: str) -> None:
    """Ask supervisord as that user; for the first second of its life a server that is ready is STARTING there."""

    def is_running() -> bool:
        told = container.exec(*words, "status", options=("-u", user)).stdout.split()[:2]
        return told == ["sglang:gemma", "RUNNING"]

    wait_until(is_running, 30, f"RUNNING as {' '.join(words)} tells {user}")


def prepare_for(user: str, container: Container) -> None:
    """Nothing was started by itself; give the workspace to the user, as the docs say."""
    container.wait_health("healthy")
    assert not any("supervisord" in line for line in processes(container))
    # A health check comes and goes, and the runtime's own process before it.
    wait_until(lambda: len([line for line in processes(container) if "infer-dev health" not in line]) == 1, 30, "PID 1")
    status = container.exec(f"{HELPERS}/status")
    assert status.returncode == 14
    assert status.stderr.strip().endswith("start one with: infer-dev serve CONFIG.toml")
    if user == "me":
        container.exec("chown", "me:", WORKSPACE, check=True)


def install_by_hand(user: str, container: Container) -> None:
    """The helper needs the variable of `docker exec` alone, and the second time there is nothing to do."""
    options = ("-u", user, "-e", f"AUTO_INFER_SGLANG_BUNDLE_PATH={BUNDLE}")
    first = container.exec(f"{HELPERS}/install-sglang-offline.sh", options=options, timeout_s=300, check=True)
    assert first.stdout.startswith(f"in use: {PROJECT_DIR}/env -> ")
    second = container.exec(f"{HELPERS}/install-sglang-offline.sh", options=options, check=True)
    assert second.stdout.startswith("nothing to do: ")
    assert container.exec("stat", "-c", "%U", PROJECT_DIR).stdout.strip() == "me"


def serve_by_hand(user: str, container: Container) -> None:
    """The servers are the user `me`'s, whoever starts them."""
    words = [word for pair in serve().items() for word in ("-e", "=".join(pair))]
    run = container.exec(
        f"{HELPERS}/check-and-run-sglang.sh", *WAIT, options=("-u", user, *words), timeout_s=330, check=True
    )
    assert "try:  curl" in run.stdout
    pid = container.row("gemma")["pid"]
    assert container.exec("stat", "-c", "%U", f"/proc/{pid}").stdout.strip() == "me"
    assert chat_inside(container)
    # Again with the same config: nothing changes, and its own port is not in its way.
    container.exec(f"{HELPERS}/check-and-run-sglang.sh", options=("-u", user, *words), check=True)
    assert container.row("gemma")["pid"] == pid


@pytest.mark.parametrize("user", ["root", "me"])
def test_gates_off_starts_nothing_and_all_is_done_by_hand(engine: Engine, fresh: Path, user: str) -> None:
    with engine.container(options=[*mounts(fresh), *OFFLINE, *HEALTH]) as container:
        prepare_for(user, container)
        install_by_hand(user, container)
        serve_by_hand(user, container)
        for other in ("root", "me"):  # also the one who did not start it is told
            wait_until(lambda user=other: states(container, user) == {"gemma": "ready"}, 60, "the server to be ready")
            log = container.exec(f"{HELPERS}/logs", "gemma", "-n", "100000", options=("-u", other), check=True).stdout
            assert "listening on http://0.0.0.0:30000" in log
            wait_running(container, "infer-dev", "ctl", user=other)
            words = ("environment", "models", "chat")
            smoke = container.exec(
                f"{HELPERS}/smoke", "--only", ",".join(words), options=("-u", other), check=True
            ).stdout
            assert smoke.splitlines()[-1] == "3 pass, 0 fail, 0 skip", smoke
        container.wait_health("healthy")
        # The engine tells PID 1, which has no fleet of its own; the one that was started by hand drains all the same.
        log_file = "/run/infer-dev/entry.log" if user == "root" else "/tmp/infer-dev-1000/entry.log"
        container.stop(90)
        assert container.exit_code == 0
        copied = engine.docker("cp", f"{container.name}:{log_file}", "-").stdout
        (stopped,) = [json.loads(line) for line in copied.splitlines() if '"entry.stopped"' in line]
        assert (stopped["had_to_kill"], stopped["exit_code"]) == ([], 0)


def test_supervisorctl_finds_the_fleet_as_it_is(engine: Engine, installed: Path) -> None:
    with engine.container(options=[*mounts(installed), *OFFLINE], environ=serve()) as container:
        container.wait_ready("gemma")
        for user in ("root", "me"):
            wait_running(container, "supervisorctl", user=user)
            tail = ("supervisorctl", "tail", "-100000", "sglang:gemma")
            assert "listening on" in container.exec(*tail, options=("-u", user), check=True).stdout
        # Root of a container may not look into the processes of `me` without further ado; an update is none the wiser.
        pid = container.row("gemma")["pid"]
        changed = serve(server={"threads": 1, "n_predict": 16})
        words = [word for pair in changed.items() for word in ("-e", "=".join(pair))]
        container.exec("infer-dev", "serve", CONFIG, *WAIT, options=words, timeout_s=330, check=True)
        assert container.row("gemma")["pid"] != pid
        assert chat_inside(container)
        # A wish by supervisorctl is respected, and nobody else may have one.
        container.exec("supervisorctl", "stop", "sglang:gemma", check=True)
        # supervisord has stopped it; the entry hears of that a moment later.
        wait_until(lambda: container.row("gemma")["state"] == "stopped", 60, "the entry to know")
        refused = container.exec("infer-dev", "status", options=("-u", "nobody"))
        assert "run as root or as the servers' user" in refused.stderr


def test_empty_workspace_without_a_network_installs_serves_and_the_next_container_skips_it(
    engine: Engine, fresh: Path
) -> None:
    environ = serve() | INSTALL
    with engine.container(options=[*mounts(fresh), *OFFLINE], environ=environ) as first:
        first.wait_ready("gemma")
        assert first.events("bundle.installed")
        assert chat_inside(first)
    with engine.container(options=[*mounts(fresh), *OFFLINE], environ=environ) as second:
        second.wait_ready("gemma")
        assert second.events("bundle.unchanged")
        assert not second.events("install.stage")
        assert chat_inside(second)


@contextlib.contextmanager
def paused(container: Container) -> Iterator[None]:
    """Freeze all of its processes; whoever has not yet done so lets them go on at the end."""
    container.engine.docker("pause", container.name)
    try:
        yield
    finally:
        container.engine.docker("unpause", container.name, check=False)


def waits_for(host: str, container: Container) -> bool:
    """Whether it has said that it waits for the install of that host."""
    notes = [event["message"] for event in container.events("install.note")]
    begin = f"waiting for another install of {PROJECT_DIR}: pid "
    return any(note.startswith(begin) and f" on '{host}' since " in note for note in notes)


def test_two_containers_on_one_workspace_install_once_and_both_serve(engine: Engine, fresh: Path) -> None:
    options, environ = [*mounts(fresh), *OFFLINE], serve() | INSTALL
    lock = fresh / Path(PROJECT_DIR).name / ".install.lock"
    with engine.container(options=[*options, "--hostname", "one"], environ=environ) as one:
        # The first stands still with the lock in its hand until the second has run into it.
        wait_until(lambda: lock.exists() and '"one"' in lock.read_text(), 120, "the first to have the lock")
        with paused(one), engine.container(options=[*options, "--hostname", "two"], environ=environ) as two:
            assert not one.events("bundle.installed")
            wait_until(lambda: waits_for("one", two), 120, "the second to wait")
            engine.docker("unpause", one.name)
            for container in (one, two):
                container.wait_ready("gemma")
            assert one.events("bundle.installed")
            assert two.events("bundle.unchanged")
            assert not two.events("bundle.installed"), "who waited must find it done"
            assert chat_inside(one)
            assert chat_inside(two)
