"""Boots that cannot succeed: each fault is named with its mend, and the container stays or exits as it was told."""

from __future__ import annotations

import os
import shutil
import signal
import sys

import pytest
from fleet import INFER_DEV, PREFIX, Fleet, free_port, server

pytest_plugins = ("fleet_fixtures",)

EXIT = {PREFIX + "ON_ERROR": "exit"}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        pytest.param("[master]\nenable = true\n[instance.a.server\nport = 1\n", "line 3", id="broken"),
        pytest.param("", "has no instance; add [instance.<name>.server] with model_path", id="empty"),
        pytest.param("#" * 5_000_000, "is 5000000 bytes large, and the limit is 1048576 bytes", id="5-MB"),
        pytest.param("[instance.a.server]\nport = '30k'\n", "instance.a.server.port: expected", id="wrong-type"),
        pytest.param("a = " + "[" * 5000, "nested more than 24 deep", id="deep"),
    ],
)
def test_boot_with_a_bad_toml_exits_10_and_names_file_and_fault(fleet: Fleet, content: str, expected: str) -> None:
    fleet.config.write_text(content)
    fleet.start("sleep", "600", **EXIT)
    assert fleet.wait_exit() == 10
    failed = fleet.wait_event("boot.failed")
    assert failed["exit_code"] == 10
    errors = [event["error"] for event in fleet.events("boot.failed")]
    assert all(str(fleet.config) in error and "\n" not in error for error in errors)
    assert any(expected in error for error in errors), errors


def test_boot_with_a_directory_for_a_toml_exits_10(fleet: Fleet) -> None:
    fleet.config.mkdir()
    fleet.start(**EXIT)
    assert fleet.wait_exit() == 10
    assert fleet.wait_event("boot.failed")["error"] == (
        f"{fleet.config}: cannot read it: Is a directory; give the path of a TOML file"
    )


def test_boot_with_a_toml_that_is_not_there_exits_10(fleet: Fleet) -> None:
    fleet.start(**EXIT)
    assert fleet.wait_exit() == 10
    assert "No such file or directory" in fleet.wait_event("boot.failed")["error"]


def test_boot_without_a_config_exits_11_and_names_the_variable(fleet: Fleet) -> None:
    fleet.start(**EXIT, **{PREFIX + "CONFIG": ""})
    assert fleet.wait_exit() == 11
    assert f"set {PREFIX}CONFIG to a TOML file" in fleet.wait_event("boot.failed")["error"]


@pytest.mark.skipif(not shutil.which("setpriv"), reason="setpriv (util-linux) takes root's right to read all files")
def test_boot_with_an_unreadable_toml_exits_10(fleet: Fleet) -> None:
    fleet.write(server("a", free_port()))
    fleet.config.chmod(0)
    fleet.hold()
    less = ("setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-dac_override,-dac_read_search")
    entry = fleet.spawn((*fleet.inside(), *less, *INFER_DEV, "entry"), **EXIT)
    assert entry.wait(40) == 10
    assert fleet.wait_event("boot.failed")["error"] == (
        f"{fleet.config}: cannot read it: Permission denied; give the path of a TOML file"
    )


def test_boot_with_a_fifo_for_a_toml_reads_it_and_answers_meanwhile(fleet: Fleet) -> None:
    text = fleet.write(server("a", free_port()), name="real.toml").read_text()
    os.mkfifo(fleet.config)
    fleet.start()
    fleet.wait(lambda: fleet.ask().get("stage") == "planning", what="the plan to be made")
    assert fleet.cli("health").returncode == 1
    with open(fleet.config, "w") as writer:
        writer.write(text)
    fleet.wait_ready("a")


def test_stop_while_a_fifo_for_a_toml_has_no_writer_does_not_wait_for_one(fleet: Fleet) -> None:
    os.mkfifo(fleet.config)
    fleet.start()
    fleet.wait(lambda: fleet.ask().get("stage") == "planning", what="the plan to be made")
    assert fleet.stop(signal.SIGTERM, timeout_s=15) == 0  # a writer never comes


def test_boot_that_failed_stays_for_docker_exec_by_default_and_says_why(fleet: Fleet) -> None:
    fleet.config.write_text("[instance.a.server]\nport = 30000\nmodel_pth = 'x/y'\n")
    fleet.start("sleep", "600", **{PREFIX + "PYTHON": sys.executable})
    fleet.wait(lambda: any("did you mean model_path?" in event["error"] for event in fleet.events("boot.failed")))
    assert "infer-dev serve" in fleet.wait_event("boot.staying")["mend"]
    fleet.wait(lambda: fleet.find_processes("sleep", "600"), what="the command to run")
    health = fleet.cli("health")
    assert health.returncode == 1
    assert health.stderr.startswith("boot failed: ")
    assert "did you mean model_path?" in health.stderr
    status = fleet.cli("status")
    assert status.returncode == 1
    assert "did you mean model_path?" in status.stderr
    assert fleet.stop() == 128 + signal.SIGTERM  # the command's status


def test_boot_with_a_port_that_another_process_holds_names_it(fleet: Fleet) -> None:
    port = free_port()
    fleet.write(server("a", port))
    script = fleet.base / "holder.py"
    script.write_text(
        f"import pathlib, socket, time\nlistener = socket.create_server(('127.0.0.1', {port}))\n"
        f"pathlib.Path({str(fleet.base / 'held')!r}).touch()\ntime.sleep(600)\n"
    )
    held = f"{INFER_DEV[0]} {script} & while [ ! -e {fleet.base}/held ]; do sleep 0.05; done"
    fleet.start(prelude=held, **EXIT)
    assert fleet.wait_exit() == 10
    error = fleet.wait_event("boot.failed")["error"]
    assert f"instance.a.server.port: port {port} of a is in use by pid 2 (python" in error
    assert error.endswith("stop it, or choose another port")


def test_boot_with_a_file_in_place_of_the_run_directory_exits_12_and_names_the_mend(fleet: Fleet) -> None:
    fleet.write(server("a", free_port()))
    fleet.run_dir.write_text("in the way")
    fleet.start("sleep", "600", **EXIT)
    assert fleet.wait_exit() == 12
    error = fleet.wait_event("boot.failed")["error"]
    assert str(fleet.run_dir) in error
    assert "INFER_DEV_RUN_DIR" in error
    assert fleet.run_dir.read_text() == "in the way"


def test_boot_with_a_run_directory_on_a_read_only_disk_exits_12_or_stays(fleet: Fleet) -> None:
    fleet.write(server("a", free_port()))
    fleet.run_dir.mkdir()
    read_only = f"mount --bind {fleet.run_dir} {fleet.run_dir}; mount -o remount,ro,bind {fleet.run_dir}"
    fleet.start("sleep", "600", prelude=read_only, **EXIT)
    assert fleet.wait_exit() == 12
    error = fleet.wait_event("boot.failed")["error"]
    assert error == (
        f"cannot write run directory {fleet.run_dir}: Read-only file system; "
        "set INFER_DEV_RUN_DIR to a writable directory or mount a tmpfs there"
    )
    told = fleet.base / "told"
    fleet.start("sh", "-c", f"while [ ! -e {told} ]; do sleep 0.05; done; exit 7", prelude=read_only)
    fleet.wait_event("boot.staying")
    told.touch()
    assert fleet.wait_exit() == 7


def test_boot_with_a_run_directory_too_long_for_a_socket_exits_12(fleet: Fleet) -> None:
    fleet.write(server("a", free_port()))
    fleet.run_dir = fleet.base / ("long" * 30)
    fleet.start(**EXIT, INFER_DEV_RUN_DIR=str(fleet.run_dir))
    assert fleet.wait_exit() == 12
    assert "set INFER_DEV_RUN_DIR to a shorter one" in fleet.wait_event("boot.failed")["error"]


def test_boot_with_an_unknown_user_exits_11(fleet: Fleet) -> None:
    fleet.write(server("a", free_port()))
    fleet.start(**EXIT, **{PREFIX + "USER": "nobody-at-all"})
    assert fleet.wait_exit() == 11
    assert f"{PREFIX}USER='nobody-at-all' does not exist" in fleet.wait_event("boot.failed")["error"]


def test_boot_with_a_bad_status_address_exits_11(fleet: Fleet) -> None:
    fleet.write(server("a", free_port()))
    fleet.start(**EXIT, INFER_DEV_STATUS_ADDR="9000")
    assert fleet.wait_exit() == 11
    assert "INFER_DEV_STATUS_ADDR='9000' is not host:port" in fleet.wait_event("boot.failed")["error"]


def test_boot_with_a_disabled_master_starts_nothing_and_is_healthy(fleet: Fleet) -> None:
    fleet.write(server("a", free_port()), master={"enable": False})
    fleet.start()
    fleet.wait(lambda: fleet.ask().get("stage") == "running", what="the boot")
    assert fleet.cli("health").returncode == 0
    assert not fleet.find_processes("supervisor.supervisord")
    assert any("nothing starts" in event["message"] for event in fleet.events("config.note"))
    assert fleet.stop() == 0


def test_config_is_left_alone_without_the_gate(fleet: Fleet) -> None:
    fleet.write(server("a", free_port()))
    fleet.start("sh", "-c", "exit 5", **{PREFIX + "ON_BOOT": "0"})
    assert fleet.wait_exit() == 5
    assert not fleet.run_dir.exists()


def test_boot_on_a_closed_stderr_and_stdin_starts_the_fleet(fleet: Fleet) -> None:
    fleet.write(server("a", free_port()))
    fleet.start(prelude="exec 0<&- 2>&-")
    fleet.wait_ready("a")
    assert fleet.stop() == 0


def test_infer_dev_entry_help_is_not_taken_for_a_command(fleet: Fleet) -> None:
    fleet.hold()
    done = fleet.cli("entry", "--help")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: infer-dev entry")
