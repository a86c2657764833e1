"""nginx's configuration by what it says; tests/integration/test_gateway_conf.py has nginx itself read it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from make import make_gateway, make_spec

from infer_dev_entry.gateway.keys import ApiKey
from infer_dev_entry.gateway.nginx import render_nginx
from infer_dev_entry.gateway.nginx_words import find_complaint, key_pattern, path_problem, quote
from infer_dev_entry.spec import FileSpec, ServerSpec

ALICE = ApiKey(name="alice", key="sk-0123456789.abc+def")


def render(*ready: str, keys: tuple[ApiKey, ...] | None = (ALICE,), files: Any = (), **changes: Any) -> str:
    spec = make_gateway(**changes)
    servers = tuple(make_spec(name, port=30000 + number, files=files) for number, name in enumerate(ready))
    return render_nginx(spec, servers, keys)[0]


def location(text: str, path: str) -> str:
    """The lines of one location."""
    begin = text.index(f"location {path} {{")
    return text[begin : text.index("        }", begin)]


def test_only_ready_servers_are_in_a_pool() -> None:
    text = render("a", "b")
    assert "server 127.0.0.1:30000 " in text and "server 127.0.0.1:30001 " in text
    alone = render("a")
    assert "server 127.0.0.1:30000 " in alone and "server 127.0.0.1:30001 " not in alone
    assert "least_conn" in text and "least_conn" not in alone


def test_workers_belong_to_a_user_only_where_one_is_given() -> None:
    assert "\nuser root;\n" in render_nginx(make_gateway(), (), None, user="root")[0]
    assert "user " not in render_nginx(make_gateway(), (), None)[0].partition("http {")[0]


def test_path_is_handed_on_as_it_was_matched_never_as_it_was_sent() -> None:
    text = render("a", "b")
    passes = [line.strip() for line in text.splitlines() if "proxy_pass " in line]
    assert passes
    for line in passes:  # a variable, or no path at all, would pass the client's own spelling on
        address = line[line.index("proxy_pass") :]
        assert address.endswith(("/v1/;", "/metrics;"))
        assert "$" not in address


def test_pool_without_a_ready_server_answers_503_with_their_names() -> None:
    text = location(render("b"), "/a/v1/")
    assert "return 503" in text and "waited for: a" in text and "Retry-After" in text
    assert "return 401" in text
    assert "proxy_pass" in location(render("b"), "/v1/")


def test_health_is_200_when_a_server_of_the_pool_is_ready() -> None:
    assert "location = /health { return 200" in render("a")
    assert "location = /health { return 503" in render()


def test_key_is_a_regular_expression_that_matches_it_alone() -> None:
    assert key_pattern(ALICE.key) == "sk-0123456789[.]abc[+]def"
    assert f'"~^(?i:bearer) +{key_pattern(ALICE.key)}$" "alice";' in render("a")


def test_without_a_keys_file_no_key_is_asked_for_and_the_clients_passes() -> None:
    text = render("a", keys=None, max_connections=2)
    assert "if ($gateway_key" not in text
    assert "set $gateway_authorization $http_authorization;" in location(text, "/v1/")
    assert "limit_conn_zone $binary_remote_addr" in text


def test_with_an_empty_list_of_keys_nobody_gets_in() -> None:
    assert "return 401" in location(render("a", keys=()), "/v1/")


def test_servers_own_key_takes_the_place_of_the_clients() -> None:
    files = (FileSpec(path="/x/a.key", text='s3cr"et$HOME\\\n'),)
    assert r'set $gateway_authorization "Bearer s3cr\"et${gateway_dollar}HOME\\";' in render("a", files=files)
    assert 'set $gateway_authorization "";' in location(render("a"), "/v1/")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"rate_per_s": 5.0, "burst": 3}, ("rate=5r/s;", "limit_req zone=gateway_rate_by_key burst=3 nodelay;")),
        ({"rate_per_s": 0.5, "burst": 0}, ("rate=30r/m;", "limit_req zone=gateway_rate_by_key;")),
        ({"rate_per_s": 0.001}, ("rate=1r/m;",)),
        ({"max_connections": 7}, ("limit_conn gateway_connections_by_key 7;", "limit_conn_zone $gateway_key ")),
        ({"max_body_bytes": 1000}, ("client_max_body_size 1000;",)),
        ({"client_timeout_s": 0.5}, ("client_header_timeout 500ms;", "client_body_timeout 500ms;")),
        ({"read_timeout_s": 60.0}, ("proxy_read_timeout 60000ms;", "worker_shutdown_timeout 60000ms;")),
        ({"access_log": ""}, ("access_log off;",)),
        ({"tls_certificate": "/c p.pem", "tls_certificate_key": "/k"}, ("ssl http2;", 'ssl_certificate "/c p.pem";')),
        ({"tls_certificate": "/c", "tls_certificate_key": "/k", "http2": False}, (" ssl;", "TLSv1.2 TLSv1.3")),
    ],
)
def test_setting_becomes_its_directive(changes: dict[str, Any], expected: tuple[str, ...]) -> None:
    text = render("a", **changes)
    for words in expected:
        assert words in text


def test_no_limits_are_set_unless_asked_for() -> None:
    assert "limit_req_zone" not in render("a") and "limit_conn_zone" not in render("a")


@pytest.mark.parametrize(
    ("host", "listen"),
    [
        ("127.0.0.1", "listen 127.0.0.1:8000;"),
        ("0.0.0.0", "listen 0.0.0.0:8000;"),
        ("localhost", "listen 127.0.0.1:8000;"),
        ("::", "listen [::]:8000 ipv6only=off;"),
        ("::1", "listen [::1]:8000;"),
    ],
)
def test_address_is_written_as_nginx_takes_it(host: str, listen: str) -> None:
    spec = replace(make_gateway(), host=host)
    assert listen in render_nginx(spec, (), None)[0]


def test_upstreams_of_wildcard_and_ipv6_servers_are_reached_on_loopback() -> None:
    def pool(host: str) -> str:
        return render_nginx(make_gateway(), (make_spec("a", host=host),), None)[0]

    for host, address in (("0.0.0.0", "127.0.0.1"), ("::", "[::1]"), ("::1", "[::1]"), ("localhost", "127.0.0.1")):
        assert f"server {address}:30000 " in pool(host)


def test_generation_changes_with_the_text_and_with_nothing_else() -> None:
    def generation(*servers: ServerSpec, keys: tuple[ApiKey, ...] = (ALICE,)) -> str:
        text, word = render_nginx(make_gateway(), servers, keys)
        assert word in text
        return word

    a, b = make_spec("a"), make_spec("b", port=30001)
    assert generation(a) == generation(a)
    assert len({generation(), generation(a), generation(b), generation(a, b), generation(a, keys=())}) == 5


def test_quoting_keeps_every_special_character() -> None:
    assert quote('a"b\\c$d') == '"a\\"b\\\\c${gateway_dollar}d"'
    assert path_problem("/a b/c") == ""
    assert "variable" in path_problem("/a$b") and "control" in path_problem("/a\nb")


@pytest.mark.parametrize(
    ("output", "complaint"),
    [
        ("", ""),
        ('nginx: [emerg] unknown directive "x" in /c:3\nnginx: configuration file /c test failed\n',
         '[emerg] unknown directive "x" in /c:3'),
        ("2026/11/25 19:50:59 [warn] 7#7: odd\n2026/11/25 19:50:59 [emerg] 7#7: bad\n", "[emerg] bad"),
        ("nginx: not found\n", "nginx: not found"),
        ('nginx: [emerg] invalid "~^(?i:bearer) +sk-secret$" in /c:3\n',
         "it refuses the line of a key or of a server's key"),
    ],
)  # fmt: skip
def test_complaint_is_the_line_that_tells_the_fault_and_no_key(output: str, complaint: str) -> None:
    assert find_complaint(output) == complaint
