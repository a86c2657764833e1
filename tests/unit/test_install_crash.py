"""A crash before any one change to the workspace: the next install ends well, and something whole serves throughout."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from install_fakes import FakeProgress, digest_of, make_bundle, make_env, make_request, make_unpacked

from infer_dev_entry.bundle.model import UnpackedBundle
from infer_dev_entry.errors import InstallError
from infer_dev_entry.install import known as known_module
from infer_dev_entry.install import run as run_module
from infer_dev_entry.install.activation import plain_activation
from infer_dev_entry.install.marker import read_fast, read_marker
from infer_dev_entry.install.model import InstallRequest, Progress
from infer_dev_entry.install.run import install
from infer_dev_entry.install.switch import roll_back

# Every call by which the installer changes the disk.
CHANGES = ("rename", "replace", "symlink", "unlink", "mkdir", "makedirs", "fsync", "chmod")


class CrashError(BaseException):
    """The power fails here."""


class FakeBackend:
    """Installs the bundle's text as the environment's Python."""

    name = "fake"

    def problem(self, bundle: UnpackedBundle) -> str:
        return ""

    def install(self, bundle: UnpackedBundle, prefix: str, request: InstallRequest, progress: Progress) -> None:
        make_env(Path(prefix), bundle.root)

    def activation(self, prefix: str) -> tuple[tuple[str, str], ...]:
        return plain_activation(prefix)


class FakeSync:
    def __init__(self, folder: str) -> None:
        return

    def finish(self, progress: Progress) -> None:
        return


def fake_unpack(request: InstallRequest, staging: str, progress: Progress) -> UnpackedBundle:
    text = Path(request.bundle_path).read_text()
    Path(staging, "package").write_text(text)
    return make_unpacked(root=text, digest=digest_of(text))


@pytest.fixture(autouse=True)
def _fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # the crash is simulated, and the disk may be slow
    monkeypatch.setattr(run_module, "choose_backend", lambda request, bundle: FakeBackend())
    monkeypatch.setattr(run_module, "Sync", FakeSync)
    monkeypatch.setattr(run_module, "_unpack", fake_unpack)
    monkeypatch.setattr(run_module, "check_room", lambda bundle, folder: None)
    monkeypatch.setattr(
        "infer_dev_entry.bundle.unpack.hash_bundle",
        lambda path, on_read=None: (digest_of(Path(path).read_text()), os.stat(path).st_size),
    )


class Bomb:
    """Lets `count` changes happen and crashes before the next one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
        self.left = count
        self.went_off = False
        for name in CHANGES:
            monkeypatch.setattr(os, name, self._wrapped(getattr(os, name)))
        monkeypatch.setattr(shutil, "rmtree", self._wrapped(shutil.rmtree))
        exchange = run_module.Store.__module__ + ".exchange_paths"
        import infer_dev_entry.install.store as store

        monkeypatch.setattr(exchange, self._wrapped(store.exchange_paths))

    def _wrapped(self, change: Callable[..., Any]) -> Callable[..., Any]:
        def changed(*args: Any, **kwargs: Any) -> Any:
            if self.left == 0:
                self.went_off = True
                raise CrashError
            self.left -= 1
            return change(*args, **kwargs)

        return changed


def python_of(project: Path) -> str:
    """Return what serves: the text of the environment in use, or "" where there is none."""
    path = project / "env" / "bin" / "python"
    return path.read_text() if path.exists() else ""


def put_legacy(project: Path, bundle: Path) -> None:
    """Leave the project directory as the older bash installer does."""
    make_env(project / "env", bundle.read_text())
    digest = digest_of(bundle.read_text())
    old = {"bundle_path": str(bundle), "bundle_sha256": digest, "installed_at_unix": 1}
    (project / ".installed-from.json").write_text(json.dumps(old))


class Workspace:
    """A project directory, and the bundles `old` and `new`."""

    def __init__(self, base: Path, start: str) -> None:
        self.project = base / "project"
        self.project.mkdir(parents=True)
        self.old = make_bundle(base / "old.tar", "old")
        self.new = make_bundle(base / "new.tar", "new text")
        if start == "legacy":
            put_legacy(self.project, self.old)
        elif start == "installed":
            self.install(self.old)
        elif start == "two":
            self.install(make_bundle(base / "older.tar", "the oldest text"))
            self.install(self.old)
        elif start == "again":
            self.install(self.new)
            self.install(self.old)
        elif start == "legacy-behind":
            put_legacy(self.project, self.old)
            self.install(self.new)

    def install(self, bundle: Path, **changes: Any) -> Any:
        return install(make_request(self.project, bundle, **changes), FakeProgress(), {})


@pytest.mark.parametrize("start", ["empty", "installed", "legacy", "two", "again"])
def test_crash_before_any_change_of_an_install_is_survived(
    tmp_path: Path, start: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    serving = "" if start == "empty" else "old"
    for count in range(200):
        work = Workspace(tmp_path / str(count), start)
        with monkeypatch.context() as patched:
            bomb = Bomb(patched, count)
            with contextlib.suppress(CrashError):
                work.install(work.new)
        assert python_of(work.project) in (serving, "new text")
        previous = check_ends_well(work, "new text")
        assert previous.removeprefix("legacy-") == (digest_of("old")[:12] if serving else "")
        if not bomb.went_off:
            assert count > 8
            return
    raise AssertionError("the install never got through")


def check_ends_well(work: Workspace, text: str) -> str:
    """The next install succeeds, the one after it has nothing to do, nothing is left over; return what was kept."""
    work.install(work.new)
    assert python_of(work.project) == text
    assert read_fast(make_request(work.project, work.new)) is not None
    assert os.listdir(work.project / ".staging") == []
    names = set(os.listdir(work.project / "envs"))
    marker = read_marker(str(work.project))
    assert marker is not None
    assert names == {digest_of("new text")[:12], marker.previous} - {""}
    return marker.previous


@pytest.mark.parametrize("start", ["two", "legacy-behind"])
def test_crash_before_any_change_of_a_roll_back_is_survived(
    tmp_path: Path, start: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for count in range(100):
        work = Workspace(tmp_path / str(count), start)
        before = python_of(work.project)
        with monkeypatch.context() as patched:
            bomb = Bomb(patched, count)
            with contextlib.suppress(CrashError):
                roll_back(str(work.project), FakeProgress())
        assert python_of(work.project) in (before, "old", "the oldest text")
        if not bomb.went_off:
            assert python_of(work.project) != before
            return
        # One that crashed after its last rename holds; before it, the boot's bundle is put back in use.
        bundle = work.new if start == "legacy-behind" else work.old
        work.install(bundle)
        assert python_of(work.project) in (before, "old", "the oldest text")
        assert read_fast(make_request(work.project, bundle)) is not None
    raise AssertionError("the roll-back never got through")


def test_install_of_another_bundle_keeps_one_behind(tmp_path: Path) -> None:
    work = Workspace(tmp_path, "two")
    work.install(work.new)
    marker = read_marker(str(work.project))
    assert marker is not None and marker.previous == digest_of("old")[:12]
    assert sorted(os.listdir(work.project / "envs")) == sorted([digest_of("old")[:12], digest_of("new text")[:12]])


def test_roll_back_holds_until_another_bundle_comes(tmp_path: Path) -> None:
    work = Workspace(tmp_path, "installed")
    work.install(work.new)
    roll_back(str(work.project), FakeProgress())
    assert python_of(work.project) == "old"
    assert work.install(work.new).was_installed is False
    assert work.install(work.new, verify_always=True).was_installed is False
    assert python_of(work.project) == "old"
    work.install(make_bundle(tmp_path / "third.tar", "the third one"))
    assert python_of(work.project) == "the third one"


def test_roll_back_twice_is_where_it_began(tmp_path: Path) -> None:
    work = Workspace(tmp_path, "installed")
    work.install(work.new)
    before = read_marker(str(work.project))
    roll_back(str(work.project), FakeProgress())
    roll_back(str(work.project), FakeProgress())
    assert read_marker(str(work.project)) == before and python_of(work.project) == "new text"


def test_roll_back_undone_by_force(tmp_path: Path) -> None:
    work = Workspace(tmp_path, "installed")
    work.install(work.new)
    roll_back(str(work.project), FakeProgress())
    work.install(work.new, force=True)
    assert python_of(work.project) == "new text"
    assert work.install(work.new).was_installed is False


def test_roll_back_without_a_previous_is_refused(tmp_path: Path) -> None:
    work = Workspace(tmp_path, "installed")
    with pytest.raises(InstallError, match="there is no environment before the one in use"):
        roll_back(str(work.project), FakeProgress())


def test_roll_back_to_legacy_puts_the_directory_back(tmp_path: Path) -> None:
    work = Workspace(tmp_path, "legacy-behind")
    assert os.path.islink(work.project / "env")
    back = roll_back(str(work.project), FakeProgress())
    assert back.prefix == str(work.project / "env") and not os.path.islink(work.project / "env")
    assert dict(back.activation)["PATH"].startswith(f"{work.project}/env/bin:")
    assert read_fast(make_request(work.project, work.new)) is not None
    roll_back(str(work.project), FakeProgress())
    assert python_of(work.project) == "new text" and os.path.islink(work.project / "env")


def test_legacy_marker_of_the_same_bundle_is_recognised_and_upgraded(tmp_path: Path) -> None:
    work = Workspace(tmp_path, "legacy")
    request = make_request(work.project, work.old)
    assert read_fast(request) is None
    found = install(request, FakeProgress(), {})
    assert (found.was_installed, found.backend) == (False, "legacy")
    assert not os.path.islink(work.project / "env")
    fast = read_fast(request)
    assert fast is not None and dict(fast.activation)["PATH"].startswith(f"{work.project}/env/bin:")


def test_unmarked_real_env_is_not_trusted(tmp_path: Path) -> None:
    work = Workspace(tmp_path, "empty")
    make_env(work.project / "env", "unknown")
    assert work.install(work.new).was_installed is True
    assert python_of(work.project) == "new text"
    assert (work.project / "envs" / "legacy-unmarked").is_dir()


def test_touched_bundle_is_hashed_once_and_the_marker_upgraded(tmp_path: Path) -> None:
    work = Workspace(tmp_path, "installed")
    os.utime(work.old, ns=(1, 1))
    assert work.install(work.old).was_installed is False
    assert read_fast(make_request(work.project, work.old)) is not None


def test_earlier_bundle_again_only_flips(tmp_path: Path) -> None:
    work = Workspace(tmp_path, "again")
    said = FakeProgress()
    install(make_request(work.project, work.new), said, {})
    assert python_of(work.project) == "new text" and "unpack the bundle" not in said.stages
    assert any("is there already" in note for note in said.notes)


def test_force_installs_beside_the_same_bundle_in_use(tmp_path: Path) -> None:
    work = Workspace(tmp_path, "installed")
    again = work.install(work.old, force=True)
    assert again.was_installed and again.prefix.endswith("-2")
    assert work.install(work.old).was_installed is False


def test_deleted_bundle_is_not_missed(tmp_path: Path) -> None:
    work = Workspace(tmp_path, "installed")
    work.old.unlink()
    assert work.install(work.old).was_installed is False


def test_moved_workspace_is_installed_again(tmp_path: Path) -> None:
    work = Workspace(tmp_path, "installed")
    work.project = work.project.rename(tmp_path / "mounted-elsewhere")
    again = work.install(work.old)
    assert again.was_installed and again.prefix.startswith(f"{tmp_path}/mounted-elsewhere/envs/")


def test_failed_install_leaves_the_old_one_serving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = Workspace(tmp_path, "installed")

    def fail(*args: object) -> None:
        raise InstallError("cannot install: it broke; mend it")

    monkeypatch.setattr(FakeBackend, "install", fail)
    with pytest.raises(InstallError, match="it broke"):
        work.install(work.new)
    assert python_of(work.project) == "old"
    assert os.listdir(work.project / "envs") == [digest_of("old")[:12]]
    assert os.listdir(work.project / ".staging") == []


def test_data_is_on_the_disk_before_it_is_declared_and_the_marker_comes_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = Workspace(tmp_path, "installed")
    order: list[str] = []
    replace, finish = os.replace, FakeSync.finish

    def note_replace(source: str, target: str) -> None:
        order.append(os.path.basename(target))
        replace(source, target)

    def note_sync(sync: FakeSync, progress: Progress) -> None:
        order.append("sync")
        finish(sync, progress)

    monkeypatch.setattr(os, "replace", note_replace)
    monkeypatch.setattr(os, "fsync", lambda handle: order.append("fsync"))
    monkeypatch.setattr(FakeSync, "finish", note_sync)
    work.install(work.new)
    file_written = ["fsync", "NAME", "fsync"]  # its data, the rename, the directory
    complete = [word.replace("NAME", ".complete") for word in file_written]
    marker = [word.replace("NAME", ".installed-from.json") for word in file_written]
    assert order == ["sync", *complete, "env", "fsync", *marker]


def test_bundle_that_is_replaced_after_it_was_hashed_is_not_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = Workspace(tmp_path, "installed")
    os.utime(work.old, ns=(1, 1))
    write_marker = known_module.write_marker

    def replace_bundle(*args: Any) -> None:
        make_bundle(work.old, "OLD")  # of the same size
        write_marker(*args)

    monkeypatch.setattr(known_module, "write_marker", replace_bundle)
    work.install(work.old)
    assert read_fast(make_request(work.project, work.old)) is None
    assert work.install(work.old).was_installed and python_of(work.project) == "OLD"
