"""The example for a host of its own, docker/nginx, as it stands under a real nginx, and before a real gateway."""

from __future__ import annotations

import re
import signal
import ssl
import subprocess
from pathlib import Path

from fleet import Fleet, free_ports
from gateway import ALICE, NGINX, Client, Site, needs_nginx
from test_gateway_life import make_certificate
from wait import wait_until

pytestmark = needs_nginx
pytest_plugins = ("fleet_fixtures",)

CONF = Path(__file__).parents[2] / "docker" / "nginx" / "inference.cloudlab.internal.conf"


def place(base: Path, *gateways: str, plain: int, tls: int) -> list[str]:
    """Write the example's file as a whole configuration with this machine's places; return the command that runs it."""
    certificate, key = make_certificate(base)
    text = CONF.read_text()
    for old, new in (
        ("/etc/nginx/tls/inference.cloudlab.internal.crt", str(certificate)),
        ("/etc/nginx/tls/inference.cloudlab.internal.key", str(key)),
        ("listen 443", f"listen 127.0.0.1:{tls}"),
        ("listen 80", f"listen 127.0.0.1:{plain}"),
        ("192.0.2.11:8000", gateways[0]),
        ("192.0.2.12:8000", gateways[1]),
    ):
        assert old in text, old
        text = text.replace(old, new)
    text = re.sub(r"^    listen \[::\].*\n", "", text, flags=re.MULTILINE)
    temp = "".join(
        f"{name}_temp_path {base}/{name};\n" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    conf = base / "host.conf"
    conf.write_text(
        f"daemon off;\npid {base}/host.pid;\nevents {{}}\nhttp {{\naccess_log off;\n{temp}include site.conf;\n}}\n"
    )
    (base / "site.conf").write_text(text)
    return [str(NGINX), "-e", "stderr", "-p", f"{base}/", "-c", str(conf)]


def test_example_is_accepted_and_every_address_in_it_is_for_documentation(tmp_path: Path) -> None:
    plain, tls = free_ports(2)
    done = subprocess.run(
        [*place(tmp_path, "127.0.0.1:1", "127.0.0.1:2", plain=plain, tls=tls), "-t"],
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert done.returncode == 0, done.stderr
    assert "[warn]" not in done.stderr
    addresses = re.findall(r"\d+\.\d+\.\d+\.\d+", CONF.read_text())
    assert all(address.startswith("192.0.2.") or address == "0.0.0.0" for address in addresses)


def test_example_leads_to_a_gateway_that_is_ready_and_streams(fleet: Fleet, tmp_path: Path) -> None:
    site = Site(fleet, "a")
    site.write(api_keys_file=site.with_keys())
    site.start()
    plain, tls, nobody = free_ports(3)
    command = place(tmp_path, f"127.0.0.1:{nobody}", f"127.0.0.1:{site.port}", plain=plain, tls=tls)
    host = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        trust = ssl.create_default_context(cafile=str(tmp_path / "cert.pem"))
        client = Client(tls, ALICE, trust)
        wait_until(lambda: answers(client), 20, "the host to answer")
        for _ in range(4):  # one of its two gateways is not there
            assert client.ask("/v1/models").status == 200
        seen = client.ask("/v1/fake/echo", X_Request_ID="from-outside").json["headers"]
        assert (seen["x-request-id"], seen["x-forwarded-for"]) == ("from-outside", "127.0.0.1, 127.0.0.1")
        assert client.ask("/metrics").status == 404 and client.ask("/server_info").status == 404
        stream = client.stream(15, 0.1)
        # A client that waits for its processor gets several tokens at once; a buffer would give all at the end.
        assert stream.complete and len(stream.times) >= 3 and stream.spread_s > 0.75
        assert Client(tls, "", trust).ask("/v1/models").status == 401
        assert Client(plain).ask("/v1/models").json["error"]["code"] == "https_only"
    finally:
        host.send_signal(signal.SIGTERM)
        host.wait(10)


def answers(client: Client) -> bool:
    try:
        return client.ask("/health").status == 200
    except OSError:
        return False
