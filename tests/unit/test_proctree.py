"""Who belongs to whom, on made-up process tables; real processes are in the integration tests."""

from __future__ import annotations

import os

from infer_dev_entry.proctree import (
    ProcInfo,
    Tracked,
    find_descendants,
    find_leftovers,
    find_spared,
    read_process,
    read_processes,
    track,
)

# Pids above the kernel's limit (2**22): their environment cannot exist by accident.
BASE = 5_000_000


def table(*rows: tuple[int, int, int, int]) -> dict[int, ProcInfo]:
    """Make a process table from (pid, ppid, pgid, start_ticks), pids relative to BASE (0 and 1 stay)."""

    def pid(number: int) -> int:
        return BASE + number if number > 1 else number

    return {
        pid(row[0]): ProcInfo(
            pid=pid(row[0]), ppid=pid(row[1]), pgid=pid(row[2]), sid=7, start_ticks=row[3], state="S", comm="x"
        )
        for row in rows
    }


def tracked(main: int, *members: tuple[int, int]) -> Tracked:
    return Tracked(mark="none/x", main_pid=BASE + main, sid=7, members=frozenset((BASE + pid, t) for pid, t in members))


def pids(*numbers: int) -> set[int]:
    return {BASE + number for number in numbers}


def test_own_process_is_read() -> None:
    info = read_process(os.getpid())
    assert info is not None
    assert info.ppid == os.getppid()
    assert info.pgid == os.getpgid(0)
    assert info.sid == os.getsid(0)
    assert os.getpid() in read_processes()


def test_gone_process_is_none() -> None:
    assert read_process(BASE) is None
    assert track("m", BASE).members == frozenset()


def test_descendants_are_found_at_any_depth() -> None:
    processes = table((2, 1, 2, 1), (3, 2, 2, 1), (4, 3, 4, 1), (5, 1, 5, 1))
    assert find_descendants(processes, pids(2)) == pids(3, 4)


def test_leftovers_are_group_known_members_and_their_children() -> None:
    # 2 (the main process) is dead: 3 was in its group, 4 called setsid but was seen, 5 is 4's child, 6 a stranger.
    processes = table((3, 1, 2, 1), (4, 1, 4, 1), (5, 4, 5, 9), (6, 1, 6, 1))
    assert find_leftovers(tracked(2, (2, 1), (4, 1)), processes, set()) == pids(3, 4, 5)
    # 7 carries the mark, and 8 is its child.
    more = table((7, 1, 7, 1), (8, 7, 8, 1), (9, 1, 9, 1))
    assert find_leftovers(tracked(2), more, pids(7)) == pids(7, 8)


def test_leftovers_skip_a_pid_that_was_used_again() -> None:
    processes = table((4, 1, 4, 99))
    assert find_leftovers(tracked(2, (4, 1)), processes, set()) == set()


def test_leftovers_skip_a_group_of_another_session() -> None:
    processes = table((3, 1, 2, 1))
    alien = Tracked(mark="none/x", main_pid=BASE + 2, sid=8, members=frozenset())
    assert find_leftovers(alien, processes, set()) == set()


def test_leftovers_never_hold_ourselves() -> None:
    processes = read_processes()
    mine = Tracked(mark="none/x", main_pid=os.getpgid(0), sid=os.getsid(0), members=frozenset())
    assert os.getpid() not in find_leftovers(mine, processes, {os.getpid()})


def test_members_grow_with_descendants_and_forget_the_dead() -> None:
    known = tracked(2, (2, 1), (9, 1)).with_descendants(table((2, 1, 2, 1), (3, 2, 2, 5)))
    assert known.members == frozenset({(BASE + 2, 1), (BASE + 3, 5)})


def test_members_keep_growing_below_an_orphan() -> None:
    known = tracked(2, (2, 1), (3, 1)).with_descendants(table((3, 1, 3, 1), (4, 3, 3, 2)))
    assert known.members == frozenset({(BASE + 3, 1), (BASE + 4, 2)})


def test_spared_are_supervisords_programs_but_not_the_one_to_kill() -> None:
    processes = table((2, 1, 2, 1), (3, 2, 3, 1), (4, 3, 3, 1), (5, 2, 5, 1))
    supervisord = BASE + 2
    assert find_spared(tracked(3), processes, supervisord, True) == pids(2, 3, 4, 5)
    assert find_spared(tracked(3), processes, supervisord, False) == pids(2, 5)
    assert find_spared(tracked(3), processes, 0, True) == set()
