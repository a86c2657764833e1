"""Servers that die with a reason: it is told, it decides what follows, and a dossier of it is kept.

The logs are those of real servers (tests/unit/data), written again by a stand-in; one server is real.
"""

from __future__ import annotations

import json
import os
import pwd
import re
import shutil
import stat
import sys
from pathlib import Path
from typing import Any

import pytest
from fleet import Fleet, free_port, free_ports, render_toml, server

pytest_plugins = ("fleet_fixtures",)

LOGS = Path(__file__).resolve().parent.parent / "unit" / "data"
SECRET = "s3cr3t-that-nobody-may-see"
# A hang is found in five seconds, and a machine that stalls for one does not make it of a server that is well.
HANGS = {"period_s": 1.5, "timeout_s": 1.4, "failure_threshold": 2}


def speak(fleet: Fleet, name: str, log: str, *words: str) -> dict[str, str]:
    """Make an interpreter that writes a real SGLang's log before it does these words of shell."""
    text = (LOGS / "sglang-logs" / f"{log}.log").read_text().replace("…\n", "")
    copy = fleet.base / f"{log}.log"
    copy.write_text(text)
    return fleet.wrap(name, "\n".join((f"cat {copy}", *words)))


def crashes(fleet: Fleet, *args: str, **environ: str) -> list[dict[str, Any]]:
    """Return what `infer-dev crashes --json` prints."""
    run = fleet.cli("crashes", *args, "--json", **environ)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert isinstance(found, list)
    return found


def wait_crashes(fleet: Fleet, name: str, count: int) -> list[dict[str, Any]]:
    """Wait until so many dossiers of a server lie there: they are written beside its restart."""
    return fleet.wait(lambda: len(found := crashes(fleet, name)) >= count and found, 20, f"{count} dossiers of {name}")


def test_server_whose_model_is_damaged_fails_at_once_and_names_the_mend(fleet: Fleet) -> None:
    pytest.importorskip("xllamacpp", reason="the extra 'cpu' is not installed")
    model = fleet.base / "broken.gguf"
    model.write_bytes(b"GGUF\x03\0\0\0" + bytes(range(256)) * 64)
    text = "\n".join(
        (
            "[instance.control]",
            f"log_dir = {render_toml(str(fleet.log_dir))}",
            'engine = "llama_cpp"',
            'gpu_ids = "none"',
            "[instance.tiny.server]",
            f"model = {render_toml(str(model))}",
            f"port = {free_port()}",
        )
    )
    fleet.config.write_text(text)
    fleet.start()
    row = fleet.wait_state("tiny", "failed", timeout_s=60)
    assert row["reason"].startswith(
        "exited with status 1: the model's file is damaged or incomplete; log line: gguf_init"
    )
    assert row["mend"] == f"fetch the model again into model (now {model}); then run infer-dev start tiny"
    assert row["restarts"] == 0
    failed = fleet.wait_event("server.failed", "tiny")
    assert (failed["class"], failed["mend"]) == ("model-broken", row["mend"])
    assert "tiny: model-broken: exited with status 1" in fleet.cli("status").stdout
    (dossier,) = wait_crashes(fleet, "tiny", 1)
    assert (dossier["class"], dossier["policy"], dossier["exit_code"]) == ("model-broken", "hold", 1)


def test_server_with_a_bad_flag_fails_at_once_until_it_is_started(fleet: Fleet) -> None:
    permit = fleet.base / "permit"
    port = free_port()
    control = speak(fleet, "a", "bad-flag", f"[ -e {permit} ] || exit 2")
    fleet.write(server("a", port, control=control))
    fleet.start()
    row = fleet.wait_state("a", "failed")
    assert "sglang serve: error: unrecognized arguments: --max-model-len 4096" in row["reason"]
    assert "infer-dev config check" in row["mend"]
    assert len(fleet.events("server.started", "a")) <= 1
    permit.touch()
    assert fleet.cli("start", "a").returncode == 0
    fleet.wait_state("a", "ready", timeout_s=30)


def test_fault_of_a_run_before_this_one_is_not_taken_for_its_own(fleet: Fleet) -> None:
    again = fleet.base / "again"
    control = speak(fleet, "a", "bad-flag", f"[ -e {again} ] || exit 2")
    words = ("--exit-after-s", "0.5", "--exit-code", "2")
    fleet.write(server("a", free_port(), *words, control=control))
    fleet.start()
    fleet.wait_state("a", "failed")
    # This run says nothing of an argument, but exits with the same status.
    control_log = fleet.base / "bad-flag.log"
    control_log.write_text("")
    again.touch()
    assert fleet.cli("start", "a").returncode == 0
    assert fleet.wait_event("server.crashed", "a", timeout_s=30)["class"] == "unknown"


def test_server_that_has_served_waits_for_its_model_to_come_back(fleet: Fleet) -> None:
    gone = fleet.base / "gone"
    port = free_port()
    control = speak(fleet, "a", "weights-missing", f"[ ! -e {gone} ] || kill -9 $$")
    fleet.write(server("a", port, control=control, restart={"max_restarts": 1}))
    fleet.start()
    fleet.wait_ready("a")
    gone.touch()
    old_pid = fleet.kill_server("a")
    crashed = fleet.wait_event("server.crashed", "a", count=5, timeout_s=30)
    assert crashed["class"] == "model-missing"
    assert not fleet.events("server.failed")
    gone.unlink()
    assert fleet.wait_again("a", old_pid)["reason"] == ""


def test_prompt_that_looks_like_a_fault_stops_no_server(fleet: Fleet) -> None:
    said = (LOGS / "sglang-logs" / "no-gpu.log").read_text()
    prompt = fleet.base / "prompt"
    prompt.write_text(said.partition("\n")[2])
    wrap = fleet.wrap("a", f"[ ! -e {fleet.base}/served ] || cat {prompt}")
    words = ("--exit-after-s", "2", "--exit-code", "1")
    fleet.write(server("a", free_port(), *words, control=wrap))
    fleet.start()
    fleet.wait_ready("a")
    (fleet.base / "served").touch()  # from now on it logs what a user has sent it, and dies
    crashed = fleet.wait_event("server.crashed", "a", count=3, timeout_s=40, **{"class": "no-gpu"})
    assert crashed["retry_in_s"] > 0
    assert not fleet.events("server.failed")


def test_first_failure_in_a_row_is_kept_beside_the_latest(fleet: Fleet) -> None:
    second = fleet.base / "second"
    script = f"[ -e {second} ] || {{ touch {second}; echo 'RuntimeError: CUDA error: out of memory'; exit 3; }}"
    control = fleet.wrap("a", f"{script}\necho bye; exit 4")
    flags = {"api_key": SECRET, "mem_fraction_static": 0.9}
    env = {"HIDDEN_VALUE": SECRET}
    fleet.write(server("a", free_port(), control=control, flags=flags, env=env), server("b", free_port()))
    fleet.start()
    fleet.wait_event("server.crashed", "a", count=3)
    crashed = fleet.events("server.crashed", "a")[0]
    assert crashed["class"] == "cuda-oom"
    assert crashed["mend"].startswith("lower mem_fraction_static (now 0.9), ")
    first, latest = wait_crashes(fleet, "a", 2)
    assert (first["class"], first["failures"], first["exit_code"], first["run"]) == ("cuda-oom", 1, 3, first["run"])
    assert (latest["class"], latest["exit_code"], latest["log"][-1]) == ("unknown", 4, "bye")
    assert latest["failures"] >= 2
    assert {"HIDDEN_VALUE", "PATH"} <= set(first["environment"])
    assert "mem-fraction-static 0.9" in first["command"]
    assert any(line.startswith("Max open files") for line in first["limits"])
    assert crashes(fleet) != []
    whole = fleet.cli("crashes", "a").stdout
    assert "RuntimeError: CUDA error: out of memory" in whole
    assert "cuda-oom" in fleet.cli("crashes").stdout
    assert SECRET not in whole + json.dumps(crashes(fleet)) + fleet.event_log.read_text()
    assert fleet.cli("crashes", "b").stdout == "no crashes of b are known\n"
    for path in (fleet.run_dir / "crashes").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_dossiers_outlive_the_entry(fleet: Fleet) -> None:
    fleet.write(server("a", free_port(), control=fleet.wrap("a", "echo bye; exit 4")))
    fleet.start()
    wait_crashes(fleet, "a", 1)
    fleet.stop()
    found = list((fleet.run_dir / "crashes").glob("a.*.json"))
    assert found
    assert json.loads(found[0].read_text())["log"] == ["bye"]


def test_servers_user_reads_the_dossiers_of_roots_entry(fleet: Fleet) -> None:
    user = pwd.getpwnam("nobody")
    fleet.log_dir.mkdir()
    os.chown(fleet.log_dir, user.pw_uid, user.pw_gid)
    fleet.write(server("a", free_port(), control=fleet.wrap("a", "echo bye; exit 4")))
    fleet.start(AUTO_INFER_SGLANG_USER="nobody")
    wait_crashes(fleet, "a", 1)
    folder = fleet.run_dir / "crashes"
    assert (folder.stat().st_uid, folder.stat().st_gid) == (0, user.pw_gid)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o750
    assert {path.stat().st_uid for path in folder.iterdir()} == {user.pw_uid}


def test_dossiers_that_cannot_be_written_disturb_nothing_and_are_warned_of_once(fleet: Fleet) -> None:
    fleet.run_dir.mkdir()
    (fleet.run_dir / "crashes").write_text("in the way")
    fleet.write(server("a", free_port(), control=fleet.wrap("a", "exit 4")))
    fleet.start()
    fleet.wait_event("server.crashed", "a", count=6, timeout_s=30)
    warned = fleet.events("server.dossier_lost")
    assert len(warned) == 1
    assert "crashes" in warned[0]["error"]


def test_endless_line_of_rubbish_is_told_cut_and_clean(fleet: Fleet) -> None:
    rubbish = "head -c 3000000 /dev/urandom | tr -d '\\n'; printf '\\033[31m\\000 RuntimeError: CUDA out of memory'"
    fleet.write(server("a", free_port(), control=fleet.wrap("a", f"{rubbish}; exit 5")))
    fleet.start()
    crashed = fleet.wait_event("server.crashed", "a", count=2, timeout_s=30)
    assert not re.search("[\x00-\x08\x0a-\x1f\x7f-\x9f]", crashed["reason"])
    assert len(crashed["reason"]) < 500
    dossier = wait_crashes(fleet, "a", 1)[0]
    assert all(len(line) <= 1000 for line in dossier["log"])


def fake_tool(fleet: Fleet, name: str, script: str) -> str:
    """Put a program of that name first on the PATH, and return the PATH."""
    folder = fleet.base / "bin"
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


def test_hang_leaves_a_dossier_with_processes_and_stacks(fleet: Fleet) -> None:
    path = fake_tool(fleet, "py-spy", 'echo "$1 $2 $3 $4"')
    hang = fleet.base / "hang"
    words = ("--hang-file", str(hang), "--fork-grandchild", "setsid")
    fleet.write(server("a", free_port(), *words, probe=HANGS))
    fleet.start(PATH=path)
    old_pid = fleet.wait_ready("a")["a"]["pid"]
    hang.touch()
    fleet.wait_event("server.crashed", "a", **{"class": "hung"})
    (dossier,) = wait_crashes(fleet, "a", 1)
    hang.unlink()
    members = [int(line.split()[0]) for line in dossier["processes"]]
    assert old_pid in members
    assert dossier["stacks"].splitlines() == [f"dump --nonblocking --pid {pid}" for pid in members]
    assert len(dossier["processes"]) >= 2
    assert dossier["class"] == "hung"
    assert not list(fleet.log_dir.glob("*.hang"))
    assert not list(fleet.run_dir.glob("crashes.*"))


def test_stacks_are_read_by_the_py_spy_beside_the_servers_interpreter(fleet: Fleet) -> None:
    """There a bundle has it. Of what it says, processes that are no Python are left out."""
    folder = fleet.base / "env" / "bin"
    folder.mkdir(parents=True)
    (folder / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (folder / "py-spy").write_text(
        '#!/bin/sh\n[ "$4" = "$(cat "$0.pid")" ] && echo "Thread of $4" || echo "Error: $4"\n'
    )
    for name in ("python", "py-spy"):
        (folder / name).chmod(0o755)
    hang = fleet.base / "hang"
    words = ("--hang-file", str(hang), "--fork-grandchild", "setsid")
    fleet.write(server("a", free_port(), *words, probe=HANGS, control={"python_path": str(folder / "python")}))
    fleet.start()
    pid = fleet.wait_ready("a")["a"]["pid"]
    (folder / "py-spy.pid").write_text(f"{pid}\n")
    hang.touch()
    (dossier,) = wait_crashes(fleet, "a", 1)
    hang.unlink()
    assert dossier["stacks"] == f"Thread of {pid}"


def test_nvidia_smi_that_hangs_is_ended_and_what_it_said_is_kept(fleet: Fleet) -> None:
    path = fake_tool(fleet, "nvidia-smi", "echo one GPU; exec sleep 600")
    a, b = free_ports(2)
    control = {"gpu_ids": "all", **fleet.wrap("a", "echo bye; exit 4")}
    fleet.write(server("a", a, control=control), server("b", b))
    fleet.start(PATH=path)
    fleet.wait_event("server.crashed", "a", count=3)  # the restarts do not wait for it
    dossier = wait_crashes(fleet, "a", 1)[0]
    assert dossier["nvidia_smi"] == "one GPU"
    fleet.wait(lambda: len(fleet.find_processes("sleep", "600")) <= 1, 20, "the first nvidia-smi to be ended")
    shutil.rmtree(fleet.base / "bin")  # no new one; the last ends with its limit
    fleet.wait(lambda: not fleet.find_processes("sleep", "600"), 20, "the last nvidia-smi to be ended")
