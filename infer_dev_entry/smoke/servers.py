"""Find the servers to check, and what can be known of them: from the fleet, or by asking a URL."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any
from urllib.parse import urlsplit

from infer_dev_entry.client.answers import parse_models
from infer_dev_entry.client.connection import Connection
from infer_dev_entry.client.target import (
    KEY_FILE_BYTES,
    KEY_VARIABLE,
    Target,
    check_asked,
    check_ready,
    choose_row,
    find_target,
    read_private,
    target_of_row,
    with_servers_behind,
)
from infer_dev_entry.control_client import ask
from infer_dev_entry.errors import ClientError, NotReadyError
from infer_dev_entry.probe import read_page
from infer_dev_entry.smoke.facts import (
    LLAMA_CPP,
    SGLANG,
    ServerFacts,
    in_common,
    with_launch,
    with_models,
    with_props,
    with_server_info,
)

FACTS_TIMEOUT_S = 10.0


def find_servers(target: str, *, api_key: str | None, environ: Mapping[str, str]) -> tuple[Target, ...]:
    """Return the server that is named, by URL or by name, or for "" every ready server of the fleet.

    Raises:
        NotReadyError: none is ready, or not the one that is named.
        EntryError: as `client.target.find_target`.
    """
    if "://" in target:
        return (find_target(target, api_key=api_key, environ=environ),)
    rows: list[dict[str, Any]] = ask(environ, {"op": "status"})["servers"]
    if target or not rows:
        row = choose_row(rows, target)
        check_ready(row)
        check_asked(row)
        return (with_servers_behind(target_of_row(row, api_key=api_key, environ=environ), rows, environ),)
    ready = [row for row in rows if row["state"] == "ready"]
    if not ready:
        states = ", ".join(f"{row['name']} is {row['state']}" for row in rows)
        raise NotReadyError(f"cannot check: no server is ready: {states}; wait, or see infer-dev status")
    # A server's own key is the right one for it: what is given is for those of which none is known, as the gateway.
    given = environ if api_key is None else {**environ, KEY_VARIABLE: api_key}
    targets = (target_of_row(row, api_key=None, environ=given) for row in ready if row["url"])
    return tuple(with_servers_behind(target, ready, environ) for target in targets)


def find_unready(environ: Mapping[str, str]) -> tuple[str, ...]:
    """Return `name is state: reason` of every server that is wanted and not ready, or cannot be asked."""
    rows: list[dict[str, Any]] = ask(environ, {"op": "status"})["servers"]
    return tuple(
        f"{row['name']} is {row['state']}" + (f": {row['reason']}" if row["reason"] else "")
        for row in rows
        if row["wanted"] and (row["state"] != "ready" or not row["url"])
    )


def read_facts(target: Target) -> ServerFacts:
    """Ask a server what it is.

    Raises:
        ClientError: it does not answer, or not as such a server does.
    """
    facts = ServerFacts(label=target.name or target.url, url=target.url, api_key=target.api_key, ca_file=target.ca_file)
    facts = with_models(facts, asyncio.run(_ask_models(target)))
    if target.engine == "sglang":
        facts = with_launch(facts, target.argv, _read_files(target.argv))
    elif target.behind:
        known = [with_launch(facts, argv, _read_files(argv)) for argv in target.behind]
        facts = in_common(facts, known)
    elif facts.make == SGLANG:
        # Its answer holds the server's keys: it is read for three names, never shown, and only from this machine.
        facts = with_server_info(facts, _read_page(target, ("/server_info", "/get_server_info")))
    if facts.make == LLAMA_CPP:
        facts = with_props(facts, _read_page(target, ("/props",)))
    return facts


async def _ask_models(target: Target) -> Any:
    connection = Connection(target.url, target.api_key, target.ca_file)
    try:
        return parse_models(await connection.get_models(FACTS_TIMEOUT_S))
    finally:
        await connection.close()


def _read_files(argv: Sequence[str]) -> tuple[str, ...]:
    texts = []
    for word, value in pairwise(argv):
        if word == "--config":
            with contextlib.suppress(OSError):
                texts.append(read_private(value))
    return tuple(texts)


def _read_page(target: Target, paths: tuple[str, ...]) -> str:
    """Return the first page that there is; "" when the server is not on this machine, or has none."""
    parts = urlsplit(target.url)
    if parts.scheme != "http" or parts.path or parts.hostname not in ("127.0.0.1", "localhost", "::1"):
        return ""
    host = "127.0.0.1" if parts.hostname == "localhost" else parts.hostname
    for path in paths:
        page = asyncio.run(read_page(host, parts.port or 80, path, FACTS_TIMEOUT_S, api_key=target.api_key))
        if page.status == 200:
            return page.text
    return ""


def read_key_file(path: str) -> str:
    """Return the key in a file: its first line that is neither empty nor a comment.

    Raises:
        ClientError: it cannot be read, or has none.
    """
    try:
        with open(os.path.expanduser(path), "rb") as file:  # also a pipe, as `<(…)` is one
            lines = file.read(KEY_FILE_BYTES).decode("utf-8", "replace").splitlines()
    except OSError as error:
        raise ClientError(
            f"cannot read the key file {path}: {error.strerror}; give a file with the key alone"
        ) from error
    key = next((line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")), "")
    if not key:
        raise ClientError(f"cannot use the key file {path}: it has no key; give a file with the key alone")
    return key
