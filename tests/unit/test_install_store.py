"""The project directory: the flip, what is swept away, and free names."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from install_fakes import digest_of, make_bundle, make_env, make_record, put_installed, store_of

from infer_dev_entry.errors import InstallError
from infer_dev_entry.install import store as store_module
from infer_dev_entry.install.records import write_complete
from infer_dev_entry.install.store import Store, explain_os_error, legacy_name


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return store_of(tmp_path / "project")


def add_env(store: Store, name: str, *, complete: bool = True) -> Path:
    prefix = make_env(Path(store.prefix(name)), name)
    if complete:
        write_complete(make_record(prefix, digest_of(name)))
    return prefix


def test_flip_first_time_makes_a_relative_link(store: Store) -> None:
    add_env(store, "a")
    store.flip("a", aside="")
    assert os.readlink(store.link) == "envs/a" and store.current_name() == "a"


def test_flip_again_replaces_the_link_and_leaves_nothing(store: Store) -> None:
    add_env(store, "a"), add_env(store, "b")
    store.flip("a", aside="")
    store.flip("b", aside="a")
    assert store.current_name() == "b" and os.listdir(store.staging_dir) == []


@pytest.mark.parametrize("can_exchange", [True, False])
def test_flip_over_a_real_env_moves_it_aside_and_back(
    store: Store, monkeypatch: pytest.MonkeyPatch, can_exchange: bool
) -> None:
    if not can_exchange:
        monkeypatch.setattr(store_module, "exchange_paths", lambda one, other: False)
    make_env(Path(store.link), "legacy")
    add_env(store, "a")
    store.flip("a", aside="legacy-123")
    assert store.current_name() == "a"
    assert (Path(store.prefix("legacy-123")) / "bin/python").read_text() == "legacy"
    store.restore_real_env("legacy-123")
    assert store.has_real_env() and (Path(store.link) / "bin/python").read_text() == "legacy"
    assert sorted(os.listdir(store.envs_dir)) == ["a"]


def test_current_name_of_a_foreign_link_is_empty(store: Store) -> None:
    os.symlink("/usr", store.link)
    assert store.current_name() == "" and not store.has_real_env()


def test_prepare_sweeps_unfinished_and_keeps_complete(store: Store) -> None:
    add_env(store, "whole")
    add_env(store, "half", complete=False)
    make_env(Path(store.prefix("legacy-123")))
    os.symlink("envs/whole", store.prefix("legacy-456"))
    Path(store.make_staging(), "rest").write_text("x")
    Path(store.cache_dir).mkdir()
    assert store.prepare()
    assert sorted(os.listdir(store.envs_dir)) == ["legacy-123", "whole"]
    assert os.listdir(store.staging_dir) == [] and not os.path.exists(store.cache_dir)


def test_prepare_with_nothing_to_sweep_keeps_the_cache(store: Store) -> None:
    Path(store.cache_dir).mkdir()
    assert not store.prepare()
    assert os.path.isdir(store.cache_dir)


def test_prepare_of_unwritable_project_says_whose(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InstallError, match="cannot use project directory"):
        Store(str(tmp_path / "file" / "project")).prepare()


def test_remove_never_follows_a_link(store: Store, tmp_path: Path) -> None:
    kept = make_env(tmp_path / "kept")
    os.symlink(kept, store.prefix("link"))
    (make_env(Path(store.prefix("a"))) / "lib").symlink_to(kept)
    store.remove(store.prefix("link"))
    store.remove(store.prefix("a"))
    assert (kept / "bin" / "python").exists() and os.listdir(store.envs_dir) == []


def test_remove_of_a_missing_path_is_no_error(store: Store) -> None:
    store.remove(store.prefix("no-such"))


def test_remove_with_read_only_folders_succeeds(store: Store) -> None:
    prefix = add_env(store, "a")
    (prefix / "bin").chmod(0o555)
    prefix.chmod(0o555)
    store.remove(str(prefix))
    assert not prefix.exists() and os.listdir(store.staging_dir) == []


def test_free_prefix_is_the_digest_and_clears_what_is_there(store: Store) -> None:
    digest = "ab" * 32
    add_env(store, digest[:12], complete=False)
    assert store.free_prefix(digest) == digest[:12]
    assert not os.path.exists(store.prefix(digest[:12]))


def test_free_prefix_while_in_use_is_another(store: Store) -> None:
    digest = "ab" * 32
    add_env(store, digest[:12])
    store.flip(digest[:12], aside="")
    assert store.free_prefix(digest) == f"{digest[:12]}-2"
    assert os.path.exists(store.prefix(digest[:12]))


def test_prune_keeps_the_named_and_tells_the_rest(store: Store) -> None:
    for name in ("a", "b", "c"):
        add_env(store, name)
    assert store.prune({"a", "c", ""}) == ("b",)
    assert sorted(os.listdir(store.envs_dir)) == ["a", "c"]


def test_records_are_those_of_complete_environments(tmp_path: Path) -> None:
    project = tmp_path / "project"
    project.mkdir()
    record = put_installed(project, make_bundle(tmp_path / "b", "one"))
    store = store_of(project)
    add_env(store, "half", complete=False)
    assert [found for _, found in store.records()] == [record]


def test_records_without_envs_are_none(tmp_path: Path) -> None:
    assert list(Store(str(tmp_path / "none")).records()) == []


def test_legacy_name_has_the_digest() -> None:
    assert legacy_name(make_record("/p/env", "ab" * 32)) == "legacy-abababababab"
    assert legacy_name(None) == "legacy-unmarked"


@pytest.mark.parametrize(
    ("number", "mend"),
    [(13, "chown"), (30, "mount the workspace writable"), (28, "free space"), (122, "free space"), (5, "check")],
)
def test_refused_write_names_a_mend(number: int, mend: str) -> None:
    assert mend in explain_os_error(OSError(number, os.strerror(number), "/x"))


def test_discard_leaves_it_to_the_sweep(store: Store) -> None:
    add_env(store, "a")
    doomed = store.discard(store.prefix("a"))
    assert os.path.dirname(doomed) == store.staging_dir and os.listdir(store.envs_dir) == []
    assert (Path(doomed) / "bin/python").exists()
    store.sweep()
    assert os.listdir(store.staging_dir) == []


def test_discard_of_a_missing_path_is_told(store: Store) -> None:
    with pytest.raises(InstallError, match="cannot delete"):
        store.discard(store.prefix("no-such"))


def test_sweep_never_follows_a_link(store: Store, tmp_path: Path) -> None:
    kept = make_env(tmp_path / "kept")
    os.symlink(kept, f"{store.staging_dir}/link")
    store.sweep()
    assert (kept / "bin/python").exists() and os.listdir(store.staging_dir) == []
