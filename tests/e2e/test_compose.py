"""The compose files as people use them: up, healthy, an answer on the host's port, down."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine import CONFIG, INSTALL, ROOT, Container, Engine, chat, get
from inside import chat_inside, container_of
from serving import serve

CI = str(ROOT / "tests" / "e2e" / "compose.ci.yml")
UP_S = 150


@dataclass(frozen=True)
class Project:
    """One compose project."""

    engine: Engine
    name: str
    files: tuple[str, ...]
    environ: Mapping[str, str]

    def compose(self, *argv: str, timeout_s: float = 90.0, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run docker compose; --env-file keeps a person's own docker/.env out."""
        files = [word for name in self.files for word in ("-f", str(ROOT / "docker" / name))]
        words = ("compose", "--env-file", "/dev/null", "-p", self.name, *files, "-f", CI)
        return self.engine.docker(*words, *argv, environ=self.environ, timeout_s=timeout_s, check=check)

    def up(self) -> None:
        """Bring it up and return when it is healthy."""
        up = ("up", "-d", "--wait", "--wait-timeout", str(UP_S), "--no-build", "--pull", "never")
        run = self.compose(*up, timeout_s=UP_S + 60, check=False)
        assert run.returncode == 0, run.stderr + self.compose("logs", check=False).stdout[-6000:]

    def rows(self) -> list[dict[str, Any]]:
        """Return what `ps -a` shows of every container."""
        lines = self.compose("ps", "-a", "--format", "json").stdout.splitlines()
        return [dict(json.loads(line)) for line in lines]

    def container(self) -> Container:
        """Return the one container."""
        (row,) = self.rows()
        return container_of(self.engine, row["Name"])


@contextlib.contextmanager
def project(engine: Engine, workspace: Path, *files: str, **environ: str) -> Iterator[Project]:
    """A project with a name and a port that nothing else has, taken down at the end."""
    llm_models = workspace.parent / "llm-models"
    llm_models.mkdir(exist_ok=True)
    host = {
        "INFER_DEV_IMAGE": engine.image,
        "HOST_WORKSPACE": str(workspace),
        "HOST_LLM_MODELS": str(llm_models),
        "HOST_PORT_SGLANG": "0",
        "E2E_RUN": engine.run_id,
    }
    made = Project(engine, engine.name("compose"), files, host | environ)
    try:
        yield made
    finally:
        made.compose("down", "-v", "--remove-orphans", "-t", "5", check=False)


def test_up_installs_serves_on_the_hosts_port_and_stop_drains(engine: Engine, fresh: Path) -> None:
    environ = serve() | INSTALL
    del environ["AUTO_INFER_SGLANG_CONFIG"]  # the overlay's default
    with project(engine, fresh, "docker-compose.yml", "docker-compose.cpu.yml", **environ) as made:
        made.up()
        container = made.container()
        assert container.health == "healthy"
        assert container.events("bundle.installed")
        port = container.port()
        assert json.loads(get(port, "/v1/models")[1])["data"][0]["id"] == "gemma"
        assert chat(port).strip()
        assert made.compose("exec", "-T", "infer-dev", "infer-dev", "status").stdout.split()[7:9] == ["gemma", "ready"]
        made.compose("stop", timeout_s=200)
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
        words = ("exec", "-T", *overrides, "infer-dev", "infer-dev", "serve", CONFIG, "--wait", "110")
        made.compose(*words, timeout_s=150)
        assert chat(container.port()).strip()
