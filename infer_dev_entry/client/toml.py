"""Render a mapping as TOML, so that a config given from Python goes the same way as a file. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping

from infer_dev_entry.errors import ConfigError


def render_toml(config: Mapping[str, object]) -> str:
    """Render a mapping as TOML text.

    Raises:
        ConfigError: every value that TOML cannot hold, by its key.
    """
    faults: list[str] = []
    text = "".join(f"{_key(key)} = {_value(value, str(key), faults)}\n" for key, value in config.items())
    if faults:
        raise ConfigError(tuple(faults))
    return text


def _value(value: object, where: str, faults: list[str]) -> str:
    if isinstance(value, Mapping):
        pairs = (f"{_key(key)} = {_value(item, f'{where}.{key}', faults)}" for key, item in value.items())
        return "{ " + ", ".join(pairs) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_value(item, f"{where}[{at}]", faults) for at, item in enumerate(value)) + "]"
    if isinstance(value, bool | int | float | str):
        # JSON's strings are TOML's but for DEL, and its words for numbers that are none are other ones.
        words = {"Infinity": "inf", "-Infinity": "-inf", "NaN": "nan"}
        text = json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        return words.get(text, text) if isinstance(value, float) else text
    faults.append(f"config: {where}: a config has no {type(value).__name__}; give a text, number, list or table")
    return '""'


def _key(key: object) -> str:
    return json.dumps(str(key), ensure_ascii=False).replace("\x7f", "\\u007f")
