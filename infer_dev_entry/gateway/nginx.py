"""Render nginx's whole configuration: one file, so that pools, keys and limits change together or not at all.

Facts are those of nginx 1.22 to 1.28. What is behind each choice that is not obvious stands beside it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from infer_dev_entry.gateway.answers import ANSWERS, Answer, not_ready
from infer_dev_entry.gateway.keys import ApiKey
from infer_dev_entry.gateway.nginx_words import (
    key_pattern,
    listen_address,
    quote,
    quote_path,
    render_rate,
    render_seconds,
    split_text,
    upstream_address,
)
from infer_dev_entry.redact import api_key_of
from infer_dev_entry.spec import GatewaySpec, ServerSpec

STATUS_PATH = "/gateway/health"
_GENERATION = "@generation@"
# SGLang closes an idle connection after 5 s and llama.cpp after 5 s too: ours must go first, or a request could be
# sent into a connection that is just being closed.
_UPSTREAM_IDLE_S = 3
# A server that refused is left alone for this long; PID 1 takes it out of the pool for good before that.
_FAIL_TIMEOUT_S = 2
_CONNECT_TIMEOUT_S = 5
# A request whose server died before the first byte is given to another one, once, and only this early: what kills a
# server after minutes of work would else kill the next one.
_RETRY_WITHIN_S = 30
_WORKER_CONNECTIONS = 4096


def render_nginx(
    spec: ServerSpec, ready: Sequence[ServerSpec], keys: Sequence[ApiKey] | None, *, user: str = ""
) -> tuple[str, str]:
    """Return the configuration, and its generation: the word by which a running nginx says that it serves with it.

    `ready` are the servers that may get requests. `keys` is None for a gateway that asks for none.
    `user` is whom a root's nginx gives its workers to; "" leaves that to nginx.
    """
    text = _Renderer(spec, ready, keys, user).render()
    generation = hashlib.sha256(text.encode()).hexdigest()[:16]
    return text.replace(_GENERATION, generation), generation


class _Renderer:
    def __init__(self, spec: ServerSpec, ready: Sequence[ServerSpec], keys: Sequence[ApiKey] | None, user: str) -> None:
        assert spec.gateway is not None
        self.spec = spec
        self.gateway: GatewaySpec = spec.gateway
        self.tmp_dir = dict(spec.environment)["TMPDIR"]
        self.ready = {server.name: server for server in ready}
        self.keys = keys
        self.user = user
        self.pools: dict[tuple[str, ...], str] = {}  # the servers → the upstream's name

    def render(self) -> str:
        routes = self._routes()  # first: it fills the pools
        sections = (self._head(), self._http(), self._pools(), self._public(routes), self._status(), "}")
        return "\n".join(section.strip("\n") for section in sections if section) + "\n"

    def _head(self) -> str:
        tmp, gateway = self.tmp_dir, self.gateway
        user = f"user {self.user};\n" if self.user else ""
        return f"""
# Made by infer-dev, and made anew whenever a server becomes ready or unready.
{user}daemon off;
worker_processes {gateway.workers};
worker_rlimit_nofile {4 * _WORKER_CONNECTIONS};
# After a reload the old workers complete their streams; none of them lives longer than a request may.
worker_shutdown_timeout {render_seconds(gateway.read_timeout_s)};
pid {quote_path(f"{tmp}/nginx.pid")};
error_log stderr warn;
events {{
    worker_connections {_WORKER_CONNECTIONS};
}}
http {{"""

    def _http(self) -> str:
        gateway = self.gateway
        temp_paths = "\n".join(
            f"    {name} {quote_path(f'{self.tmp_dir}/{folder}')};"
            for name, folder in (
                ("client_body_temp_path", "body"),
                ("proxy_temp_path", "proxy"),
                ("fastcgi_temp_path", "fastcgi"),
                ("uwsgi_temp_path", "uwsgi"),
                ("scgi_temp_path", "scgi"),
            )
        )
        return f"""
    server_tokens off;
    default_type application/json;
    charset off;
{temp_paths}
    geo $gateway_dollar {{ default "$"; }}
    geo $gateway_loopback {{ default 0; 127.0.0.0/8 1; ::1 1; }}
    # What came through another proxy on this machine is not local.
    map "$gateway_loopback$http_x_forwarded_for$http_forwarded" $gateway_local {{ default 0; "1" 1; }}
    map $http_x_request_id $gateway_request_id {{
        default $request_id;
        "~^[A-Za-z0-9._-]{{1,128}}$" $http_x_request_id;
    }}
    # For the log: what comes before the first byte that is not plain ASCII, as nginx would write it there as it came.
    map $uri $gateway_path {{ "~^(?<gateway_plain>[ -~]*)" $gateway_plain; }}
{self._key_map()}
{self._limits()}
    log_format gateway escape=json '{_LOG_FORMAT}';
    access_log {f"{quote_path(gateway.access_log)} gateway" if gateway.access_log else "off"};
    # What a client may take of us before its request is whole.
    client_header_timeout {render_seconds(gateway.client_timeout_s)};
    client_body_timeout {render_seconds(gateway.client_timeout_s)};
    client_header_buffer_size 1k;
    large_client_header_buffers 4 16k;
    client_max_body_size {gateway.max_body_bytes};
    client_body_buffer_size 256k;
    reset_timedout_connection on;
    lingering_time 10s;
    keepalive_timeout 75s;
    send_timeout 60s;
    # A body is taken whole before a server sees it: a slow client holds no server, and a retry can send it again.
    proxy_request_buffering on;
    proxy_buffering off;
    proxy_buffer_size 16k;
    proxy_buffers 8 16k;
    proxy_ignore_client_abort off;
    proxy_ignore_headers X-Accel-Redirect X-Accel-Expires X-Accel-Limit-Rate X-Accel-Buffering X-Accel-Charset;
    proxy_http_version 1.1;
    proxy_connect_timeout {_CONNECT_TIMEOUT_S}s;
    proxy_send_timeout {render_seconds(gateway.read_timeout_s)};
    proxy_read_timeout {render_seconds(gateway.read_timeout_s)};
    proxy_socket_keepalive on;
    proxy_next_upstream error timeout non_idempotent;
    proxy_next_upstream_tries 2;
    proxy_next_upstream_timeout {_RETRY_WITHIN_S}s;
    proxy_redirect off;
    proxy_hide_header X-Request-ID;
    proxy_set_header Host $host;
    proxy_set_header Connection "";
    proxy_set_header Upgrade "";
    proxy_set_header TE "";
    proxy_set_header X-Real-IP $remote_addr;
    proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
    proxy_set_header X-Forwarded-Proto $scheme;
    proxy_set_header X-Forwarded-Host $http_host;
    proxy_set_header X-Request-ID $gateway_request_id;
    proxy_set_header Authorization $gateway_authorization;
    limit_req_status 429;
    limit_conn_status 429;
    limit_req_log_level warn;
    limit_conn_log_level warn;"""

    def _key_map(self) -> str:
        """Keys as regular expressions: a map's plain strings are compared without regard to case."""
        if self.keys is None:
            return '    map "" $gateway_key { default "-"; }'
        rows = [f'        "~^(?i:bearer) +{key_pattern(key.key)}$" "{key.name}";' for key in self.keys]
        return "\n".join(["    map $http_authorization $gateway_key {", '        default "";', *rows, "    }"])

    def _limits(self) -> str:
        by = "$binary_remote_addr" if self.keys is None else "$gateway_key"
        rate, connections = self._zones()
        lines = []
        if self.gateway.rate_per_s:
            lines.append(f"    limit_req_zone {by} zone={rate}:1m rate={render_rate(self.gateway.rate_per_s)};")
        if self.gateway.max_connections:
            lines.append(f"    limit_conn_zone {by} zone={connections}:1m;")
        return "\n".join(lines)

    def _zones(self) -> tuple[str, str]:
        """The zones of the limits, named for what they count by: a reload that gives an old name another key fails,
        and `nginx -t` does not see it. So a gateway that is given keys would stay open.
        """
        by = "address" if self.keys is None else "key"
        return f"gateway_rate_by_{by}", f"gateway_connections_by_{by}"

    # -- pools

    def _pool(self, names: Sequence[str]) -> str:
        """The name of the upstream of those of these servers that are ready; "" when none is."""
        ready = tuple(name for name in names if name in self.ready)
        return self.pools.setdefault(ready, f"gateway_pool_{len(self.pools)}") if ready else ""

    def _pools(self) -> str:
        return "\n".join(self._upstream(name, servers) for servers, name in self.pools.items())

    def _upstream(self, name: str, servers: Sequence[str]) -> str:
        lines = [f"    upstream {name} {{"]
        if len(servers) > 1:
            # Without a zone each worker would count connections of its own.
            lines += [f"        zone {name} {64 + 2 * len(servers)}k;", "        least_conn;"]
        lines += [
            f"        server {upstream_address(self.ready[server])} max_fails=1 fail_timeout={_FAIL_TIMEOUT_S}s;"
            for server in servers
        ]
        return "\n".join([*lines, "        keepalive 32;", f"        keepalive_timeout {_UPSTREAM_IDLE_S}s;", "    }"])

    # -- servers

    def _public(self, routes: str) -> str:
        gateway = self.gateway
        tls = bool(gateway.tls_certificate)
        listen = listen_address(self.spec.host, self.spec.port)
        options = (" ssl" if tls else "") + (" http2" if tls and gateway.http2 else "")
        options += " ipv6only=off" if listen.startswith("[::]:") else ""
        errors = "\n".join(f"        error_page {_codes(answer)} {_error_place(answer)};" for answer in ANSWERS)
        bodies = "\n".join(_error_location(answer) for answer in ANSWERS)
        return f"""
    server {{
        listen {listen}{options};
        server_name _;
{self._tls() if tls else ""}
        set $gateway_authorization "";
        add_header X-Request-ID $gateway_request_id always;
{errors}
{bodies}
{self._health()}
{self._metrics()}
{routes}
        location / {{ return 404; }}
    }}"""

    def _tls(self) -> str:
        return f"""
        ssl_certificate {quote_path(self.gateway.tls_certificate)};
        ssl_certificate_key {quote_path(self.gateway.tls_certificate_key)};
        ssl_protocols TLSv1.2 TLSv1.3;
        ssl_session_cache shared:gateway_tls:1m;
        ssl_session_tickets off;""".strip("\n")

    def _health(self) -> str:
        is_up = any(name in self.ready for name in self.gateway.pool)
        status, word = (200, "ok") if is_up else (503, "no server is ready")
        return f"        location = /health {{ return {status} {quote(json.dumps({'status': word}) + chr(10))}; }}"

    def _metrics(self) -> str:
        """The gateway's own counters, and which servers it hands requests to, as Prometheus reads them."""
        names = dict.fromkeys(server for route in self.gateway.routes for server in route.servers)
        lines = [
            "# TYPE infer_dev_gateway_connections gauge",
            *(
                f'infer_dev_gateway_connections{{state="{state}"}} $connections_{state}'
                for state in ("active", "reading", "writing", "waiting")
            ),
            "# TYPE infer_dev_gateway_server_ready gauge",
            *(f'infer_dev_gateway_server_ready{{server="{name}"}} {int(name in self.ready)}' for name in names),
        ]
        pieces = split_text(lines)
        variables = "\n".join(
            f'            set $gateway_metrics_{number} "{text}";' for number, text in enumerate(pieces)
        )
        return f"""
        location = /metrics {{
            if ($gateway_local = 0) {{ return 404; }}
            default_type "text/plain; version=0.0.4";
{variables}
            return 200 "{"".join(f"${{gateway_metrics_{number}}}" for number in range(len(pieces)))}";
        }}""".strip("\n")

    def _routes(self) -> str:
        parts = [self._route("/v1", self.gateway.pool)]
        parts += [self._route(f"/{route.name}/v1", route.servers) for route in self.gateway.routes]
        parts += [
            self._server_metrics(route.name, route.servers[0])
            for route in self.gateway.routes
            if route.servers == (route.name,)
        ]
        return "\n".join(parts)

    def _route(self, prefix: str, servers: Sequence[str]) -> str:
        """Both proxy_pass and the location end in a slash: nginx then sends the path that it has matched, normalised
        and escaped anew, and not the client's own spelling of it. The exact location stops its redirect to the slash.
        SGLang's `/v1/loads` is no API of a model, but tells the state of the server as /metrics does.
        """
        pool = self._pool(servers)
        rate, connections = self._zones()
        lines = [f"        location = {closed} {{ return 404; }}" for closed in (prefix, f"{prefix}/loads")]
        lines.append(f"        location {prefix}/ {{")
        if self.keys is not None:
            lines.append('            if ($gateway_key = "") { return 401; }')
        if self.gateway.rate_per_s:
            burst = f" burst={self.gateway.burst} nodelay" if self.gateway.burst else ""
            lines.append(f"            limit_req zone={rate}{burst};")
        if self.gateway.max_connections:
            lines.append(f"            limit_conn {connections} {self.gateway.max_connections};")
        if pool:
            lines += [self._authorization(servers), f"            proxy_pass http://{pool}/v1/;"]
        else:
            lines += [
                "            add_header Retry-After 5 always;",
                "            add_header X-Request-ID $gateway_request_id always;",
                f"            return 503 {quote(not_ready(servers))};",
            ]
        return "\n".join([*lines, "        }"])

    def _server_metrics(self, name: str, server: str) -> str:
        pool = self._pool((server,))
        passed = (
            f"{self._authorization((server,)).strip()} proxy_pass http://{pool}/metrics;" if pool else "return 503;"
        )
        return f"""
        location = /{name}/metrics {{
            if ($gateway_local = 0) {{ return 404; }}
            {passed}
        }}""".strip("\n")

    def _authorization(self, servers: Sequence[str]) -> str:
        """Our key for the servers, in the place of the client's for us; without keys of ours the client's passes."""
        if self.keys is None:
            return "            set $gateway_authorization $http_authorization;"
        known = [api_key_of(self.ready[name].files) for name in servers if name in self.ready]
        text = f"Bearer {known[0]}" if known and known[0] else ""
        return f"            set $gateway_authorization {quote(text)};"

    def _status(self) -> str:
        body = quote(json.dumps({"generation": _GENERATION}))
        return f"""
    # For PID 1's probes alone.
    server {{
        listen 127.0.0.1:{self.spec.probe.port};
        access_log off;
        location = {STATUS_PATH} {{ return 200 {body}; }}
        location / {{ return 404; }}
    }}"""


def _codes(answer: Answer) -> str:
    return " ".join(map(str, (answer.status, *answer.stands_for)))


def _error_location(answer: Answer) -> str:
    headers = {**answer.headers, "X-Request-ID": "$gateway_request_id"}
    added = " ".join(f"add_header {name} {value} always;" for name, value in headers.items())
    place = _error_place(answer)
    place, kind = (f"= {place}", "internal; ") if place.startswith("/") else (place, "")
    return f"        location {place} {{ {kind}{added} return {answer.status} {quote(answer.body)}; }}"


def _error_place(answer: Answer) -> str:
    """Where an answer stands. nginx leads a request without a usable path to no named location, but to a 500."""
    return f"/gateway/error/{answer.status}" if answer.is_pathless else f"@gateway_{answer.status}"


_LOG_FORMAT = (
    '{"time":"$time_iso8601","id":"$gateway_request_id","client":"$remote_addr","key":"$gateway_key",'
    '"method":"$request_method","path":"$gateway_path","status":$status,"bytes":$bytes_sent,"seconds":$request_time,'
    '"server":"$upstream_addr","server_status":"$upstream_status","connect_s":"$upstream_connect_time",'
    '"first_byte_s":"$upstream_header_time","tls":"$ssl_protocol"}'
)
