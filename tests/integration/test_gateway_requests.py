"""What a real nginx does with requests: what passes and what not, keys, headers, limits. One fleet for all of it."""

from __future__ import annotations

import json
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fleet import Fleet, get, skip_reason
from gateway import ALICE, BOB, Client, Site, needs_nginx
from wait import wait_until

pytestmark = needs_nginx

BODY_BYTES = 1_000_000
SLOW_CLIENT_S = 5.0


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    """Two servers behind a gateway with keys; nothing here changes its state."""
    if reason := skip_reason():
        pytest.skip(reason)
    base = Path(tempfile.mkdtemp(prefix="idf", dir="/tmp"))
    base.chmod(0o755)
    fleet = Fleet(base)
    made = Site(fleet, "a", "b.2")
    try:
        made.write(api_keys_file=made.with_keys(), max_body_bytes=BODY_BYTES, client_timeout_s=SLOW_CLIENT_S)
        made.start()
        yield made
    finally:
        fleet.close()
        shutil.rmtree(base, ignore_errors=True)


def served_by(site: Site, path: str) -> set[int]:
    return {int(site.client.ask(path).json["port"]) for _ in range(8)}


# ------------------------------------------------------------------------------------------------------------- paths


def test_v1_leads_to_the_pool_and_a_name_to_its_server(site: Site) -> None:
    assert served_by(site, "/v1/fake/echo") == set(site.ports.values())
    for name, port in site.ports.items():
        assert served_by(site, f"/{name}/v1/fake/echo") == {port}


def test_health_needs_no_key_and_metrics_are_local(site: Site) -> None:
    nobody = Client(site.port, key="")
    assert nobody.ask("/health").json == {"status": "ok"}
    assert 'infer_dev_gateway_server_ready{server="b.2"} 1' in nobody.ask("/metrics").body.decode()
    assert nobody.ask("/metrics", X_Forwarded_For="192.0.2.1").status == 404
    # The fake server has no such page: this is its own 404, not the gateway's.
    assert "no GET /metrics" in nobody.ask("/a/metrics").body.decode()
    assert "no GET" not in nobody.ask("/a/metrics", X_Forwarded_For="192.0.2.1").body.decode()


CLOSED = (
    "/", "/v1", "/a/v1", "/a", "/a/", "/server_info", "/get_server_info", "/generate", "/flush_cache", "/v2/x",
    "/v1/loads", "/a/v1/loads", "/v1/x/../loads", "/v1/%6coads",
    "/V1/models", "/a/server_info", "/a/generate", "/a/health", "/c/v1/models", "/A/v1/models", "/gateway/health",
    "/gateway/error/400",
    "/gateway/v1/models", "/v1/../server_info", "/v1/%2e%2e/server_info", "/v1/..%2fserver_info",
    "/v1/%2e%2e%2fserver_info", "//server_info", "/v1/x/../../generate", "/a/v1/../server_info",
    "/a/v1/%2e%2e/generate", "/a/v1/..//flush_cache", "/v1/./../server_info", "/%73erver_info", "/a/%67enerate",
    "/v1%2f..%2fserver_info", "/health/", "/metrics/", "/health/../server_info", "/a/metrics/../server_info",
    "/b.2/v1/../../server_info", "/bx2/v1/models", "/v1;/models", "/v1\\models", "/v1/../a/generate",
)  # fmt: skip


@pytest.mark.parametrize("path", CLOSED)
def test_closed_path_is_answered_by_the_gateway(site: Site, path: str) -> None:
    line = f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {ALICE}\r\nConnection: close\r\n\r\n"
    answer = site.client.raw(line.encode())
    assert re.match(rb"HTTP/1\.1 (404|400) ", answer), answer
    assert b'"error": {"message"' in answer
    assert b"no GET" not in answer  # the words of a server


@pytest.mark.parametrize(
    ("sent", "received"),
    [
        ("/v1/fake/echo/x", "/v1/fake/echo/x"),
        ("//v1//fake/echo/x", "/v1/fake/echo/x"),
        ("/server_info/../v1/fake/echo/x", "/v1/fake/echo/x"),
        ("/%76%31/fake/echo/x", "/v1/fake/echo/x"),
        ("/a/v1/fake/echo/x?q=1&r=%2F", "/v1/fake/echo/x?q=1&r=%2F"),
        ("/v1/fake/echo/%2e%2e%252f", "/v1/fake/echo/..%252f"),
        ("/v1/fake/echo/a%20b", "/v1/fake/echo/a%20b"),
        ("/v1/fake/echo/a%0d%0aX-Evil:%201", "/v1/fake/echo/a%0D%0AX-Evil:%201"),
        ("/v1/fake/echo/%252e%252e/server_info", "/v1/fake/echo/%252e%252e/server_info"),
        ("/v1/fake/echo/%3fq", "/v1/fake/echo/%3Fq"),
    ],
)
def test_server_gets_the_path_as_it_was_matched(site: Site, sent: str, received: str) -> None:
    line = f"GET {sent} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {ALICE}\r\nConnection: close\r\n\r\n"
    body = site.client.raw(line.encode()).partition(b"\r\n\r\n")[2]
    assert json.loads(body)["target"] == received


def test_malformed_requests_get_json_and_no_server_sees_them(site: Site) -> None:
    for data in (
        b"NONSENSE\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\n\r\n",  # no Host
        b"GET /" + b"u" * 20_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /%00 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 20_000 + b"\r\n\r\n",
        b"POST /v1/x HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET /v1/models HTTP/2.0\r\nHost: x\r\n\r\n",
        b"POST /v1/x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    ):
        answer = site.client.raw(data)
        assert b'"invalid_request_error"' in answer and re.match(rb"HTTP/1.1 (4..|501|505) ", answer), answer[:200]


# -------------------------------------------------------------------------------------------------------------- keys


@pytest.mark.parametrize(
    "value",
    [
        "", "Bearer", "Bearer ", f"Bearer {ALICE.lower()}", f"Bearer {ALICE.upper()}", f"Bearer {ALICE.swapcase()}",
        f"Bearer {ALICE}x", f"Bearer x{ALICE}", f"Bearer {ALICE[:-1]}", f"Bearer {ALICE} x", f"Basic {ALICE}", ALICE,
        "Bearer " + ALICE.replace(".", "x"), "Bearer " + ALICE.replace("+", ""), "Bearer .*",
        f"Bearer {ALICE}, Bearer {BOB}",
    ],
)  # fmt: skip
def test_key_that_is_not_exactly_one_of_ours_is_refused(site: Site, value: str) -> None:
    answer = Client(site.port, key="").ask(**({"Authorization": value} if value else {}))
    assert answer.status == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.json["error"]["code"] == "invalid_api_key"


def test_known_keys_pass_under_their_names_and_are_never_logged(site: Site) -> None:
    for key, name in ((ALICE, "alice"), (BOB, "bob")):
        assert Client(site.port, key).ask("/v1/models", X_Request_ID=f"log-{name}").status == 200
        row = site.wait_logged(id=f"log-{name}")
        assert (row["key"], row["status"], row["path"], row["method"]) == (name, 200, "/v1/models", "GET")
        assert row["server"] in {f"127.0.0.1:{port}" for port in site.ports.values()}
    assert Client(site.port, "").ask("/v1/models", Authorization=f"bearer  {BOB}").status == 200
    logs = "".join(path.read_text() for path in site.fleet.log_dir.iterdir()) + site.fleet.event_log.read_text()
    assert ALICE not in logs and BOB not in logs


def test_no_request_breaks_the_log_whatever_its_bytes(site: Site) -> None:
    head = f"HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {ALICE}\r\nConnection: close\r\n"
    odd = (b"/v1/fake/%ff%fe", b"/v1/fake/\xff\xc3", b"/v1/fake/%0a%22%5c%1b[2J", b"/v1/%c3%a9")
    for number, path in enumerate(odd):
        site.client.raw(b"GET " + path + f" {head}X-Request-ID: bytes-{number}\r\n\r\n".encode())
    # Every line is one JSON object in UTF-8, or this raises.
    paths = [site.wait_logged(id=f"bytes-{number}")["path"] for number in range(4)]
    assert paths == ["/v1/fake/", "/v1/fake/", "/v1/fake/", "/v1/"]


def test_keys_are_in_private_files_only(site: Site) -> None:
    holders = [
        path for path in site.fleet.base.rglob("*") if path.is_file() and ALICE[:12].encode() in path.read_bytes()
    ]
    assert sorted(path.name for path in holders) == ["gateway.conf", "keys"]
    assert all(path.stat().st_mode & 0o077 == 0 for path in holders)
    assert not any(ALICE in word for member in site.fleet.members() for word in member.argv)


# ----------------------------------------------------------------------------------------------------------- headers


def test_server_gets_who_asked_and_not_the_clients_key(site: Site) -> None:
    answer = site.client.ask("/v1/fake/echo", X_Forwarded_For="192.0.2.7", Connection="close, X-Foo", Upgrade="h2c")
    seen = answer.json["headers"]
    assert seen["x-real-ip"] == "127.0.0.1"
    assert seen["x-forwarded-for"] == "192.0.2.7, 127.0.0.1"
    assert (seen["x-forwarded-proto"], seen["x-forwarded-host"]) == ("http", f"127.0.0.1:{site.port}")
    assert seen["host"] == "127.0.0.1"
    assert "authorization" not in seen and "upgrade" not in seen
    assert seen["x-request-id"] == answer.headers["x-request-id"]


@pytest.mark.parametrize(
    ("sent", "kept"),
    [("abc-123_x.Y", True), ("a" * 128, True), ("a" * 129, False), ('a"b', False), ("a b", False), ("", False)],
)
def test_request_id_of_the_client_is_kept_when_it_is_sane(site: Site, sent: str, kept: bool) -> None:
    answer = site.client.ask("/v1/models", X_Request_ID=sent)
    assert (answer.headers["x-request-id"] == sent) is kept
    assert re.fullmatch(r"[A-Za-z0-9._-]{1,128}", answer.headers["x-request-id"])
    assert site.client.ask("/nowhere", X_Request_ID="err").headers["x-request-id"] == "err"


# --------------------------------------------------------------------------------------------------- greedy requests


def test_body_above_the_limit_is_refused_before_a_server_sees_it(site: Site) -> None:
    answer = site.client.ask("/v1/chat/completions", body=b"x" * (BODY_BYTES + 1))
    assert answer.status == 413 and answer.json["error"]["code"] == "request_too_large"
    assert site.client.ask("/v1/chat/completions", body={"messages": [{"content": "y" * 900_000}]}).status == 200


def test_body_of_50_megabytes_in_chunks_is_cut_off(site: Site) -> None:
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {ALICE}\r\n"
    chunk = b"10000\r\n" + b"z" * 65536 + b"\r\n"
    sent, answer = 0, b""
    with socket.create_connection(("127.0.0.1", site.port), timeout=30) as peer:
        peer.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
        try:
            for _ in range(800):
                peer.sendall(chunk)
                sent += len(chunk)
            peer.sendall(b"0\r\n\r\n")
            answer = peer.recv(4096)
        except OSError:
            answer = answer or b"HTTP/1.1 413 (cut off)"
    assert answer.startswith(b"HTTP/1.1 413 "), answer
    held = sum(path.stat().st_size for path in (site.fleet.base / "tmp").rglob("*") if path.is_file())
    assert held < 4 * BODY_BYTES, f"{held} bytes of {sent} were kept"


def test_slow_loris_is_cut_off_and_others_are_served_meanwhile(site: Site) -> None:
    heads = [socket.create_connection(("127.0.0.1", site.port)) for _ in range(150)]
    bodies = [socket.create_connection(("127.0.0.1", site.port)) for _ in range(50)]
    try:
        for peer in heads:
            peer.sendall(b"GET /v1/models HTTP/1.1\r\nHost: x\r\nX-Slow: ")
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {ALICE}\r\n"
        for peer in bodies:
            peer.sendall(f"{head}Content-Length: 1000\r\n\r\n".encode() + b"{")
        began = time.monotonic()
        assert site.client.ask().status == 200
        assert time.monotonic() - began < SLOW_CLIENT_S - 1  # they are still there
        # No server holds a request of theirs: the gateway waits for a whole one. The last answer and a probe may count.
        held = [json.loads(get(port, "/v1/fake/streams", 10)[1])["running"] for port in site.ports.values()]
        assert sum(held) < len(bodies) / 5, held
        for peer in (*heads, *bodies):
            peer.settimeout(5)
        wait_until(lambda: all(is_closed(peer) for peer in (*heads, *bodies)), 30, "every slow client to be cut off")
    finally:
        for peer in (*heads, *bodies):
            peer.close()


def is_closed(peer: socket.socket) -> bool:
    try:
        while peer.recv(4096):
            pass
    except TimeoutError:
        return False
    except OSError:
        pass
    return True
