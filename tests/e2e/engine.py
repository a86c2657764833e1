"""Drive a real Docker Engine from tests: containers that are bounded in time and removed at the end."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wait import wait_until

ROOT = Path(__file__).parents[2]
LABEL = "infer-dev.e2e"
WORKSPACE = "/hard/volume/workspace"
PROJECT_DIR = f"{WORKSPACE}/sglang-pixi-offline"
BUNDLE = f"{WORKSPACE}/sglang-offline-bundle.tar"
# 3 s on an idle machine; an install of the bundle comes before it.
READY_TIMEOUT_S = 300.0
CONFIG = "/model-configs/llama-cpp-cpu.toml"
# The gates of a boot that serves, and of one that installs.
SERVE = {"AUTO_INFER_SGLANG_ON_BOOT": "1", "AUTO_INFER_SGLANG_CONFIG": CONFIG}
INSTALL = {"AUTO_INFER_SGLANG_BUNDLE_ON_BOOT": "1", "AUTO_INFER_SGLANG_BUNDLE_PATH": BUNDLE}


def mounts(workspace: Path, configs: Path | None = None) -> list[str]:
    """Return the mounts of the compose file as options of `docker run`."""
    return ["-v", f"{workspace}:{WORKSPACE}", *(["-v", f"{configs}:/model-configs:ro"] if configs else [])]


class Engine:
    """One Docker Engine. Everything made by tests carries a label of this run, by which it is removed at the end."""

    def __init__(self, image: str, run_id: str) -> None:
        self.image = image
        self.run_id = run_id
        self.environ = dict(os.environ)
        self._count = 0

    def docker(
        self, *argv: str, timeout_s: float = 120.0, check: bool = True, environ: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run docker; with `check` a failure is an assertion that shows what it printed."""
        run = subprocess.run(
            ["docker", *argv],
            capture_output=True,
            text=True,
            timeout=timeout_s,
            env={**self.environ, **(environ or {})},
            check=False,
            stdin=subprocess.DEVNULL,
        )
        if check:
            assert run.returncode == 0, f"docker {' '.join(argv)} → {run.returncode}\n{run.stdout}\n{run.stderr}"
        return run

    def name(self, word: str = "c") -> str:
        """Return a name that nothing else has."""
        self._count += 1
        return f"infer-dev-{self.run_id}-{word}{self._count}"

    @contextlib.contextmanager
    def container(
        self, *command: str, options: Sequence[str] = (), environ: Mapping[str, str] | None = None, image: str = ""
    ) -> Iterator[Container]:
        """Run a container in the background and remove it at the end; a failing test shows its log."""
        name = self.name()
        settings = [word for pair in (environ or {}).items() for word in ("-e", "=".join(pair))]
        self.docker(
            *("run", "-d", "--name", name, "--label", f"{LABEL}={self.run_id}"),
            *settings,
            *options,
            image or self.image,
            *command,
        )
        container = Container(self, name)
        try:
            yield container
        except BaseException:
            print(f"── log of {name} ──\n{container.logs()[-8000:]}")
            raise
        finally:
            self.docker("rm", "-f", "-v", name, check=False)

    def remove_all(self) -> None:
        """Remove every container and network of this run."""
        mine = f"label={LABEL}={self.run_id}"
        for kind, words in (("ps", ("-aq",)), ("network", ("ls", "-q")), ("volume", ("ls", "-q"))):
            found = self.docker(kind, *words, "--filter", mine, check=False).stdout.split()
            remove = ("rm", "-f", "-v") if kind == "ps" else (kind, "rm")
            if found:
                self.docker(*remove, *found, check=False)


@dataclass(frozen=True)
class Container:
    """A running (or ended) container."""

    engine: Engine
    name: str

    def exec(
        self, *argv: str, options: Sequence[str] = (), timeout_s: float = 120.0, check: bool = False
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in it."""
        return self.engine.docker("exec", *options, self.name, *argv, timeout_s=timeout_s, check=check)

    def inspect(self) -> dict[str, Any]:
        """What the engine knows of it."""
        answer = json.loads(self.engine.docker("inspect", self.name).stdout)
        return dict(answer[0])

    @property
    def running(self) -> bool:
        return bool(self.inspect()["State"]["Running"])

    @property
    def exit_code(self) -> int:
        return int(self.inspect()["State"]["ExitCode"])

    @property
    def health(self) -> str:
        """`starting`, `healthy` or `unhealthy`."""
        return str(self.inspect()["State"]["Health"]["Status"])

    def logs(self) -> str:
        """Everything it printed."""
        run = self.engine.docker("logs", self.name, check=False)
        return run.stdout + run.stderr

    def events(self, name: str = "") -> list[dict[str, Any]]:
        """The JSON log lines, those of one event if it is named."""
        found = []
        for line in self.logs().splitlines():
            with contextlib.suppress(ValueError):
                event = json.loads(line)
                if isinstance(event, dict) and (not name or event.get("event") == name):
                    found.append(event)
        return found

    def wait_event(self, name: str, timeout_s: float = 120.0) -> dict[str, Any]:
        """Return the first log line of that event."""
        return self._wait(lambda: self.events(name), timeout_s, f"the event {name}")[0]

    def rows(self) -> dict[str, dict[str, Any]]:
        """The servers' status by name."""
        run = self.exec("infer-dev", "status", "--json")
        try:
            return {row["name"]: row for row in json.loads(run.stdout)}
        except ValueError:
            return {}

    def row(self, name: str) -> dict[str, Any]:
        """The status of one server that is there; asked again where the entry is too busy to answer."""
        return dict(self._wait(lambda: self.rows().get(name), 60.0, f"a row of {name}"))

    def wait_ready(self, *names: str, timeout_s: float = READY_TIMEOUT_S) -> dict[str, dict[str, Any]]:
        """Wait until these servers are ready; return all rows."""

        def ready() -> dict[str, dict[str, Any]] | None:
            self._refuse_failed_boot()
            rows = self.rows()
            good = all(rows.get(name, {}).get("state") == "ready" for name in names)
            return rows if names and good else None

        return self._wait(ready, timeout_s, f"{names} to be ready")

    def wait_health(self, wanted: str, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Wait for a state of the health check."""

        def reached() -> bool:
            if wanted == "healthy":
                self._refuse_failed_boot()
            return self.health == wanted

        self._wait(reached, timeout_s, f"health {wanted}")

    def _refuse_failed_boot(self) -> None:
        """A boot that failed never becomes ready: say so at once instead of when the time is up."""
        failed = self.events("boot.failed")
        assert not failed, failed

    def wait_exit(self, timeout_s: float = 120.0) -> int:
        """Wait for its end and return the exit code."""
        self._wait(lambda: not self.running, timeout_s, "the end")
        return self.exit_code

    def stop(self, grace_s: int = 30) -> float:
        """`docker stop`; return how long it took, in seconds."""
        started = time.monotonic()
        self.engine.docker("stop", "-t", str(grace_s), self.name, timeout_s=grace_s + 60)
        return time.monotonic() - started

    def port(self, inside: int = 30000) -> int:
        """The host's port for a port of the container."""
        return int(self.engine.docker("port", self.name, f"{inside}/tcp").stdout.split()[0].rpartition(":")[2])

    def _wait(self, predicate: Any, timeout_s: float, what: str) -> Any:
        try:
            return wait_until(predicate, timeout_s, what)
        except AssertionError as error:
            raise AssertionError(f"{error}\n── log ──\n{self.logs()[-6000:]}") from error


def get(port: int, path: str, timeout_s: float = 10.0) -> tuple[int, bytes]:
    """GET from a published port: status and body; 0 when nobody answers."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=timeout_s) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()
    except OSError:
        return 0, b""


def chat(port: int, *, max_tokens: int = 8, timeout_s: float = 120.0) -> str:
    """Ask the model for a few words through a published port."""
    body = {"messages": [{"role": "user", "content": "Say hello."}], "max_tokens": max_tokens}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/chat/completions",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=timeout_s) as answer:
        return str(json.load(answer)["choices"][0]["message"]["content"])
