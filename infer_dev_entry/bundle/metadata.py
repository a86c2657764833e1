"""The files in which a bundle describes itself, from text to values: foreign until they are parsed. Pure.

Errors give reason and mend; `unpack` puts `cannot use bundle PATH: ` in front.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from infer_dev_entry.bundle.contents import parse_member_path, render_name
from infer_dev_entry.bundle.model import PIXI_PACK, SIDECAR_NAME, SIDECAR_VERSION, WHEELS, Package
from infer_dev_entry.errors import BundleError

# A bundle of 600 packages has half a megabyte of repodata; a parsed JSON text takes up to thirty times its size.
MAX_METADATA_BYTES = 16 * 1024 * 1024
PIXI_PACK_NAME = "pixi-pack.json"
REQUIREMENTS_NAME = "requirements.txt"
PIXI_PACK_VERSION = "1"

_SHA256 = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,199}")
_VERSION = re.compile(r"[A-Za-z0-9_.!+-]{1,200}")
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.!+-]{0,254}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,254}")
_PLATFORM = re.compile(r"[a-z0-9]+(-[a-z0-9_]+)?")
_PYTHON = re.compile(r"3\.[0-9]{1,3}")
_REQUIREMENT = re.compile(
    r"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)(\[[A-Za-z0-9._, -]*\])?\s*===?\s*(?P<version>[^\s;@]+)"
)
_HASH = re.compile(r"--hash=sha256:([0-9a-fA-F]{64})")
_MAX_WORDS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Sidecar:
    """What infer-dev-bundle.json says; `files` maps path → sha256, "" and () mean "not said"."""

    kind: str
    platform: str
    python: str
    files: Mapping[str, str]
    activation: tuple[tuple[str, str], ...]
    verify_command: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Requirement:
    """One pinned line of requirements.txt: its normalised name, the hashes it allows, and whether it may be absent."""

    name: str
    version: str
    hashes: frozenset[str]
    is_conditional: bool


def is_metadata(path: str) -> bool:
    """Say whether the file at that path, relative to the bundle's root, describes the bundle."""
    parts = path.split("/")
    return path in (PIXI_PACK_NAME, SIDECAR_NAME, REQUIREMENTS_NAME) or (
        len(parts) == 3 and parts[0] == "channel" and parts[2] == "repodata.json"
    )


def parse_pixi_pack(text: bytes) -> str:
    """Parse pixi-pack.json and return its platform.

    Raises:
        BundleError: it is no such file, or of another version of the format.
    """
    data = _parse_json(text, PIXI_PACK_NAME)
    version = data.get("version")
    if version != PIXI_PACK_VERSION:
        raise BundleError(
            f"{PIXI_PACK_NAME}: version is {_shown(version)}, this infer-dev reads {PIXI_PACK_VERSION!r}; "
            "pack it with pixi-pack 0.7, or use a newer infer-dev"
        )
    return _match(_PLATFORM, data.get("platform"), f"{PIXI_PACK_NAME}: platform")


def parse_repodata(text: bytes, subdir: str) -> tuple[Package, ...]:
    """Parse channel/<subdir>/repodata.json and return its packages, sorted by file name.

    Raises:
        BundleError: a record lacks name or version, or a value is of the wrong form.
    """
    where = f"channel/{subdir}/repodata.json"
    data = _parse_json(text, where)
    records = _table(data, "packages", where) | _table(data, "packages.conda", where)
    return tuple(_parse_record(name, records[name], subdir, where) for name in sorted(records))


def _parse_record(file_name: str, record: Any, subdir: str, where: str) -> Package:
    where = f"{where}: {render_name(file_name)}"
    if not file_name.endswith((".conda", ".tar.bz2")) or not _FILE_NAME.fullmatch(file_name):
        _fail(f"{where}: is no name of a .conda or .tar.bz2 file")
    if not isinstance(record, dict):
        _fail(f"{where}: expected a table, got {_shown(record)}")
    size = record.get("size") or 0
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        _fail(f"{where}: size: expected a number of bytes, got {_shown(size)}")
    return Package(
        kind="conda",
        path=f"channel/{subdir}/{file_name}",
        name=_match(_NAME, record.get("name"), f"{where}: name"),
        version=_match(_VERSION, record.get("version"), f"{where}: version"),
        sha256=_match(_SHA256, record.get("sha256"), f"{where}: sha256") if record.get("sha256") is not None else "",
        size=size,
    )


def parse_sidecar(text: bytes) -> Sidecar:
    """Parse infer-dev-bundle.json. Keys that are not known are for newer readers of the same version.

    Raises:
        BundleError: it is of another version, or a value is of the wrong form.
    """
    data = _parse_json(text, SIDECAR_NAME)
    version = data.get("version")
    if version != SIDECAR_VERSION or isinstance(version, bool):
        raise BundleError(
            f"{SIDECAR_NAME}: version is {_shown(version)}, this infer-dev reads {SIDECAR_VERSION}; use the infer-dev "
            "that built the bundle, or build it again"
        )
    kind = data.get("kind")
    if kind not in (PIXI_PACK, WHEELS):
        _fail(f"{SIDECAR_NAME}: kind: expected {PIXI_PACK!r} or {WHEELS!r}, got {_shown(kind)}")
    return Sidecar(
        kind=kind,
        platform=_optional(_PLATFORM, data.get("platform"), f"{SIDECAR_NAME}: platform"),
        python=_optional(_PYTHON, data.get("python"), f"{SIDECAR_NAME}: python"),
        files=_parse_files(_table(data, "files", SIDECAR_NAME)),
        activation=_parse_activation(_table(data, "activation", SIDECAR_NAME)),
        verify_command=_parse_command(data.get("verify")),
    )


def _parse_files(files: Mapping[str, Any]) -> dict[str, str]:
    for path, sha256 in files.items():
        if parse_member_path(path) != path:
            _fail(f"{SIDECAR_NAME}: files: {render_name(path)} is no plain relative path")
        _match(_SHA256, sha256, f"{SIDECAR_NAME}: files: {render_name(path)}")
    return dict(files)


def _parse_activation(variables: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    for name, value in variables.items():
        if not _VARIABLE.fullmatch(name) or not _is_text(value):
            _fail(f"{SIDECAR_NAME}: activation: {render_name(name)} is no variable with a text value")
    return tuple(variables.items())


def _parse_command(words: Any) -> tuple[str, ...]:
    if words is None:
        return ()
    if not isinstance(words, list) or len(words) > _MAX_WORDS or not all(_is_text(word) for word in words):
        _fail(f"{SIDECAR_NAME}: verify: expected a list of words, got {_shown(words)}")
    if words and not words[0]:
        _fail(f"{SIDECAR_NAME}: verify: the command's name is empty")
    return tuple(words)


def parse_requirements(text: bytes) -> tuple[Requirement, ...]:
    """Parse requirements.txt: `name==version --hash=sha256:…` a line, with continuations, comments and markers.

    Options are refused: `--index-url` or `-r` would send the installer elsewhere.

    Raises:
        BundleError: a line is something else, or has no hash.
    """
    try:
        lines = text.decode().replace("\r\n", "\n").replace("\\\n", " ").split("\n")
    except UnicodeDecodeError as error:
        raise BundleError(f"{REQUIREMENTS_NAME}: it is not UTF-8; build the bundle again") from error
    return tuple(_parse_requirements(lines))


def _parse_requirements(lines: list[str]) -> Iterator[Requirement]:
    for line in lines:
        words = re.sub(r"(^|\s)#.*", "", line).split()
        if not words:
            continue
        pin, marker, hashes = _split_requirement(words)
        found = _REQUIREMENT.fullmatch(pin)
        if not found or not _VERSION.fullmatch(found["version"]) or not hashes:
            _fail(f"{REQUIREMENTS_NAME}: expected `name==version --hash=sha256:…`, got {render_name(' '.join(words))}")
        yield Requirement(
            name=normalise_name(found["name"]), version=found["version"], hashes=hashes, is_conditional=bool(marker)
        )


def _split_requirement(words: list[str]) -> tuple[str, str, frozenset[str]]:
    """Split a requirement into pin, marker and allowed hashes (none when another option is there)."""
    start = next((at for at, word in enumerate(words) if word.startswith("-")), len(words))
    pin, _, marker = " ".join(words[:start]).partition(";")
    found = [_HASH.fullmatch(option) for option in words[start:]]
    hashes = frozenset(match[1].lower() for match in found if match) if all(found) else frozenset()
    return pin.strip(), marker.strip(), hashes


def parse_wheel_name(path: str) -> tuple[str, str, tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Split the name of a wheel into its package's name, version, and its python, abi and platform tags.

    Raises:
        BundleError: it is no name of a wheel.
    """
    file_name = path.rpartition("/")[2]
    parts = file_name.removesuffix(".whl").split("-")
    if not _FILE_NAME.fullmatch(file_name) or len(parts) not in (5, 6) or not all(parts):
        _fail(f"{render_name(path)} is no name of a wheel (name-version-python-abi-platform.whl)")
    python, abi, platform = (tuple(part.split(".")) for part in parts[-3:])
    return parts[0], parts[1], python, abi, platform


def normalise_name(name: str) -> str:
    """Return the form of a Python package's name under which two of them are the same."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _parse_json(text: bytes, where: str) -> dict[str, Any]:
    try:
        data = json.loads(text.decode(), object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{where}: it is no usable JSON ({_reason(error)}); build the bundle again") from error
    if not isinstance(data, dict):
        _fail(f"{where}: expected a table, got {_shown(data)}")
    return data


def _reason(error: Exception) -> str:
    return "it is nested too deep" if isinstance(error, RecursionError) else str(error)[:200]


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for name, value in pairs:
        if name in table:
            raise ValueError(f"the key {render_name(name)} is there twice")
        table[name] = value
    return table


def _refuse_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is no JSON number")


def _table(data: Mapping[str, Any], key: str, where: str) -> dict[str, Any]:
    value = data.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        _fail(f"{where}: {key}: expected a table, got {_shown(value)}")
    return value


def _match(pattern: re.Pattern[str], value: Any, where: str) -> str:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        _fail(f"{where}: unexpected value {_shown(value)}")
    return value


def _optional(pattern: re.Pattern[str], value: Any, where: str) -> str:
    return "" if value is None or value == "" else _match(pattern, value, where)


def _is_text(value: Any) -> bool:
    """Say whether a value is a text that can be given to a process: no NUL, no lone surrogate."""
    return isinstance(value, str) and "\0" not in value and not any("\ud800" <= char <= "\udfff" for char in value)


def _shown(value: Any) -> str:
    if isinstance(value, (dict, list)):
        return "a table" if isinstance(value, dict) else "a list"
    return "nothing" if value is None else render_name(value) if isinstance(value, str) else str(value)[:40]


def _fail(reason: str) -> NoReturn:
    raise BundleError(f"{reason}; build the bundle again")
