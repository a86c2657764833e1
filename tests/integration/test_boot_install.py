"""The whole boot: a bundle is installed once, and its servers serve from the installed environment."""

from __future__ import annotations

from pathlib import Path

import pytest
from bundles import Wheel, make_wheelhouse, pack, small_wheel
from fleet import TESTS_DIR, Fleet, free_port, get, server

pytest.importorskip("uv", reason="the install extra is not installed")
pytest_plugins = ("fleet_fixtures",)


def make_bundle(fleet: Fleet, name: str, *wheels: Wheel, verify: str = "import fake_llm_server") -> Path:
    """Pack a bundle whose environment holds the fake server as a module."""
    fake = Wheel("fake-llm", "1.0", {"fake_llm_server.py": (TESTS_DIR / "fake_server.py").read_text()})
    folder = make_wheelhouse(
        fleet.base / f"{name}-folder",
        [fake, *wheels],
        verify=("python", "-c", verify),
        activation={"ACTIVATED_BY": "the bundle in $PREFIX"},
    )
    return pack(folder, fleet.base / f"{name}.tar")


def boot_environ(fleet: Fleet, bundle: Path) -> dict[str, str]:
    """Return the gates of a boot that installs and serves; the tests' own modules are out of reach."""
    return {
        "AUTO_INFER_SGLANG_BUNDLE_ON_BOOT": "1",
        "AUTO_INFER_SGLANG_BUNDLE_PATH": str(bundle),
        "AUTO_INFER_SGLANG_PIXI_PROJECT_DIR": str(fleet.base / "project"),
        "AUTO_INFER_SGLANG_ON_BOOT": "1",
        "AUTO_INFER_SGLANG_CONFIG": str(fleet.config),
        "PYTHONPATH": str(TESTS_DIR.parent),
    }


@pytest.fixture
def served(fleet: Fleet) -> Fleet:
    """A fleet with one server that runs in the installed environment and writes down its own."""
    fleet.write(
        server("a", free_port(), "--write-env", str(fleet.base / "seen.json")),
        master={"python_path": str(fleet.base / "project/env/bin/python"), "server_module": "fake_llm_server"},
    )
    return fleet


def test_boot_installs_then_serves_and_the_next_boot_is_free(served: Fleet) -> None:
    bundle = make_bundle(served, "one")
    served.start(**boot_environ(served, bundle))
    row = served.wait_ready("a", timeout_s=90)["a"]
    assert get(int(row["url"].rpartition(":")[2]), "/v1/models")[0] == 200
    installed = served.wait_event("bundle.installed")
    assert installed["backend"] == "wheelhouse"
    seen = (served.base / "seen.json").read_text()
    assert f"the bundle in {served.base}/project/envs/" in seen  # the activation reached the server, without a shell
    assert served.stop() == 0
    served.event_log.write_text("")
    served.start(**boot_environ(served, bundle))
    served.wait_ready("a", timeout_s=60)
    assert served.wait_event("bundle.unchanged")["sha256"] == installed["sha256"]
    assert not served.events("bundle.installed")
    assert served.stop() == 0


def test_boot_with_a_wrong_digest_stays_says_why_and_starts_nothing(served: Fleet) -> None:
    bundle = make_bundle(served, "one")
    served.start(**boot_environ(served, bundle), AUTO_INFER_SGLANG_BUNDLE_SHA256="0" * 64)
    failed = served.wait_event("boot.failed", timeout_s=60)
    assert failed["exit_code"] == 20
    assert "0" * 64 in failed["error"]
    assert served.rows() == {}
    run = served.cli("status")
    assert run.returncode == 1
    assert "boot failed" in run.stderr
    assert not (served.base / "project" / "env").exists()


def test_boot_without_a_bundle_exits_with_the_documented_code(served: Fleet) -> None:
    environ = boot_environ(served, served.base / "missing.tar") | {"AUTO_INFER_SGLANG_ON_ERROR": "exit"}
    served.start("--", "touch", str(served.base / "ran"), **environ)
    assert served.wait_exit() == 20
    assert not (served.base / "ran").exists()


def test_boot_stopped_in_the_middle_of_an_install_ends_at_once(served: Fleet) -> None:
    wheel = small_wheel("big", files=3000, size=20_000)
    bundle = make_bundle(served, "big", wheel, verify="import time; time.sleep(600)")  # it is never whole
    served.start(**boot_environ(served, bundle))
    served.wait(lambda: (served.base / "project" / ".install.lock").exists(), 30, "the install's begin")
    assert served.stop(timeout_s=20) == 0
    assert not (served.base / "project" / "env").exists()
