"""Headers of a hub's answers, and how long it is worth waiting for one."""

from __future__ import annotations

from email.utils import formatdate

import pytest

from infer_dev_entry.errors import ModelError
from infer_dev_entry.models.hub import HubError, kind_of_status, parse_content_range, parse_retry_after
from infer_dev_entry.models.retry import MAX_TRIES, MAX_WAIT_S, Patience
from infer_dev_entry.models.wish import ModelWish

WISH = ModelWish(source="huggingface", repo_id="org/m", target="/m")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("bytes 10-99/100", (10, 100)),
        ("bytes 0-0/*", (0, None)),
        ("bytes */100", None),
        ("items 1-2/3", None),
        ("bytes 1-2", None),
        ("bytes a-2/3", None),
        ("", None),
        (None, None),
    ],
)
def test_content_range(text: str | None, expected: object) -> None:
    assert parse_content_range(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("5", 5.0), (" 0 ", 0.0), (None, 0.0), ("-5", 0.0), ("soon", 0.0), ("1" * 30, 0.0), ("nan", 0.0)],
)
def test_retry_after_seconds(text: str | None, expected: float) -> None:
    assert parse_retry_after(text, 1000.0) == expected


def test_retry_after_date() -> None:
    assert parse_retry_after(formatdate(1060, usegmt=True), 1000.0) == 60.0
    assert parse_retry_after(formatdate(900, usegmt=True), 1000.0) == 0.0


@pytest.mark.parametrize(
    ("status", "kind"),
    [(401, "auth"), (403, "auth"), (404, "file"), (416, "range"), (429, "busy"), (503, "server"), (418, "other")],
)
def test_status_tells_a_kind(status: int, kind: str) -> None:
    assert kind_of_status(status) == kind


def test_patience_grows_is_bounded_and_begins_afresh_with_progress() -> None:
    patience = Patience(WISH, "a.bin")
    waits = [patience.wait_s(HubError("server", "HTTP 503")) for _ in range(MAX_TRIES - 1)]
    assert waits == sorted(waits)
    assert sum(waits) < 60
    with pytest.raises(ModelError, match=r"cannot download a.bin of org/m from huggingface: HTTP 503"):
        patience.wait_s(HubError("server", "HTTP 503"))
    patience.progressed()
    assert patience.wait_s(HubError("server", "HTTP 503")) == waits[0]


def test_patience_waits_as_long_as_asked_but_not_for_ever() -> None:
    assert Patience(WISH, "").wait_s(HubError("busy", "HTTP 429", 42.0)) == 42.0
    with pytest.raises(ModelError, match="try again in 601 s"):
        Patience(WISH, "").wait_s(HubError("busy", "HTTP 429", MAX_WAIT_S + 1))


@pytest.mark.parametrize("kind", ["auth", "gated", "repo", "revision", "file", "other"])
def test_patience_has_none_for_what_stays(kind: str) -> None:
    with pytest.raises(ModelError, match=r"cannot download org/m|cannot download x of org/m"):
        Patience(WISH, "x").wait_s(HubError(kind, "HTTP 4xx"))
