"""Redaction, back-off and the choice of environments and batches of a build."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infer_dev_entry.bundle.build_fetch import make_batches, pip_platforms
from infer_dev_entry.bundle.build_lock import Wheel
from infer_dev_entry.bundle.build_tools import ToolRun, backoff_s, redact, retry
from infer_dev_entry.bundle.build_wheels import index_environ
from infer_dev_entry.errors import BuildError


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("via http://user:pa55@proxy:3128 now", "via http://***@proxy:3128 now"),
        ("http://user:p@55@proxy:3128 now", "http://***@proxy:3128 now"),
        ("https://token@host/simple", "https://***@host/simple"),
        ("HTTPS_PROXY='socks5://u:p@h'", "HTTPS_PROXY='socks5://***@h'"),
        ("https://u:p%40ss:w@h/x https://v:q@i/y", "https://***@h/x https://***@i/y"),
        ("https://host/t/tk-12ab/conda-forge", "https://host/t/***/conda-forge"),
        ("https://h/x.whl?X-Amz-Signature=abc&token=q&a=1", "https://h/x.whl?X-Amz-Signature=***&token=***&a=1"),
        ("https://host/simple user@example", "https://host/simple user@example"),
        ("name @ https://host/a.whl", "name @ https://host/a.whl"),
    ],
)
def test_redact_masks_what_is_secret_in_urls_alone(text: str, shown: str) -> None:
    assert redact(text) == shown


@given(
    st.text(st.characters(exclude_characters="@/ '\"\n", exclude_categories=["Z", "C"]), min_size=4).map("S3cr".__add__)
)
def test_redact_leaves_nothing_of_a_password(password: str) -> None:
    assert password not in redact(f"error: cannot reach https://me:{password}@host.invalid:80/x")


def ended(code: int) -> ToolRun:
    return ToolRun(returncode=code, tail=("working", "error: it failed", "  × cause: no route"))


def test_retry_pauses_longer_each_time_and_stops_at_success() -> None:
    codes, pauses, notes = [1, 1, 0], [], []
    run = retry(lambda: ended(codes.pop(0)), what="pack", retries=5, sleep_s=2, note=notes.append, sleep=pauses.append)
    assert (run.returncode, codes, pauses) == (0, [], [2, 4])
    assert notes[0] == "pack failed (it failed: no route); attempt 2 of 6 in 2 s"


def test_retry_that_never_succeeds_says_why() -> None:
    with pytest.raises(BuildError, match=r"^cannot pack: it failed 3 times: it failed: no route; .*--retries"):
        retry(lambda: ended(2), what="pack", retries=2, sleep_s=0, note=str, sleep=float)


@given(st.floats(0, 3600), st.integers(0, 100))
def test_backoff_is_bounded(sleep_s: float, number: int) -> None:
    assert 0 <= backoff_s(sleep_s, number) <= 300


def test_index_environ_gives_uv_and_pip_the_same_indexes() -> None:
    child = index_environ({"PIP_INDEX_URL": "https://m/simple", "PIP_FIND_LINKS": "/a /b", "PATH": "/bin"})
    assert child["UV_DEFAULT_INDEX"] == child["PIP_INDEX_URL"] == "https://m/simple"
    assert (child["UV_FIND_LINKS"], child["PIP_FIND_LINKS"], child["PATH"]) == ("/a,/b", "/a /b", "/bin")
    child = index_environ({"UV_INDEX_URL": "https://m/simple", "UV_EXTRA_INDEX_URL": "https://a https://b"})
    assert (child["PIP_INDEX_URL"], child["PIP_EXTRA_INDEX_URL"]) == ("https://m/simple", "https://a https://b")


def test_index_environ_keeps_what_was_configured_for_each() -> None:
    child = index_environ({"UV_DEFAULT_INDEX": "https://u", "PIP_INDEX_URL": "https://p"})
    assert (child["UV_DEFAULT_INDEX"], child["PIP_INDEX_URL"]) == ("https://u", "https://p")


def test_index_environ_drops_what_would_change_target_or_place() -> None:
    child = index_environ({"PIP_TARGET": "/x", "PIP_NO_BINARY": ":all:", "PYTHONPATH": "/x", "UV_OFFLINE": "1"})
    assert not child.keys() & {"PIP_TARGET", "PIP_NO_BINARY", "PYTHONPATH", "UV_OFFLINE"}


def test_platforms_list_every_older_glibc_and_the_legacy_names() -> None:
    tags = pip_platforms("x86_64", "2.28")
    assert tags[0] == "manylinux_2_28_x86_64"
    assert {"manylinux_2_17_x86_64", "manylinux2014_x86_64", "linux_x86_64"} <= set(tags)
    assert "manylinux_2_29_x86_64" not in tags


def wheel(name: str, size: int) -> Wheel:
    return Wheel(name=name, version="1", filename=f"{name}.whl", sha256="0" * 64, size=size)


@given(st.lists(st.integers(0, 10**9), max_size=60))
def test_batches_hold_every_wheel_once_and_large_ones_alone(sizes: list[int]) -> None:
    wheels = [wheel(str(number), size) for number, size in enumerate(sizes)]
    batches = make_batches(wheels)
    assert sorted(item.name for batch in batches for item in batch) == sorted(item.name for item in wheels)
    assert all(len(batch) == 1 for batch in batches if any(item.size > 64 * 2**20 for item in batch))
    assert all(1 <= len(batch) <= 6 for batch in batches)
