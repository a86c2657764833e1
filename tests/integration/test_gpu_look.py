"""Who holds a GPU, told by real processes: the file that they have open stands for the driver's device."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from infer_dev_entry.gpu_look import describe_holder
from infer_dev_entry.gpu_wait import Holder
from infer_dev_entry.procaccess import marks_above

# As SGLang's scheduler: a child whose environment tells no mark, because setting a title has wiped it.
_PARENT = """
import os, subprocess, sys
environ = {key: value for key, value in os.environ.items() if key != "INFER_DEV_MARK"}
child = subprocess.Popen([sys.executable, "-c", sys.argv[2], sys.argv[1]], env=environ)
print(child.pid, flush=True)
sys.stdin.read()
child.kill()
"""
_CHILD = "import sys, time; kept = open(sys.argv[1]); print('open', flush=True); time.sleep(60)"


@pytest.fixture
def device(tmp_path: Path) -> str:
    (tmp_path / "dev").mkdir()
    path = tmp_path / "dev" / "nvidia0"
    path.touch()
    return str(path)


@pytest.fixture
def pids(device: str) -> Iterator[tuple[int, int]]:
    """A marked parent, and its child that has the device open."""
    command = [sys.executable, "-c", _PARENT, device, _CHILD]
    environ = {**os.environ, "INFER_DEV_MARK": "fleet-1/glm"}
    with subprocess.Popen(command, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None and parent.stdin is not None
        lines = sorted(parent.stdout.readline().strip() for _ in range(2))
        assert lines[1] == "open"
        yield parent.pid, int(lines[0])
        parent.stdin.close()


def test_process_without_a_mark_is_its_servers(pids: tuple[int, int], device: str) -> None:
    parent, child = pids
    found = describe_holder(child, 7)
    assert found is not None
    assert (found.pid, found.used_bytes, found.server) == (child, 7, "glm")
    assert describe_holder(parent, 7) is None  # it has no GPU open
    assert list(marks_above(child)) == ["fleet-1/glm"]


def test_process_of_nobody_is_named_by_itself(device: str) -> None:
    environ = {key: value for key, value in os.environ.items() if key != "INFER_DEV_MARK"}
    with subprocess.Popen([sys.executable, "-c", _CHILD, device], env=environ, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        found = describe_holder(process.pid, 0)
        process.kill()
    assert isinstance(found, Holder)
    assert (found.server, found.name[:6]) == ("", "python")


def test_process_that_is_gone_holds_nothing() -> None:
    assert describe_holder(2**22 - 1, 7) is None
    assert list(marks_above(2**22 - 1)) == []
