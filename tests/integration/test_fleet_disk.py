"""Full and failing disks below a fleet: servers go on, supervision goes on, and the fleet mends itself afterwards."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
from pathlib import Path

from fleet import PREFIX, Fleet, Watcher, free_port, free_ports, server

pytest_plugins = ("fleet_fixtures",)


def small_disk(fleet: Fleet, path: Path, size: str) -> str:
    """Return shell that mounts a small disk at a path, in the fleet's mounts alone."""
    path.mkdir(exist_ok=True)
    return f"mount -t tmpfs -o size={size},mode=0755 tmpfs {path}"


def seen(fleet: Fleet, path: Path) -> Path:
    """Return a path as the fleet sees it."""
    return Path(f"/proc/{fleet.pid}/root{path}")


def fill(path: Path) -> Path:
    """Write to a disk until it is full, to the last byte."""
    file = path / "filler"
    handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        for size in (65536, 4096, 1):
            with contextlib.suppress(OSError):
                while os.write(handle, b"x" * size):
                    pass
        try:
            os.write(handle, b"x")
        except OSError as error:
            assert error.errno == errno.ENOSPC
    finally:
        os.close(handle)
    return file


def test_full_log_disk_leaves_servers_and_supervision_going(fleet: Fleet) -> None:
    a, b = free_ports(2)
    fleet.write(server("flood", a, "--flood-lines-per-s", "200"), server("quiet", b))
    fleet.start(prelude=small_disk(fleet, fleet.log_dir, "256k"))
    before = fleet.wait_ready("flood", "quiet")
    fill(seen(fleet, fleet.log_dir))
    with Watcher(b) as quiet:
        # Its output has nowhere to go, and it serves on.
        with Watcher(a) as flood:
            fleet.wait(lambda: flood.good > 20, 20, "the flooding server to answer")
        assert flood.never_failed, flood.failures
        fleet.wait_again("flood", fleet.kill_server("flood", signal.SIGSEGV))
    assert quiet.never_failed, quiet.failures
    assert fleet.wait_event("server.crashed", "flood")["reason"].startswith("was killed by SIGSEGV")
    assert fleet.row("quiet")["pid"] == before["quiet"]["pid"]
    assert fleet.supervisor()
    assert not fleet.events("supervisor.lost")
    assert fleet.stop() == 0


def test_log_disk_that_is_full_from_the_start_starts_the_fleet_all_the_same(fleet: Fleet) -> None:
    fleet.write(server("a", free_port()))
    full = f"{small_disk(fleet, fleet.log_dir, '64k')}; cat /dev/zero > {fleet.log_dir}/filler 2>/dev/null || :"
    fleet.start(prelude=full)
    fleet.wait_ready("a")
    fleet.wait_again("a", fleet.kill_server("a"))
    assert fleet.stop() == 0


def test_log_disk_that_has_room_again_is_written_again(fleet: Fleet) -> None:
    fleet.write(server("a", free_port(), "--flood-lines-per-s", "50"))
    fleet.start(prelude=small_disk(fleet, fleet.log_dir, "128k"))
    fleet.wait_ready("a")
    filler = fill(seen(fleet, fleet.log_dir))
    log = seen(fleet, fleet.log_dir) / "sglang-server-a.log"
    size = log.stat().st_size
    filler.unlink()
    fleet.wait(lambda: log.stat().st_size > size, what="the log to grow")


def test_full_run_disk_harms_no_server_and_refused_changes_can_be_had_later(fleet: Fleet) -> None:
    a, b = free_ports(2)
    fleet.write(server("a", a))
    fleet.start(prelude=small_disk(fleet, fleet.run_dir, "256k"))
    real = fleet.run_dir
    fleet.look_at(seen(fleet, real))
    before = fleet.wait_ready("a")
    filler = fill(seen(fleet, real))
    with Watcher(a) as watcher:
        config = fleet.write(server("a", a), server("b", b), name="more.toml")
        fleet.cli("serve", str(config), INFER_DEV_RUN_DIR=str(real))
        failed = fleet.wait_event("supervisor.update_failed")
        assert "No space left on device" in failed["error"]
        assert fleet.row("a")["pid"] == before["a"]["pid"]
        filler.unlink()
        assert fleet.cli("serve", str(config), "--wait", "30", INFER_DEV_RUN_DIR=str(real)).returncode == 0
    assert watcher.never_failed, watcher.failures
    fill(seen(fleet, real))
    fleet.wait_again("a", fleet.kill_server("a"))
    assert fleet.stop() == 0


def test_start_that_has_no_room_for_its_files_waits_for_it_however_often_it_failed(fleet: Fleet) -> None:
    restart = {"backoff_initial_s": 0.1, "backoff_max_s": 0.2, "max_restarts": 2}
    fleet.write(server("a", free_port(), flags={"api_key": "k" * 100}, restart=restart))
    fleet.start(prelude=small_disk(fleet, fleet.run_dir, "256k"))
    real = fleet.run_dir
    fleet.look_at(seen(fleet, real))
    old_pid = fleet.wait_ready("a")["a"]["pid"]
    filler = fill(seen(fleet, real))
    fleet.kill_server("a")
    crashed = fleet.wait_event("server.crashed", "a", count=6, **{"class": "disk-full"})
    assert "No space left on device" in crashed["reason"]
    assert "free space there" in crashed["mend"]
    fleet.wait_state("a", "backoff")
    filler.unlink()
    fleet.wait_again("a", old_pid)
    assert fleet.stop() == 0


def test_supervisord_lost_while_the_run_disk_is_full_comes_back_once_there_is_room(fleet: Fleet) -> None:
    fleet.write(server("a", free_port()))
    fleet.start(prelude=small_disk(fleet, fleet.run_dir, "256k"))
    real = fleet.run_dir
    fleet.look_at(seen(fleet, real))
    old_pid = fleet.wait_ready("a")["a"]["pid"]
    filler = fill(seen(fleet, real))
    fleet.kill(fleet.supervisor().pid)
    fleet.wait(
        lambda: any("No space left on device" in event["reason"] for event in fleet.events("supervisor.lost")),
        15,
        "the reason",
    )
    assert fleet.ask()["healthy"] is False
    filler.unlink()
    fleet.wait_again("a", old_pid)
    assert fleet.stop() == 0


def test_run_disk_that_is_full_from_the_start_exits_12_with_the_reason(fleet: Fleet) -> None:
    fleet.write(server("a", free_port()))
    full = f"{small_disk(fleet, fleet.run_dir, '16k')}; cat /dev/zero > {fleet.run_dir}/filler 2>/dev/null || :"
    fleet.start(prelude=full, **{PREFIX + "ON_ERROR": "exit"})
    assert fleet.wait_exit() == 12
    error = fleet.wait_event("boot.failed")["error"]
    assert "No space left on device" in error
    assert str(fleet.run_dir) in error
