"""The marker, and the fast path that trusts it."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from install_fakes import digest_of, make_bundle, make_env, make_record, make_request, put_installed

from infer_dev_entry.errors import BundleError
from infer_dev_entry.install import marker as m
from infer_dev_entry.install.records import write_marker
from infer_dev_entry.settings import parse_settings


@pytest.fixture
def project(tmp_path: Path) -> Path:
    path = tmp_path / "project"
    path.mkdir()
    return path


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return make_bundle(tmp_path / "bundle.tar", "one")


def test_marker_written_and_read_is_the_same(project: Path) -> None:
    rolled_back = m.RolledBack(
        bundle_path="/b", bundle_sha256="f" * 64, bundle=m.BundleStat(size=1, mtime_ns=1, inode=1)
    )
    wanted = m.Marker(record=make_record(project / "envs" / "x", "a" * 64), previous="abc", rolled_back=rolled_back)
    write_marker(str(project), wanted)
    assert m.read_marker(str(project)) == wanted


def test_marker_file_has_the_documented_keys(project: Path, bundle: Path) -> None:
    put_installed(project, bundle)
    data = json.loads((project / ".installed-from.json").read_text())
    assert {"bundle_path", "bundle_sha256", "size", "mtime", "mtime_ns", "inode", "backend", "versions"} <= set(data)
    assert {"installed_at_unix", "verify_output", "seconds", "mb_per_s", "activation", "prefix"} <= set(data)


def test_marker_of_older_installer_is_read(project: Path) -> None:
    old = {"bundle_path": "/b.tar", "bundle_sha256": "AB" * 32, "installed_at_unix": 1700000000}
    (project / ".installed-from.json").write_text(json.dumps(old))
    found = m.read_marker(str(project))
    assert found is not None
    assert (found.record.backend, found.record.bundle_sha256, found.record.bundle) == ("legacy", "ab" * 32, None)
    assert found.record.prefix == f"{project}/env"


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "{}", '{"prefix": 1}', '{"bundle_path": "/b"}', "[" * 100_000, '"' + "x" * 5_000_000],
)
def test_marker_that_is_broken_counts_as_none(project: Path, text: str) -> None:
    (project / ".installed-from.json").write_text(text)
    assert m.read_marker(str(project)) is None


@pytest.mark.parametrize("name", ["../../etc", "/etc", ".."])
def test_marker_with_previous_outside_counts_as_none(project: Path, bundle: Path, name: str) -> None:
    put_installed(project, bundle)
    path = project / ".installed-from.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"previous": name}))
    assert m.read_marker(str(project)) is None


def test_fast_path_unchanged_bundle_is_trusted(project: Path, bundle: Path) -> None:
    record = put_installed(project, bundle)
    found = m.read_fast(make_request(project, bundle))
    assert found is not None
    assert (found.prefix, found.link, found.was_installed) == (record.prefix, f"{project}/env", False)
    assert dict(found.activation) == {"PATH": "/p/bin"} and found.versions == {"torch": "2.9.0"}


def touch(bundle: Path, project: Path) -> None:
    os.utime(bundle, ns=(1, 1))


def grow(bundle: Path, project: Path) -> None:
    with bundle.open("a") as file:
        file.write("x")


def replace_same_size_and_mtime(bundle: Path, project: Path) -> None:
    info = bundle.stat()
    other = make_bundle(bundle.with_name("other"), "two")
    os.utime(other, ns=(info.st_mtime_ns, info.st_mtime_ns))
    bundle.rename(bundle.with_name("kept"))  # so that its inode is not used again
    other.rename(bundle)


def delete_bundle(bundle: Path, project: Path) -> None:
    bundle.unlink()


def delete_complete(bundle: Path, project: Path) -> None:
    (project / "env" / ".complete").unlink()


def delete_python(bundle: Path, project: Path) -> None:
    (project / "env" / "bin" / "python").unlink()
    (project / "env" / "bin" / "python").symlink_to("/usr/bin/python-of-an-older-image")


def point_elsewhere(bundle: Path, project: Path) -> None:
    make_env(project / "envs" / "other")
    (project / "env").unlink()
    (project / "env").symlink_to("envs/other")


def mount_elsewhere(bundle: Path, project: Path) -> None:
    found = m.read_marker(str(project))
    assert found is not None
    write_marker(str(project), replace(found, record=replace(found.record, prefix="/elsewhere/envs/x")))


@pytest.mark.parametrize(
    "change",
    [
        *(touch, grow, replace_same_size_and_mtime, delete_bundle, delete_complete),
        *(delete_python, point_elsewhere, mount_elsewhere),
    ],
)
def test_fast_path_after_a_change_is_not_taken(project: Path, bundle: Path, change: object) -> None:
    put_installed(project, bundle)
    change(bundle, project)  # type: ignore[operator]
    assert m.read_fast(make_request(project, bundle)) is None


@pytest.mark.parametrize("changes", [{"force": True}, {"verify_always": True}, {"expected_sha256": "0" * 64}])
def test_fast_path_when_more_is_asked_for_is_not_taken(project: Path, bundle: Path, changes: dict[str, object]) -> None:
    put_installed(project, bundle)
    assert m.read_fast(make_request(project, bundle, **changes)) is None


def test_fast_path_expected_digest_met_is_taken(project: Path, bundle: Path) -> None:
    put_installed(project, bundle)
    assert m.read_fast(make_request(project, bundle, expected_sha256=digest_of("one"))) is not None


def test_fast_path_rolled_back_bundle_keeps_the_older_environment(project: Path, bundle: Path, tmp_path: Path) -> None:
    newer = make_bundle(tmp_path / "newer.tar", "newer")
    record = put_installed(project, bundle)
    rolled_back = m.RolledBack(
        bundle_path=str(newer), bundle_sha256=digest_of("newer"), bundle=m.stat_bundle(str(newer))
    )
    write_marker(str(project), m.Marker(record=record, rolled_back=rolled_back))
    found = m.read_fast(make_request(project, newer))
    assert found is not None and found.bundle_sha256 == digest_of("one")


def test_fast_path_reads_a_workspace_that_it_may_not_write(project: Path, bundle: Path) -> None:
    put_installed(project, bundle)
    before = sorted(path.name for path in project.iterdir())
    assert m.read_fast(make_request(project, bundle)) is not None
    assert sorted(path.name for path in project.iterdir()) == before


def test_stat_of_directory_bundle_changes_with_any_file(tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    (folder / "wheels").mkdir(parents=True)
    wheel = make_bundle(folder / "wheels" / "a.whl", "one")
    before = m.stat_bundle(str(folder))
    os.utime(wheel, ns=(2**61, 2**61))
    assert m.stat_bundle(str(folder)) != before


def test_stat_of_missing_bundle_names_path_and_variable() -> None:
    with pytest.raises(BundleError, match=r"cannot read bundle /no/such\.tar: No such file.*BUNDLE_PATH"):
        m.stat_bundle("/no/such.tar")


def test_request_takes_the_settings() -> None:
    prefix = "AUTO_INFER_SGLANG_"
    settings = parse_settings(
        {
            prefix + "BUNDLE_PATH": "/b.tar",
            prefix + "BUNDLE_SHA256": "AB",
            prefix + "BUNDLE_VERIFY": "always",
            prefix + "PROJECT_DIR": "/p/",
            prefix + "INSTALLER": "wheelhouse",
        }
    )
    request = m.make_request(settings)
    assert (request.bundle_path, request.project_dir, request.expected_sha256) == ("/b.tar", "/p", "ab")
    assert request.verify_always and request.backend == "wheelhouse"
