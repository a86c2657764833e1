"""The engine profiles are complete, and agree with the flags that they speak of."""

from __future__ import annotations

import pytest

from infer_dev_entry.config.arguments import packaged_flags
from infer_dev_entry.config.catalogue import load_catalogue
from infer_dev_entry.engines import ENGINE_NAMES, profile_of
from infer_dev_entry.engines.sglang import FOREIGN_FLAGS


@pytest.mark.parametrize("name", ENGINE_NAMES)
def test_profile_is_consistent(name: str) -> None:
    profile = profile_of(name)
    flags = packaged_flags(name)
    assert profile.name == name
    assert profile.timeout_s < profile.period_s < profile.startup_deadline_s
    assert profile.startup_path.startswith("/") and profile.liveness_path.startswith("/")
    for flag in (
        profile.model_flag,
        *profile.secret_flags,
        *profile.shorthands.values(),
        *profile.translations.values(),
    ):
        assert flag in flags.forms, flag


@pytest.mark.parametrize("name", ENGINE_NAMES)
def test_foreign_names_are_not_the_engines_own(name: str) -> None:
    flags = packaged_flags(name)
    for foreign in flags.profile.foreign_flags:
        assert foreign.replace("_", "-") not in flags.forms, foreign


def test_mends_of_foreign_names_name_real_flags() -> None:
    flags = packaged_flags("sglang")
    for mend in FOREIGN_FLAGS.values():
        if mend.startswith("sglang calls it "):
            assert mend.removeprefix("sglang calls it ").replace("_", "-") in flags.forms, mend


def test_catalogue_covers_three_versions_with_every_flag() -> None:
    catalogue = load_catalogue()
    assert catalogue.versions == ("0.5.7", "0.5.17", "0.5.23")
    counts = [
        len({form.name for forms in catalogue.flags.values() for form in forms if version in form.versions})
        for version in catalogue.versions
    ]
    assert counts == [313, 474, 531]


def test_catalogue_knows_only_kinds_and_types_that_are_rendered() -> None:
    forms = {form for forms in load_catalogue().flags.values() for form in forms}
    assert {form.kind for form in forms} == {"switch", "pair", "value", "list", "optional"}
    assert {form.type for form in forms} == {"str", "int", "float", "json", "suffixed_int"}


def test_catalogue_lists_the_newest_form_first() -> None:
    versions = load_catalogue().versions
    for forms in load_catalogue().flags.values():
        newest = [max(versions.index(version) for version in form.versions) for form in forms]
        assert newest == sorted(newest, reverse=True)


@pytest.mark.parametrize("choice", ["glm45", "glm47"])
def test_tool_parser_of_glm_is_a_choice_and_its_reasoning_parser_is_glm45(choice: str) -> None:
    forms = load_catalogue().flags
    assert any(choice in form.choices for form in forms["tool-call-parser"])
    assert any(choice in form.choices for form in forms["reasoning-parser"]) == (choice == "glm45")
