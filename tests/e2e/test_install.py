"""Install and serve by hand, without a network, and two containers on one workspace."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from engine import BUNDLE, CONFIG, INSTALL, PROJECT_DIR, WORKSPACE, Container, Engine, mounts
from inside import HEALTH, chat_inside
from serving import serve

HELPERS = "/soft/app/sglang"
OFFLINE = ("--network", "none")
WAIT = ("--wait", "110")


def processes(container: Container) -> list[str]:
    """Return the command line of everything that runs there, but for ps."""
    lines = container.exec("ps", "-eo", "args=", check=True).stdout.splitlines()
    return [line for line in lines if not line.startswith("ps ")]


def states(container: Container, user: str) -> dict[str, str]:
    """Return the servers' states as that user is told them."""
    run = container.exec(f"{HELPERS}/status", "--json", options=("-u", user), check=True)
    return {row["name"]: row["state"] for row in json.loads(run.stdout)}


def prepare_for(user: str, container: Container) -> None:
    """Nothing was started by itself; give the workspace to the user, as the docs say."""
    container.wait_health("healthy")
    assert not any("supervisord" in line for line in processes(container))
    assert len(processes(container)) == 1 + sum("infer-dev health" in line for line in processes(container))
    status = container.exec(f"{HELPERS}/status")
    assert status.returncode == 14
    assert status.stderr.strip().endswith("start one with: infer-dev serve CONFIG.toml")
    if user == "me":
        container.exec("chown", "me:", WORKSPACE, check=True)


def install_by_hand(user: str, container: Container) -> None:
    """The helper needs the variable of `docker exec` alone, and the second time there is nothing to do."""
    options = ("-u", user, "-e", f"AUTO_INFER_SGLANG_BUNDLE_PATH={BUNDLE}")
    first = container.exec(f"{HELPERS}/install-sglang-offline.sh", options=options, timeout_s=180, check=True)
    assert first.stdout.startswith(f"in use: {PROJECT_DIR}/env -> ")
    second = container.exec(f"{HELPERS}/install-sglang-offline.sh", options=options, check=True)
    assert second.stdout.startswith("nothing to do: ")
    assert container.exec("stat", "-c", "%U", PROJECT_DIR).stdout.strip() == "me"


def serve_by_hand(user: str, container: Container) -> None:
    """The servers are the user `me`'s, whoever starts them."""
    words = [word for pair in serve().items() for word in ("-e", "=".join(pair))]
    run = container.exec(
        f"{HELPERS}/check-and-run-sglang.sh", *WAIT, options=("-u", user, *words), timeout_s=150, check=True
    )
    assert "try:  curl" in run.stdout
    pid = container.rows()["gemma"]["pid"]
    assert container.exec("stat", "-c", "%U", f"/proc/{pid}").stdout.strip() == "me"
    assert chat_inside(container)
    # Again with the same config: nothing changes, and its own port is not in its way.
    container.exec(f"{HELPERS}/check-and-run-sglang.sh", options=("-u", user, *words), check=True)
    assert container.rows()["gemma"]["pid"] == pid


@pytest.mark.parametrize("user", ["root", "me"])
def test_gates_off_starts_nothing_and_all_is_done_by_hand(engine: Engine, fresh: Path, user: str) -> None:
    with engine.container(options=[*mounts(fresh), *OFFLINE, *HEALTH]) as container:
        prepare_for(user, container)
        install_by_hand(user, container)
        serve_by_hand(user, container)
        for other in ("root", "me"):  # also the one who did not start it is told
            assert states(container, other) == {"gemma": "ready"}
            log = container.exec(f"{HELPERS}/logs", "gemma", options=("-u", other), check=True).stdout
            assert "listening on http://0.0.0.0:30000" in log
            ctl = container.exec("infer-dev", "ctl", "status", options=("-u", other), check=True).stdout
            assert ctl.split()[:2] == ["sglang:gemma", "RUNNING"]
            words = ("environment", "models", "chat")
            smoke = container.exec(
                f"{HELPERS}/smoke", "--only", ",".join(words), options=("-u", other), check=True
            ).stdout
            assert smoke.splitlines()[-1] == "3 pass, 0 fail, 0 skip", smoke
        container.wait_health("healthy")
        # The engine tells PID 1, which has no fleet of its own; the one that was started by hand drains all the same.
        log_file = "/run/infer-dev/entry.log" if user == "root" else "/tmp/infer-dev-1000/entry.log"
        assert container.stop() < 25
        assert container.exit_code == 0
        copied = engine.docker("cp", f"{container.name}:{log_file}", "-").stdout
        (stopped,) = [json.loads(line) for line in copied.splitlines() if '"entry.stopped"' in line]
        assert (stopped["had_to_kill"], stopped["exit_code"]) == ([], 0)


def test_supervisorctl_finds_the_fleet_as_it_is(engine: Engine, installed: Path) -> None:
    with engine.container(options=[*mounts(installed), *OFFLINE], environ=serve()) as container:
        container.wait_ready("gemma")
        for user in ("root", "me"):
            status = container.exec("supervisorctl", "status", options=("-u", user), check=True).stdout
            assert status.split()[:2] == ["sglang:gemma", "RUNNING"]
            tail = container.exec("supervisorctl", "tail", "sglang:gemma", options=("-u", user), check=True).stdout
            assert "listening on" in tail
        # Root of a container may not look into the processes of `me` without further ado; an update is none the wiser.
        pid = container.rows()["gemma"]["pid"]
        changed = serve(server={"threads": 1, "n_predict": 16})
        words = [word for pair in changed.items() for word in ("-e", "=".join(pair))]
        container.exec("infer-dev", "serve", CONFIG, *WAIT, options=words, timeout_s=150, check=True)
        assert container.rows()["gemma"]["pid"] != pid
        assert chat_inside(container)
        # A wish by supervisorctl is respected, and nobody else may have one.
        container.exec("supervisorctl", "stop", "sglang:gemma", check=True)
        assert container.rows()["gemma"]["state"] == "stopped"
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


def test_two_containers_on_one_workspace_install_once_and_both_serve(engine: Engine, fresh: Path) -> None:
    options, environ = [*mounts(fresh), *OFFLINE], serve() | INSTALL
    with (
        engine.container(options=[*options, "--hostname", "one"], environ=environ) as one,
        engine.container(options=[*options, "--hostname", "two"], environ=environ) as two,
    ):
        both = {"one": one, "two": two}
        for container in both.values():
            container.wait_ready("gemma")
        worked = [name for name, container in both.items() if container.events("bundle.installed")]
        assert len(worked) == 1, "who waited must find it done"
        waited = both["two" if worked == ["one"] else "one"]
        notes = [event["message"] for event in waited.events("install.note")]
        assert any(
            note.startswith(f"waiting for another install of {PROJECT_DIR}: pid ") and f"on '{worked[0]}' since" in note
            for note in notes
        ), notes
        assert waited.events("bundle.unchanged")
        assert chat_inside(one)
        assert chat_inside(two)
