"""The thread that hashes: right digests, a bounded queue, and neither side waits for one that failed."""

from __future__ import annotations

import hashlib
import threading
from typing import Any

import pytest
from wait import wait_until

from infer_dev_entry.bundle import hashing
from infer_dev_entry.bundle.hashing import BackgroundHash

WAIT_S = 10.0


class FakeSha256:
    """Takes pieces once it is let, or fails."""

    def __init__(self, gate: threading.Event, error: BaseException | None = None) -> None:
        self.gate, self.error = gate, error
        self.taken = 0

    def update(self, piece: bytes) -> None:
        assert self.gate.wait(WAIT_S)
        if self.error is not None:
            raise self.error
        self.taken += 1

    def hexdigest(self) -> str:
        return str(self.taken)


def make_hash(monkeypatch: pytest.MonkeyPatch, fake: FakeSha256) -> BackgroundHash:
    class FakeHashlib:
        @staticmethod
        def sha256() -> Any:
            return fake

    monkeypatch.setattr(hashing, "hashlib", FakeHashlib)
    return BackgroundHash("test")


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "test"]


def test_each_key_has_the_digest_of_its_own_pieces() -> None:
    background = BackgroundHash("test")
    pieces = {f"file-{number}": [bytes([number]) * size for size in (1, 5000, 70_000)] for number in range(20)}
    for key, parts in pieces.items():
        for part in parts:
            background.update(memoryview(part))
        background.end(key)
    background.end("empty")
    found = background.finish()
    assert found == {key: hashlib.sha256(b"".join(parts)).hexdigest() for key, parts in pieces.items()} | {
        "empty": hashlib.sha256().hexdigest()
    }
    assert not threads()


def test_queue_is_bounded_while_the_hash_is_slower(monkeypatch: pytest.MonkeyPatch) -> None:
    gate, fed = threading.Event(), []
    background = make_hash(monkeypatch, FakeSha256(gate))

    def feed() -> None:
        for number in range(50):
            background.update(b"x")
            fed.append(number)

    feeder = threading.Thread(target=feed)
    feeder.start()
    feeder.join(0.2)
    assert feeder.is_alive() and len(fed) <= 5  # four wait, and one is in hand
    gate.set()
    feeder.join(WAIT_S)
    background.end("all")
    assert background.finish() == {"all": "50"}


def test_error_in_the_thread_comes_out_and_nobody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()
    gate.set()
    background = make_hash(monkeypatch, FakeSha256(gate, MemoryError("no memory")))
    with pytest.raises(MemoryError, match="no memory"):
        for _ in range(1000):
            background.update(b"x")
        background.finish()
    background.abandon()
    assert not threads()
    with pytest.raises(MemoryError):
        background.finish()


def test_abandon_ends_the_thread_without_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()
    fake = FakeSha256(gate)
    background = make_hash(monkeypatch, fake)
    for _ in range(4):
        background.update(b"x")

    def release() -> None:
        wait_until(lambda: background._abandoned, WAIT_S)
        gate.set()

    releaser = threading.Thread(target=release)
    releaser.start()
    background.abandon()
    releaser.join()
    assert fake.taken <= 1 and not threads()
    background.abandon()
