"""How many CPUs a process may use, by affinity and cgroup quota."""

from __future__ import annotations

import pytest

from infer_dev_entry.llama_server import cpus


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("max 100000", ()),
        ("150000 100000", (1.5,)),
        ("-1 100000", ()),
        ("", ()),
        ("100000 0", ()),
        ("a b c", ()),
    ],
)
def test_parse_cpu_max_reads_both_cgroup_versions(text: str, expected: tuple[float, ...]) -> None:
    assert cpus.parse_cpu_max(text) == expected


@pytest.mark.parametrize(
    ("affinity", "quotas", "expected"), [(8, [], 8), (8, [1.5], 2), (8, [0.1], 1), (2, [4.0], 2), (8, [6.0, 3.0], 3)]
)
def test_available_cpus_is_the_tightest_limit(
    monkeypatch: pytest.MonkeyPatch, affinity: int, quotas: list[float], expected: int
) -> None:
    monkeypatch.setattr(cpus.os, "sched_getaffinity", lambda pid: set(range(affinity)))
    monkeypatch.setattr(cpus, "_cgroup_quotas", lambda: iter(quotas))
    assert cpus.available_cpus() == expected
