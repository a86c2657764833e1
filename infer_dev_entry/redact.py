"""Blot secrets out of a log line: the ones that are known, and whatever looks like one.

Engines print their keys (SGLang its whole argument list at start-up, `api_key='…'` included), and more people may read
a log than may call the server. When in doubt a word too much is blotted out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from functools import lru_cache

from infer_dev_entry.spec import FileSpec

MASK = "***"
_SHORTEST_KNOWN = 4  # a shorter secret would blot out half of every line
_MOST_PATTERNS = 64

# Not "whatever ends in token": SGLang's log is full of `#new-token: 7`, `token usage: 0.1` and `max_tokens=32`.
_NAMES = (
    r"(?:api|access|secret|private)[ _-]?keys?|secret|passw(?:or)?d|passphrase|credentials?|authorization"
    r"|(?:hf|hub|auth|access|api|bearer|refresh|session|github|gitlab)[_-]token"
    r"|(?<![\w#-])token(?==(?![0-9.]+(?:\W|$)))"
)
# A quoted value ends at its own kind of quote (JSON within JSON escapes it); one that is cut off, at the line's end.
_VALUE = (
    r"(?:(?P<quote>\\*['\"])(?:(?!(?P=quote))(?:\\.|[^\\]))*+\\?(?:(?P=quote)|$)"
    r"|(?:bearer|basic|token)\s+\S+|(?!\*{3})[^\s'\"]\S*)"
)
_PATTERN = (
    rf"(?P<name>(?:{_NAMES})(?:\\*['\"])?\s*[=:]\s*|--[a-z-]{{0,40}}?(?:{_NAMES})(?:\\*['\"]\s*,\s*|\s+)(?!-))"
    rf"(?!(?:none|null|true|false)\b|(?:\\*['\"]){{2}}){_VALUE}"
    r"|(?P<scheme>\bbearer\s+)[\w.~+/=-]{8,}"
    r"|(?P<url>://)[^\s/@:'\"]*:[^\s/@'\"]+(?=@)"
    r"|\b(?:hf_|sk-|nvapi-|pypi-|glpat-|gh[opsu]_|akia)[a-z0-9_-]{8,}"
)
# Text without any of these has no match. Looking for them first makes the common line, SGLang's `#new-token: 7` among
# them, many times cheaper.
_HINTS = (
    *("key", "secret", "passw", "passphrase", "credential", "authorization", "bearer", "@", "token=", "_token"),
    *("hf-token", "hub-token", "auth-token", "access-token", "api-token", "refresh-token", "session-token"),
    *("gitlab-token", "hf_", "sk-", "nvapi-", "pypi-", "glpat-", "gho_", "ghp_", "ghs_", "ghu_", "akia"),
)


def redact_line(line: str, secrets: tuple[str, ...] = ()) -> str:
    """Return the line with `***` for the given secrets and for what looks like one; a line without any is unchanged.

    `secrets` are known values, such as `secrets_of` gives; those of less than four characters are left to the patterns.
    """
    if secrets and (known := _known_pattern(secrets)):
        line = known.sub(MASK, line)
    return _looks_secret().sub(_masked, line) if _has_hint(line) else line


def redact_bytes(data: bytes) -> bytes:
    """Redact the raw bytes of one or more whole lines; what is not UTF-8 stays as it is."""
    text = data.decode("utf-8", "surrogateescape")
    if not _has_hint(text):
        return data
    lines = [redact_line(line) for line in text.split("\n")]
    return "\n".join(lines).encode("utf-8", "surrogateescape")


def secrets_of(files: Iterable[FileSpec]) -> tuple[str, ...]:
    """Return the secrets in a server's private files: a file of keys, or the keys of SGLang's `--config`."""
    found: list[str] = []
    for file in files:
        try:
            values = json.loads(file.text) if file.path.endswith(".yaml") else file.text.splitlines()
        except (ValueError, RecursionError):
            continue
        if isinstance(values, dict):
            values = [value for name, value in values.items() if name.endswith(("key", "password"))]
        found += [value for value in values if isinstance(value, str) and value]
    return tuple(dict.fromkeys(found))


def api_key_of(files: Iterable[FileSpec]) -> str:
    """Return the key that a server asks its clients for, out of its private files; "" when it asks for none."""
    for file in files:
        try:
            values = json.loads(file.text) if file.path.endswith(".yaml") else {"api-key": file.text.split("\n")[0]}
        except (ValueError, RecursionError):
            continue
        key = values.get("api-key") if isinstance(values, dict) else None
        if isinstance(key, str) and key.isprintable() and key.isascii():
            return key.strip()
    return ""


def _has_hint(text: str) -> bool:
    lowered = text.lower()
    return any(hint in lowered for hint in _HINTS)


@lru_cache(maxsize=1)
def _looks_secret() -> re.Pattern[str]:
    """Compiled at first use: it takes milliseconds, and PID 1 may never show a log."""
    return re.compile(_PATTERN, re.IGNORECASE)


@lru_cache(maxsize=_MOST_PATTERNS)
def _known_pattern(secrets: tuple[str, ...]) -> re.Pattern[str] | None:
    """One pattern for all known secrets, the longest first, as one may begin another."""
    usable = sorted({secret for secret in secrets if len(secret) >= _SHORTEST_KNOWN}, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, usable))) if usable else None


def _masked(match: re.Match[str]) -> str:
    return (match["name"] or match["scheme"] or match["url"] or "") + MASK
