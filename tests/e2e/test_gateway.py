"""The gateway in a container, as docs/gateway.md has it: a published port, keys in a mounted file, a drain."""

from __future__ import annotations

import re
import urllib.error
import urllib.request
from datetime import datetime
from pathlib import Path

import pytest
from engine import CONFIG, ROOT, Container, Engine, mounts
from serving import serve
from stream import Stream, standing_still, stop_in_flight
from wait import wait_until

ALICE, BOB = "sk-alice-0123456789abcdef", "sk-bob-0123456789abcdef"
PORT = 8000
TABLE = f"""
[gateway]
host = "0.0.0.0"
port = {PORT}
api_keys_file = "/keys/api-keys"
"""
# The server stands still while a test waits for something else, so the stream need outlast no more than a few requests.
REQUEST_S, REQUEST_TOKENS = 90.0, 900
# A server that stands still for so long is not unhealthy yet.
PROBE = {"period_s": 120.0, "timeout_s": 100.0}


def write_keys(folder: Path, **keys: str) -> None:
    """Put the file of keys in its place as a whole, for root alone to read."""
    fresh = folder / "api-keys.new"
    fresh.touch(mode=0o600)
    fresh.write_text("".join(f"{name}: {key}\n" for name, key in keys.items()))
    fresh.replace(folder / "api-keys")


def write_config(folder: Path) -> None:
    """The image's own config, its server on loopback, with the gateway before it."""
    text = (ROOT / CONFIG.lstrip("/")).read_text(encoding="utf-8")
    closed = text.replace('host = "0.0.0.0"', 'host = "127.0.0.1"')
    assert closed != text
    (folder / Path(CONFIG).name).write_text(closed + TABLE, encoding="utf-8")


def status_of(port: int, key: str = "", path: str = "/v1/models", timeout_s: float = 30.0) -> int:
    """Ask with a key: the status, 0 when nobody answers."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        with urllib.request.urlopen(
            urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers=headers), timeout=timeout_s
        ) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def nginx_of(container: Container) -> dict[int, tuple[str, str]]:
    """Return user and arguments of every nginx by pid."""
    lines = container.exec("ps", "-eo", "pid=,user=,args=", check=True).stdout.splitlines()
    rows = [line.split(None, 2) for line in lines if "nginx:" in line]
    return {int(pid): (user, args) for pid, user, args in rows}


def check_smoke(container: Container) -> None:
    """Smoke through the helper: a table with a verdict each, and its exit code."""
    smoke = ("/soft/app/sglang/smoke", "--only", "models,chat,streaming")
    run = container.exec(*smoke, timeout_s=150)
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.split()[:4] == ["CHECK", "VERDICT", "SECONDS", "SEEN"]
    # Of the server all; the gateway's keys are its clients' own, so nobody asks it without one …
    assert verdicts(run.stdout) == ["models pass", "chat pass", "streaming pass", "models skip"]
    # … which is an error where it is asked alone, and a full check with one.
    assert container.exec(*smoke, "gateway", timeout_s=60).returncode == 43
    run = container.exec(*smoke, "gateway", options=("-e", f"INFER_DEV_API_KEY={BOB}"), timeout_s=150)
    assert (run.returncode, verdicts(run.stdout)) == (0, ["models pass", "chat pass", "streaming pass"])
    assert container.exec(*smoke, "nobody", timeout_s=60).returncode == 15


def verdicts(table: str) -> list[str]:
    """Return check and verdict of every row."""
    return [" ".join(found) for found in re.findall(r"^(models|chat|streaming) +(\w+)", table, flags=re.MULTILINE)]


@pytest.mark.timeout(900, func_only=True)
def test_gateway_asks_for_keys_streams_comes_back_and_drains(engine: Engine, installed: Path, tmp_path: Path) -> None:
    keys, configs = tmp_path / "keys", tmp_path / "configs"
    keys.mkdir()
    configs.mkdir()
    write_config(configs)
    write_keys(keys, alice=ALICE, bob=BOB)
    environ = serve(control={"drain_timeout_s": 200}, probe=PROBE)
    options = [*mounts(installed, configs), "-v", f"{keys}:/keys:ro", "-p", f"127.0.0.1::{PORT}"]
    with engine.container(options=options, environ=environ) as container:
        container.wait_ready("gemma", "gateway")
        port = container.port(PORT)
        # The reload that follows a server's readiness takes a moment; until then it is 503.
        wait_until(lambda: status_of(port, path="/health") == 200, 60, "the gateway to have its server")
        # A reload leaves the workers before it a moment to accept; theirs would be 503 as well.
        asked = ("", "sk-nobody-0123456789abcdef", ALICE, BOB)
        wait_until(lambda: [status_of(port, key) for key in asked] == [401, 401, 200, 200], 60, "keys to count")
        # nginx belongs to the servers' user; the keys are in a file of root's.
        assert {user for user, _ in nginx_of(container).values()} == {"me"}
        assert container.exec("cat", "/keys/api-keys", options=("-u", "me")).returncode != 0
        check_smoke(container)
        # Killed, it is back, with the keys.
        (master,) = [pid for pid, (_, args) in nginx_of(container).items() if "master process" in args]
        container.exec("kill", "-KILL", str(master), check=True)
        container.wait_event("server.crashed")
        container.wait_ready("gemma", "gateway")
        wait_until(lambda: status_of(port, ALICE) == 200, 60, "the gateway to be back")
        assert master not in nginx_of(container)
        assert status_of(port) == 401
        # A stream by Alice: her key is revoked meanwhile, which ends no running answer, and then the container stops.
        stream = Stream(port, REQUEST_S, REQUEST_TOKENS, key=ALICE)
        wait_until(lambda: len(stream.times) > 2 and stream.times[-1] - stream.times[0] > 0.5, 60, "token after token")
        assert not stream.done_at, "tokens came all at once"
        with standing_still(container, "gemma"):
            write_keys(keys, bob=BOB)
            wait_until(lambda: status_of(port, ALICE, timeout_s=2) == 401, 60, "the key to be revoked")
        assert status_of(port, BOB) == 200
        took_s = stop_in_flight(container, "gemma", stream, grace_s=240)
        stream.join()
        assert (stream.fault, stream.finish_reason in ("length", "stop")) == ("", True)
        draining_at = datetime.fromisoformat(container.events("server.draining")[0]["timestamp"]).timestamp()
        assert stream.done_at > draining_at
        assert container.exit_code == 0
        assert container.wait_event("entry.stopped")["had_to_kill"] == []
        assert took_s < 190
        for key in (ALICE, BOB):
            assert key not in container.logs()
