"""Whom servers run as, and a root that cannot become another."""

from __future__ import annotations

import os
import pwd

import pytest

from infer_dev_entry.errors import SettingsError
from infer_dev_entry.init import owner
from infer_dev_entry.init.owner import find_owner, find_worker_user, is_mapped, missing_capabilities
from infer_dev_entry.settings import parse_settings

DOCKERS = "CapEff:\t00000000a80425fb\n"
WHOLE_MAP = "         0          0 4294967295\n"
SETTINGS = parse_settings({"AUTO_INFER_SGLANG_USER": "daemon"})
USER = pwd.getpwnam("daemon")


@pytest.mark.parametrize(
    ("status", "missing"),
    [
        ("Name:\tx\n" + DOCKERS, ()),
        ("CapEff:\t0000000000000000\n", ("CHOWN", "DAC_OVERRIDE", "KILL", "SETGID", "SETUID")),
        ("CapPrm:\t0\nCapEff:\t00000000000000c0\n", ("CHOWN", "DAC_OVERRIDE", "KILL")),
        ("CapEff:\t00000000000000a3\n", ("SETGID",)),
        ("", ()),
    ],
)
def test_capabilities_that_are_missing_are_named(status: str, missing: tuple[str, ...]) -> None:
    assert missing_capabilities(status) == missing


@pytest.mark.parametrize(
    ("id_map", "number", "mapped"),
    [
        (WHOLE_MAP, 1000, True),
        ("0 100000 1\n", 1000, False),
        ("0 1000 1\n1 100000 999\n", 1000, False),
        ("0 1000 1\n1 100000 1000\n", 1000, True),
        ("", 1000, True),
    ],
)
def test_id_is_mapped_by_any_line(id_map: str, number: int, mapped: bool) -> None:
    assert is_mapped(id_map, number) is mapped


def be_root(mocker, **files: str) -> None:
    known = {"status": DOCKERS, "uid_map": WHOLE_MAP, "gid_map": WHOLE_MAP} | files
    mocker.patch("os.geteuid", return_value=0)
    mocker.patch.object(owner, "read_text", side_effect=lambda path: known[os.path.basename(path)])


def test_root_with_dockers_capabilities_becomes_the_user(mocker) -> None:
    be_root(mocker)
    found = find_owner(SETTINGS)
    assert found is not None
    assert (found.name, found.uid) == ("daemon", USER.pw_uid)


def test_root_without_capabilities_is_told_what_to_add(mocker) -> None:
    be_root(mocker, status="CapEff:\t0000000000000023\n")
    with pytest.raises(SettingsError) as caught:
        find_owner(SETTINGS)
    assert str(caught.value) == (
        f"cannot run servers as daemon (uid {USER.pw_uid}): root lacks the capabilities SETGID, SETUID; start the "
        f"container with --cap-add SETGID --cap-add SETUID, run it as that user (--user {USER.pw_uid}:{USER.pw_gid}), "
        "or set AUTO_INFER_SGLANG_USER=root"
    )


def test_root_of_a_user_namespace_without_that_uid_is_told_so(mocker) -> None:
    be_root(mocker, uid_map="0 100000 1\n")
    with pytest.raises(SettingsError, match=f"this user namespace has no uid {USER.pw_uid}; map it, or run it as"):
        find_owner(SETTINGS)


def test_root_that_serves_as_root_needs_no_capabilities(mocker) -> None:
    be_root(mocker, status="CapEff:\t0000000000000000\n")
    assert find_owner(parse_settings({"AUTO_INFER_SGLANG_USER": "root"})) is None


@pytest.mark.parametrize(("status", "user"), [(DOCKERS, ""), ("CapEff:\t0000000000000000\n", "root")])
def test_roots_nginx_keeps_its_workers_where_it_cannot_give_them_away(mocker, status: str, user: str) -> None:
    be_root(mocker, status=status)
    assert find_worker_user() == user
    mocker.patch("os.geteuid", return_value=1000)
    assert find_worker_user() == ""
