"""A Compose project of a test: brought up in bounded time, taken down at the end."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine import ROOT, Container, Engine
from inside import container_of

CI = str(ROOT / "tests" / "e2e" / "compose.ci.yml")
UP_S = 300


@dataclass(frozen=True)
class Project:
    """One compose project; relative paths of its files are those of `folder`."""

    engine: Engine
    name: str
    files: tuple[str, ...]
    environ: Mapping[str, str]
    folder: Path = ROOT / "docker"

    def compose(self, *argv: str, timeout_s: float = 180.0, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run docker compose; --env-file keeps a person's own docker/.env out."""
        files = [word for name in self.files for word in ("-f", str(ROOT / "docker" / name))]
        place = ("--env-file", "/dev/null", "--project-directory", str(self.folder))
        words = ("compose", *place, "-p", self.name, *files, "-f", CI)
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
def project(
    engine: Engine, workspace: Path, *files: str, folder: Path = ROOT / "docker", **environ: str
) -> Iterator[Project]:
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
    made = Project(engine, engine.name("compose"), files, host | environ, folder)
    try:
        yield made
    finally:
        made.compose("down", "-v", "--remove-orphans", "-t", "5", check=False)
