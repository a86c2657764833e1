"""Statuses and words of servers as our errors."""

from __future__ import annotations

import json

import pytest

from infer_dev_entry.client.failures import failure_of_event, failure_of_status
from infer_dev_entry.errors import (
    BadRequestError,
    BrokenAnswerError,
    ClientError,
    OverloadedError,
    RefusedKeyError,
    UnknownModelError,
)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, BadRequestError),
        (401, RefusedKeyError),
        (403, RefusedKeyError),
        (404, UnknownModelError),
        (408, OverloadedError),
        (413, BadRequestError),
        (422, BadRequestError),
        (429, OverloadedError),
        (500, BrokenAnswerError),
        (502, BrokenAnswerError),
        (503, OverloadedError),
        (504, OverloadedError),
        (302, BrokenAnswerError),
    ],
)
def test_status_gives_its_own_error(status: int, kind: type[ClientError]) -> None:
    error = failure_of_status(status, b"")
    assert type(error) is kind
    assert str(status) in str(error)


@pytest.mark.parametrize(
    "body",
    [
        {"error": {"message": "too long", "type": "x"}},
        {"error": "too long"},
        {"message": "too long", "object": "error"},
        {"detail": "too long"},
    ],
)
def test_words_of_the_server_are_found_in_the_shapes_that_there_are(body: object) -> None:
    assert str(failure_of_status(400, json.dumps(body).encode())) == "it answers 400: too long"


@pytest.mark.parametrize("body", [b"", b"\xff\x00\x1b[2J", b"<html>\n<h1>no</h1>", b"[" * 100_000, b"a" * 1_000_000])
def test_words_that_are_anything_stay_one_short_printable_line(body: bytes) -> None:
    text = str(failure_of_status(400, body))
    assert text.isprintable()
    assert len(text) < 500


def test_refused_key_is_not_repeated_from_the_servers_words() -> None:
    assert "sk-123456789" not in str(failure_of_status(401, b'{"error": "Invalid API key: sk-123456789"}'))
    assert "sk-123456789" not in str(failure_of_status(400, b'{"error": "bad header Bearer sk-123456789"}'))


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ({"message": "x", "code": 400}, BadRequestError),
        ({"message": "x", "code": "429"}, OverloadedError),
        ({"message": "x", "code": None}, BrokenAnswerError),
        ({"message": "x", "code": True}, BrokenAnswerError),
        ({"message": "x", "code": 10**30}, BrokenAnswerError),
        ("x", BrokenAnswerError),
        (["x"], BrokenAnswerError),
    ],
)
def test_error_in_an_answer_is_raised_by_its_code(error: object, kind: type[ClientError]) -> None:
    found = failure_of_event(error)
    assert type(found) is kind
    assert "x" in str(found)
