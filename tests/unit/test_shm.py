"""Who has SGLang's shared memory open, on a made-up /proc, and what is removed."""

from __future__ import annotations

from pathlib import Path

import pytest

from infer_dev_entry import shm

SEGMENT = "/dev/shm/sglang_loads_25d5cc56a785_52ddd26b.shm"


def opens(proc: Path, pid: int, *targets: str) -> None:
    """Give a process open files."""
    (proc / str(pid) / "fd").mkdir(parents=True)
    for number, target in enumerate(targets):
        (proc / str(pid) / "fd" / str(number)).symlink_to(target)


def test_segments_are_those_of_sglang_that_the_named_processes_have_open(tmp_path: Path) -> None:
    opens(tmp_path, 5, "/dev/null", SEGMENT, "/dev/shm/psm_1a2b", "socket:[7]")
    opens(tmp_path, 6, "/dev/shm/sgl_shm_mq_6_0a1b2c3d")
    opens(tmp_path, 7, "/dev/shm/sglang_loads_another_0.shm")
    assert shm.read_segments([5, 6, 99], tmp_path) == {SEGMENT, "/dev/shm/sgl_shm_mq_6_0a1b2c3d"}


@pytest.mark.parametrize("target", [f"{SEGMENT} (deleted)", "/tmp/sglang_loads_x", "/dev/shm/x/sglang_loads_x"])
def test_what_is_gone_or_elsewhere_is_no_segment(tmp_path: Path, target: str) -> None:
    opens(tmp_path, 5, target)
    assert shm.read_segments([5], tmp_path) == set()


def test_removal_names_what_was_there(tmp_path: Path) -> None:
    kept, gone = tmp_path / "kept", tmp_path / "gone"
    kept.touch()
    assert shm.remove_segments([str(gone), str(kept), str(tmp_path)]) == [str(kept)]
    assert not kept.exists()
