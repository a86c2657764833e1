"""A gateway that lives: servers come and go behind it, keys change, it is killed, and streams go on meanwhile."""

from __future__ import annotations

import json
import os
import pwd
import socket
import ssl
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fleet import SYSTEM_PYTHON, Fleet, get, render_toml
from gateway import ALICE, BOB, NGINX, Client, Site, needs_nginx
from wait import wait_until

pytestmark = needs_nginx
pytest_plugins = ("fleet_fixtures",)


def streams_of(port: int) -> dict[str, int]:
    """What a fake server says of its streams."""
    found: dict[str, int] = json.loads(get(port, "/v1/fake/streams", 10)[1])
    return found


def test_stream_flows_token_by_token_and_a_client_that_leaves_ends_it(fleet: Fleet) -> None:
    site = Site(fleet, "a")
    site.write()
    site.start()
    seen = site.client.stream(tokens=20, pause_s=0.1)
    assert seen.complete and seen.tokens == 20
    # A client that waits for its processor gets several tokens at once; a buffer would give all of them at the end.
    assert len(seen.times) >= 3 and seen.spread_s > 1, "tokens were held back and came together"
    # A client that closes in the middle: the server learns of it within a token or two, not at the end.
    with connect(site.port) as peer:
        body = b'{"stream": true, "tokens": 1000, "pause_s": 0.05}'
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        peer.sendall(head.encode() + body)
        assert peer.recv(1000)
        wait_until(lambda: streams_of(site.ports["a"])["running"] == 1, 15, "no probe beside the stream")
    wait_until(lambda: streams_of(site.ports["a"])["broken"] == 1, 15, "the server to learn that its client has left")


def test_client_that_reads_nothing_holds_its_server_back_and_fills_no_disk(fleet: Fleet) -> None:
    site = Site(fleet, "a")
    site.write()
    site.start()
    body = b'{"stream": true, "tokens": 1000000, "pause_s": 0}'
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    with connect(site.port) as peer:
        peer.sendall(head.encode() + body)
        counts = [-2, -1]
        # Until the kernel's buffers are full: two looks in a row see no more tokens.
        wait_until(
            lambda: counts.append(tokens_after(site, 0.2)) or 0 < counts[-1] == counts[-2], 60, "the stream to stop"
        )
        assert counts[-1] < 1_000_000
        assert not [path for path in (fleet.base / "tmp").rglob("*") if path.is_file() and path.name != "nginx.pid"]


def tokens_after(site: Site, pause_s: float) -> int:
    """What server a has streamed after a moment; the moment is what is measured, not a wait for something."""
    time.sleep(pause_s)
    return streams_of(site.ports["a"])["streamed"]


def test_killed_server_costs_only_what_it_held_and_comes_back(fleet: Fleet) -> None:
    site = Site(fleet, "a", "b")
    site.write()
    site.start()
    # That of `a` is far from its end when `a` is killed.
    running = {name: site.client.start_stream(tokens, 0.05, f"/{name}/v1") for name, tokens in (("a", 1000), ("b", 80))}
    wait_until(lambda: all(stream.has_begun for stream in running.values()), 15, "both to stream")
    stop = threading.Event()
    statuses: list[int] = []

    def ask_all_the_time() -> None:
        while not stop.is_set():
            try:
                statuses.append(site.client.ask("/v1/models", timeout_s=20).status)
            except OSError:
                statuses.append(0)

    asker = threading.Thread(target=ask_all_the_time, daemon=True)
    asker.start()
    old = fleet.kill_server("a")
    fleet.wait_again("a", old)
    site.wait_pool("a", "b")
    stop.set()
    asker.join(25)
    assert len(statuses) > 5 and set(statuses) == {200}
    lost, kept = running["a"].result(), running["b"].result()
    assert not lost.complete and lost.status == 200  # begun, so never sent to another
    assert kept.complete and kept.tokens == 80
    assert fleet.row("gateway")["restarts"] == 0, fleet.tail() + fleet.log_of("gateway")


def test_request_that_kills_its_server_is_tried_once_more_and_no_further(fleet: Fleet) -> None:
    site = Site(fleet, "a", "b", "c")
    site.write()
    site.start()
    answer = site.client.ask("/v1/chat/completions", body={"die": True})
    assert answer.status == 502 and answer.json["error"]["code"] == "server_broke_off"
    fleet.wait(lambda: len(fleet.events("server.crashed")) >= 2, 15, "two servers to crash")
    row = site.wait_logged(status=502)
    assert len(row["server"].split(",")) == 2
    assert site.client.ask("/v1/models").status == 200
    assert len(fleet.events("server.crashed")) == 2


def test_pool_without_a_ready_server_says_so_until_one_is(fleet: Fleet) -> None:
    site = Site(fleet, "a", "b")
    load, gate = fleet.base / "load", fleet.base / "hang"
    # `b` is found to hang soon, and never ended for it.
    quick = {"period_s": 1.0, "timeout_s": 0.9, "failure_threshold": 1000}
    site.write(flags={"a": ("--load-file", str(load)), "b": ("--hang-file", str(gate))}, probes={"b": quick})
    load.touch()
    gate.touch()
    fleet.start()
    fleet.wait_state("gateway", "ready")  # it waits for nobody
    answer = site.client.ask("/v1/chat/completions", body={"messages": []})
    assert answer.status == 503 and int(answer.headers["retry-after"]) > 0
    assert answer.json["error"]["code"] == "no_server_ready" and "a, b" in answer.json["error"]["message"]
    assert site.client.ask("/health").status == 503
    load.unlink()
    site.wait_pool("a")
    assert site.client.ask("/health").status == 200 and site.client.ask("/v1/models").status == 200
    assert "waited for: b" in site.client.ask("/b/v1/models").json["error"]["message"]
    gate.unlink()
    site.wait_pool("a", "b")
    # A hang leaves the pool at the first probe that fails, long before the server is ended for it.
    gate.touch()
    site.wait_pool("a")
    fleet.wait_state("b", "unhealthy")
    gate.unlink()
    assert fleet.cli("stop", "a").returncode == 0
    site.wait_pool("b")


def test_keys_are_added_revoked_and_kept_without_dropping_a_stream(fleet: Fleet) -> None:
    site = Site(fleet, "a")
    site.write(api_keys_file=site.with_keys())
    site.start()
    bob = Client(site.port, BOB)
    running = bob.start_stream(120, 0.05)
    wait_until(lambda: streams_of(site.ports["a"])["streamed"], 15, "bob's stream to begin")
    site.with_keys(f"alice: {ALICE}\n")
    wait_until(lambda: bob.ask().status == 401, 15, "bob's key to be revoked")
    assert site.client.ask().status == 200
    # A bad file: the keys that were serve on, the log and the status say why, and neither says a key.
    site.with_keys(f"alice: {ALICE}\n{BOB} with a blank\n")
    row = fleet.wait_state("gateway", "ready", reason="line 2: white space in the key")
    assert "the 1 old keys stay in force" in row["reason"] and "keys check" in row["mend"]
    assert (site.client.ask().status, bob.ask().status) == (200, 401)
    site.with_keys(f"bob: {BOB}\n")
    wait_until(lambda: (site.client.ask().status, bob.ask().status) == (401, 200), 15, "bob to be let in again")
    fleet.wait(lambda: fleet.row("gateway")["reason"] == "", 15, "the reason to go")
    stream = running.result()
    assert stream.complete and stream.tokens == 120
    said = fleet.event_log.read_text() + fleet.log_of("gateway")
    assert BOB not in said and ALICE not in said
    assert fleet.row("gateway")["restarts"] == 0, fleet.tail() + fleet.log_of("gateway")


def test_killed_nginx_comes_back_with_the_servers_that_are_ready_then(fleet: Fleet) -> None:
    site = Site(fleet, "a", "b")
    site.write()
    site.start()
    assert fleet.cli("stop", "a").returncode == 0
    site.wait_pool("b")
    old = fleet.kill_server("gateway")
    fleet.wait_again("gateway", old)
    assert 'server="a"} 0' in site.metrics() and 'server="b"} 1' in site.metrics()
    assert site.client.ask("/v1/models").status == 200
    # And after a killed supervisord.
    fleet.kill(fleet.supervisor().pid)
    fleet.wait_event("supervisor.lost")
    fleet.wait_ready("b", "gateway")
    site.wait_pool("b")
    masters = [member for member in fleet.members() if any("nginx: master" in word for word in member.argv)]
    assert len(masters) == 1, "an old nginx lives on"


def test_update_reroutes_a_running_gateway_and_drains_it_when_its_port_moves(fleet: Fleet) -> None:
    site = Site(fleet, "a", "b")
    site.write()
    site.start()
    before = fleet.row("gateway")["pid"]
    running = site.client.start_stream(60, 0.05)
    wait_until(lambda: sum(streams_of(port)["streamed"] for port in site.ports.values()), 15, "a stream to begin")
    config = site.write(instances=["b"], rate_per_s=1000, name="fewer")
    assert fleet.cli("serve", str(config), "--wait", "20").returncode == 0
    wait_until(
        lambda: "gateway_rate_by_address" in (fleet.run_dir / "config/gateway.conf").read_text(), 15, "the limit"
    )
    assert fleet.row("gateway")["pid"] == before
    config = site.write(host="0.0.0.0")
    assert fleet.cli("serve", str(config), "--wait", "30").returncode == 0
    assert fleet.row("gateway")["pid"] != before
    assert "whoever reaches" in fleet.wait_event("gateway.open")["message"]
    seen = running.result()
    assert seen.complete and seen.tokens == 60  # nginx was told to drain, not to stop


def test_keys_for_an_open_gateway_with_limits_close_it_by_a_reload(fleet: Fleet) -> None:
    site = Site(fleet, "a")
    limits = {"rate_per_s": 1000, "max_connections": 100}
    site.write(**limits)
    site.start()
    before = fleet.row("gateway")["pid"]
    assert Client(site.port, "").ask().status == 200
    # What is counted changes from addresses to names, and nginx reloads no zone whose key is another.
    config = site.write(api_keys_file=site.with_keys(), **limits)
    assert fleet.cli("serve", str(config), "--wait", "20").returncode == 0
    wait_until(lambda: Client(site.port, "").ask().status == 401, 15, "the gateway to ask for keys")
    assert site.client.ask().status == 200
    assert fleet.row("gateway")["pid"] == before


def test_stop_lets_streams_end_and_closes_the_port_at_once(fleet: Fleet) -> None:
    site = Site(fleet, "a")
    site.write(flags={"a": ("--drain-s", "0")})
    site.start()
    running = site.client.start_stream(60, 0.05)
    wait_until(lambda: running.has_begun, 15, "the stream to begin")
    assert fleet.stop() == 0
    seen = running.result()
    assert seen.complete and seen.tokens == 60
    assert fleet.wait_event("entry.stopped")["had_to_kill"] == []


def test_two_hundred_streams_flow_at_once_through_a_reload(fleet: Fleet) -> None:
    site = Site(fleet, "a", "b")
    site.write(api_keys_file=site.with_keys())
    site.start()
    with ThreadPoolExecutor(200) as pool:
        running = [pool.submit(site.client.stream, 10, 1.0) for _ in range(200)]
        wait_until(lambda: sum(streams_of(port)["running"] for port in site.ports.values()) >= 200, 20, "200 streams")
        held = [streams_of(port)["running"] for port in site.ports.values()]
        site.with_keys(f"bob: {BOB}\n")
        wait_until(lambda: site.client.ask().status == 401, 20, "the reload")
        seen = [stream.result(60) for stream in running]
    assert all(stream.complete and stream.tokens == 10 for stream in seen), [s for s in seen if not s.complete][:3]
    assert max(held) - min(held) <= 8, held  # least connections, counted over all workers


def test_limits_of_a_key_concern_that_key_alone(fleet: Fleet) -> None:
    site = Site(fleet, "a")
    config = site.write(api_keys_file=site.with_keys(), rate_per_s=0.1, burst=3, max_connections=2)
    own = "b4ck$HOME end\\"  # the server's own key, with what nginx would take for a variable
    model = 'model_path = "fake/model"\n'
    config.write_text(config.read_text().replace(model, f"{model}api_key = {render_toml(own)}\n"))
    site.start()
    # The gateway sends the server's key in the place of the client's.
    assert Client(site.port, BOB).ask("/v1/fake/echo").json["headers"]["authorization"] == f"Bearer {own}"
    bob = Client(site.port, BOB)
    answers = [site.client.ask("/v1/models") for _ in range(12)]
    refused = [answer for answer in answers if answer.status == 429]
    # One and a burst of three pass, and one more each ten seconds.
    assert 6 <= len(refused) <= 8 and answers[0].status == 200
    assert refused[0].json["error"]["type"] == "rate_limit_error" and refused[0].headers["retry-after"] == "1"
    running = [bob.start_stream(120, 0.05) for _ in range(2)]
    wait_until(lambda: all(stream.has_begun for stream in running), 15, "bob's two streams")
    assert bob.ask("/v1/models").status == 429
    assert all(stream.result().complete for stream in running)


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_tls_serves_http2_and_http1_and_refuses_old_protocols_and_plain_http(fleet: Fleet) -> None:
    site = Site(fleet, "a")
    certificate, key = make_certificate(fleet.base)
    site.write(tls_certificate=str(certificate), tls_certificate_key=str(key), host="127.0.0.1")
    fleet.start()
    rows = fleet.wait_ready("a", "gateway")
    assert rows["gateway"]["url"] == f"https://127.0.0.1:{site.port}"
    trust = ssl.create_default_context(cafile=str(certificate))
    client = Client(site.port, "", trust)
    site.client = client
    site.wait_pool("a")
    assert client.ask().status == 200
    assert client.ask("/v1/fake/echo").json["headers"]["x-forwarded-proto"] == "https"
    assert client.stream(3, 0.05).complete
    http2 = ssl.create_default_context(cafile=str(certificate))
    http2.set_alpn_protocols(["h2"])
    with http2.wrap_socket(
        Client(site.port)._connect(5).sock or connect(site.port), server_hostname="127.0.0.1"
    ) as peer:
        assert peer.selected_alpn_protocol() == "h2" and peer.version() == "TLSv1.3"
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    old.set_ciphers("DEFAULT:@SECLEVEL=0")
    old.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises((ssl.SSLError, OSError)):
        old.wrap_socket(connect(site.port))
    assert Client(site.port).raw(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n").startswith(b"HTTP/1.1 400 ")
    # A certificate that is replaced by one that does not match: nginx refuses it, and the old one serves on.
    other = fleet.base / "other"
    other.mkdir()
    make_certificate(other)[1].replace(key)
    fleet.cli("stop", "a")
    row = fleet.wait_state("gateway", "ready", reason="nginx refuses its configuration")
    assert "key values mismatch" in row["reason"]
    assert client.ask("/health").status == 200


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=15)


def make_certificate(base: Path) -> tuple[Path, Path]:
    """Make a self-signed certificate of 127.0.0.1."""
    certificate, key = base / "cert.pem", base / "key.pem"
    new = ("req", "-x509", "-nodes", "-days", "2", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1")
    names = ("-subj", "/CN=gateway", "-addext", "subjectAltName=IP:127.0.0.1")
    files = ("-keyout", str(key), "-out", str(certificate))
    subprocess.run(["openssl", *new, *names, *files], check=True, capture_output=True, timeout=20)
    return certificate, key


def test_nginx_that_cannot_start_says_why_and_starts_once_it_can(fleet: Fleet) -> None:
    site = Site(fleet, "a")
    fake = fleet.base / "nginx"
    permit = fleet.base / "permit"
    refusal = f"[ -e {permit} ] || {{ echo 'nginx: [emerg] no luck today' >&2; exit 1; }}"
    fake.write_text(f'#!/bin/sh\n{refusal}\nsleep 0.3\nexec {NGINX} "$@"\n')
    fake.chmod(0o755)
    site.write(binary=str(fake))
    fleet.start()
    row = fleet.wait_state("gateway", "backoff", reason="nginx refuses its configuration: [emerg] no luck today")
    assert "gateway check" in row["mend"]
    fleet.wait_ready("a")  # a gateway that fails harms no server
    # From here on it starts, slowly: a reload that came too early would end it.
    fleet.cli("stop", "a")
    fleet.cli("stop", "gateway")
    permit.touch()
    fleet.cli("start")
    fleet.wait_ready("a", "gateway")
    site.wait_pool("a")
    assert site.client.ask().status == 200
    assert {"no luck today"} == {event["reason"][-13:] for event in fleet.events("server.crashed", "gateway")}


def test_access_log_rotates_and_nginx_writes_to_the_new_one(fleet: Fleet) -> None:
    site = Site(fleet, "a")
    site.write(log_max_bytes=3000, log_backups=1)
    site.start()
    log = fleet.log_dir / "sglang-server-gateway-access.log"
    for _ in range(15):
        site.client.ask("/v1/models")
    old = log.with_name(f"{log.name}.1")
    wait_until(lambda: old.exists() and log.exists(), 20, "the log to rotate")

    def reaches_the_new_log() -> bool:
        """nginx is told a moment after the new log is there."""
        site.client.ask("/v1/models", X_Request_ID="last")
        return any(row["id"] == "last" for row in site.access_log())

    wait_until(reaches_the_new_log, 15, "nginx to write to the new log")
    assert sorted(path.name for path in fleet.log_dir.glob("*access*")) == [log.name, old.name]


def test_log_that_cannot_rotate_is_told_of_and_keeps_no_revoked_key_in_force(fleet: Fleet) -> None:
    site = Site(fleet, "a")
    site.write(api_keys_file=site.with_keys(), log_max_bytes=1000, log_backups=1)
    (fleet.log_dir / "sglang-server-gateway-access.log.1" / "in-the-way").mkdir(parents=True)
    site.start()
    for _ in range(10):
        site.client.ask()
    assert "is a directory" in fleet.wait_event("gateway.log_not_rotated")["reason"].lower()
    site.with_keys(f"bob: {BOB}\n")
    wait_until(lambda: site.client.ask().status == 401, 15, "alice's key to be revoked")
    assert len(fleet.events("gateway.log_not_rotated")) == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs servers as another user")
def test_gateway_of_another_user_runs_tests_and_logs_as_that_user(fleet: Fleet) -> None:
    site = Site(fleet, "a")
    nobody = pwd.getpwnam("nobody").pw_uid
    config = site.write(api_keys_file=site.with_keys())
    # The interpreter of the tests may be where that user may not go.
    config.write_text(config.read_text().replace(sys.executable, SYSTEM_PYTHON))
    site.start(AUTO_INFER_SGLANG_USER="nobody")
    assert site.client.ask("/v1/chat/completions", body={"messages": [{"content": "z" * 600_000}]}).status == 200

    def nginx_uids() -> list[int]:
        return [member.uid for member in fleet.members() if any("nginx:" in word for word in member.argv)]

    wait_until(lambda: len(nginx_uids()) == 3, 15, "workers from before a reload to be gone")
    assert set(nginx_uids()) == {nobody}
    conf = fleet.run_dir / "config/gateway.conf"
    assert conf.stat().st_uid == nobody and conf.stat().st_mode & 0o777 == 0o600
    assert (fleet.log_dir / "sglang-server-gateway-access.log").stat().st_uid == nobody
    assert site.wait_logged(status=200)
    site.with_keys(f"bob: {BOB}\n")
    wait_until(lambda: site.client.ask().status == 401, 15, "the reload")


def test_full_disk_leaves_the_old_pools_in_force_and_says_so(fleet: Fleet) -> None:
    site = Site(fleet, "a", "b")
    run_dir = fleet.base / "run"
    run_dir.mkdir(mode=0o700)
    site.write()
    fleet.start(prelude=f"mount -t tmpfs -o size=1m,mode=700 none {run_dir}")
    fleet.look_at(Path(f"/proc/{fleet.pid}/root{run_dir}"))
    fleet.wait_ready("a", "b", "gateway")
    site.wait_pool("a", "b")
    filler = Path(f"/proc/{fleet.pid}/root{run_dir}/filler")
    with pytest.raises(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * 4096)
    old = fleet.kill_server("b")
    row = fleet.wait_state("gateway", "ready", reason="cannot")
    assert "No space left" in row["reason"]
    assert all(site.client.ask("/v1/models").status == 200 for _ in range(10))
    filler.unlink()
    fleet.wait_again("b", old)
    site.wait_pool("a", "b")
    fleet.wait(lambda: fleet.row("gateway")["reason"] == "", 20, "the reason to go")
