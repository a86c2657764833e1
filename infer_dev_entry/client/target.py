"""Find the server that a caller means, by URL or by name in the running fleet, and its key where that can be read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import urlsplit

from infer_dev_entry.control_client import ask
from infer_dev_entry.engines import ENGINE_NAMES, profile_of
from infer_dev_entry.errors import ClientError, NotReadyError, RefusedKeyError, UnknownServerError
from infer_dev_entry.redact import api_key_of
from infer_dev_entry.regular_file import read_regular
from infer_dev_entry.spec import FileSpec

KEY_VARIABLE = "INFER_DEV_API_KEY"
# What stands before the servers answers for all of them.
GATEWAY_ENGINES = ("gateway", "nginx", "sglang-router")
KEY_FILE_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where to ask. `name` and `engine` are "" for a URL; `argv` is the server's, where it is one of the fleet's.

    `behind` are the command lines of the servers of a gateway's fleet, where all that are ready are SGLang's.
    `ca_file` holds the certificates to trust behind https; "" is whom everybody trusts.
    """

    url: str
    api_key: str = field(default="", repr=False)
    name: str = ""
    engine: str = ""
    argv: tuple[str, ...] = ()
    behind: tuple[tuple[str, ...], ...] = ()
    ca_file: str = ""


def find_target(target: str, *, api_key: str | None, environ: Mapping[str, str]) -> Target:
    """Return what `target` names: a URL, a server of the running fleet, or "" for the one that there is to ask.

    Raises:
        NotRunningError: no fleet is running.
        UnknownServerError: it has no such server.
        NotReadyError: that server does not serve now.
        RefusedKeyError: it asks for a key that this user may not read, and none is given.
        ClientError: no valid URL, or several servers to choose from.
    """
    given = environ.get(KEY_VARIABLE, "").strip() if api_key is None else api_key
    _check_key(given)
    if "://" in target:
        return Target(url=parse_url(target), api_key=given, ca_file=_ca_file(environ))
    rows = ask(environ, {"op": "status"})["servers"]
    row = choose_row(rows, target)
    check_ready(row)
    check_asked(row)
    return target_of_row(row, api_key=api_key, environ=environ)


def target_of_row(row: Mapping[str, Any], *, api_key: str | None, environ: Mapping[str, str]) -> Target:
    """Return how to ask a server of the fleet.

    Raises:
        RefusedKeyError: as `find_target`.
        ClientError: a key that no header can carry.
    """
    name = str(row["name"])
    launch = _launch_of(name, environ)
    engine = str(row["engine"])
    # Only of these it is known where the key is: the files of a gateway are other ones.
    has_own = engine in ENGINE_NAMES and "api-key" in profile_of(engine).secret_flags
    key = api_key if api_key is not None else _find_key(name, launch["files"] if has_own else (), environ)
    _check_key(key)
    argv = tuple(map(str, launch["argv"]))
    return Target(url=str(row["url"]), api_key=key, name=name, engine=engine, argv=argv, ca_file=_ca_file(environ))


def with_servers_behind(target: Target, rows: Sequence[Mapping[str, Any]], environ: Mapping[str, str]) -> Target:
    """Return a gateway's target with the command lines of what may answer behind it; any other target as it is."""
    asked = [row for row in rows if row["state"] == "ready" and row["url"] and row["engine"] not in GATEWAY_ENGINES]
    if target.engine not in GATEWAY_ENGINES or any(row["engine"] != "sglang" for row in asked):
        return target
    names = [str(row["name"]) for row in asked]
    behind = tuple(tuple(map(str, _launch_of(name, environ)["argv"])) for name in names)
    return replace(target, behind=behind)


def parse_url(text: str) -> str:
    """Return the base URL without a final / or /v1.

    Raises:
        ClientError: it is no http(s) URL of a host, or holds a password or a query.
    """
    try:
        parts = urlsplit(text.strip())
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable or any(char.isspace() or not char.isprintable() for char in text.strip()):
        raise ClientError(
            f"cannot use the URL {text[:80]!r}: expected http://HOST:PORT or https://HOST, such as http://127.0.0.1:30000"
        )
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ClientError(
            f"cannot use the URL of {parts.hostname}: it has more than host and path; give the key as api_key"
        )
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/').removesuffix('/v1').rstrip('/')}"


def choose_row(rows: Sequence[Mapping[str, Any]], name: str) -> Mapping[str, Any]:
    """Return the server of that name; for "" the gateway, else the only one that is ready, else the only one.

    Raises:
        UnknownServerError: there is none of that name, or none at all.
        ClientError: there are several.
    """
    listed = ", ".join(str(row["name"]) for row in rows) or "none"
    if name:
        for row in rows:
            if row["name"] == name:
                return row
        raise UnknownServerError(
            f"cannot attach to {name!r}: the running fleet has no server of that name; it has: {listed}"
        )
    gateways = [row for row in rows if row["engine"] in GATEWAY_ENGINES]
    # A node beside the first serves nobody: it has no URL.
    ready = [row for row in rows if row["state"] == "ready" and row["url"]]
    for choice in (gateways, ready, rows):
        if len(choice) == 1:
            return choice[0]
        if choice:
            break
    if not rows:
        raise UnknownServerError(
            "cannot attach: the running fleet has no servers; start some: infer-dev serve CONFIG.toml"
        )
    raise ClientError(f"cannot attach: the running fleet has several servers; name one of {listed}")


def check_ready(row: Mapping[str, Any]) -> None:
    """Refuse a server that does not serve.

    Raises:
        NotReadyError: with its state, reason and mend.
    """
    if row["state"] == "ready":
        return
    reason = f": {row['reason']}" if row["reason"] else ""
    mend = row["mend"] or "wait for it, or see infer-dev status"
    phase = f" ({row['phase']})" if row.get("phase") and not reason else ""
    raise NotReadyError(f"cannot attach to {row['name']}: it is {row['state']}{phase}{reason}; {mend}")


def check_asked(row: Mapping[str, Any]) -> None:
    """Refuse what serves nobody: a node of a server on several machines, beside the first.

    Raises:
        ClientError: with what its status says of it.
    """
    if not row["url"]:
        raise ClientError(f"cannot ask {row['name']}: it has no address to ask ({row['reason']}); ask the first node")


def _ca_file(environ: Mapping[str, str]) -> str:
    return environ.get("SSL_CERT_FILE", "").strip()


def _launch_of(name: str, environ: Mapping[str, str]) -> Mapping[str, Any]:
    answer = ask(environ, {"op": "launch", "name": name})
    return {"argv": answer["argv"], "files": answer["files"]}


def _find_key(name: str, paths: Sequence[str], environ: Mapping[str, str]) -> str:
    """The key that the server asks for, from its private files; else the variable's.

    Raises:
        RefusedKeyError: this user may not read them, and the variable is not set.
    """
    given = environ.get(KEY_VARIABLE, "").strip()
    try:
        key = api_key_of(FileSpec(path=path, text=read_private(path)) for path in paths)
    except OSError as error:
        if given:
            return given
        raise RefusedKeyError(
            f"cannot attach to {name}: it may ask for an API key, which this user cannot read ({error.filename}: "
            f"{error.strerror}); give api_key, or set {KEY_VARIABLE}"
        ) from error
    return key or given


def read_private(path: str) -> str:
    """Read a small private file of a server.

    Raises:
        OSError: it cannot be read, or is no file.
    """
    return read_regular(path, KEY_FILE_BYTES)[0].decode("utf-8", "replace")


def _check_key(key: str) -> None:
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise ClientError("cannot use the API key: it has characters that no header can carry; give the key alone")
