"""The run directory."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from infer_dev_entry.errors import RunDirError
from infer_dev_entry.rundir import (
    client_run_dir,
    default_run_dir,
    prepare_run_dir,
    read_fleet_id,
    read_text,
    write_private,
)


@pytest.fixture
def short_dir():
    """A directory with a path short enough for unix sockets, as pytest's own may not be."""
    with tempfile.TemporaryDirectory(prefix="rd-") as path:
        yield path


def test_run_dir_follows_the_variable() -> None:
    assert default_run_dir({"INFER_DEV_RUN_DIR": "/x/y"}) == "/x/y"
    assert os.path.isabs(default_run_dir({"INFER_DEV_RUN_DIR": "relative"}))


def test_run_dir_of_another_user_is_private(mocker) -> None:
    mocker.patch("os.geteuid", return_value=1234)
    assert default_run_dir({}) == "/tmp/infer-dev-1234"
    assert default_run_dir({"XDG_RUNTIME_DIR": "/run/user/1234"}) == "/run/user/1234/infer-dev"


def test_client_asks_roots_entry_where_only_that_one_runs(short_dir: str, mocker) -> None:
    mocker.patch("os.geteuid", return_value=1234)
    mocker.patch("infer_dev_entry.rundir.DEFAULT_RUN_DIR", f"{short_dir}/root")
    environ = {"XDG_RUNTIME_DIR": f"{short_dir}/own"}
    own = f"{short_dir}/own/infer-dev"
    assert client_run_dir(environ) == own
    os.makedirs(f"{short_dir}/root")
    Path(short_dir, "root", "control.sock").touch()
    assert client_run_dir(environ) == f"{short_dir}/root"
    os.makedirs(own)
    Path(own, "control.sock").touch()
    assert client_run_dir(environ) == own
    assert client_run_dir({"INFER_DEV_RUN_DIR": "/chosen"}) == "/chosen"


@pytest.mark.parametrize(("shared", "mode"), [(False, 0o700), (True, 0o711)])
def test_prepare_makes_it_with_a_tight_mode(short_dir: str, shared: bool, mode: int) -> None:
    run_dir = f"{short_dir}/run"
    os.close(prepare_run_dir(run_dir, shared=shared))
    assert os.stat(run_dir).st_mode & 0o777 == mode


def test_prepare_locks_out_a_second_entry_by_pid(short_dir: str) -> None:
    lock = prepare_run_dir(short_dir, shared=False)
    write_private(f"{short_dir}/entry.pid", "4242\n")
    with pytest.raises(RunDirError, match=r"another infer-dev entry \(pid 4242\)"):
        prepare_run_dir(short_dir, shared=False)
    os.close(lock)
    os.close(prepare_run_dir(short_dir, shared=False))


def test_prepare_refuses_a_file_in_its_place(short_dir: str) -> None:
    Path(short_dir, "run").write_text("")
    with pytest.raises(RunDirError, match="INFER_DEV_RUN_DIR"):
        prepare_run_dir(f"{short_dir}/run", shared=False)


def test_prepare_refuses_a_link(short_dir: str) -> None:
    os.symlink("/tmp", f"{short_dir}/run")
    with pytest.raises(RunDirError, match="not a directory"):
        prepare_run_dir(f"{short_dir}/run", shared=False)


def test_prepare_refuses_a_path_too_long_for_sockets() -> None:
    with pytest.raises(RunDirError, match="too long"):
        prepare_run_dir("/tmp/" + "x" * 100, shared=False)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give a directory to another user")
def test_prepare_refuses_another_users_directory(short_dir: str) -> None:
    os.mkdir(f"{short_dir}/run")
    os.chown(f"{short_dir}/run", 65534, 65534)
    with pytest.raises(RunDirError, match="not a directory of uid 0"):
        prepare_run_dir(f"{short_dir}/run", shared=False)


def test_fleet_id_lasts_and_a_broken_one_is_replaced(short_dir: str) -> None:
    first = read_fleet_id(short_dir)
    assert read_fleet_id(short_dir) == first
    Path(short_dir, "fleet-id").write_text("../../etc\n")
    second = read_fleet_id(short_dir)
    assert second != first
    assert second.isalnum()


def test_write_private_is_whole_private_and_leaves_no_rest(short_dir: str) -> None:
    path = f"{short_dir}/x"
    write_private(path, "old")
    write_private(path, "new")
    assert read_text(path) == "new"
    assert os.stat(path).st_mode & 0o777 == 0o600
    assert os.listdir(short_dir) == ["x"]


def test_write_private_full_disk_keeps_the_old_file(short_dir: str, mocker) -> None:
    path = f"{short_dir}/x"
    write_private(path, "old")
    mocker.patch("os.fsync", side_effect=OSError(28, "No space left on device"))
    with pytest.raises(RunDirError, match="No space left"):
        write_private(path, "new")
    assert read_text(path) == "old"
    assert os.listdir(short_dir) == ["x"]


@pytest.mark.parametrize(("name", "uid", "found"), [("me", 4242, True), ("other", 4242, False), ("me", 4243, False)])
def test_root_asks_the_entry_of_the_servers_user_where_only_that_one_runs(
    short_dir: str, mocker, name: str, uid: int, found: bool
) -> None:
    run_dir = f"{short_dir}/user"
    os.makedirs(run_dir)
    Path(run_dir, "control.sock").touch()
    mocker.patch("os.geteuid", return_value=0)
    mocker.patch("infer_dev_entry.rundir.DEFAULT_RUN_DIR", f"{short_dir}/root")
    mocker.patch("infer_dev_entry.rundir.private_run_dir", return_value=run_dir)
    mocker.patch("pwd.getpwnam", side_effect=lambda user: {"me": mocker.Mock(pw_uid=4242)}[user])
    mocker.patch("os.lstat", return_value=mocker.Mock(st_uid=uid))
    environ = {"AUTO_INFER_SGLANG_USER": "" if name == "me" else name}
    assert client_run_dir(environ) == (run_dir if found else f"{short_dir}/root")
    os.makedirs(f"{short_dir}/root")
    Path(short_dir, "root", "control.sock").touch()
    assert client_run_dir(environ) == f"{short_dir}/root"
