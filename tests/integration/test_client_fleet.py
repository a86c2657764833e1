"""The Runtime with fleets: attached by name to one that runs, and with one of its own that always ends."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fleet import PROBE, TESTS_DIR, Fleet, free_port, free_ports, get, server, skip_reason
from wait import wait_until

pytest.importorskip("openai", reason="the client extra is not installed")

from infer_dev_entry.client import AsyncRuntime, ClientError, NotReadyError, Runtime
from infer_dev_entry.client.toml import render_toml
from infer_dev_entry.errors import ConfigError, EntryError, NotRunningError, UnknownServerError
from infer_dev_entry.proctree import read_marked_processes

pytest_plugins = ("fleet_fixtures",)

# A server whose probe was late is not ready; a busy machine needs more time for one.
PATIENT = {**PROBE, "period_s": 5.0, "timeout_s": 4.5}
MESSAGES = [{"role": "user", "content": "hello"}]


# -- attached


def test_runtime_attaches_by_name_and_says_why_it_cannot(fleet: Fleet) -> None:
    a, b, c = free_ports(3)
    fleet.write(
        server("a", a, probe=PATIENT),
        server("b", b, flags={"api_key": "sk-key-of-b"}, probe=PATIENT),
        server("c", c, "--exit-code", "3", restart={"max_restarts": 1, "backoff_initial_s": 0.1, "backoff_max_s": 0.1}),
    )
    with pytest.raises(NotRunningError, match="infer-dev serve"):
        Runtime.attach("a", environ=fleet.environ)
    fleet.start()
    fleet.wait_ready("a", "b")
    fleet.wait_state("c", "failed")
    with Runtime.attach("a", environ=fleet.environ) as runtime:
        assert (runtime.url, runtime.name) == (f"http://127.0.0.1:{a}", "a")
        assert runtime.models() == ("fake",)
        assert runtime.chat(MESSAGES).text == "hello"
    # The key is in the server's private file, which only root and the servers' user read.
    with Runtime.attach("b", environ=fleet.environ) as runtime:
        assert runtime._core._connection._api_key == "sk-key-of-b"
        assert "sk-key-of-b" not in repr(runtime)
    with pytest.raises(NotReadyError, match="c: it is failed: "):
        Runtime.attach("c", environ=fleet.environ)
    with pytest.raises(UnknownServerError, match="it has: a, b, c"):
        Runtime.attach("d", environ=fleet.environ)
    with pytest.raises(ClientError, match="name one of a, b, c"):
        Runtime.attach(environ=fleet.environ)


# -- started


def config(*ports: int, words: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return a config of fake servers a, b, … as a mapping."""
    names = "abc"[: len(ports)]
    return {
        "master": {"python_path": sys.executable, "server_module": "fake_server"},
        "instance": {
            "control": {"gpu_ids": "none"},
            **{
                name: {
                    "server": {"model_path": "fake/model", "port": port, "extra_args": list(words)},
                    "probe": PATIENT,
                    "control": {"drain_timeout_s": 3},
                }
                for name, port in zip(names, ports, strict=True)
            },
        },
    }


@pytest.fixture
def environ() -> Iterator[dict[str, str]]:
    """An environment whose fake servers import, and that says of a fleet which is not ours; nothing is left of it."""
    foreign = ("AUTO_INFER_", "INFER_DEV_", "PYTEST", "COV_")
    clean = {key: value for key, value in os.environ.items() if not key.startswith(foreign)}
    short = tempfile.mkdtemp(prefix="idc", dir="/tmp")  # a unix socket's path is short
    other = {
        "AUTO_INFER_SGLANG_OVERRIDES": '{"instance": {"a": {"server": {"port": 1}}}}',
        "INFER_DEV_STATUS_ADDR": "x",
    }
    yield clean | other | {"PYTHONPATH": str(TESTS_DIR), "TMPDIR": short}
    left = os.listdir(short)
    shutil.rmtree(short)
    assert left == []


def traces(runtime: Runtime) -> tuple[str, str]:
    """Return the fleet's mark and its run directory."""
    fleet = runtime._core._fleet
    assert fleet is not None
    return f"{fleet._fleet_id}/", fleet._run_dir


def is_gone(mark: str, run_dir: str) -> bool:
    return not read_marked_processes(mark)[1] and not os.path.exists(run_dir)


def test_started_servers_live_as_long_as_the_block(environ: dict[str, str]) -> None:
    a, b = free_ports(2)
    with Runtime.start(config(a, b), name="b", environ=environ, ready_timeout_s=60) as runtime:
        assert runtime.chat(MESSAGES).text == "hello"
        assert (runtime.name, runtime.url) == ("b", f"http://127.0.0.1:{b}")
        mark, run_dir = traces(runtime)
        assert len(read_marked_processes(mark)[1]) >= 3  # supervisord and both servers
        assert not is_gone(mark, run_dir)
    assert is_gone(mark, run_dir)
    assert (get(a)[0], get(b)[0]) == (0, 0)


def test_started_servers_end_when_the_block_raises(environ: dict[str, str]) -> None:
    port = free_port()
    with (
        pytest.raises(ZeroDivisionError),
        Runtime.start(
            config(port, words=("--fork-grandchild", "setsid")), environ=environ, ready_timeout_s=60
        ) as runtime,
    ):
        mark, run_dir = traces(runtime)
        _ = 1 / 0
    assert is_gone(mark, run_dir)


def test_started_servers_end_when_their_entry_was_killed_before(environ: dict[str, str]) -> None:
    with Runtime.start(
        config(free_port(), words=("--ignore-sigterm",)), environ=environ, ready_timeout_s=60
    ) as runtime:
        mark, run_dir = traces(runtime)
        entry = int(Path(run_dir, "entry.pid").read_text())
        os.kill(entry, signal.SIGKILL)
        assert runtime.chat(MESSAGES).text == "hello"  # nobody watches over it now, but it serves
    assert is_gone(mark, run_dir)


_KILLED = """
import os, signal, sys
from infer_dev_entry.client import Runtime
runtime = Runtime.start(sys.argv[1], ready_timeout_s=60)
fleet = runtime._core._fleet
print(f"{fleet._fleet_id}/", fleet._run_dir, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_started_servers_end_when_their_caller_is_killed(environ: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "fleet.toml"
    path.write_text(render_toml(config(free_port())))
    environ.pop("AUTO_INFER_SGLANG_OVERRIDES")
    caller = subprocess.run(
        [sys.executable, "-c", _KILLED, str(path)], env=environ, capture_output=True, text=True, timeout=90, check=False
    )
    assert caller.returncode == -signal.SIGKILL, caller.stderr
    mark, run_dir = caller.stdout.split()
    wait_until(lambda: is_gone(mark, run_dir), 20, "the servers and their directory to be gone")


_INTERRUPTED = """
import sys
from infer_dev_entry.client import Runtime
print("begun", flush=True)
Runtime.start(sys.argv[1], ready_timeout_s=60)
"""


def test_start_that_is_interrupted_leaves_nothing(environ: dict[str, str], tmp_path: Path) -> None:
    port = free_port()
    path = tmp_path / "fleet.toml"
    path.write_text(render_toml(config(port, words=("--load-s", "60"))))
    environ.pop("AUTO_INFER_SGLANG_OVERRIDES")
    caller = subprocess.Popen(
        [sys.executable, "-c", _INTERRUPTED, str(path)], env=environ, stderr=subprocess.PIPE, text=True
    )
    with caller:
        found = wait_until(lambda: list(Path(environ["TMPDIR"]).glob("*/supervisor.sock")), 30, "supervisord to run")
        mark = (found[0].parent / "fleet-id").read_text().strip() + "/"
        wait_until(lambda: len(read_marked_processes(mark)[1]) >= 2, 20, "the server to be started")
        caller.send_signal(signal.SIGINT)
        assert "KeyboardInterrupt" in caller.communicate(timeout=40)[1]
    assert is_gone(mark, str(found[0].parent))


def test_server_that_fails_is_told_with_its_reason_and_nothing_stays(environ: dict[str, str]) -> None:
    broken = config(free_port(), words=("--exit-code", "3", "--print", "out of luck"))
    broken["instance"]["a"]["restart"] = {"max_restarts": 1, "backoff_initial_s": 0.1, "backoff_max_s": 0.1}
    with pytest.raises(NotReadyError, match="cannot start a: ") as caught:
        Runtime.start(broken, environ=environ, ready_timeout_s=60)
    assert "status 3" in str(caught.value)


def test_server_that_is_late_is_told_and_nothing_stays(environ: dict[str, str]) -> None:
    port = free_port()
    with pytest.raises(NotReadyError, match=r"not ready in 1.5 s"):
        Runtime.start(config(port, words=("--load-s", "60")), environ=environ, ready_timeout_s=1.5)
    assert get(port)[0] == 0


def test_config_with_faults_starts_nothing(environ: dict[str, str]) -> None:
    bad = config(free_port())
    bad["instance"]["a"]["server"]["prot"] = 3
    with pytest.raises(ConfigError, match=r"^config: instance.a.server.prot: .*did you mean port"):
        Runtime.start(bad, environ=environ)
    with pytest.raises(ClientError, match="no such server; it has: a"):
        Runtime.start(config(free_port()), name="z", environ=environ)


def test_entry_whose_caller_has_died_before_it_began_ends_and_leaves_nothing(
    environ: dict[str, str], tmp_path: Path
) -> None:
    run_dir = Path(environ["TMPDIR"]) / "run"
    entry = subprocess.run(
        # Our pid is not that of its parent, the shell: as if the pid had been given to another since.
        ["sh", "-c", f"{sys.executable} -m infer_dev_entry entry --keeper-of {os.getpid()}; exit $?"],
        env=environ | {"INFER_DEV_RUN_DIR": str(run_dir), "INFER_DEV_STATUS_ADDR": ""},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert entry.returncode == 0, entry.stderr
    assert "entry.parent_gone" in entry.stderr
    assert not run_dir.exists()


def test_async_start_that_is_cancelled_leaves_nothing(environ: dict[str, str]) -> None:
    async def start() -> None:
        await AsyncRuntime.start(config(free_port(), words=("--load-s", "60")), environ=environ, ready_timeout_s=60)

    async def give_up() -> str:
        task = asyncio.create_task(start())
        while not (found := list(Path(environ["TMPDIR"]).glob("*/supervisor.sock"))):
            await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return str(found[0].parent)

    run_dir = asyncio.run(asyncio.wait_for(give_up(), 60))
    assert not os.path.exists(run_dir)


def test_async_runtime_starts_and_ends_its_servers(environ: dict[str, str]) -> None:
    async def ask() -> tuple[str, str]:
        async with await AsyncRuntime.start(config(free_port()), environ=environ, ready_timeout_s=60) as runtime:
            assert (await runtime.chat(MESSAGES)).text == "hello"
            assert runtime._fleet is not None
            return f"{runtime._fleet._fleet_id}/", runtime._fleet._run_dir

    assert is_gone(*asyncio.run(asyncio.wait_for(ask(), 90)))


def test_start_that_fails_beside_a_running_event_loop_says_why_and_leaves_nothing(environ: dict[str, str]) -> None:
    bad = config(free_port(), words=("--exit-code", "3"))
    bad["instance"]["a"]["restart"] = {"max_restarts": 1, "backoff_initial_s": 0.1, "backoff_max_s": 0.1}

    async def start() -> None:  # as a cell of a notebook does
        with pytest.raises(NotReadyError, match="cannot start a"):
            Runtime.start(bad, environ=environ, ready_timeout_s=60)

    asyncio.run(start())


def test_start_that_cannot_fork_is_an_error_of_one_line(
    environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr("infer_dev_entry.client.private_fleet.subprocess.Popen", refuse)
    with pytest.raises(EntryError, match="cannot be started: Resource temporarily unavailable"):
        Runtime.start(config(free_port()), environ=environ)


_FULL = """
import os, sys
from infer_dev_entry.client import Runtime
from infer_dev_entry.errors import RunDirError
with open(os.environ["TMPDIR"] + "/filler", "wb") as filler:
    try:
        while True: os.write(filler.fileno(), b"x" * 4096)
    except OSError: pass
try:
    Runtime.start({"instance": {"a": {"server": {"port": 1}}}})
except RunDirError as error:
    print(error)
"""


def test_start_on_a_full_disk_is_an_error_of_one_line() -> None:
    if skip := skip_reason():
        pytest.skip(skip)
    full = tempfile.mkdtemp(prefix="idc", dir="/tmp")  # a longer path would not be used
    words = f"mount -t tmpfs -o size=64k none {full} && TMPDIR={full} exec {sys.executable} -c '{_FULL}'"
    done = subprocess.run(
        ["unshare", "--mount", "--", "sh", "-c", words], capture_output=True, text=True, timeout=60, check=False
    )
    os.rmdir(full)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("\n") == 1
    assert "No space left on device" in done.stdout
