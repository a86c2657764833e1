"""`read_config` and `LiveHost` on temporary files and a pretended /proc."""

from __future__ import annotations

import os
import sys
from collections.abc import Collection
from pathlib import Path

import pytest

from infer_dev_entry.config import Gpu
from infer_dev_entry.errors import ConfigError
from infer_dev_entry.gpu_wait import NO_DRIVER, GpuLook, GpuMemory, Holder
from infer_dev_entry.host import MAX_CONFIG_BYTES, LiveHost, read_config


class FakeDoor:
    def __init__(self, gpus: tuple[Gpu, ...] | None) -> None:
        self.gpus = gpus
        self.asked = 0

    def inventory(self) -> tuple[Gpu, ...] | None:
        self.asked += 1
        return self.gpus

    def close(self) -> None:
        pass


def test_read_config_returns_the_text_without_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "f.toml"
    path.write_bytes("\ufeffa = 'ü'\r\n".encode())
    assert read_config(str(path)) == "a = 'ü'\r\n"


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda path: None, "No such file or directory; give the path of a TOML file"),
        (lambda path: path.mkdir(), "Is a directory"),
        (lambda path: path.write_bytes(b"a\nb\xff"), "line 2: not UTF-8"),
        (lambda path: path.write_bytes(b"#" * (MAX_CONFIG_BYTES + 1)), "1048577 bytes large, and the limit is 1048576"),
        (lambda path: path.symlink_to(path), "Too many levels of symbolic links"),
    ],
)  # fmt: skip
def test_read_config_fault_names_the_file_and_the_reason(make: object, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "f.toml"
    make(path)  # type: ignore[operator]
    with pytest.raises(ConfigError) as caught:
        read_config(str(path))
    (fault,) = caught.value.faults
    assert fault.startswith(f"{path}: ") and expected in fault


def test_read_config_of_an_impossible_name_is_a_fault() -> None:
    with pytest.raises(ConfigError, match="null byte"):
        read_config("a\0b")


def test_read_config_of_an_endless_file_ends() -> None:
    with pytest.raises(ConfigError, match="the limit is"):
        read_config("/dev/zero")


def pretend(proc: Path, *, port: int, pid: int, state: str = "0A", mark: str = "") -> None:
    """A /proc in which `pid` holds socket 77 on a port."""
    row = f"   0: 0100007F:{port:04X} 00000000:0000 {state} 00000000:00000000 00:00000000 00000000  0  0 77 1 x"
    (proc / "net").mkdir(parents=True)
    (proc / "net" / "tcp").write_text(f"  sl  local_address\n{row}\n")
    (proc / str(pid) / "fd").mkdir(parents=True)
    (proc / str(pid) / "fd" / "3").symlink_to("socket:[77]")
    (proc / str(pid) / "comm").write_text("python3\n")
    (proc / str(pid) / "environ").write_bytes(f"A=1\0INFER_DEV_MARK={mark}\0".encode())
    (proc / "self").mkdir()


@pytest.mark.parametrize(
    ("own_mark", "mark", "expected"),
    [
        (None, "f1/a", "pid 42 (python3)"),
        ("f1/", "f1/a", None),
        ("f1/", "f2/a", "pid 42 (python3)"),
        ("", "f2/a", None),
    ],
)
def test_port_holder_names_strangers_only(
    own_mark: str | None, mark: str, expected: str | None, tmp_path: Path
) -> None:
    pretend(tmp_path, port=30000, pid=42, mark=mark)
    host = LiveHost(own_mark, is_free=lambda host, port: False, proc=str(tmp_path))
    assert host.port_holder("127.0.0.1", 30000) == expected


def test_port_holder_of_a_free_port_looks_no_further(tmp_path: Path) -> None:
    host = LiveHost(is_free=lambda host, port: True, proc=str(tmp_path / "missing"))
    assert host.port_holder("0.0.0.0", 30000) is None


def test_port_holder_that_is_hidden_is_still_reported(tmp_path: Path) -> None:
    pretend(tmp_path, port=30001, pid=42)
    host = LiveHost(is_free=lambda host, port: False, proc=str(tmp_path))
    assert host.port_holder("0.0.0.0", 30000) == "another user's process, or one outside this container"


def test_expand_makes_paths_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.chdir(tmp_path)
    assert LiveHost().expand("~/x") == "/home/me/x"
    assert LiveHost().expand("./a/../b") == str(tmp_path / "b")
    assert LiveHost().expand("/a") == "/a"


def test_problems_of_paths(tmp_path: Path) -> None:
    host = LiveHost()
    plain = tmp_path / "plain"
    plain.write_text("")
    assert host.model_problem(str(tmp_path)) is None
    assert host.model_problem(str(tmp_path / "no")) == "no such file or directory"
    assert host.log_dir_problem(str(tmp_path / "new" / "deep")) is None
    assert host.log_dir_problem(str(plain / "below")) == f"{plain} is not a directory"
    assert host.program_problem(sys.executable) is None
    assert host.program_problem("sh") is None
    assert host.program_problem("no-such-program") == "not found on PATH"
    assert host.program_problem(str(tmp_path)) == "it is a directory"
    assert host.program_problem(str(tmp_path / "no")) == "no such file"
    assert host.program_problem(str(plain)) == "it is not executable"
    assert host.model_problem("/" + "x" * 5000) == "File name too long"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read and write everything")
def test_problems_of_permissions(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert "no permission" in (LiveHost().log_dir_problem(str(tmp_path)) or "")


def test_package_problem() -> None:
    assert LiveHost().package_problem("pytest") is None
    assert LiveHost().package_problem("no-such-package-here") == "not installed"


def test_gpus_are_asked_for_once() -> None:
    door = FakeDoor(None)
    host = LiveHost(gpu_door=door)  # type: ignore[arg-type]
    assert (host.gpus(), host.gpus(), door.asked) == (None, None, 1)


OURS, THEIRS = Holder(pid=7, name="ours", used_bytes=50), Holder(pid=8, name="theirs", used_bytes=30)


@pytest.mark.parametrize(
    ("holders", "running", "held"),
    [
        pytest.param(
            ((OURS, THEIRS), (OURS,), ()), {"0"}, {"0": 40, "1": 40, "2": 90}, id="ours are shown, so all are"
        ),
        pytest.param(((THEIRS,), (), ()), {"1"}, {"0": 90, "1": 0, "2": 90}, id="ours may be hidden where they run"),
        pytest.param(((), (), ()), (), {"0": 90, "1": 90, "2": 90}, id="the driver shows nobody"),
    ],
)
def test_held_bytes_are_what_others_hold(
    holders: tuple[tuple[Holder, ...], ...],
    running: Collection[str],
    held: dict[str, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of each GPU 90 bytes are in use; nobody asks for a fourth, which the driver does not know."""

    class Door(FakeDoor):
        def look(self, gpu_ids: tuple[str, ...], describe: object) -> GpuLook:
            found = [
                GpuMemory(
                    gpu=f"GPU-{unit}", label=f"GPU {unit}", used_bytes=90, total_bytes=100, holders=holders[int(unit)]
                )
                for unit in gpu_ids
                if int(unit) < len(holders)
            ]
            return GpuLook(gpus=tuple(found))

    host = LiveHost("f/", gpu_door=Door(None))  # type: ignore[arg-type]
    monkeypatch.setattr(host, "_is_ours", lambda pid: pid == 7)
    assert host.held_bytes(("0", "1", "2", "9"), running) == held


def test_held_bytes_without_a_driver_are_unknown() -> None:
    class Door(FakeDoor):
        def look(self, gpu_ids: object, describe: object) -> GpuLook:
            return NO_DRIVER

    assert LiveHost(gpu_door=Door(None)).held_bytes(("0",), ()) == {}  # type: ignore[arg-type]


def test_sglang_of_an_environment_is_found_by_its_files(tmp_path: Path) -> None:
    packages = tmp_path / "lib" / "python3.12" / "site-packages"
    (packages / "sglang" / "srt").mkdir(parents=True)
    python = str(tmp_path / "bin" / "python")
    assert LiveHost().sglang_args_source(python) is None
    (packages / "sglang-0.5.7.dist-info").mkdir()
    (packages / "sglang" / "srt" / "server_args.py").write_text("x = 1")
    assert LiveHost().sglang_args_source(python) == ("0.5.7", "x = 1")
    assert LiveHost().sglang_args_source("python3") is None


@pytest.mark.parametrize(
    ("name", "expected"), [("xllamacpp", True), ("A-Model.package", True), ("a-model", False), ("*", False)]
)
def test_live_host_finds_a_distribution_of_an_environment_by_its_files(
    tmp_path: Path, name: str, expected: bool
) -> None:
    for folder in ("xllamacpp-1.0.dist-info", "a_model_package-2.dist-info", "xllamacpp"):
        (tmp_path / "lib/python3.12/site-packages" / folder).mkdir(parents=True)
    assert LiveHost().environment_has(f"{tmp_path}/bin/python", name) is expected
    assert LiveHost().environment_has("python", name) is False
