"""What the gateway itself answers when it hands a request to no server: JSON in the shape of OpenAI's errors."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

_MOST_NAMES = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One error answer. `stands_for` are codes, also nginx's own, that clients get this one for.

    `is_pathless`: it may be given before the request's path is known.
    """

    status: int
    message: str
    kind: str = "invalid_request_error"
    code: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    stands_for: tuple[int, ...] = ()
    is_pathless: bool = False

    @property
    def body(self) -> str:
        """The JSON text."""
        return render_error(self.message, self.kind, self.code)


def render_error(message: str, kind: str, code: str | None) -> str:
    """Render one error as OpenAI's clients read it."""
    return json.dumps({"error": {"message": message, "type": kind, "param": None, "code": code}}) + "\n"


def not_ready(servers: Sequence[str]) -> str:
    """The body of the answer of a pool without a ready server."""
    named = ", ".join(servers[:_MOST_NAMES]) + (", …" if len(servers) > _MOST_NAMES else "")
    return render_error(f"no server is ready; waited for: {named}", "server_error", "no_server_ready")


ANSWERS = (
    # 495 and 496 are bad client certificates, 497 is plain HTTP on the port of HTTPS, 501 an unknown transfer encoding,
    # 505 another version of HTTP.
    Answer(status=400, message="the request is malformed", stands_for=(495, 496, 497, 501, 505), is_pathless=True),
    Answer(
        status=401,
        message="the API key is missing or not known; send Authorization: Bearer <key>",
        code="invalid_api_key",
        headers={"WWW-Authenticate": "Bearer"},
    ),
    Answer(status=403, message="not allowed"),
    Answer(status=404, message="the gateway serves /v1/, /<instance>/v1/ and /health", code="not_found"),
    Answer(status=405, message="the method is not allowed"),
    Answer(status=408, message="the request took too long to arrive", is_pathless=True),
    Answer(status=413, message="the request is larger than gateway.max_body_bytes", code="request_too_large"),
    Answer(status=414, message="the address is too long", is_pathless=True),
    Answer(status=431, message="the headers are too large", stands_for=(494,), is_pathless=True),
    Answer(
        status=429,
        message="too many requests for this key",
        kind="rate_limit_error",
        code="rate_limit_exceeded",
        headers={"Retry-After": "1"},
    ),
    Answer(status=500, message="the gateway failed", kind="server_error"),
    Answer(
        status=502,
        message="the server broke off before it answered; try again",
        kind="server_error",
        code="server_broke_off",
        headers={"Retry-After": "1"},
    ),
    Answer(
        status=503,
        message="no server is ready",
        kind="server_error",
        code="no_server_ready",
        headers={"Retry-After": "5"},
    ),
    Answer(status=504, message="the server did not answer in time", kind="server_error", code="server_timeout"),
)
