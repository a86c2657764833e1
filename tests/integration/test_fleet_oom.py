"""Whom the kernel is to kill when memory runs out: a server, which comes back, before PID 1 and supervisord.

A kill by the kernel itself needs a memory limit: see tests/e2e/test_faults.py.
"""

from __future__ import annotations

from pathlib import Path

from fleet import Fleet, free_port, server

from infer_dev_entry.supervisor_plugin import OOM_SCORE_RAISE

pytest_plugins = ("fleet_fixtures",)


def oom_score_adj(pid: int) -> int:
    """What is added to a process's share of memory, in thousandths."""
    return int(Path(f"/proc/{pid}/oom_score_adj").read_text())


def test_server_is_offered_to_the_oom_killer_before_the_entry_and_supervisord(fleet: Fleet) -> None:
    fleet.write(server("a", free_port()))
    fleet.start()
    row = fleet.wait_ready("a")["a"]
    base = oom_score_adj(fleet.host_pid(1))
    assert oom_score_adj(fleet.supervisor().pid) == base
    assert oom_score_adj(fleet.host_pid(row["pid"])) == min(1000, base + OOM_SCORE_RAISE)
