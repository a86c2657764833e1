"""The compose files as people use them: up, healthy, an answer on the host's port, down."""

from __future__ import annotations

import json
from pathlib import Path

from compose import project
from engine import CONFIG, INSTALL, Engine, chat, get
from inside import chat_inside
from serving import serve


def test_up_installs_serves_on_the_hosts_port_and_stop_drains(engine: Engine, fresh: Path) -> None:
    environ = serve(gateway={"host": "0.0.0.0"}) | INSTALL | {"HOST_PORT_GATEWAY": "0"}
    del environ["AUTO_INFER_SGLANG_CONFIG"]  # the overlay's default
    files = ("docker-compose.yml", "docker-compose.cpu.yml", "docker-compose.gateway.yml")
    with project(engine, fresh, *files, **environ) as made:
        made.up()
        container = made.container()
        container.wait_health("healthy")
        assert container.events("bundle.installed")
        port = container.port()
        assert json.loads(get(port, "/v1/models")[1])["data"][0]["id"] == "gemma"
        assert chat(port).strip()
        container.wait_event("gateway.routed")
        assert chat(container.port(8000)).strip()
        container.wait_ready("gateway", "gemma")
        rows = made.compose("exec", "-T", "infer-dev", "infer-dev", "status").stdout.splitlines()
        assert {tuple(row.split()[:2]) for row in rows[1:3]} == {("gateway", "ready"), ("gemma", "ready")}
        made.compose("stop", timeout_s=300)
        (row,) = made.rows()
        assert (row["State"], row["ExitCode"]) == ("exited", 0)
        assert container.events("entry.stopped")[0]["had_to_kill"] == []
        made.compose("down")
        assert made.rows() == []


def test_offline_overlay_serves_with_no_network_at_all(engine: Engine, installed: Path) -> None:
    files = ("docker-compose.yml", "docker-compose.cpu.yml", "docker-compose.offline.yml")
    with project(engine, installed, *files, **serve()) as made:
        made.up()
        container = made.container()
        details = container.inspect()
        assert list(details["NetworkSettings"]["Networks"]) == ["none"]
        assert not details["HostConfig"]["PortBindings"]
        interfaces = container.exec("ls", "/sys/class/net", check=True).stdout.split()
        assert interfaces == ["lo"]
        assert chat_inside(container)


def test_up_with_nothing_set_is_healthy_and_serves_once_told_to(engine: Engine, installed: Path) -> None:
    with project(engine, installed, "docker-compose.yml") as made:
        made.up()
        container = made.container()
        assert "supervisord" not in container.exec("ps", "-eo", "args=", check=True).stdout
        assert container.inspect()["HostConfig"]["ShmSize"] == 32 * 1024**3
        overrides = ("-e", f"AUTO_INFER_SGLANG_OVERRIDES={serve()['AUTO_INFER_SGLANG_OVERRIDES']}")
        words = ("exec", "-T", *overrides, "infer-dev", "infer-dev", "serve", CONFIG, "--wait", "300")
        made.compose(*words, timeout_s=330)
        assert chat(container.port()).strip()
