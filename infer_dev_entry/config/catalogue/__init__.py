"""The packaged flags of SGLang: which versions have which flag, and what it takes. Made by tools/make_catalogue.py."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources

from infer_dev_entry.engines import FLAG_KINDS, FLAG_TYPES, FlagSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Catalogue:
    """Flags by every name they have (without leading dashes), newest form first, and the versions covered."""

    versions: tuple[str, ...]
    flags: Mapping[str, tuple[FlagSpec, ...]]


@cache
def load_catalogue() -> Catalogue:
    """Load the packaged catalogue; the only read that `config` does, and always of its own package."""
    return parse_catalogue(resources.files(__package__).joinpath("sglang.json").read_text("utf-8"))


def parse_catalogue(text: str) -> Catalogue:
    """Parse what `render_catalogue` or tools/make_catalogue.py wrote.

    Raises:
        ValueError: the text is no such catalogue.
    """
    try:
        data = json.loads(text)
        versions = tuple(str(version) for version in data["versions"])
        rows = sorted(data["flags"], key=lambda row: max(row[0]))  # oldest first, by the last version that has the form
        forms = [_form(row, versions) for row in rows]
    except (KeyError, TypeError, IndexError, RecursionError) as error:
        raise ValueError(f"cannot parse catalogue: {type(error).__name__}: {error}") from error
    return Catalogue(versions=versions, flags=index_flags(forms))


def render_catalogue(version: str, forms: Iterable[FlagSpec]) -> str:
    """Render the flags of one version as text that `parse_catalogue` reads back."""
    rows = [
        [[0], [form.name, *form.aliases], form.kind, form.type, list(form.choices), form.deprecated] for form in forms
    ]
    return json.dumps({"versions": [version], "flags": rows}, separators=(",", ":"))


def index_flags(forms: list[FlagSpec]) -> Mapping[str, tuple[FlagSpec, ...]]:
    """Index forms by name and alias; of several forms the newest (the last given) comes first."""
    index: dict[str, tuple[FlagSpec, ...]] = {}
    for form in forms:
        for name in (form.name, *form.aliases):
            index[name] = (form, *index.get(name, ()))
    return index


def version_key(version: str) -> tuple[int, ...]:
    """Order versions by the numbers they begin with: `0.5.10.post1` is 0.5.10 here."""
    return tuple(int(part) for part in re.findall(r"\d+", re.match(r"[\d.]*", version)[0]))  # type: ignore[index]


def versions_with(catalogue: Catalogue, name: str, choice: str | None = None) -> tuple[str, ...]:
    """Return the versions that have a flag and, when a choice is given, offer it; oldest first."""
    forms = catalogue.flags.get(name, ())
    having = {version for form in forms if choice is None or choice in form.choices for version in form.versions}
    return tuple(version for version in catalogue.versions if version in having)


def _form(row: list[object], versions: tuple[str, ...]) -> FlagSpec:
    numbers, names, kind, type_, choices, deprecated = row
    if not (isinstance(numbers, list) and isinstance(names, list) and isinstance(choices, list)):
        raise TypeError("not a row of lists")
    if kind not in FLAG_KINDS or type_ not in FLAG_TYPES:
        raise ValueError(f"not a kind and a type of flag: {kind}, {type_}")
    bare = [str(name).removeprefix("--") for name in names]
    return FlagSpec(
        name=bare[0],
        aliases=tuple(bare[1:]),
        kind=str(kind),
        type=str(type_),
        choices=tuple(str(choice) for choice in choices),
        deprecated=str(deprecated),
        versions=tuple(versions[number] for number in numbers),
    )
