"""Boots that fail: the container stays and says why, or ends with the code that docs/reference.md gives."""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from engine import BUNDLE, CONFIG, INSTALL, SERVE, WORKSPACE, Container, Engine, mounts
from inside import HEALTH, chat_inside
from serving import serve
from wait import wait_until

EXIT = {"AUTO_INFER_SGLANG_ON_ERROR": "exit"}
ZEROS = "0" * 64


@dataclass(frozen=True)
class Fault:
    """One way to fail; `options` are made from an empty directory of the host's."""

    name: str
    code: int
    says: str
    environ: dict[str, str] = field(default_factory=dict)
    options: Callable[[Path], Sequence[str]] = mounts


def broken_toml(place: Path) -> list[str]:
    (place / "broken.toml").write_text("[instance.gemma\n")
    return mounts(place, configs=place)


def another_bundle(place: Path) -> list[str]:
    with tarfile.open(place / Path(BUNDLE).name, "w") as archive:
        archive.add(__file__, "wheels/not-what-was-sent.whl")
    return mounts(place)


def read_only(place: Path) -> list[str]:
    another_bundle(place)
    return ["-v", f"{place}:{WORKSPACE}:ro"]


FAULTS = (
    Fault("digest", 20, f"expected was {ZEROS}", INSTALL | {"AUTO_INFER_SGLANG_BUNDLE_SHA256": ZEROS}, another_bundle),
    Fault(
        "missing",
        20,
        f"cannot read bundle {BUNDLE}: No such file or directory; set AUTO_INFER_SGLANG_BUNDLE_PATH",
        INSTALL,
    ),
    Fault("read-only", 21, "Read-only file system; mount a writable workspace", INSTALL, read_only),
    Fault("no-path", 11, "needs AUTO_INFER_SGLANG_BUNDLE_PATH", INSTALL | {"AUTO_INFER_SGLANG_BUNDLE_PATH": ""}),
    Fault(
        "toml",
        10,
        "broken.toml: line 1, column ",
        SERVE | {"AUTO_INFER_SGLANG_CONFIG": "/model-configs/broken.toml"},
        broken_toml,
    ),
    Fault("no-env", 10, "install a bundle that has it", SERVE),
    Fault("no-config", 11, "set AUTO_INFER_SGLANG_CONFIG to a TOML file", SERVE | {"AUTO_INFER_SGLANG_CONFIG": ""}),
    Fault("user", 11, "AUTO_INFER_SGLANG_USER='nope' does not exist", SERVE | {"AUTO_INFER_SGLANG_USER": "nope"}),
)


def last_check(container: Container) -> str:
    """What the newest health check printed."""
    checks = container.inspect()["State"]["Health"]["Log"]
    return str(checks[-1]["Output"]) if checks else ""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """An empty directory that `me` may read, unlike pytest's own."""
    path = tmp_path / "place"
    path.mkdir(mode=0o755)
    return path


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_failed_boot_stays_unhealthy_and_status_says_why(engine: Engine, place: Path, fault: Fault) -> None:
    with engine.container(options=[*fault.options(place), *HEALTH], environ=fault.environ) as container:
        failed = container.wait_event("boot.failed")
        assert fault.says in failed["error"]
        assert failed["exit_code"] == fault.code
        status = container.exec("/soft/app/sglang/status")
        assert status.returncode == 1
        assert f"boot failed: {failed['error']}" in status.stderr.splitlines()
        container.wait_health("unhealthy")  # a first check may have come before the end of the boot
        wait_until(lambda: f"boot failed: {failed['error']}" in last_check(container), 60, "the check to say why")
        assert container.running
        container.stop(60)
        assert container.exit_code == 0


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_failed_boot_exits_with_its_code_when_told_to(engine: Engine, place: Path, fault: Fault) -> None:
    with engine.container("sleep", "600", options=fault.options(place), environ=fault.environ | EXIT) as container:
        assert container.wait_exit() == fault.code
        assert fault.says in container.events("boot.failed")[0]["error"]


def test_run_directory_that_cannot_be_made_is_said_by_all(engine: Engine, place: Path) -> None:
    options = [*mounts(place), "--read-only", *HEALTH]
    with engine.container(options=options, environ=SERVE) as container:
        failed = container.wait_event("boot.failed")
        assert failed["error"].startswith("cannot write run directory /run/infer-dev: Read-only file system; ")
        assert failed["exit_code"] == 12
        container.wait_health("unhealthy")
        status = container.exec("infer-dev", "status")
        assert status.returncode == 14
        assert "/run cannot be written: set INFER_DEV_RUN_DIR to a writable directory" in status.stderr


def test_boot_that_failed_is_mended_by_hand(engine: Engine, installed: Path, place: Path) -> None:
    environ = serve() | {"AUTO_INFER_SGLANG_CONFIG": "/broken/broken.toml"}
    broken_toml(place)
    options = [*mounts(installed), "-v", f"{place}:/broken:ro", "--network", "none", *HEALTH]
    with engine.container(options=options, environ=environ) as container:
        assert "infer-dev serve CONFIG.toml" in container.wait_event("boot.staying")["mend"]
        again = container.exec("infer-dev", "serve")
        assert again.returncode == 10
        assert "/broken/broken.toml: line 1" in again.stderr
        container.exec("infer-dev", "serve", CONFIG, "--wait", "300", timeout_s=330, check=True)
        wait_until(lambda: container.exec("infer-dev", "health").returncode == 0, 60, "health")
        wait_until(lambda: container.row("gemma")["state"] == "ready", 60, "the server to be ready")
        assert chat_inside(container)


def test_servers_never_run_as_root_where_their_user_is_missing(engine: Engine, installed: Path) -> None:
    environ = serve() | {"AUTO_INFER_SGLANG_USER": "nope"}
    with engine.container(options=[*mounts(installed), "--network", "none"], environ=environ) as container:
        container.wait_event("boot.failed")
        by_hand = container.exec("infer-dev", "serve", CONFIG)
        assert by_hand.returncode == 16
        assert "AUTO_INFER_SGLANG_USER='nope' does not exist" in by_hand.stderr
        assert container.rows() == {}
