"""The packaged flags of SGLang: which versions have which flag, and what it takes. Made by tools/make_catalogue.py."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources

from infer_dev_entry.engines import FlagSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Catalogue:
    """Flags by every name they have (without leading dashes), newest form first, and the versions covered."""

    versions: tuple[str, ...]
    flags: Mapping[str, tuple[FlagSpec, ...]]


@cache
def load_catalogue() -> Catalogue:
    """Load the packaged catalogue; the only read that `config` does, and always of its own package."""
    data = json.loads(resources.files(__package__).joinpath("sglang.json").read_text("utf-8"))
    versions = tuple(str(version) for version in data["versions"])
    rows = sorted(data["flags"], key=lambda row: max(row[0]))  # oldest first, by the last version that has the form
    forms = [_form(row, versions) for row in rows]
    return Catalogue(versions=versions, flags=index_flags(forms))


def index_flags(forms: list[FlagSpec]) -> Mapping[str, tuple[FlagSpec, ...]]:
    """Index forms by name and alias; of several forms the newest (the last given) comes first."""
    index: dict[str, tuple[FlagSpec, ...]] = {}
    for form in forms:
        for name in (form.name, *form.aliases):
            index[name] = (form, *index.get(name, ()))
    return index


def _form(row: list[object], versions: tuple[str, ...]) -> FlagSpec:
    numbers, names, kind, type_, choices, deprecated = row
    assert isinstance(numbers, list) and isinstance(names, list) and isinstance(choices, list)
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
