"""Server tables → command-line words: canonical names, merging, and which form of a flag a value fits."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches

from infer_dev_entry.config.catalogue import Catalogue, version_key, versions_with
from infer_dev_entry.config.faults import REFUSED, Faults, Path, shown
from infer_dev_entry.config.flag_values import MisfitError, render_scalar, render_value
from infer_dev_entry.config.interpolate import typed
from infer_dev_entry.engines import EngineProfile, FlagSpec

_SECRET_FLAG = re.compile(r"(?:key|token|secret|password)$")
_FLAG_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Flags:
    """The flags of one engine: its forms by name, and the versions that they were taken from (newest last)."""

    profile: EngineProfile
    forms: Mapping[str, tuple[FlagSpec, ...]]
    versions: tuple[str, ...] = ()
    installed: bool = False  # the versions are those of an installed server, not a packaged guess
    any_name: bool = False  # unknown flags pass with a warning
    elsewhere: Catalogue | None = None  # what other versions know; to say which one would do


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One flag as written: its canonical dashed name, the value, and where it stands."""

    name: str
    value: object
    path: Path


def dashed(key: str) -> str:
    """Return the flag name of a TOML key: `tp_size` and `--tp-size` are both `tp-size`."""
    return key.removeprefix("--").replace("_", "-")


def read_setting(key: str, value: object, path: Path, flags: Flags) -> Setting:
    """Give a key its canonical name; `no_x = true` of a pair becomes `x = false`."""
    name = dashed(key)
    name = flags.profile.shorthands.get(name, name)
    name = flags.profile.translations.get(name, name) if name not in flags.forms else name
    forms = flags.forms.get(name)
    if not forms:
        return Setting(name=name, value=value, path=path)
    form = forms[0]
    if form.kind == "pair" and name in form.aliases and isinstance(value, bool):
        value = not value
    return Setting(name=form.name, value=value, path=path)


def merge_settings(below: Iterable[Setting], above: Iterable[Setting]) -> tuple[Setting, ...]:
    """Merge two layers: `above` wins, lists concatenate with `below` first, order is of first mention."""
    merged = {setting.name: setting for setting in below}
    for setting in above:
        first = merged.get(setting.name)
        if first and isinstance(first.value, list) and isinstance(setting.value, list):
            merged[setting.name] = replace(setting, value=[*first.value, *setting.value])
        else:
            merged[setting.name] = setting
    return tuple(merged.values())


def read_settings(table: Mapping[str, object], path: Path, flags: Flags, faults: Faults) -> tuple[Setting, ...]:
    """Read one table. A flag under two of its names is a fault, unless the overrides brought the second."""
    settings: dict[str, Setting] = {}
    for key, value in table.items():
        setting = read_setting(key, _typed(key, value, (*path, key), flags, faults), (*path, key), flags)
        other = settings.get(setting.name)
        if other and faults.overridden(other.path) == faults.overridden(setting.path):
            faults.add(setting.path, f"the same flag as {other.path[-1]}", "remove one of them")
        if not other or faults.overridden(setting.path):
            settings[setting.name] = setting
    return tuple(settings.values())


def _typed(key: str, value: object, path: Path, flags: Flags, faults: Faults) -> object:
    """A variable holds text; a switch needs true or false. Other flags take numbers as text anyway."""
    if not isinstance(value, str) or not faults.from_variables(path):
        return value
    forms = flags.forms.get(read_setting(key, value, path, flags).name, ())
    return typed("bool", value) if forms and forms[0].kind in ("switch", "pair") else value


def render_setting(setting: Setting, flags: Flags, faults: Faults) -> tuple[str, ...]:
    """Render one setting as words, () when it is omitted or at fault."""
    if setting.value is REFUSED:
        return ()
    forms = flags.forms.get(setting.name)
    if not forms:
        return _render_unknown(setting, flags, faults)
    form, words = _first_fit(setting, forms, flags, faults)
    if form:
        _note(setting, form, forms, flags, faults)
    return words


def _first_fit(
    setting: Setting, forms: tuple[FlagSpec, ...], flags: Flags, faults: Faults
) -> tuple[FlagSpec | None, tuple[str, ...]]:
    """Render with the newest form that takes the value; when none does, the newest form's reason is the fault."""
    reason: MisfitError | None = None
    for form in forms:
        try:
            return form, render_value(form, setting.value)
        except MisfitError as misfit:
            reason = reason or misfit
    assert reason is not None
    meant = flags.profile.value_mends.get(f"{setting.name}={setting.value}")
    choices = _nearest_first({choice for form in forms for choice in form.choices}, setting.value)
    mend = f'write "{meant}"' if meant else reason.mend
    if choices and not mend:
        mend = _other_version(setting.name, setting.value, flags)
    if choices and not isinstance(setting.value, bool | list | dict):
        mend = f"{mend + '; ' if mend else ''}choices: {', '.join(choices)}"
    got = '"***"' if _SECRET_FLAG.search(setting.name) else shown(setting.value)
    faults.add(setting.path, f"expected {reason}, got {got}", mend)
    return None, ()


def _nearest_first(choices: Iterable[str], value: object) -> list[str]:
    listed = sorted(choices)
    near = get_close_matches(str(value)[:60], listed, n=3, cutoff=0.3) if listed else []
    return [*near, *(choice for choice in listed if choice not in near)]


def _note(setting: Setting, form: FlagSpec, forms: tuple[FlagSpec, ...], flags: Flags, faults: Faults) -> None:
    """Warn of a flag that only some versions have, or that is on its way out."""
    name = f"--{form.name}"
    having = tuple(version for version in flags.versions if any(version in other.versions for other in forms))
    if len(having) < len(flags.versions):
        missing = ", ".join(version for version in flags.versions if version not in having)
        faults.note(name, setting.path, f"{flags.profile.name} {', '.join(having)} has {name}; {missing} has not")
    if form.deprecated:
        mend = "" if form.deprecated == "-" else f"use {form.deprecated}"
        faults.note(
            f"old {name}", setting.path, f"{name} is deprecated in {flags.profile.name} {form.versions[-1]}", mend
        )


def _render_unknown(setting: Setting, flags: Flags, faults: Faults) -> tuple[str, ...]:
    key = setting.path[-1]
    if flags.any_name and _FLAG_NAME.fullmatch(setting.name):
        faults.warn(setting.path, f"infer-dev does not know --{setting.name}; passed as it is")
        if _SECRET_FLAG.search(setting.name):
            faults.warn(setting.path, "every user of the machine can read a command line", "set it in the env table")
        return _render_loosely(setting)
    version = f" {flags.versions[-1]}" if flags.installed else ""
    faults.add(setting.path, f"{flags.profile.name}{version} has no such flag", _unknown_mend(key, flags, faults))
    return ()


def _unknown_mend(key: str, flags: Flags, faults: Faults) -> str:
    foreign = flags.profile.foreign_flags.get(key.removeprefix("--").replace("-", "_"))
    if foreign:
        return foreign
    other = _other_version(dashed(key), None, flags)
    if other:
        return other
    near = faults.nearest(dashed(key), flags.forms)
    return near.replace("-", "_") if near else "see the server's --help for its flags; extra_args passes raw words"


def _other_version(name: str, choice: object, flags: Flags) -> str:
    """Name a version that has the flag (and offers the choice) which the installed one lacks; "" when none is known."""
    if flags.elsewhere is None or not flags.installed:
        return ""
    having = versions_with(flags.elsewhere, name, None if choice is None else str(choice))
    installed = version_key(flags.versions[-1])
    newer = [version for version in having if version_key(version) > installed]
    if newer:
        return f"needs {flags.profile.name} >= {newer[0]}, the oldest known to have it"
    return f"{flags.profile.name} {having[-1]} is the last known to have it" if having else ""


def _render_loosely(setting: Setting) -> tuple[str, ...]:
    """Render a flag of which nothing is known: as `llama-server` reads them, a list repeats the flag."""
    name, value = f"--{setting.name}", setting.value
    if isinstance(value, bool):
        return (name,) if value else ()
    items = value if isinstance(value, list) else [value]
    return tuple(word for item in items for word in (name, render_scalar(item)))
