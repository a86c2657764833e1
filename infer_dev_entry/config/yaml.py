"""The private file of SGLang, for its `--config`: which flags may go there, and JSON text that is also YAML."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from infer_dev_entry.config.faults import REFUSED, Faults, Path
from infer_dev_entry.config.flag_values import MisfitError, render_value
from infer_dev_entry.config.flags import Flags, Setting, read_settings, render_setting
from infer_dev_entry.engines import FlagSpec

MOVE = "move it to the server table"
# JSON is YAML but for these: YAML reads them as line breaks or refuses them, so they travel escaped.
_NOT_YAML = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")


def read_yaml(table: Mapping[str, object], path: Path, flags: Flags, faults: Faults) -> dict[str, object]:
    """Return flag → value as SGLang will read it back into the same command line; the rest are faults."""
    values: dict[str, object] = {}
    for setting in read_settings(table, path, flags, faults):
        if setting.value is REFUSED:
            continue
        problem = _problem(setting, flags)
        if problem:
            faults.add(setting.path, problem, MOVE)
        elif render_setting(setting, flags, faults):  # () is omitted, or reported
            value = next(
                found for form in flags.forms[setting.name] if (found := _value(form, setting.value)) is not None
            )
            values[setting.name] = value
    return values


def _problem(setting: Setting, flags: Flags) -> str:
    if flags.profile.name != "sglang":
        return f"{flags.profile.name} reads no yaml"
    if setting.name in ("host", "port", "config"):
        return "the command line decides it"
    form = next(iter(flags.forms.get(setting.name, ())), None)
    if form is None:
        return ""
    if form.kind == "pair" or form.deprecated or form.name == "lora-paths":
        return f"SGLang's --config refuses --{form.name}"
    if form.kind == "optional" and setting.value is True:
        return f"SGLang's --config cannot give --{form.name} without a value"
    items = setting.value if isinstance(setting.value, list) else [setting.value]
    if any(isinstance(item, str) and item.startswith("-") for item in items):
        return "SGLang would read a value with a leading dash as a flag"
    return ""


def _value(form: FlagSpec, value: object) -> object:
    """One value as SGLang must find it: it writes all but switches and lists with `str()`, which is not JSON."""
    try:
        words = render_value(form, value)
    except MisfitError:
        return None
    if len(words) == 1:
        return True
    if form.kind == "list":
        items = value if isinstance(value, list) else [value]
        return [_native(item, word) for item, word in zip(items, words[1:], strict=True)]
    return _native(value, words[1])


def _native(value: object, word: str) -> object:
    return value if isinstance(value, int) else word


def render_yaml(values: Mapping[str, object]) -> str:
    """Render values as JSON text that a YAML parser reads as the same."""
    text = json.dumps(values, ensure_ascii=False, indent=1)
    return _NOT_YAML.sub(lambda match: f"\\u{ord(match[0]):04x}", text) + "\n"
