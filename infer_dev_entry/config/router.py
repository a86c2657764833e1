"""`engine = "sglang-router"` of `[gateway]`: what it cannot do is refused, and its command line is put together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from infer_dev_entry.config.checks import FleetChecker
from infer_dev_entry.config.facts import Host
from infer_dev_entry.config.faults import Faults, Path
from infer_dev_entry.config.programs import ResolveOptions
from infer_dev_entry.engines.sglang_router import PACKAGE
from infer_dev_entry.gateway.router import RouterWish, render_words
from infer_dev_entry.redact import api_key_of
from infer_dev_entry.spec import GatewaySpec, ServerSpec, is_loopback

if TYPE_CHECKING:
    from infer_dev_entry.config.gateway import Gateway

PATH: Path = ("gateway",)
MEND = "build the bundle with sglang-router, or pip install sglang-router"

# What protects somebody must not be left out in silence; the rest is.
_PROTECTING = {
    "api_keys_file": "check a file of keys",
    "tls_certificate": "be given a certificate here",
    "tls_certificate_key": "be given a certificate here",
    "rate_per_s": "limit the rate of a key",
    "max_connections": "limit the requests of a key",
}
_UNUSED = ("http2", "burst", "client_timeout_s", "workers", "access_log")


class RouterChecker:
    """Checks a gateway that is SGLang's router, and finds the interpreter that runs it."""

    def __init__(self, options: ResolveOptions, host: Host, checker: FleetChecker, faults: Faults) -> None:
        self._options = options
        self._host = host
        self._checker = checker
        self._faults = faults

    def check(self, gateway: Gateway, pool: Sequence[ServerSpec]) -> None:
        """Report keys that it cannot honour, and servers that one client cannot use alike."""
        for key in gateway.given & _PROTECTING.keys():
            if getattr(gateway, key):
                problem = f"engine sglang-router cannot {_PROTECTING[key]}"
                mend = 'write engine = "nginx", or put an nginx of your own in front and remove it'
                self._faults.add((*PATH, key), problem, mend)
        for key in _UNUSED:
            if key in gateway.given:
                self._faults.warn((*PATH, key), "is for engine nginx; not used")
        if len({api_key_of(server.files) for server in pool}) > 1:
            problem = "its servers ask for different API keys, and a client can send one of them"
            self._faults.add((*PATH, "instances"), problem, "give them the same api_key_file, or none")
        if not is_loopback(gateway.host) and not all(api_key_of(server.files) for server in pool):
            problem = f"everybody who reaches {gateway.host}:{gateway.port} can use the servers"
            mend = "give the instances an api_key_file, which clients then need, or listen on 127.0.0.1 behind an nginx"
            self._faults.warn((*PATH, "host"), problem, mend)

    def find_interpreter(self, gateway: Gateway, installed_python: str) -> str:
        """Return the interpreter: the given one, the installed environment's if it has the router, else our own."""
        if gateway.binary:
            given = self._host.expand(gateway.binary)
            self._checker.check_program(given, (*PATH, "binary"), "give the path of an interpreter with sglang-router")
            return given
        if self._host.environment_has(installed_python, PACKAGE):
            return installed_python
        self._checker.check_package(PACKAGE, (*PATH, "engine"), MEND)
        return self._options.engine_python

    def render(self, gateway: Gateway, interpreter: str, metrics_port: int, key_file: str) -> tuple[str, ...]:
        """Render the whole command line."""
        wish = RouterWish(
            host="127.0.0.1" if gateway.host == "localhost" else gateway.host.strip("[]"),
            port=gateway.port,
            metrics_port=metrics_port,
            policy=gateway.policy,
            max_body_bytes=gateway.max_body_bytes,
            request_timeout_s=gateway.read_timeout_s,
            drain_timeout_s=gateway.drain_timeout_s,
            key_file=key_file,
        )
        return (interpreter, self._options.router_launcher, *render_words(wish))


def router_spec(gateway: Gateway, pool: tuple[str, ...], key_file: str) -> GatewaySpec:
    """Return what the router does with requests; what only nginx does is off."""
    return GatewaySpec(
        pool=pool,
        routes=(),
        conf=key_file,
        access_log="",
        api_keys_file="",
        tls_certificate="",
        tls_certificate_key="",
        http2=False,
        rate_per_s=0.0,
        burst=0,
        max_connections=0,
        max_body_bytes=gateway.max_body_bytes,
        client_timeout_s=gateway.client_timeout_s,
        read_timeout_s=gateway.read_timeout_s,
        workers=1,
    )
