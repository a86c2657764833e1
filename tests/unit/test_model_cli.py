"""`infer-dev model`: options, refusals, exit codes, output; no hub is asked."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from infer_dev_entry.cli import main
from infer_dev_entry.errors import ModelError
from infer_dev_entry.models.huggingface import HuggingFaceHub
from infer_dev_entry.models.modelscope import ModelScopeHub

CONFIG = '[instance.a.server]\nmodel_path = "{0}/m"\n[instance.a.model]\nrepo_id = "org/m"\n'


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """An environment that forbids the network and names a config."""
    config = tmp_path / "fleet.toml"
    config.write_text(CONFIG.format(tmp_path))
    return {"HF_HUB_OFFLINE": "1", "AUTO_INFER_SGLANG_CONFIG": str(config), "PATH": os.environ["PATH"]}


def test_list_takes_variables_from_the_environment(
    tmp_path: Path, environ: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    config = Path(environ["AUTO_INFER_SGLANG_CONFIG"])
    config.write_text(config.read_text().replace(str(tmp_path), "${MODELS}"))
    assert main(["model", "list", str(tmp_path), "--json"], environ) == 10
    assert "MODELS" in capsys.readouterr().err
    assert main(["model", "list", str(tmp_path), "--json"], environ | {"MODELS": str(tmp_path)}) == 0
    assert [row["path"] for row in json.loads(capsys.readouterr().out)["models"]] == [f"{tmp_path}/m"]


@pytest.mark.parametrize(
    ("words", "code", "expected"),
    [
        (["pull"], 23, "HF_HUB_OFFLINE is set, and"),
        (["pull", "b"], 11, "has no instance 'b' with a model table; it has a"),
        (["pull", "--revision", "v2"], 11, "--revision goes with --repo-id"),
        (["pull", "--repo-id", "m", "--to", "/x/m"], 23, "--repo-id 'm': expected org/name"),
        (["pull", "--repo-id", "../m", "--to", "/x/m"], 23, "--repo-id '../m': expected org/name"),
        (["pull", "a", "--repo-id", "org/m"], 23, "NAME and --repo-id exclude each other"),
        (["pull", "--repo-id", "org/m", "--to", "/", "--allow", "../x"], 23, "is the root directory; pattern '../x'"),
        (["verify"], 24, "no usable .infer-dev-model.json lies there"),
        (["verify", "/no/such"], 24, "cannot verify /no/such"),
        (["list", "--config", "/no.toml"], 10, "/no.toml: cannot read it"),
    ],
)
def test_refusal_has_its_code_and_says_why(
    words: list[str], code: int, expected: str, environ: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["model", *words], environ) == code
    assert expected in capsys.readouterr().err


def test_no_config_is_a_setting_that_lacks(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["model", "pull"], {}) == 11
    assert "set AUTO_INFER_SGLANG_CONFIG to a TOML file" in capsys.readouterr().err


def test_list_shows_what_the_config_wants_and_what_lies_there(
    tmp_path: Path, environ: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text("{}")
    assert main(["model", "list", str(tmp_path), "--json"], environ) == 0
    rows = json.loads(capsys.readouterr().out)["models"]
    assert [(row["state"], row["instances"], row["path"]) for row in rows] == [
        ("missing", ["a"], f"{tmp_path}/m"),
        ("foreign", [], f"{tmp_path}/other"),
    ]
    assert main(["model", "list", str(tmp_path)], environ) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0].split() == ["MODEL", "STATE", "SIZE", "REVISION", "COMMIT", "PATH"]
    assert "infer-dev did not put it there" in out


@pytest.mark.parametrize(("library", "hub"), [("huggingface_hub", HuggingFaceHub), ("modelscope_hub", ModelScopeHub)])
def test_missing_library_names_the_extra(library: str, hub: type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ModelError, match=r"pip install 'infer-dev-entry\[models\]'"):
        hub({}, {})


def test_library_that_this_user_may_not_read_is_not_called_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "huggingface_hub", raising=False)
    monkeypatch.setattr(sys, "meta_path", [_Refusing(), *sys.meta_path])
    with pytest.raises(ImportError, match="below"):
        HuggingFaceHub({}, {})


class _Refusing:
    def find_spec(self, name: str, _path: object = None, _target: object = None) -> None:
        if name == "huggingface_hub":
            raise ModuleNotFoundError("something below it", name="importlib.metadata")
