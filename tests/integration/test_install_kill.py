"""SIGKILL at random moments of an install: what served still does, and the next run ends complete and hash-clean."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest
from bundles import check_records, describe_wheelhouse, make_wheelhouse, pack, small_wheel
from installing import Workspace, make_base
from wait import wait_until

import infer_dev_entry.bundle.unpack  # noqa: F401 (the installer imports it late)
from infer_dev_entry.install.model import InstallRequest
from infer_dev_entry.install.progress import LogProgress
from infer_dev_entry.install.run import install

TRIALS = 30
WHEELS = 3


@pytest.fixture
def work() -> Iterator[Workspace]:
    base = make_base()
    try:
        yield Workspace(base)
    finally:
        shutil.rmtree(base, ignore_errors=True)


class Series:
    """Bundles of the same wheels that differ in their digest, and say their number through the activation."""

    def __init__(self, base: Path) -> None:
        self._folder = base / "folder"
        self._target = base / "bundle.tar"
        make_wheelhouse(self._folder, [small_wheel(f"package-{n}", files=20, size=3000) for n in range(WHEELS)])

    def make(self, number: int) -> Path:
        return pack(describe_wheelhouse(self._folder, activation={"TRIAL": str(number)}), self._target)


def fork_install(work: Workspace, bundle: Path) -> int:
    """Install in a fork of this process, which has imported everything: sixty fresh interpreters take a minute."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        os.setsid()
        request = InstallRequest(bundle_path=str(bundle), project_dir=str(work.project))
        install(request, LogProgress(SilentLog()), os.environ)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


class SilentLog:
    def info(self, event: str, **values: object) -> None:
        return


def install_to_the_end(work: Workspace, bundle: Path) -> None:
    assert os.waitpid(fork_install(work, bundle), 0)[1] == 0


def trial_in_use(work: Workspace) -> int:
    """Return the number of the bundle whose environment `env` is, which must be whole."""
    assert check_records(work.env) == WHEELS
    complete = (work.env / ".complete").read_text(encoding="utf-8")
    return int(complete.partition('"TRIAL": "')[2].partition('"')[0])


@pytest.mark.timeout(600)  # sixty installs
def test_kill_at_random_moments_always_ends_complete(work: Workspace) -> None:
    seed = int.from_bytes(os.urandom(4))
    print(f"seed {seed}")  # shown when it fails
    moments = random.Random(seed)
    series = Series(work.base)
    began = time.monotonic()
    install_to_the_end(work, series.make(0))
    longest = time.monotonic() - began
    for number in range(1, TRIALS + 1):
        bundle = series.make(number)
        pid = fork_install(work, bundle)
        time.sleep(moments.uniform(0.0, longest))
        os.kill(pid, signal.SIGKILL)  # it alone, as an out-of-memory killer does: its tools must follow by themselves
        os.waitpid(pid, 0)
        assert trial_in_use(work) in (number - 1, number)
        began = time.monotonic()
        install_to_the_end(work, bundle)
        longest = (longest + time.monotonic() - began) / 2
        assert trial_in_use(work) == number
        work.check(packages=WHEELS)


def test_killed_installer_takes_its_tools_along(work: Workspace) -> None:
    verify = [
        "python",
        "-c",
        "import os, time; print(os.getpid(), file=open('asleep', 'w'), flush=True); time.sleep(60)",
    ]
    folder = make_wheelhouse(work.base / "slow", [small_wheel("alpha")], verify=verify)
    run = work.start(pack(folder, work.base / "slow.tar"))
    asleep = wait_until(lambda: next(work.project.glob("envs/*/asleep"), None), 30, "the verify command")
    pid = int(wait_until(lambda: asleep.read_text().strip()))
    os.kill(run.process.pid, signal.SIGKILL)
    wait_until(lambda: not os.path.exists(f"/proc/{pid}"), 15, "the end of the verify command")
    run.kill()
