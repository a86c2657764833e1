"""Crash dossiers: bounded, private, and told to people."""

from __future__ import annotations

import json
import os
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from infer_dev_entry.cli.crashes import render_crash_table, render_dossier_text
from infer_dev_entry.dossier import (
    MAX_BYTES,
    MAX_FILES,
    Dossier,
    parse_dossier,
    read_dossiers,
    render_dossier,
    to_json,
    write_dossier,
)
from infer_dev_entry.errors import RunDirError

PLAIN = Dossier(
    server="glm",
    engine="sglang",
    kind="cuda-oom",
    policy="retry",
    reason="was killed by SIGKILL: CUDA out of memory",
    mend="lower mem_fraction_static (now 0.9)",
    failures=1,
    run=3,
    ended_at=1000.0,
    ran_s=61.0,
    exit_code=None,
    signal=9,
    command="python -m sglang.launch_server --port 30000",
    environment=("HOME", "PATH"),
    gpu_ids=("0", "1"),
    log_file="/tmp/glm.log",
    processes=("12 S parent 1 sglang::scheduler",),
    counters=("memory.events: oom_kill 0",),
    limits=("Max open files 1024",),
    nvidia_smi="one\ntwo",
    stacks="Thread 1",
    log=("first", "  last"),
)


def test_dossier_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    write_dossier(str(tmp_path), PLAIN, owner=None)
    write_dossier(str(tmp_path), replace(PLAIN, server="other", ended_at=999.0, gpu_ids=None, ran_s=None), owner=None)
    assert read_dossiers(str(tmp_path), "glm") == (PLAIN,)
    assert [dossier.server for dossier in read_dossiers(str(tmp_path))] == ["other", "glm"]
    assert read_dossiers(str(tmp_path / "absent")) == ()


def test_first_failure_in_a_row_is_kept_beside_the_latest(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        write_dossier(str(tmp_path), replace(PLAIN, failures=number, ended_at=float(number)), owner=None)
    assert [dossier.failures for dossier in read_dossiers(str(tmp_path))] == [1, 3]
    write_dossier(str(tmp_path), replace(PLAIN, failures=1, ended_at=10.0), owner=None)  # a new row
    assert [dossier.ended_at for dossier in read_dossiers(str(tmp_path))] == [3.0, 10.0]


def test_files_are_private_and_the_owners(tmp_path: Path) -> None:
    write_dossier(str(tmp_path), PLAIN, owner=(os.geteuid(), os.getegid()))
    (path,) = (tmp_path / "crashes").iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o750


@pytest.mark.parametrize("name", ["../../etc/passwd", "a/b", "." * 300, "\x00\n", ""])
def test_hostile_name_stays_in_the_directory(tmp_path: Path, name: str) -> None:
    write_dossier(str(tmp_path / "run"), replace(PLAIN, server=name), owner=None)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert len(list((tmp_path / "run" / "crashes").iterdir())) == 1


@pytest.mark.parametrize("line", ["x" * 1000, "\x00\x1b\ud800" * 300, "漢" * 1000])
def test_dossier_is_bounded_and_keeps_the_end_of_its_log(line: str) -> None:
    huge = replace(PLAIN, log=(*[line] * 2000, "the end"), stacks="y" * 49152, environment=("N" * 200,) * 500)
    text = render_dossier(huge)
    assert len(text.encode()) <= MAX_BYTES
    assert parse_dossier(text).log[-1] == "the end"
    worst = replace(huge, log=(), processes=("p" * 1000,) * 1000)
    assert len(render_dossier(worst).encode()) <= MAX_BYTES


def test_oldest_are_dropped_when_there_are_too_many(tmp_path: Path) -> None:
    for number in range(MAX_FILES + 5):
        write_dossier(str(tmp_path), replace(PLAIN, server=f"s{number}", ended_at=float(number)), owner=None)
        path = tmp_path / "crashes" / f"s{number}.first.json"
        os.utime(path, (number, number))
    kept = read_dossiers(str(tmp_path))
    assert len(kept) == MAX_FILES
    assert kept[0].server == "s5"


def test_directory_that_cannot_be_used_is_an_error_that_says_so(tmp_path: Path) -> None:
    (tmp_path / "crashes").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(RunDirError, match="is not a directory of uid"):
        write_dossier(str(tmp_path), PLAIN, owner=None)
    (tmp_path / "file").touch()
    with pytest.raises(RunDirError, match="cannot make"):
        write_dossier(str(tmp_path / "file"), PLAIN, owner=None)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "{}", "[" * 10_000, json.dumps({"server": 1}), render_dossier(PLAIN)[:-40]]
)
def test_what_is_no_dossier_is_left_out(text: str) -> None:
    assert parse_dossier(text) is None


@pytest.mark.parametrize("name", ["log", "failures", "ended_at", "environment"])
def test_field_of_another_type_is_no_dossier(name: str) -> None:
    data = json.loads(render_dossier(PLAIN)) | {name: "text"}
    assert parse_dossier(json.dumps(data)) is None


def test_scripts_find_the_class_under_its_name() -> None:
    data = to_json(PLAIN)
    assert data["class"] == "cuda-oom"
    assert "kind" not in data


def test_table_has_a_line_a_dossier() -> None:
    table = render_crash_table((PLAIN, replace(PLAIN, server="x", reason="y" * 500, failures=12)), 1090.0).splitlines()
    assert table[0].split() == ["NAME", "AGO", "CLASS", "IN", "A", "ROW", "REASON"]
    assert table[1].split()[:4] == ["glm", "1m30s", "cuda-oom", "1"]
    assert len(table[2]) < 220


def test_dossier_is_told_to_people_with_its_log_last() -> None:
    text = render_dossier_text(PLAIN, 1090.0)
    assert text.startswith("glm: cuda-oom, 1m30s ago\n  reason    was killed by SIGKILL: CUDA out of memory\n")
    assert "mend      lower mem_fraction_static (now 0.9)" in text
    assert "after 1m01s, run 3, failure 1 in a row (retry)" in text
    assert text.endswith("  log:\n    first\n      last")
    bare = replace(PLAIN, processes=(), counters=(), limits=(), nvidia_smi="", stacks="", log=(), environment=())
    assert render_dossier_text(bare, 1090.0).splitlines()[-1] == "  log file  /tmp/glm.log"
