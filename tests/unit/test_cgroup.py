"""The container's memory cgroup, as files that look like the kernel's."""

from __future__ import annotations

from pathlib import Path

import pytest

from infer_dev_entry.cgroup import RECENT_S, MemoryCgroup, OomWatch, find_memory_cgroup, parse_limit, parse_oom_kills

V1 = "oom_kill_disable 0\nunder_oom 0\noom_kill {}\n"
V2 = "low 0\nhigh 0\nmax 12\noom 3\noom_kill {}\noom_group_kill 0\n"
HYBRID = "9:name=systemd:/docker/ab\n4:memory:/docker/ab\n1:cpu,cpuacct:/docker/ab\n0::/docker/ab\n"


def make_cgroup(folder: Path, *, version: int, kills: int = 0, limit: str = "") -> None:
    """Write the two files of one cgroup."""
    folder.mkdir(parents=True, exist_ok=True)
    counter, limit_file, text = {
        1: ("memory.oom_control", "memory.limit_in_bytes", V1),
        2: ("memory.events", "memory.max", V2),
    }[version]
    (folder / counter).write_text(text.format(kills))
    (folder / limit_file).write_text(limit + "\n")


def find(tmp_path: Path, membership: str) -> MemoryCgroup | None:
    """Find it below a root of our own."""
    (tmp_path / "self").write_text(membership)
    return find_memory_cgroup(tmp_path / "cgroup", tmp_path / "self")


@pytest.mark.parametrize(
    ("membership", "version", "folder"),
    [
        ("0::/\n", 2, ""),  # version 2 in a namespace of its own, as Docker does it
        ("0::/kubepods/pod1\n", 2, "kubepods/pod1"),
        ("0::/../other\n", 2, ""),  # entered from outside the namespace
        (HYBRID, 1, "memory"),  # version 1 in Docker: the path is the host's, the mount is the container's
        (HYBRID, 1, "memory/docker/ab"),  # version 1 on a host
        ("3:hugetlb,memory:/\n", 1, "memory"),
        ("4:memory:/a:b\n", 1, "memory/a:b"),
    ],
)
def test_cgroup_of_either_version_is_found(tmp_path: Path, membership: str, version: int, folder: str) -> None:
    make_cgroup(tmp_path / "cgroup" / folder, version=version)
    found = find(tmp_path, membership)
    assert found is not None
    assert found.counter.parent == tmp_path / "cgroup" / folder
    assert found.limit.is_file()


def test_cgroup_that_is_not_mounted_is_none(tmp_path: Path) -> None:
    assert find(tmp_path, HYBRID) is None
    assert find_memory_cgroup(tmp_path, tmp_path / "not there") is None


@pytest.mark.parametrize("text", [V1, V2])
def test_kills_are_parsed_from_either_version(text: str) -> None:
    assert parse_oom_kills(text.format(7)) == 7


@pytest.mark.parametrize("text", ["", "oom 3\n", "oom_kill\n", "oom_kill x\n", "\n\n"])
def test_kills_of_another_text_are_none(text: str) -> None:
    assert parse_oom_kills(text) == 0


@pytest.mark.parametrize(
    ("text", "limit"),
    [("536870912\n", 536870912), ("max\n", None), ("9223372036854771712\n", None), ("", None), ("-1", None)],
)
def test_limit_is_parsed(text: str, limit: int | None) -> None:
    assert parse_limit(text) == limit


class Watched:
    """An OOM watch over a file that tests write, with a clock that they set."""

    def __init__(self, folder: Path, limit: str = "536870912") -> None:
        self.folder, self.limit, self.now = folder, limit, 100.0
        self.set_kills(3)
        self.watch = OomWatch(find_memory_cgroup(folder, Path(folder, "self")), lambda: self.now)

    def set_kills(self, kills: int) -> None:
        make_cgroup(self.folder, version=2, kills=kills, limit=self.limit)
        Path(self.folder, "self").write_text("0::/\n")

    def explain(self, *, killed: bool = True) -> str:
        self.watch.look()
        return self.watch.explain(killed=killed)


def test_kills_before_the_watch_explain_nothing(tmp_path: Path) -> None:
    assert Watched(tmp_path).explain() == ""


def test_kill_explains_one_death_with_the_limit(tmp_path: Path) -> None:
    watched = Watched(tmp_path)
    watched.set_kills(4)
    assert watched.explain() == "out of memory (the container's limit is 512 MiB)"
    assert watched.explain() == ""


def test_two_kills_explain_two_deaths(tmp_path: Path) -> None:
    watched = Watched(tmp_path)
    watched.set_kills(5)
    assert [bool(watched.explain()) for _ in range(3)] == [True, True, False]


def test_kill_of_a_worker_explains_its_servers_exit_for_a_while(tmp_path: Path) -> None:
    watched = Watched(tmp_path)
    watched.set_kills(4)
    assert watched.explain(killed=False)
    watched.now += RECENT_S
    assert watched.explain(killed=False)
    watched.now += 0.1
    assert watched.explain(killed=False) == ""


def test_kill_without_a_limit_is_the_hosts(tmp_path: Path) -> None:
    watched = Watched(tmp_path, limit="max")
    watched.set_kills(4)
    assert watched.explain() == "out of memory (the host's, as the container has no limit of its own)"


def test_watch_without_a_cgroup_explains_nothing() -> None:
    watch = OomWatch(None)
    watch.look()
    assert watch.explain(killed=True) == ""


def test_counter_that_vanishes_explains_nothing(tmp_path: Path) -> None:
    watched = Watched(tmp_path)
    (tmp_path / "memory.events").unlink()
    assert watched.explain() == ""
