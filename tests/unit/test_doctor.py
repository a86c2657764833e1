"""The doctor's words: rows, wishes read from command lines, the environment, the running fleet, and reads that hang."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
from make import make_spec
from test_boundaries import EFFECTS, PACKAGE, imported_modules

from infer_dev_entry.cli import main
from infer_dev_entry.doctor.environment import read_environment, read_installed
from infer_dev_entry.doctor.environment_checks import Access, Installed, check_access, check_installed
from infer_dev_entry.doctor.fleet_checks import check_entry, check_ports, states_of
from infer_dev_entry.doctor.later import LateError, Later
from infer_dev_entry.doctor.rows import Row, fail, is_healthy, ok, render_json, render_table, size, skip, warn
from infer_dev_entry.doctor.wishes import Wish, read_wish
from infer_dev_entry.spec import FileSpec

PURE = (
    "rows",
    "wishes",
    "safetensors",
    "gguf",
    "found_model",
    "vram",
    "gpu_checks",
    "vram_checks",
    "model_checks",
    "environment_checks",
    "machine_checks",
    "fleet_checks",
    "download_checks",
)


@pytest.mark.parametrize("name", PURE)
def test_checks_are_pure(name: str) -> None:
    assert not imported_modules(PACKAGE / "doctor" / f"{name}.py") & EFFECTS


ROWS = [ok("a", "fine"), warn("longer", "odd", "mend it"), skip("s", "why")]


def test_table_is_aligned_and_mends_have_their_own_line() -> None:
    assert render_table(ROWS).splitlines() == [
        "CHECK   VERDICT  SEEN",
        "a       ok       fine",
        "longer  warn     odd",
        "                 → mend it",
        "s       skip     why",
        "1 ok, 1 warn, 0 fail, 1 skip",
    ]


def test_json_has_the_four_keys_and_health() -> None:
    data = json.loads(render_json([*ROWS, fail("f", "bad", "do")]))
    assert data["ok"] is False
    assert data["rows"][-1] == {"check": "f", "verdict": "fail", "seen": "bad", "mend": "do"}
    assert is_healthy(ROWS)


@pytest.mark.parametrize(("count", "text"), [(0, "0 bytes"), (2**20, "1 MiB"), (3 * 2**29, "1.5 GiB")])
def test_sizes_are_binary(count: int, text: str) -> None:
    assert size(count) == text


def wish_of(*words: str, **changes: Any) -> Wish:
    argv = ("/p/env/bin/python", "-m", "sglang.launch_server", *words)
    return read_wish(make_spec(**{"argv": argv, "gpu_ids": None, **changes}))


def test_wish_is_read_from_the_command_line() -> None:
    words = ("--model-path", "/m", "--tp", "4", "--pp-size=2", "--mem-fraction-static", "0.8")
    wish = wish_of(*words, min_gpus=8)
    assert (wish.model, wish.tp, wish.pp, wish.gpus, wish.mem_fraction) == ("/m", 4, 2, 8, 0.8)


def test_wish_has_every_port_that_is_bound() -> None:
    wish = wish_of("--nccl-port", "7", more_ports=(7, 8))
    assert wish.ports == (("port", 30000), ("nccl_port", 7), ("distributed port", 8))


def test_wish_takes_the_last_of_repeated_flags_and_no_negative_number_for_a_flag() -> None:
    wish = wish_of("--tp-size", "2", "--tp-size", "1", "--context-length", "-1", "--mem-fraction-static", "x")
    assert (wish.tp, wish.context_length, wish.mem_fraction) == (1, -1, 0)


def test_wish_reads_the_private_file_below_the_command_line_and_leaves_keys() -> None:
    text = json.dumps({"model-path": "/y", "tp-size": 2, "api-key": "secret"})
    wish = wish_of("--tp-size", "4", files=(FileSpec(path="/f", text=text),))
    assert (wish.model, wish.tp) == ("/y", 4)
    assert "secret" not in repr(wish)


@pytest.mark.parametrize("text", ["", "[]", "nope", "[" * 100_000])
def test_wish_survives_an_odd_private_file(text: str) -> None:
    assert wish_of("--model-path", "/m", files=(FileSpec(path="/f", text=text),)).model == "/m"


@pytest.mark.parametrize(
    ("changes", "gpus"),
    [
        ({"min_gpus": 4}, 4),
        ({"min_gpus": 0}, 0),  # on the CPU
        ({"gpu_ids": ()}, 0),
        ({"engine": "llama_cpp"}, 0),
        ({"engine": "llama_cpp", "gpu_ids": ("0", "1")}, 2),
    ],
)
def test_wish_counts_the_gpus_that_are_needed(changes: dict[str, Any], gpus: int) -> None:
    assert wish_of(**changes).gpus == gpus


@pytest.mark.parametrize("word", ["inf", "nan"])
def test_wish_survives_odd_numbers(word: str) -> None:
    assert wish_of("--tp-size", word).tp == 1


def make_environment(base: Path) -> Path:
    packages = base / "env" / "lib" / "python3.12" / "site-packages"
    (packages / "torch").mkdir(parents=True)
    (packages / "torch" / "version.py").write_text("__version__ = '2.9.1+cu128'\ncuda: str = '12.8'\n")
    for name in ("sglang-0.5.10", "nvidia_cudnn_cu12-9.10.2.21", "torch-2.9.1"):
        (packages / f"{name}.dist-info").mkdir()
    return base / "env" / "bin" / "python"


def test_environment_is_read_by_its_files(tmp_path: Path) -> None:
    seen = read_environment(str(make_environment(tmp_path)))
    assert (seen.sglang, seen.torch, seen.torch_cuda, seen.cudnn) == ("0.5.10", "2.9.1+cu128", (12, 8), "9.10.2.21")
    assert read_environment(str(tmp_path / "none" / "bin" / "python")).is_there is False


def marker_text(prefix: Path, **changes: Any) -> str:
    data = {
        "prefix": str(prefix),
        "bundle_path": "/b.tar",
        "bundle_sha256": "0" * 64,
        "backend": "wheelhouse",
        "versions": {"python": "3.12.4", "sglang": "0.5.10"},
        "activation": {},
        "installed_at_unix": 1.0,
        "verify_output": "imported torch, sglang; GPUs: 1",
        "seconds": 1.0,
        "mb_per_s": 1.0,
        "warnings": [],
    }
    return json.dumps(data | changes)


def install(base: Path, **changes: Any) -> Installed:
    prefix = base / "envs" / "abc"
    (prefix / "bin").mkdir(parents=True)
    (prefix / "bin" / "python").touch()
    (prefix / ".complete").write_text("{}")
    (base / "env").symlink_to("envs/abc")
    (base / ".installed-from.json").write_text(marker_text(prefix, **changes))
    return read_installed(str(base))


def test_installed_and_verified_environment_is_ok(tmp_path: Path) -> None:
    row = check_installed(install(tmp_path), is_needed=True)
    assert (str(row.verdict), "python 3.12.4, sglang 0.5.10 (wheelhouse), verified" in row.seen) == ("ok", True)


@pytest.mark.parametrize(
    ("changes", "clause"), [({"verify_output": ""}, "never verified"), ({"warnings": ["no GPU is visible"]}, "no GPU")]
)
def test_environment_that_was_not_verified_warns(tmp_path: Path, changes: dict[str, Any], clause: str) -> None:
    row = check_installed(install(tmp_path, **changes), is_needed=True)
    assert (str(row.verdict), clause in row.seen) == ("warn", True)


@pytest.mark.parametrize(("needed", "verdict"), [(True, "fail"), (False, "warn")])
def test_environment_that_is_not_in_use_or_incomplete_is_told(tmp_path: Path, needed: bool, verdict: str) -> None:
    install(tmp_path)
    (tmp_path / "envs" / "abc" / ".complete").unlink()
    assert str(check_installed(read_installed(str(tmp_path)), is_needed=needed).verdict) == verdict


@pytest.mark.parametrize("text", ["", "{", "[]", '{"prefix": 3}', "[" * 100_000])
def test_marker_that_cannot_be_read_fails_where_it_is_needed(tmp_path: Path, text: str) -> None:
    (tmp_path / ".installed-from.json").write_text(text)
    seen = read_installed(str(tmp_path))
    assert "a marker that cannot be read" in check_installed(seen, is_needed=True).seen
    assert str(check_installed(seen, is_needed=False).verdict) == "skip"


def test_access_names_what_the_user_cannot_do() -> None:
    bad = Access(user="me", runs=(("/p", "Permission denied"),), reads=(("/m/a", ""), ("/m/b", "Permission denied")))
    (row,) = check_access(bad)
    assert (str(row.verdict), row.check) == ("fail", "files for user me")
    assert row.seen == "cannot run /p: Permission denied; cannot read /m/b: Permission denied"
    good = Access(user="me", runs=(("/p", ""),), reads=(("/m/a", ""), ("/m/b", "")))
    assert [(str(one.verdict), one.seen) for one in check_access(good)] == [
        ("ok", "1 interpreter run, 2 files can be read")
    ]
    assert str(check_access(Access(user="me", runs=(), reads=None))[0].verdict) == "skip"


STATUS = {
    "pid": 1,
    "stage": "running",
    "boot_error": None,
    "servers": [
        {"name": "a", "state": "ready", "restarts": 0, "reason": "", "mend": ""},
        {"name": "b", "state": "failed", "restarts": 5, "reason": "CUDA out of memory", "mend": "lower it"},
        {"name": "c", "state": "backoff", "restarts": 1, "reason": "exit status 1", "mend": ""},
    ],
}


def test_entry_and_its_servers_are_rows() -> None:
    rows = check_entry(STATUS, "")
    assert [str(row.verdict) for row in rows] == ["ok", "ok", "fail", "warn"]
    assert (rows[2].seen, rows[2].mend) == ("failed, 5 restarts: CUDA out of memory", "lower it")
    assert states_of(STATUS) == {"a": "ready", "b": "failed", "c": "backoff"}


def test_entry_that_could_not_boot_fails_and_none_is_skipped() -> None:
    assert str(check_entry({**STATUS, "boot_error": "no config"}, "")[0].verdict) == "fail"
    assert str(check_entry({**STATUS, "stage": "installing"}, "")[0].verdict) == "warn"
    assert check_entry(None, "nobody listens") == [skip("entry", "nobody listens")]
    assert [str(row.verdict) for row in check_entry({"servers": [3], "stage": "running"}, "")] == ["ok"]


def test_ports_name_who_holds_them() -> None:
    rows = check_ports([("a", "port", 1, None), ("a", "nccl_port", 2, "pid 7 (x)"), ("b", "port", 3, None)])
    assert rows == [
        Row(check="nccl_port of a", verdict=rows[0].verdict, seen="2 is in use by pid 7 (x)", mend=rows[0].mend),
        ok("ports", "1, 3: free, or this fleet's own"),
    ]
    assert str(rows[0].verdict) == "fail"


def test_read_that_hangs_is_late_and_one_that_fails_is_told() -> None:
    never = threading.Event()
    with pytest.raises(LateError, match=r"no answer in 0\.01 s"):
        Later(never.wait, 0.01).get()
    never.set()
    with pytest.raises(LateError, match="ZeroDivisionError"):
        Later(lambda: 1 / 0, 5).get()
    assert Later(lambda: None, 5).get() is None


def test_help_says_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["doctor", "--help"], {})
    assert "exit codes: 0 no check failed" in capsys.readouterr().out
