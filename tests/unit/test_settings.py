"""The environment contract."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infer_dev_entry.settings import DEFAULT_PROJECT_DIR, PREFIX, VARIABLES, parse_settings

GATES = ("BUNDLE_ON_BOOT", "ON_BOOT", "MODEL_DOWNLOAD_ON_BOOT")


def test_empty_environment_gives_documented_defaults() -> None:
    settings = parse_settings({})
    assert not settings.any_gate
    assert settings.project_dir == DEFAULT_PROJECT_DIR
    assert settings.bundle_verify == "auto"
    assert not settings.exit_on_error
    assert settings.warnings == ()


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("word", ["1", "true", "yes", "on", "TRUE", " On "])
def test_gate_true_words_open_it(gate: str, word: str) -> None:
    settings = parse_settings({PREFIX + gate: word})
    assert getattr(settings, gate.lower())
    assert settings.any_gate
    assert settings.warnings == ()


@pytest.mark.parametrize("word", ["0", "false", "no", "off", "", "OFF", "  "])
def test_gate_false_words_are_silent(word: str) -> None:
    settings = parse_settings({PREFIX + "ON_BOOT": word})
    assert not settings.on_boot
    assert settings.warnings == ()


@pytest.mark.parametrize("word", ["2", "ja", "enabled", "truee", "y\n1"])
def test_gate_odd_word_warns_and_is_false(word: str) -> None:
    settings = parse_settings({PREFIX + "ON_BOOT": word})
    assert not settings.on_boot
    assert len(settings.warnings) == 1
    assert "AUTO_INFER_SGLANG_ON_BOOT" in settings.warnings[0]
    assert "\n" not in settings.warnings[0]


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("AUTO_INFER_SGLANG_ON_BOT", "AUTO_INFER_SGLANG_ON_BOOT"),
        ("AUTO_INFER_SGLANG_CONFG", "AUTO_INFER_SGLANG_CONFIG"),
        ("AUTO_INFER_SGLAN_ON_BOOT", "AUTO_INFER_SGLANG_ON_BOOT"),
        ("INFER_DEV_RUNDIR", "INFER_DEV_RUN_DIR"),
    ],
)
def test_misspelt_name_warns_with_nearest(name: str, nearest: str) -> None:
    (warning,) = parse_settings({name: "1"}).warnings
    assert name in warning
    assert f"did you mean {nearest}?" in warning


def test_foreign_names_are_left_alone() -> None:
    assert parse_settings({"PATH": "/bin", "SGLANG_X": "1", "AUTOMATIC": "1"}).warnings == ()


def test_project_dir_alias_counts_but_full_name_wins() -> None:
    assert parse_settings({PREFIX + "PROJECT_DIR": "/a"}).project_dir == "/a"
    both = {PREFIX + "PROJECT_DIR": "/a", PREFIX + "PIXI_PROJECT_DIR": "/b"}
    assert parse_settings(both).project_dir == "/b"


def test_choice_odd_value_warns_and_falls_back() -> None:
    settings = parse_settings({PREFIX + "ON_ERROR": "explode", "INFER_DEV_LOG_LEVEL": "LOUD"})
    assert not settings.exit_on_error
    assert settings.log_level == "info"
    assert len(settings.warnings) == 2


def test_choice_accepts_any_case() -> None:
    assert parse_settings({PREFIX + "ON_ERROR": "EXIT"}).exit_on_error


@given(environ=st.dictionaries(st.sampled_from(sorted(VARIABLES)) | st.text(max_size=20), st.text(max_size=80)))
def test_any_environment_parses(environ: dict[str, str]) -> None:
    settings = parse_settings(environ)
    assert all("\n" not in warning for warning in settings.warnings)


def test_every_variable_has_a_meaning() -> None:
    assert all(meaning for _, meaning in VARIABLES.values())
