"""Leftovers are deleted, then the disk is asked to take the rest; whatever fails there comes out in the end."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from install_fakes import FakeProgress, make_env, store_of

from infer_dev_entry.errors import InstallError
from infer_dev_entry.install.model import Progress
from infer_dev_entry.install.settle import Settling
from infer_dev_entry.install.store import Store

WAIT_S = 10.0


class FakeSync:
    """Records what lay in staging when it was begun."""

    def __init__(self, store: Store) -> None:
        self.seen = os.listdir(store.staging_dir)
        self.finished = False

    def finish(self, progress: Progress) -> None:
        self.finished = True


class SlowStore(Store):
    """Deletes nothing until it is let."""

    __slots__ = ()
    gate = threading.Event()

    def sweep(self) -> None:
        assert self.gate.wait(WAIT_S)
        super().sweep()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = store_of(tmp_path / "project")
    make_env(Path(store.make_staging()) / "content")
    os.makedirs(f"{store.cache_dir}/uv")
    store.discard(f"{store.cache_dir}/uv")
    return store


def test_sync_begins_when_nothing_is_left_and_is_waited_for(store: Store) -> None:
    begun: list[FakeSync] = []

    def begin() -> FakeSync:
        begun.append(FakeSync(store))
        return begun[0]

    with Settling(store, begin) as settling:  # type: ignore[arg-type]
        settling.finish(FakeProgress())
    assert begun[0].seen == [] and begun[0].finished


def test_what_cannot_be_deleted_is_told_at_the_end(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Store, path: str) -> None:
        raise InstallError(f"cannot delete {path}: I/O error")

    monkeypatch.setattr(Store, "remove", refuse)
    with pytest.raises(InstallError, match="cannot delete"), Settling(store, lambda: None) as settling:  # type: ignore[arg-type,return-value]
        settling.finish(FakeProgress())


def test_error_beside_it_waits_for_the_deletion(store: Store) -> None:
    slow = SlowStore(store.project_dir)
    SlowStore.gate.clear()
    releaser = threading.Timer(0.1, SlowStore.gate.set)
    releaser.start()
    with pytest.raises(InstallError, match="does not verify"), Settling(slow, lambda: FakeSync(slow)):  # type: ignore[arg-type,return-value]
        raise InstallError("it does not verify")
    assert os.listdir(store.staging_dir) == []


def test_signal_beside_it_waits_for_nothing(store: Store) -> None:
    slow = SlowStore(store.project_dir)
    SlowStore.gate.clear()
    with pytest.raises(KeyboardInterrupt), Settling(slow, lambda: FakeSync(slow)) as settling:  # type: ignore[arg-type,return-value]
        raise KeyboardInterrupt
    assert os.listdir(store.staging_dir) != []
    SlowStore.gate.set()
    settling.finish(FakeProgress())


def test_deletion_without_an_end_is_given_up(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infer_dev_entry.install.settle.SWEEP_TIMEOUT_S", 0.0)
    slow = SlowStore(store.project_dir)
    SlowStore.gate.clear()
    with pytest.raises(InstallError, match="not done after 0 s"), Settling(slow, lambda: FakeSync(slow)) as settling:  # type: ignore[arg-type,return-value]
        settling.finish(FakeProgress())
    SlowStore.gate.set()
