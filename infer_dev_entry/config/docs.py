"""Render the key table as Markdown, for the pages that document the contract."""

from __future__ import annotations

import json

from infer_dev_entry.config.keys import GATEWAY, INSTANCE_TABLES, MASTER, Key

HEADER = "| key | type | default | meaning |\n|---|---|---|---|\n"

_TYPES = {
    "bool": "true or false",
    "str": "string",
    "path": "path",
    "int": "int",
    "seconds": "number",
    "number": "number",
    "names": "list of strings",
    "gpu_ids": "string, int or list",
    "replicas": 'int or `"per-gpu"`',
}


def render_key_table() -> str:
    """Render the Markdown rows of all keys of all tables, under one header."""
    tables = {"master": MASTER, **{f"instance.<n>.{name}": keys for name, (keys, _) in INSTANCE_TABLES.items()}}
    tables["gateway"] = GATEWAY
    return HEADER + "".join(_row(table, key) for table, keys in tables.items() for key in keys)


def _row(table: str, key: Key) -> str:
    type_ = " or ".join(f'`"{choice}"`' for choice in key.choices) or _TYPES[key.kind]
    default = key.default_text or f"`{_default(key)}`"
    cells = (f"`{table}.{key.name}`", type_, default, key.text)
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |\n"


def _default(key: Key) -> str:
    if isinstance(key.default, float) and key.default.is_integer():
        return f"{key.default:g}"
    return json.dumps(key.default)
