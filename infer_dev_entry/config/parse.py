"""TOML text and overrides JSON → one checked document. Every value in it afterwards is plain, finite and printable."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterable, Mapping

from infer_dev_entry.config.faults import (
    OVERRIDES_NAME,
    REFUSED,
    Faults,
    Path,
    Refused,
    shown,
)
from infer_dev_entry.config.interpolate import typed
from infer_dev_entry.config.keys import GLOBAL_TABLES, LARGEST, LONGEST_S, MAX_REPLICAS, Key, Value, names_of

MAX_DEPTH = 24
_TOO_DEEP = f"tables or lists nested more than {MAX_DEPTH} deep; flatten them"
_AT = re.compile(r"\s*\(at (?:line (\d+), column (\d+)|end of document)\)$")
_UNFIT = re.compile("[\0\r\ud800-\udfff]")
_UNFIT_NAMES = {"\0": "a NUL character", "\r": "a carriage return"}

Document = dict[str, object]


def parse_toml(text: str, faults: Faults) -> Document | None:
    """Parse TOML; a syntax error becomes a fault with its line, and None."""
    try:
        document = tomllib.loads(text)
        if not _too_deep(document):
            return document
        faults.add_line(_TOO_DEEP)
    except RecursionError:
        faults.add_line(_TOO_DEEP)
    except ValueError as error:  # TOMLDecodeError, and the plain one of an integer with thousands of digits
        faults.add_line(_toml_message(str(error), text))
    return None


def _toml_message(message: str, text: str) -> str:
    at = _AT.search(message)
    if not at:
        return f"not TOML: {message}"
    end_line = text.count("\n") + 1
    line, column = (at[1], at[2]) if at[1] else (end_line, len(text) - text.rfind("\n"))
    reason = message[: at.start()]
    # tomllib names some characters raw, and a message is one line
    return f"line {line}, column {column}: {reason if reason.isprintable() else ascii(reason)}"


def parse_overrides(text: str, faults: Faults) -> Document:
    """Parse the overrides; an empty text is no overrides, and what is not a JSON object is a fault."""
    if not text.strip():
        return {}
    try:
        data = json.loads(text)
    except RecursionError:
        faults.add_line(_TOO_DEEP, OVERRIDES_NAME)
        return {}
    except ValueError as error:
        faults.add_line(f"not JSON: {error}; check quotes and braces", OVERRIDES_NAME)
        return {}
    if isinstance(data, dict) and not _too_deep(data):
        return data
    if isinstance(data, dict):
        faults.add_line(_TOO_DEEP, OVERRIDES_NAME)
        return {}
    faults.add_line(
        f'expected a JSON object, got {shown(data)}; write {{"instance": {{"<name>": {{…}}}}}}', OVERRIDES_NAME
    )
    return {}


def _too_deep(document: Document) -> bool:
    """Whether tables or lists nest deeper than MAX_DEPTH; a walk without recursion, which deep input would end."""
    level: list[object] = [document]
    for _ in range(MAX_DEPTH):
        level = [item for node in level for item in _items(node)]
    return bool(level)


def _items(node: object) -> Iterable[object]:
    return node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()


def clean_document(document: Document, faults: Faults) -> Document:
    """Return the document with every value that no argument or variable can carry reported and replaced by REFUSED."""
    cleaned = _clean(document, (), faults)
    return cleaned if isinstance(cleaned, dict) else {}


def _clean(value: object, path: Path, faults: Faults) -> object:
    if isinstance(value, dict):
        table = {key: _clean(item, (*path, key), faults) for key, item in value.items() if _key_fits(key, path, faults)}
        is_argument = len(path) > (2 if path[1:2] and path[1] in GLOBAL_TABLES else 3)  # it travels as one JSON text
        return REFUSED if is_argument and REFUSED in table.values() else table
    if isinstance(value, list):
        items = [_clean(item, (*path, f"[{index}]"), faults) for index, item in enumerate(value)]
        return REFUSED if any(item is REFUSED for item in items) else items
    problem, mend = ("", "") if isinstance(value, Refused) else _problem(value)
    if problem:
        faults.add(path, problem, mend)
        return REFUSED
    return value


def _key_fits(key: str, path: Path, faults: Faults) -> bool:
    if _UNFIT.search(key):
        faults.add((*path, key), "a key holds a control character", "remove the character")
        return False
    return True


def _problem(value: object) -> tuple[str, str]:
    if isinstance(value, str):
        unfit = _UNFIT.search(value)
        if unfit:
            return f"holds {_UNFIT_NAMES.get(unfit[0], 'a lone surrogate')}", "remove the character"
    elif isinstance(value, float):
        if value != value or value in (float("inf"), float("-inf")):
            return f"expected a finite number, got {value}", "write a plain number"
    elif isinstance(value, int):
        if not -(2**63) <= value < 2**63:
            return "expected a 64-bit int, got a larger one", "write a smaller number"
    elif value is None:
        return (
            "expected a value, got null",
            "in the overrides null deletes a key of a table; nothing takes it in a list",
        )
    else:
        return f"expected a str, a number or a bool, got a {type(value).__name__}", "quote it to make it a str"
    return "", ""


def merge_overrides(document: Document, overrides: Document, faults: Faults) -> Document:
    """Return the document with the overrides merged in: tables merge, the rest replaces, null deletes."""
    faults.note_overrides(overrides)
    return deep_merge(document, _known_instances(document, overrides, faults))


def deep_merge(base: Mapping[str, object], over: Mapping[str, object]) -> Document:
    """Merge two nested tables; lists replace, `None` in `over` deletes. Neither argument is changed."""
    merged = dict(base)
    for key, value in over.items():
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, Mapping):
            below = merged.get(key)
            merged[key] = deep_merge(below if isinstance(below, Mapping) else {}, value)
        else:
            merged[key] = value
    return merged


def _known_instances(document: Document, overrides: Document, faults: Faults) -> Document:
    """Drop overrides of unknown instances, with a fault each; one with a server table makes a new instance."""
    changed = overrides.get("instance")
    present = document.get("instance")
    if not isinstance(changed, dict) or not isinstance(present, dict):
        return overrides
    kept: Document = {}
    for name, value in changed.items():
        has_server = isinstance(value, dict) and isinstance(value.get("server"), dict)
        if name in present or name in GLOBAL_TABLES or has_server:
            kept[name] = value
        else:
            known = [other for other in present if other not in GLOBAL_TABLES]
            mend = faults.nearest(name, known, "give it a server table to make a new instance")
            faults.add(("instance", name), "is not an instance of the config", mend)
    return {**overrides, "instance": kept}


def parse_table(
    raw: object, keys: tuple[Key, ...], path: Path, faults: Faults, *, open_: bool = False
) -> dict[str, Value]:
    """Return the valid keys of one table as plain values; absent keys are absent. `open_` lets unknown keys be."""
    if not isinstance(raw, dict):
        if raw is not REFUSED:
            faults.add(path, f"expected a table, got {shown(raw)}", f"write [{'.'.join(path)}]")
        return {}
    known = {key.name: key for key in keys}
    values: dict[str, Value] = {}
    for name, value in raw.items():
        if name in known:
            if isinstance(value, str) and faults.from_variables((*path, name)):
                value = typed("int" if known[name].kind == "replicas" else known[name].kind, value)
            _take(known[name], value, (*path, name), values, faults)
        elif not open_:
            faults.add((*path, name), "unknown key", faults.nearest(name, known, f"known: {', '.join(names_of(keys))}"))
    return values


def _take(key: Key, value: object, path: Path, values: dict[str, Value], faults: Faults) -> None:
    if isinstance(value, Refused):
        return
    expected = _EXPECTED[key.kind](key, value)
    if expected:
        faults.add(path, f"expected {expected}, got {shown(value)}", _MENDS.get(key.kind, ""))
    elif key.kind in ("seconds", "number"):
        values[key.name] = float(value)  # type: ignore[arg-type]  # _EXPECTED said that it is a number
    elif key.kind == "names":
        values[key.name] = tuple(value)  # type: ignore[arg-type]
    elif key.kind == "gpu_ids":
        values[key.name] = parse_gpu_ids(value)
    elif not (key.kind == "path" and value == ""):  # "" is "not given", as in the environment
        values[key.name] = value  # type: ignore[assignment]


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _expected_int(key: Key, value: object) -> str:
    if not _is_int(value):
        return "int"
    return "" if key.minimum <= value else f"int of at least {key.minimum:g}"  # type: ignore[operator]


def _expected_seconds(key: Key, value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "a number of seconds"
    if value > LONGEST_S:
        return f"at most {LONGEST_S:g} seconds"
    fits = value > 0 if key.positive else value >= 0
    return "" if fits else f"a number {'above' if key.positive else 'of at least'} 0"


def _expected_number(_key: Key, value: object) -> str:
    fits = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= LARGEST
    return "" if fits else f"a number from 0 to {LARGEST:g}"


def _expected_names(_key: Key, value: object) -> str:
    fits = isinstance(value, list) and all(isinstance(item, str) for item in value)
    return "" if fits else "a list of strings"


def _expected_replicas(_key: Key, value: object) -> str:
    fits = value == "per-gpu" or (_is_int(value) and 1 <= value <= MAX_REPLICAS)  # type: ignore[operator]
    return "" if fits else f'an int from 1 to {MAX_REPLICAS}, or "per-gpu"'


def _expected_gpu_ids(_key: Key, value: object) -> str:
    return "" if parse_gpu_ids(value) is not None else "GPU ids"


_EXPECTED = {
    "bool": lambda _key, value: "" if isinstance(value, bool) else "true or false",
    "str": lambda _key, value: "" if isinstance(value, str) and value else "a non-empty string",
    "path": lambda _key, value: "" if isinstance(value, str) else "a path",
    "choice": lambda key, value: "" if value in key.choices else " or ".join(f'"{word}"' for word in key.choices),
    "int": _expected_int,
    "seconds": _expected_seconds,
    "number": _expected_number,
    "names": _expected_names,
    "replicas": _expected_replicas,
    "gpu_ids": _expected_gpu_ids,
}
_MENDS = {
    "bool": "write it without quotes",
    "gpu_ids": 'write "all", "none", "auto", "0,1", "0-3", [0, 1] or UUIDs, each GPU once',
}

_GPU_WORDS = ("all", "none", "auto")
_GPU_RANGE = re.compile(r"([0-9]{1,3})(?:-([0-9]{1,3}))?")
_GPU_UUID = re.compile(r"(?:GPU|MIG)-[A-Za-z0-9/-]{1,80}")


def parse_gpu_ids(value: object) -> str | tuple[str, ...] | None:
    """Parse `gpu_ids` to `all`, `none`, `auto` or a tuple of ids (`none` when empty); None when it is not that."""
    if isinstance(value, str) and value.strip() in _GPU_WORDS:
        return value.strip()
    items = value.split(",") if isinstance(value, str) else value if isinstance(value, list) else [value]
    ids: list[str] = []
    for item in items:
        if isinstance(item, bool) or not isinstance(item, str | int):
            return None
        found = _parse_gpu_item(str(item).strip())
        if not found:
            return None
        ids.extend(found)
    if len(set(ids)) != len(ids):
        return None
    return tuple(ids) or "none"


def _parse_gpu_item(text: str) -> list[str]:
    if _GPU_UUID.fullmatch(text):
        return [text]
    match = _GPU_RANGE.fullmatch(text)
    if not match:
        return []
    first = int(match[1])
    return [str(number) for number in range(first, int(match[2] or match[1]) + 1)]
