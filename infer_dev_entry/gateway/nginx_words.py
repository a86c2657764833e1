"""The words of nginx's configuration: how texts, paths, times, addresses and keys are written; its complaints."""

from __future__ import annotations

import re
from collections.abc import Sequence

from infer_dev_entry.spec import ServerSpec

# No word may have 4096 bytes, the buffer that nginx reads its configuration through.
_LONGEST_WORD = 3000


def quote(value: str) -> str:
    """Quote a text that nginx takes as it is: where variables are expanded, a `$` of the text stays one."""
    text = value.replace("\\", "\\\\").replace('"', '\\"').replace("$", "${gateway_dollar}")
    return f'"{text}"'


def quote_path(value: str) -> str:
    """Quote a path in a directive that expands no variables."""
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def path_problem(value: str) -> str:
    """Say why a path cannot stand in nginx's configuration, "" when it can."""
    if "$" in value:
        return "it holds '$', which nginx takes for a variable"
    return "" if value.isprintable() else "it holds a control character"


def key_pattern(key: str) -> str:
    """The regular expression that matches this key alone. Of what a key can hold, two characters are special in it."""
    return re.sub(r"[.+]", r"[\g<0>]", key)


def find_complaint(output: str) -> str:
    """Return the first line of nginx's output that tells a fault, without its prefix."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    grave = [line for line in lines if re.search(r"\[(?:emerg|alert|crit)\]", line)]
    line = (grave or lines or [""])[0]
    if "bearer" in line.lower():
        return "it refuses the line of a key or of a server's key"  # and quotes it
    return re.sub(r"^(?:nginx: |[0-9/]+ [0-9:]+ )(\[[a-z]+\] )(?:[0-9]+#[0-9]+: )?", r"\1", line)


def listen_address(host: str, port: int) -> str:
    host = host.strip("[]") or "0.0.0.0"
    host = "127.0.0.1" if host == "localhost" else host
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def upstream_address(server: ServerSpec) -> str:
    # By name nginx would take every address that it resolves to for a server of its own.
    host, _, port = server.address.rpartition(":")
    return f"127.0.0.1:{port}" if host == "localhost" else server.address


def render_seconds(value: float) -> str:
    """A time as nginx takes it; below a millisecond is none."""
    return f"{max(1, round(value * 1000))}ms"


def render_rate(per_s: float) -> str:
    """nginx knows whole numbers a second or a minute."""
    return f"{int(per_s)}r/s" if per_s.is_integer() else f"{max(1, round(per_s * 60))}r/m"


def split_text(lines: Sequence[str]) -> list[str]:
    """Join lines into quoted pieces that nginx reads: no word of its configuration may have 4096 bytes."""
    pieces = [""]
    for line in lines:
        text = line.replace('"', '\\"') + "\n"
        if len(pieces[-1]) + len(text) > _LONGEST_WORD:
            pieces.append("")
        pieces[-1] += text
    return pieces
