"""The doctor's rows for downloads: what lies there, what boot would fetch, and what keeps it from that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from infer_dev_entry.doctor import downloads as facts
from infer_dev_entry.doctor.download_checks import Download, check_downloads, will_download
from infer_dev_entry.doctor.downloads import lacking_sources, read_downloads
from infer_dev_entry.doctor.rows import Row
from infer_dev_entry.settings import parse_settings


def row(state: str, *, gate: bool = False, offline: bool = False, lacking: tuple[str, ...] = ()) -> Row:
    download = Download(names=("a", "b"), path="/models/m", source="huggingface", repo="org/m", state=state, note="so")
    (found,) = check_downloads([download], gate=gate, offline=offline, lacking=lacking)
    assert found.check == "download of a, b"
    return found


@pytest.mark.parametrize(
    ("state", "how", "verdict", "clause"),
    [
        ("complete", {}, "ok", "org/m"),
        ("complete", {"gate": True, "offline": True, "lacking": ("huggingface",)}, "ok", "as recorded"),
        ("foreign", {"gate": True}, "ok", "is foreign: so"),
        ("missing", {}, "fail", "is missing"),
        ("incomplete", {}, "fail", "is incomplete: so"),
        ("outdated", {}, "warn", "is outdated"),
        ("changed", {}, "warn", "is changed"),
        ("missing", {"gate": True}, "warn", "the next boot downloads it"),
        ("missing", {"gate": True, "lacking": ("huggingface",)}, "fail", "the client of huggingface is not installed"),
        ("outdated", {"gate": True, "lacking": ("huggingface",)}, "fail", "is not installed"),
        ("missing", {"gate": True, "lacking": ("modelscope",)}, "warn", "the next boot"),
        ("missing", {"gate": True, "offline": True}, "fail", "HF_HUB_OFFLINE forbids"),
    ],
)
def test_download_is_judged_by_what_is_there_and_what_boot_can_do(
    state: str, how: dict[str, Any], verdict: str, clause: str
) -> None:
    found = row(state, **how)
    assert found.verdict == verdict
    assert clause in found.seen


def test_mend_says_how_to_get_the_model() -> None:
    assert row("missing").mend == "infer-dev model pull a, or set AUTO_INFER_SGLANG_MODEL_DOWNLOAD_ON_BOOT=1"
    assert row("missing", gate=True, lacking=("huggingface",)).mend == "pip install 'infer-dev-entry[models]'"


def test_gate_without_a_model_table_is_a_warning() -> None:
    (found,) = check_downloads([], gate=True, offline=False, lacking=())
    assert found.verdict == "warn"
    assert not check_downloads([], gate=False, offline=False, lacking=())


def test_model_need_not_be_there_where_boot_fetches_it() -> None:
    missing = [Download(names=("a",), path="/models/m", source="huggingface", repo="org/m", state="missing")]
    assert will_download("/models/m", missing, gate=True)
    assert will_download("/models/m/w.gguf", missing, gate=True)
    assert not will_download("/models/m2", missing, gate=True)
    assert not will_download("/models/m", missing, gate=False)


def test_downloads_of_a_config_are_looked_at_and_faults_are_left_to_the_config_row(tmp_path: Path) -> None:
    config = tmp_path / "fleet.toml"
    text = f'[instance.a.server]\nmodel_path = "{tmp_path}/m"\n[instance.a.model]\nrepo_id = "org/m"\n'
    config.write_text(text)
    (found,) = read_downloads(str(config), parse_settings({}), {})
    assert (found.names, found.state, found.path) == (("a",), "missing", f"{tmp_path}/m")
    config.write_text(text.replace("org/m", "nonsense"))
    assert read_downloads(str(config), parse_settings({}), {}) == ()
    assert read_downloads("", parse_settings({}), {}) == ()


def test_sources_without_their_client_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts.importlib.util, "find_spec", lambda name: None if name == "modelscope_hub" else object())
    assert lacking_sources() == ("modelscope",)
