"""What the dead leave behind: grandchildren of servers, servers of a supervisord, whole fleets of an entry."""

from __future__ import annotations

import contextlib
import os
import random
import signal
from pathlib import Path

import pytest
from fleet import INFER_DEV, PREFIX, Fleet, Process, Watcher, free_port, free_ports, get, server

from infer_dev_entry.errors import UnknownServerError

pytest_plugins = ("fleet_fixtures",)

# A child in a session of its own that sets its title, which wipes the environment that /proc shows of it.
_TITLED = """$PYTHON -c '
import os, setproctitle, time
os.setsid()
setproctitle.setproctitle("sglang::scheduler" + "x" * 8000)
time.sleep(600)' &"""

# A chain of children in sessions of their own: each lives 30 ms, and leaves a successor behind.
_STORM = """$PYTHON -S -c '
import os, sys, time
end = time.monotonic() + 300
while time.monotonic() < end:
    time.sleep(0.03)
    if os.fork():
        os._exit(0)
    os.setsid()' storm &"""

# A pair in two sessions: each starts the other again as soon as it is gone.
_HYDRA = """$PYTHON -S -c '
import os, signal, sys, time
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
def head():
    while True:
        os.setsid()
        other = os.getpid()
        if os.fork() == 0:
            while os.getppid() == other:
                time.sleep(0.005)
        else:
            time.sleep(600)
if os.fork() == 0:
    head()' hydra &"""


def wait_grandchild(fleet: Fleet, port: int) -> Process:
    """Wait until a server's grandchild has become what it is to be, and return it."""
    return fleet.wait(lambda: fleet.find_processes("fake-grandchild", str(port)), what="the grandchild")[0]


def test_grandchildren_that_hold_the_port_are_swept_before_the_server_is_started_again(fleet: Fleet) -> None:
    a, b = free_ports(2)
    grandchild = ("--fork-grandchild", "setsid", "--grandchild-holds-port")
    fleet.write(
        server("escaped", a, *grandchild),
        # One that has no mark is known by its descent, which is noted while the server loads.
        server("unmarked", b, *grandchild, "--grandchild-clears-environ", "--loading-503-s", "2.5"),
    )
    fleet.start()
    fleet.wait_ready("escaped", "unmarked")
    for name, port in (("escaped", a), ("unmarked", b)):
        left = wait_grandchild(fleet, port)
        assert len(fleet.find_processes("fake-grandchild", str(port))) == 1
        old_pid = fleet.kill_server(name)
        fleet.wait_again(name, old_pid)
        assert get(port)[0] == 200
        ended = fleet.wait_event("server.leftovers_ended", name)
        assert f"{left.inner_pid} (python" in ended["processes"]
        assert not fleet.host_pid(left.inner_pid)
        # It came back in one try: the port was free by then.
        assert fleet.row(name)["restarts"] == 1
    assert not fleet.events("server.leftovers_survive")


def test_unmarked_grandchild_of_a_server_that_is_ready_at_once_is_swept_too(fleet: Fleet) -> None:
    port = free_port()
    words = ("--fork-grandchild", "setsid", "--grandchild-holds-port", "--grandchild-clears-environ")
    fleet.write(server("a", port, *words))
    fleet.start()
    fleet.wait_ready("a")
    left = wait_grandchild(fleet, port)
    fleet.wait_again("a", fleet.kill_server("a"))
    assert not fleet.host_pid(left.inner_pid)


def test_child_that_set_its_title_is_swept_though_its_environment_is_gone(fleet: Fleet) -> None:
    pytest.importorskip("setproctitle", reason="wipes the environment that /proc shows")
    fleet.write(server("a", free_port(), "--loading-503-s", "2.5", control=fleet.wrap("a", _TITLED)))
    fleet.start()
    fleet.wait_ready("a")
    (titled,) = fleet.wait(
        lambda: [process for process in fleet.members() if "".join(process.argv).startswith("sglang::scheduler")],
        what="the child to have set its title",
    )
    assert b"INFER_DEV_MARK=" not in Path(f"/proc/{titled.pid}/environ").read_bytes()
    fleet.wait_again("a", fleet.kill_server("a"))
    assert not fleet.host_pid(titled.inner_pid)


def test_children_that_fork_on_and_on_do_not_survive_their_server(fleet: Fleet) -> None:
    a, b = free_ports(2)
    fleet.write(
        server("storm", a, control=fleet.wrap("storm", _STORM)), server("hydra", b, control=fleet.wrap("hydra", _HYDRA))
    )
    fleet.start()
    fleet.wait_ready("storm", "hydra")
    for name in ("storm", "hydra"):
        fleet.wait(lambda name=name: len(_marked(fleet, name)) >= 2, what=f"{name}'s children")
        fleet.kill_server(name)
    assert fleet.cli("stop").returncode == 0

    def all_gone() -> bool:
        # One look can miss who forks and exits meanwhile; ten cannot.
        return not any(_marked(fleet, name) for name in ("storm", "hydra") * 10)

    # What a stopped server has left may still be swept; who survives goes on for minutes.
    fleet.wait(all_gone, 20, "all of them to be gone")


def test_shared_memory_of_a_dead_server_is_removed_and_no_other(fleet: Fleet) -> None:
    a, b = free_ports(2)
    family = f"sglang_loads_{os.getpid()}"
    mine, foreign = Path(f"/dev/shm/other_{os.getpid()}"), Path(f"/dev/shm/{family}_foreign")
    fleet.write(
        server("a", a, "--shared-memory", family),
        server("b", b, "--shared-memory", family),
        server("c", free_port(), "--shared-memory", mine.name),  # a name that SGLang gives to nothing
    )
    try:
        foreign.touch()  # as another container's, which has the same /dev/shm
        fleet.start()
        pids = {name: row["pid"] for name, row in fleet.wait_ready("a", "b", "c").items()}
        held = {name: Path(f"/dev/shm/{family}_{pid}") for name, pid in pids.items()}
        assert held["a"].exists()
        fleet.kill_server("c")
        again = fleet.wait_again("a", fleet.kill_server("a"))
        assert str(held["a"]) in fleet.wait_event("server.shared_memory_removed", "a")["files"]
        assert not held["a"].exists()
        assert held["b"].exists()
        assert foreign.exists()
        fleet.wait_again("c", pids["c"])
        assert Path(f"{mine}_{pids['c']}").exists()
        assert Path(f"/dev/shm/{family}_{again['pid']}").exists()
        fleet.stop()
        assert sorted(Path("/dev/shm").glob(f"{family}*")) == [foreign]
    finally:
        for path in (*Path("/dev/shm").glob(f"{family}*"), *Path("/dev/shm").glob(f"{mine.name}*")):
            path.unlink()


def _marked(fleet: Fleet, name: str) -> list[Process]:
    found = []
    for process in fleet.members():
        try:
            environ = Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if any(item.startswith(b"INFER_DEV_MARK=") and item.endswith(f"/{name}".encode()) for item in environ):
            found.append(process)
    return found


def test_supervisord_that_is_killed_is_replaced_and_the_fleet_comes_back(fleet: Fleet) -> None:
    _check_fleet_comes_back(fleet, signal.SIGKILL)


def test_supervisord_that_stands_still_is_replaced_while_pid_1_answers(fleet: Fleet) -> None:
    # It was asked again and again meanwhile; whoever waits for an answer must not turn round and round.
    assert _check_fleet_comes_back(fleet, signal.SIGSTOP) < 4.0


def _check_fleet_comes_back(fleet: Fleet, number: signal.Signals) -> float:
    """Signal supervisord, see to it that all is as before; return the CPU time that PID 1 has spent on it."""
    ports = free_ports(2)
    fleet.write(server("a", ports[0], "--fork-grandchild", "setsid", "--grandchild-holds-port"), server("b", ports[1]))
    fleet.start()
    before = fleet.wait_ready("a", "b")
    supervisor = fleet.supervisor()
    old = {member.pid for member in fleet.members()} - {fleet.pid}
    spent_s = _cpu_s(fleet.pid)
    fleet.kill(supervisor.pid, number)
    # One that stands still is found out by two questions that it does not answer in 5 s each.
    fleet.wait(lambda: fleet.ask() and fleet.events("supervisor.lost"), 60, "supervisord to be given up")
    for name, row in before.items():
        fleet.wait_again(name, row["pid"])
    assert fleet.supervisor().pid != supervisor.pid
    assert not old & {member.pid for member in fleet.members()}
    # PID 1, supervisord, two servers, one grandchild.
    fleet.wait(lambda: len(fleet.members(zombies=True)) == 5, what="every other process to be gone")
    assert [get(port)[0] for port in ports] == [200, 200]
    return _cpu_s(fleet.pid) - spent_s


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_supervisord_that_is_shut_down_by_another_is_replaced_and_the_fleet_comes_back(fleet: Fleet) -> None:
    fleet.write(server("a", free_port()), server("b", free_port()))
    fleet.start()
    before = fleet.wait_ready("a", "b")
    assert fleet.cli("ctl", "shutdown").returncode == 0
    for name, row in before.items():
        fleet.wait_again(name, row["pid"])


def test_fleet_of_an_entry_that_was_killed_is_ended_by_its_successor(fleet: Fleet) -> None:
    ports = free_ports(2)
    fleet.write(server("a", ports[0], "--fork-grandchild", "setsid", "--grandchild-holds-port"), server("b", ports[1]))
    fleet.start_inside()
    fleet.wait_ready("a", "b")
    old = {member.pid: member.inner_pid for member in fleet.members() if member.pid != fleet.init_pid}
    supervisor = fleet.supervisor()
    os.kill(fleet.pid, signal.SIGKILL)
    fleet.wait_exit()
    # The namespace's reaper is no entry: all of them live on there.
    assert set(old) - {fleet.pid} <= {member.pid for member in fleet.members()}
    assert get(ports[0])[0] == 200
    fleet.event_log.unlink()
    fleet.start_inside()
    ended = fleet.wait_event("fleet.leftovers_ended")["killed"]
    fleet.wait_ready("a", "b")
    assert f"{supervisor.inner_pid} (" in ended
    assert not set(old) & {member.pid for member in fleet.members()}
    assert len(fleet.find_processes("supervisor.supervisord")) == 1
    assert fleet.stop() == 0
    fleet.wait(lambda: [member.pid for member in fleet.members()] == [fleet.init_pid], what="the fleet to be gone")


def test_second_entry_on_a_run_directory_is_refused_and_the_first_goes_on(fleet: Fleet) -> None:
    port = free_port()
    fleet.write(server("a", port))
    fleet.start_inside()
    before = fleet.wait_ready("a")
    first, inner_pid = fleet.process, next(m.inner_pid for m in fleet.members() if m.pid == fleet.pid)
    assert first is not None
    with Watcher(port) as watcher:
        second = fleet.spawn((*fleet.inside(), *INFER_DEV, "entry"), **{PREFIX + "ON_ERROR": "exit"})
        assert second.wait(40) == 12
        # One that stays has no socket and no lock of its own to clean up.
        third = fleet.spawn((*fleet.inside(), *INFER_DEV, "entry", "sh", "-c", "exit 7"))
        assert third.wait(40) == 7
    refused = [event["error"] for event in fleet.events("boot.failed")]
    assert len(refused) == 2
    assert all(
        f"cannot lock run directory {fleet.run_dir}: another infer-dev entry (pid {inner_pid}) uses it" in error
        for error in refused
    )
    assert watcher.never_failed, watcher.failures
    assert fleet.wait_state("a", "ready")["pid"] == before["a"]["pid"]
    fleet.wait(lambda: fleet.cli("ctl", "status").returncode == 0, what="supervisord to call it RUNNING")
    os.kill(fleet.pid, signal.SIGTERM)
    assert first.wait(40) == 0


def test_fleet_under_many_faults_and_commands_at_once_comes_back_whole(fleet: Fleet) -> None:
    names, ports = ("plain", "forks", "drains", "deaf"), free_ports(4)
    words = (
        (),
        ("--fork-grandchild", "setsid", "--grandchild-holds-port"),
        ("--drain-s", "0.5"),
        ("--ignore-sigterm",),
    )
    restart = {"backoff_initial_s": 0.1, "backoff_max_s": 0.5, "max_restarts": 0}
    servers = [
        server(name, port, *extra, restart=restart) for name, port, extra in zip(names, ports, words, strict=True)
    ]
    config = fleet.write(*servers, control={"drain_timeout_s": 1.0})
    fewer = fleet.write(*servers[:2], control={"drain_timeout_s": 1.0}, name="fewer.toml")
    fleet.start()
    fleet.wait_ready(*names)
    choices = random.Random(7)  # the same faults each time; only their moments differ
    for _ in range(30):
        name = choices.choice(names)
        match choices.choice(("kill", "kill", "term", "stop", "start", "ctl", "serve", "supervisord")):
            case "kill":
                _hit(fleet, name, signal.SIGKILL)
            case "term":
                _hit(fleet, name, signal.SIGTERM)
            case "ctl":
                fleet.cli("ctl", choices.choice(("stop", "start", "restart")), f"sglang:{name}")
            case "serve":
                fleet.cli("serve", str(choices.choice((config, fewer))))
            case "supervisord":
                with contextlib.suppress(ProcessLookupError):
                    for process in fleet.find_processes("supervisor.supervisord"):
                        fleet.kill(process.pid)
            case command:
                with contextlib.suppress(UnknownServerError):
                    fleet.ask(command, names=None if choices.random() < 0.2 else [name])
    assert fleet.cli("serve", str(config), "--wait", "60", timeout_s=90).returncode == 0
    rows = fleet.wait_ready(*names)
    assert sorted(rows) == sorted(names)
    # PID 1, supervisord, four servers and one grandchild: nobody twice, nobody left behind.
    fleet.wait(lambda: len(fleet.members(zombies=True)) == 7, 30, "every other process to be gone")
    assert [get(port)[0] for port in ports] == [200] * 4
    assert not fleet.events("entry.bug")
    assert fleet.stop() == 0


def _hit(fleet: Fleet, name: str, number: signal.Signals) -> None:
    """Signal a server's main process if it has one just now."""
    pid = fleet.host_pid(fleet.row(name).get("pid") or -1)
    with contextlib.suppress(ProcessLookupError):
        if pid:
            fleet.kill(pid, number)
