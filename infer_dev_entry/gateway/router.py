"""SGLang's router as a gateway: its command line, and what its list of workers lacks. Pure.

Facts of sglang-router 0.3.2, seen here: workers are added and removed by `POST` and `DELETE /workers` (202: the work is
queued), a removed one completes its requests, and the id of one is kept for its URL. With a control-plane key those
paths answer to nobody else, while `/v1/` stays as it is. A client's `Authorization` is passed on to the worker.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass

WORKERS_PATH = "/workers"
# The option of our launcher, not of the router: the router takes that key on its command line, which all can read.
KEY_OPTION = "--control-plane-key-file"


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """One worker as the router lists it."""

    id: str
    url: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterWish:
    """What the router is told on its command line. Times are seconds; `key_file` holds the key of its control plane."""

    host: str
    port: int
    metrics_port: int
    policy: str
    max_body_bytes: int
    request_timeout_s: float
    drain_timeout_s: float
    key_file: str


def render_words(wish: RouterWish) -> tuple[str, ...]:
    """Render the command line, after the program's own words."""
    options = {
        "--host": wish.host,
        "--port": str(wish.port),
        "--policy": wish.policy,
        "--prometheus-host": "127.0.0.1",  # its default is every address of the machine
        "--prometheus-port": str(wish.metrics_port),
        "--max-payload-size": str(wish.max_body_bytes),
        "--request-timeout-secs": _whole(wish.request_timeout_s),
        "--shutdown-grace-period-secs": _whole(wish.drain_timeout_s),
        # A worker is added when it is ready. One that dies meanwhile must not come in late, when nobody expects it.
        "--worker-startup-timeout-secs": "10",
        "--worker-startup-check-interval": "1",
        "--retry-max-retries": "2",
        "--history-backend": "none",  # it would keep conversations in its memory
        "--log-level": "warn",
        KEY_OPTION: wish.key_file,
    }
    # Who is ready is known here, at once; the router's own checks would make each server generate every few seconds.
    return (*(word for option in options.items() for word in option), "--disable-health-check")


def _whole(seconds: float) -> str:
    return str(max(1, round(seconds)))


def parse_workers(text: str) -> tuple[Worker, ...] | None:
    """Parse the answer of `GET /workers`; None when it is none."""
    try:
        return tuple(Worker(id=_text(item["id"]), url=_text(item["url"])) for item in json.loads(text)["workers"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _text(value: object) -> str:
    """Refuse what is no plain word: an id goes into the path of a request."""
    if not isinstance(value, str) or not value.isascii() or not value.isprintable() or " " in value:
        raise ValueError("not a plain word")
    return value


def find_changes(wanted: Iterable[str], workers: Iterable[Worker]) -> tuple[tuple[str, ...], tuple[Worker, ...]]:
    """Return the URLs that the router lacks, and the workers that it has too many; it may list a URL with a slash."""
    listed = {worker.url.rstrip("/"): worker for worker in workers}
    urls = tuple(dict.fromkeys(wanted))
    missing = tuple(url for url in urls if url not in listed)
    return missing, tuple(worker for url, worker in listed.items() if url not in urls)


def render_worker(url: str) -> str:
    """Render the body that adds a worker.

    Without the server's own key, which the router would then give to whoever asks it: clients bring it themselves.
    """
    return json.dumps({"url": url})
