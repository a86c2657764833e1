"""The file of API keys: one a line, `key` or `name: key`. Parsed with every problem told by its line, never a key."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

SHORTEST = 16
LONGEST = 512
MOST_KEYS = 1000  # each is one comparison more for nginx
MOST_PROBLEMS = 20
FORMAT = "a line is `key` or `name: key`"

# What RFC 6750 lets a bearer token be (`b64token`). Nothing in it needs quotes in nginx's configuration.
_KEY = re.compile(r"[A-Za-z0-9._~+/-]+=*")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """One key and the name that stands for it in logs. Keys may share a name: the old and the new one, say."""

    name: str
    key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class KeysFile:
    """The keys of a file and what is wrong with it; with a problem none of them is to be used."""

    keys: tuple[ApiKey, ...] = ()
    problems: tuple[str, ...] = ()


def parse_keys(text: str) -> KeysFile:
    """Parse the text of a keys file. Empty lines and those that begin with `#` are comments."""
    keys: list[ApiKey] = []
    lines: dict[str, int] = {}
    problems: list[str] = []
    for number, raw in enumerate(text.split("\n"), start=1):
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        name, key = _split(line)
        problem = name_problem(name) if name else ""
        problem = problem or key_problem(key)
        if not problem and key in lines:
            problem = f"the same key as in line {lines[key]}"
        if problem:
            problems.append(f"line {number}: {problem}")
            continue
        lines[key] = number
        keys.append(ApiKey(name=name or default_name(key), key=key))
    if not lines and not problems:
        problems.append("it holds no key")
    if len(keys) > MOST_KEYS:
        problems.append(f"it holds {len(keys)} keys, and the limit is {MOST_KEYS}")
    return KeysFile(keys=tuple(keys), problems=_cut(problems))


def _split(line: str) -> tuple[str, str]:
    """Name and key; no key holds a colon."""
    name, colon, key = line.partition(":")
    return (name.strip(), key.strip()) if colon else ("", line)


def _cut(problems: list[str]) -> tuple[str, ...]:
    more = len(problems) - MOST_PROBLEMS
    return (*problems[:MOST_PROBLEMS], *([f"and {more} more"] if more > 0 else []))


def key_problem(key: str) -> str:
    """Say why a key cannot be used, "" when it can. The key itself is never said."""
    if not key:
        return "no key after the name"
    if " " in key or "\t" in key:
        return f"white space in the key; {FORMAT}"
    if not _KEY.fullmatch(key):
        return "a character that a key cannot hold; use letters, digits and - . _ ~ + / (and = at the end)"
    if len(key) < SHORTEST:
        return f"the key has {len(key)} characters; at least {SHORTEST} are needed"
    return f"the key has {len(key)} characters; at most {LONGEST} are possible" if len(key) > LONGEST else ""


def name_problem(name: str) -> str:
    """Say why a name cannot be used, "" when it can; it is not said, as it may be a key in the wrong place."""
    if _NAME.fullmatch(name):
        return ""
    return "not a usable name; 1 to 64 letters, digits and - . _ @, beginning with a letter or digit"


def default_name(key: str) -> str:
    """The name of a key that was given none: the same for the same key, whatever stands above it in the file."""
    return f"key-{hashlib.sha256(key.encode()).hexdigest()[:8]}"
