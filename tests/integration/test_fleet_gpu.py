"""A fleet on GPUs that a fake NVML tells of: memory of the dead is waited for, a hog is named, a lost GPU holds."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from fleet import TESTS_DIR, Fleet, free_ports, server

from infer_dev_entry.gpu_wait import NO_DRIVER
from infer_dev_entry.init import gpu_child
from infer_dev_entry.init.gpu_child import GpuChild
from infer_dev_entry.init.reaper import Reaper

pytest_plugins = ("fleet_fixtures",)

GB = 10**9
# What the driver puts into /proc, in the namespace of the fleet alone.
_DRIVER = "mount -t tmpfs none /proc/driver; mkdir /proc/driver/nvidia; touch /proc/driver/nvidia/version"
# A process with an open device node, as the driver's library has it.
_HOG = "import sys, time; kept = open(sys.argv[1], 'w'); time.sleep(600)"


def tell(path: Path, *gpus: dict[str, Any], **more: Any) -> None:
    """Tell what the driver says from now on."""
    told = {"gpus": [{"used": GB, "total": 150 * GB, **gpu} for gpu in gpus], **more}
    path.with_suffix(".new").write_text(json.dumps(told))
    path.with_suffix(".new").replace(path)


def start(fleet: Fleet, *servers: str, gpus: int = 1, used: int = GB, lost: int = -1) -> Path:
    """Start a fleet on so many GPUs, the first `used`, and return the file that tells of them."""
    told = fleet.base / "nvml"
    tell(told, *({"used": GB if index else used, "lost": index == lost} for index in range(gpus)))
    fleet.write(*servers)
    path = os.pathsep.join((str(TESTS_DIR / "fake_nvml"), fleet.environ["PYTHONPATH"]))
    fleet.environ |= {"FAKE_NVML": str(told), "PYTHONPATH": path}
    fleet.start(prelude=_DRIVER)
    return told


def test_restart_waits_until_the_memory_of_the_dead_is_free(fleet: Fleet) -> None:
    (port,) = free_ports(1)
    told = start(fleet, server("a", port, control={"gpu_ids": "0"}))
    fleet.wait_ready("a")
    assert not fleet.events("gpu.free", "a")
    tell(told, {"used": 140 * GB})
    old_pid = fleet.kill_server("a")
    row = fleet.wait_state("a", "waiting-gpu", reason="140.0 GB on GPU 0")
    assert (row["pid"], row["restarts"]) == (None, 0)
    tell(told, {"used": 1 * GB})
    fleet.wait_again("a", old_pid)
    free = fleet.wait_event("gpu.free", "a")
    assert free["freed_bytes"] == 139 * GB
    assert free["waited_ms"] > 0
    assert len(fleet.events("server.crashed", "a")) == 1  # the wait is no failure


def test_foreign_process_on_the_gpu_is_named_never_ended_and_outwaited(fleet: Fleet) -> None:
    (port,) = free_ports(1)
    told = start(fleet, server("a", port, control={"gpu_ids": "0", "gpu_wait_s": 1}))
    fleet.wait_ready("a")
    device = fleet.base / "dev"
    device.mkdir()
    (node := Path(f"{device}/nvidia0")).touch()
    hog = fleet.spawn_inside("-c", _HOG, str(node))
    pid = fleet.wait(lambda: fleet.find_processes(_HOG), what="the hog")[-1].inner_pid
    tell(told, {"used": 141 * GB, "pids": {str(pid): 140 * GB}})
    old_pid = fleet.kill_server("a")
    named = f"140.0 GB by pid {pid} (python"
    fleet.wait_state("a", "waiting-gpu", reason=named)
    blocked = fleet.wait_event("gpu.blocked", "a")
    assert named in blocked["reason"]
    assert blocked["mend"] == (
        'end that process, or give this server other gpu_ids ("auto" moves it to a GPU with room)'
    )
    shown = fleet.cli("status").stdout
    assert "waiting-gpu" in shown
    assert named in shown
    assert hog.poll() is None
    hog.kill()
    tell(told, {})
    fleet.wait_again("a", old_pid)


def test_lost_gpu_fails_its_server_alone_and_start_tries_it_again(fleet: Fleet) -> None:
    first, second = free_ports(2)
    told = start(
        fleet,
        server("a", first, control={"gpu_ids": "0"}),
        server("b", second, control={"gpu_ids": "1"}),
        gpus=2,
    )
    before = fleet.wait_ready("a", "b")
    tell(told, {"lost": True}, {})
    fleet.kill_server("a")
    row = fleet.wait_state("a", "failed", reason="GPU 0 is lost")
    assert "--force-recreate" in row["mend"]
    assert fleet.wait_state("b", "ready")["pid"] == before["b"]["pid"]
    tell(told, {}, {})
    assert fleet.cli("start", "a").returncode == 0
    fleet.wait_again("a", before["a"]["pid"])


def test_gpu_that_is_lost_at_boot_holds_its_server_alone(fleet: Fleet) -> None:
    first, second = free_ports(2)
    told = fleet.base / "nvml"
    servers = [
        server(name, port, control={"gpu_ids": gpu}) for name, port, gpu in (("a", first, "0"), ("b", second, "1"))
    ]
    start(fleet, *servers, gpus=2, lost=0)
    fleet.wait_ready("b")
    row = fleet.wait_state("a", "failed", reason="GPU 0 is lost")
    assert "--force-recreate" in row["mend"]
    checked = fleet.cli("config", "check", str(fleet.config))
    assert (checked.returncode, "GPU 0 is lost" in checked.stderr) == (0, True)
    doctor = {row["check"]: row for row in json.loads(fleet.cli("doctor", "--json").stdout)["rows"]}
    assert (doctor["GPU 0"]["verdict"], doctor["GPU 1"]["verdict"]) == ("fail", "ok")
    assert doctor["GPUs of b"]["verdict"] == "ok"
    tell(told, {}, {})
    assert fleet.cli("start", "a").returncode == 0
    fleet.wait_ready("a", "b")


def test_gpu_that_the_log_calls_lost_fails_its_server_alone_though_the_driver_says_nothing(fleet: Fleet) -> None:
    first, second = free_ports(2)
    words = ("--print", "NVRM: Xid (PCI:0000:01:00): 79, GPU has fallen off the bus.")
    start(
        fleet,
        server("a", first, *words, control={"gpu_ids": "0"}),
        server("b", second, control={"gpu_ids": "1"}),
        gpus=2,
    )
    before = fleet.wait_ready("a", "b")  # it has served, and yet no start follows
    with pytest.raises(OSError):
        urllib.request.urlopen(f"http://127.0.0.1:{first}/v1/chat/completions", b'{"die": true}', timeout=30)
    row = fleet.wait_state("a", "failed", reason="a GPU is lost")
    assert row["restarts"] == 0
    assert "re-create the container" in row["mend"]
    assert fleet.wait_event("server.failed", "a")["class"] == "gpu-lost"
    assert fleet.wait_state("b", "ready")["pid"] == before["b"]["pid"]


def shown_gpus(fleet: Fleet) -> dict[str, list[str]]:
    """What a plan made now would deal."""
    rows = json.loads(fleet.cli("config", "show", "--json", str(fleet.config)).stdout)
    return {row["name"]: row["gpu_ids"] for row in rows}


def test_auto_is_dealt_what_others_leave_free_and_an_update_moves_nobody(fleet: Fleet) -> None:
    """The driver tells of no process here, as it does of other containers': memory alone says what is free."""
    first, second = free_ports(2)
    a, b = (server(name, port, control={"gpu_ids": "auto"}) for name, port in (("a", first), ("b", second)))
    told = start(fleet, a, gpus=3, used=140 * GB)
    before = fleet.wait_ready("a")
    assert before["a"]["gpu_ids"] == ["1"]
    tell(told, {}, {"used": 140 * GB}, {})  # the other has gone, and ours has loaded
    assert shown_gpus(fleet) == {"a": ["1"]}
    fleet.write(b, a)
    assert fleet.cli("serve", "--wait", "20", str(fleet.config)).returncode == 0
    after = fleet.wait_ready("a", "b")
    assert (after["a"]["pid"], after["a"]["gpu_ids"]) == (before["a"]["pid"], ["1"])
    assert after["b"]["gpu_ids"] == ["0"]
    assert shown_gpus(fleet) == {"a": ["1"], "b": ["0"]}


def test_update_moves_a_server_that_waits_for_a_gpu_which_another_has_filled(fleet: Fleet) -> None:
    (port,) = free_ports(1)
    told = start(fleet, server("a", port, control={"gpu_ids": "auto"}), gpus=2)
    assert fleet.wait_ready("a")["a"]["gpu_ids"] == ["0"]
    tell(told, {"used": 140 * GB}, {})
    old_pid = fleet.kill_server("a")
    fleet.wait_state("a", "waiting-gpu", reason="140.0 GB on GPU 0")
    assert fleet.cli("serve", "--wait", "20", str(fleet.config)).returncode == 0
    row = fleet.wait_again("a", old_pid)
    assert row["gpu_ids"] == ["1"]


def start_blocked(fleet: Fleet, edit: str = "") -> tuple[Path, int]:
    """Have `a`, which was dealt GPU 0 of two, die while another fills that; `edit` is added to the served file."""
    told = fleet.base / "nvml"
    facts = str(fleet.base / "facts")
    a, b = free_ports(2)
    start(
        fleet,
        server("a", a, "--write-env", facts, control={"gpu_ids": "auto", "gpu_wait_s": 1}),
        server("b", b, control={"gpu_ids": "none"}),
        gpus=2,
    )
    assert fleet.wait_ready("a", "b")["a"]["gpu_ids"] == ["0"]
    with fleet.config.open("a") as file:
        file.write(edit)
    tell(told, {"used": 140 * GB}, {})
    return told, fleet.kill_server("a")


def test_server_that_was_dealt_a_gpu_which_another_has_filled_moves_by_itself(fleet: Fleet) -> None:
    _, old_pid = start_blocked(fleet)
    before = fleet.row("b")
    moved = fleet.wait_event("gpu.moved", "a")
    assert (moved["from"], moved["to"], "140.0 GB on GPU 0" in moved["reason"]) == ("0", "1", True)
    row = fleet.wait_again("a", old_pid)
    assert row["gpu_ids"] == ["1"]
    facts = fleet.wait(lambda: json.loads((fleet.base / "facts").read_text()), what="its environment")
    assert facts["environ"]["CUDA_VISIBLE_DEVICES"] == "1"
    # It is where the config deals it now: an update touches nobody.
    assert shown_gpus(fleet)["a"] == ["1"]
    assert fleet.cli("serve", "--wait", "20", str(fleet.config).lstrip("/")).returncode == 0
    assert fleet.ask()["source"] == str(fleet.config)  # a look from another directory finds it, too
    assert (fleet.row("a")["pid"], fleet.row("b")["pid"]) == (row["pid"], before["pid"])
    assert not list(fleet.run_dir.glob("*.json.*")) and not (fleet.run_dir / "again.json").exists()


def test_server_moves_past_the_gpu_of_one_that_waits_for_it(fleet: Fleet) -> None:
    """The one without a process keeps its GPU, or both would be dealt others for ever."""
    told = fleet.base / "nvml"
    a, b = free_ports(2)
    gate = fleet.base / "gate"
    gate.touch()
    start(
        fleet,
        server("a", a, "--hang-file", str(gate), control={"gpu_ids": "auto", "gpu_wait_s": 1}),
        server("b", b, control={"gpu_ids": "auto", "depends_on": ["a"]}),
        gpus=3,
    )
    old_pid = fleet.wait_event("server.started", "a")["pid"]
    assert {name: row["gpu_ids"] for name, row in fleet.rows().items()} == {"a": ["0"], "b": ["1"]}
    tell(told, {"used": 140 * GB}, {}, {})
    fleet.kill_server("a")
    gate.unlink()
    rows = fleet.wait_ready("a", "b")
    assert (rows["a"]["gpu_ids"], rows["b"]["gpu_ids"]) == (["2"], ["1"])
    assert rows["a"]["pid"] != old_pid


def test_stop_while_another_gpu_is_looked_for_ends_the_look_at_once(fleet: Fleet) -> None:
    """The look is held by a config that does not come to its end."""
    start_blocked(fleet)
    fleet.config.unlink()
    os.mkfifo(fleet.config)
    fleet.wait(lambda: fleet.find_processes("infer_dev_entry.planner"), what="the child that plans")
    os.kill(fleet.pid, signal.SIGTERM)
    stopped = fleet.wait_event("entry.stopped")
    assert fleet.wait_exit(30) == 0
    assert stopped["took_s"] < 10
    assert not fleet.find_processes("infer_dev_entry.planner")


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        pytest.param('[instance.a.env]\nNEW = "1"\n', "infer-dev serve applies that", id="edited"),
        pytest.param("[broken", "fleet.toml: line ", id="broken"),
    ],
)
def test_config_that_was_edited_since_is_not_applied_by_a_move(fleet: Fleet, edit: str, reason: str) -> None:
    told, old_pid = start_blocked(fleet, edit)
    stays = fleet.wait_event("gpu.stays", "a")
    assert reason in stays["reason"]
    assert fleet.wait_state("a", "waiting-gpu")["gpu_ids"] == ["0"]
    tell(told, {}, {})
    assert fleet.wait_again("a", old_pid)["gpu_ids"] == ["0"]
    assert not fleet.events("gpu.moved")


# --------------------------------------------------------------------------------------------------- the child itself


@pytest.fixture
def environ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """An environment whose driver is the fake one, with a file that proves it is there."""
    tell(tmp_path / "nvml", {})
    monkeypatch.setattr(gpu_child, "DRIVER_FILES", (str(tmp_path / "nvml"),))
    return {**os.environ, "FAKE_NVML": str(tmp_path / "nvml"), "PYTHONPATH": str(TESTS_DIR / "fake_nvml")}


def test_child_that_does_not_answer_in_time_is_ended_and_replaced(
    environ: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        child = GpuChild(reaper := Reaper(), environ)
        assert (await child.look(("0",))).gpus[0].used_bytes == GB
        tell(tmp_path / "nvml", {}, block_s=600)
        monkeypatch.setattr(gpu_child, "LOOK_TIMEOUT_S", 0.5)
        assert (await child.look(("0",))).problem == "no answer within 0.5 s"
        tell(tmp_path / "nvml", {}, {"used": 2 * GB})
        monkeypatch.setattr(gpu_child, "LOOK_TIMEOUT_S", 30.0)
        assert [gpu.used_bytes for gpu in (await child.look(None)).gpus] == [GB, 2 * GB]
        child.close()
        reaper.reap()

    asyncio.run(run())


def test_child_says_why_the_driver_refuses(environ: dict[str, str], tmp_path: Path) -> None:
    async def run() -> None:
        tell(tmp_path / "nvml", error="Unknown Error")
        child = GpuChild(Reaper(), environ)
        assert (await child.look(None)).problem == "Unknown Error"
        child.close()

    asyncio.run(run())


def test_machine_without_a_driver_needs_no_child(environ: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_child, "DRIVER_FILES", ("/no/such/file",))
    monkeypatch.setattr(gpu_child, "spawn_helper", None)
    assert asyncio.run(GpuChild(Reaper(), environ).look(None)) == NO_DRIVER
