"""The real SGLang as a fleet's engine on CPU: its TOML, its processes by name, and requests to it."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import subprocess
import tempfile
import threading
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fleet import INFER_DEV, PROBE, Fleet, Process, server
from wait import wait_until

# 35 s on two idle cores; the limits are for a machine with other work.
READY_TIMEOUT_S = 600.0
# A ready server answers /health in 1 to 3 s here, as it sleeps 1 s between two looks.
PROBES = {**PROBE, "startup_deadline_s": 580, "period_s": 6.0, "timeout_s": 5.5, "failure_threshold": 4}
# A hang is found within this time.
HANG_S = PROBES["failure_threshold"] * PROBES["period_s"] + PROBES["timeout_s"]

# An answer that is still under way when the test has done what it does meanwhile: about 5 s here (400 tokens: 0.6 s,
# which a machine with other work let pass). It has to fit into `max_total_tokens` and the model's positions.
LONG_TOKENS = 2500

FLAGS = {
    "load_format": "dummy",
    "device": "cpu",
    "attention_backend": "torch_native",
    "sampling_backend": "pytorch",
    "grammar_backend": "none",
    "mem_fraction_static": 0.5,
    "max_total_tokens": 4096,
    "host": "127.0.0.1",
}
ENVIRONMENT = {"SGLANG_USE_CPU_ENGINE": "1", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}


class SglangFleet(Fleet):
    """A fleet whose servers are the SGLang in `home`, as tools/sglang-cpu.sh makes it."""

    def __init__(self, base: Path, home: Path) -> None:
        super().__init__(base)
        self.home = home
        self.states: list[str] = []
        self.reasons: set[str] = set()
        # SGLang's children import for minutes without .pyc files, and our test modules are none of its own.
        for name in ("PYTHONDONTWRITEBYTECODE", "PYTHONPATH"):
            self.environ.pop(name, None)

    def sglang(self, name: str, port: int, *extra_args: str, **tables: Mapping[str, object]) -> str:
        """Render one instance: `flags` over those that a CPU needs, and other tables by name."""
        flags = {"model_path": str(self.home / "model"), **FLAGS, **tables.pop("flags", {})}
        env = {**ENVIRONMENT, **tables.pop("env", {})}
        probe = {**PROBES, **tables.pop("probe", {})}
        return server(name, port, *extra_args, flags=flags, env=env, probe=probe, **tables)

    def write_sglang(self, *servers: str, **control: object) -> Path:
        """Write the TOML of these servers."""
        master = {"python_path": str(self.home / "venv/bin/python"), "server_module": "sglang.launch_server"}
        return self.write(*servers, master=master, control=control)

    def wait_loaded(self, *names: str) -> dict[str, dict[str, Any]]:
        """Wait until these servers are ready, and return their rows."""
        return self.wait_ready(*names, timeout_s=READY_TIMEOUT_S)

    def note_states(self, name: str) -> None:
        """Wait until a server is ready; `states` gets what it was on the way, each once in a row, `reasons` the why."""

        def ready() -> bool:
            row = self.row(name)
            state = row.get("state", "")
            self.reasons.add(row.get("reason", ""))
            if state and state != (self.states or [""])[-1]:
                self.states.append(state)
            return state in ("ready", "failed")

        self.wait(ready, READY_TIMEOUT_S, f"{name} to be ready")

    def part(self, title: str) -> Process:
        """Return the process of SGLang with this title, such as `sglang::scheduler`."""
        found = [member for member in self.members() if member.argv and member.argv[0].startswith(title)]
        assert len(found) == 1, (title, [member.argv for member in self.members()])
        return found[0]

    def server_pids(self) -> set[int]:
        """Return the pids out here of all that is neither PID 1 nor supervisord."""
        return {member.pid for member in self.members()} - {self.pid, self.supervisor().pid}

    def segments(self) -> set[Path]:
        """Return the files in /dev/shm that SGLang's processes have open."""
        found = set()
        for pid in self.server_pids():
            with contextlib.suppress(OSError):
                found |= {os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir()}
        return {Path(target) for target in found if target.startswith("/dev/shm/sglang_loads_")}

    def wait_gone(self, pids: set[int], timeout_s: float = 60) -> None:
        """Wait until none of these processes is left."""
        self.wait(lambda: not pids & {member.pid for member in self.members()}, timeout_s, f"{pids} to be gone")


@contextmanager
def make_fleet(home: Path) -> Iterator[SglangFleet]:
    """A fleet that is not started yet; all that is left of it ends with the block."""
    base = Path(tempfile.mkdtemp(prefix="ids", dir="/tmp"))  # a unix socket's path is short
    base.chmod(0o755)
    made = SglangFleet(base, home)
    try:
        yield made
    finally:
        made.close()
        shutil.rmtree(base, ignore_errors=True)


def copy_model(home: Path, to: Path, **config: object) -> Path:
    """Copy the tiny model with these keys changed in its config.json."""
    shutil.copytree(home / "model", to)
    text = json.loads((to / "config.json").read_text())
    (to / "config.json").write_text(json.dumps({**text, **config}))
    return to


# -------------------------------------------------------------------------------------------------------- requests


def post(port: int, path: str, body: Mapping[str, object], *, key: str = "", timeout_s: float = 120) -> Any:
    """POST JSON and return the JSON of the answer.

    Raises:
        HTTPError: the answer is none of 2xx.
    """
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=timeout_s) as answer:
        return json.load(answer)


def chat(port: int, *, key: str = "", max_tokens: int = 8) -> str:
    """Ask the model; its weights are random, so only the count of its tokens is known."""
    body = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": max_tokens, "ignore_eos": True}
    answer = post(port, "/v1/chat/completions", body, key=key)
    assert answer["usage"]["completion_tokens"] == max_tokens
    return str(answer["choices"][0]["message"]["content"])


class Background(threading.Thread):
    """A call in the background, with its result or its failure."""

    def __init__(self, call: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self._call = call
        self.result: Any = None
        self.failure: Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            self.result = self._call()
        except Exception as error:
            self.failure = error

    def finish(self, timeout_s: float) -> Any:
        """Wait for the end and return the result."""
        self.join(timeout_s)
        assert not self.is_alive(), f"not done in {timeout_s:g} s"
        assert self.failure is None, repr(self.failure)
        return self.result


class Stream(threading.Thread):
    """A streamed chat in the background; `pieces` counts what has come so far, `complete` says that all has."""

    def __init__(self, port: int, max_tokens: int, key: str = "") -> None:
        super().__init__(daemon=True)
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=180)
        self._key = key
        self._body = {
            "messages": [{"role": "user", "content": "hello"}],
            "max_tokens": max_tokens,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        self.pieces = 0
        self.complete = False
        self.completion_tokens = 0
        self.failure: Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            self._read()
        except Exception as error:
            self.failure = error

    def _read(self) -> None:
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self._key}"}
        self._connection.request("POST", "/v1/chat/completions", json.dumps(self._body), headers)
        for line in self._connection.getresponse():
            if line.startswith(b"data: [DONE]"):
                self.complete = True
            elif line.startswith(b"data: "):
                self.pieces += 1
                usage = json.loads(line[6:]).get("usage") or {}
                self.completion_tokens = usage.get("completion_tokens", self.completion_tokens)


def wait_pieces(stream: Stream, count: int, timeout_s: float = 60) -> None:
    """Wait until a stream is well under way."""
    wait_until(lambda: stream.pieces >= count or stream.failure, timeout_s, f"{count} pieces of the stream")
    assert stream.failure is None, repr(stream.failure)


def run_infer_dev(fleet: SglangFleet, *words: str) -> subprocess.CompletedProcess[str]:
    """Run an `infer-dev` command where no fleet runs."""
    return subprocess.run(
        [*INFER_DEV, *words], env=fleet.environ, cwd=fleet.base, capture_output=True, text=True, timeout=60
    )


def read_nccl_port(fleet: SglangFleet) -> int:
    """Return the NCCL port that the fleet's first server is given."""
    shown = run_infer_dev(fleet, "config", "show", "--json", str(fleet.config))
    assert shown.returncode == 0, shown.stderr
    argv = json.loads(shown.stdout)[0]["argv"]
    return int(argv[argv.index("--nccl-port") + 1])


def sglang_home() -> Path:
    """Where `make sglang` keeps the environment."""
    default = Path(__file__).resolve().parents[2] / ".cache" / "sglang-cpu"
    return Path(os.environ.get("SGLANG_CPU_DIR") or default).absolute()
