"""Making a runtime: what is attached to or started, and with which options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from infer_dev_entry import client
from infer_dev_entry.errors import NotRunningError, PolicyInputError
from infer_dev_entry.policy import create_inference_runtime


class Recorder:
    """Stands in for Runtime: returns how it was asked for."""

    @classmethod
    def attach(cls, *args: Any, **options: Any) -> tuple[Any, ...]:
        return ("attach", args, options)

    @classmethod
    def start(cls, *args: Any, **options: Any) -> tuple[Any, ...]:
        return ("start", args, options)


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "Runtime", Recorder)


@pytest.mark.usefixtures("recorded")
def test_target_without_a_config_is_attached_to() -> None:
    made: Any = create_inference_runtime("glm", api_key="k", model="m", timeout_s=3.0)
    assert made == ("attach", ("glm",), {"api_key": "k", "model": "m", "environ": None, "timeout_s": 3.0})


@pytest.mark.usefixtures("recorded")
def test_config_is_started_and_the_target_names_its_server() -> None:
    made: Any = create_inference_runtime("glm", config="fleet.toml")
    assert made == ("start", ("fleet.toml",), {"name": "glm", "model": "", "environ": None})


@pytest.mark.usefixtures("recorded")
def test_key_for_servers_that_are_started_is_refused() -> None:
    with pytest.raises(PolicyInputError, match="api_key"):
        create_inference_runtime(config="fleet.toml", api_key="k")


def test_nobody_to_attach_to_is_the_clients_error(tmp_path: Path) -> None:
    with pytest.raises(NotRunningError):
        create_inference_runtime("glm", environ={"INFER_DEV_RUN_DIR": str(tmp_path)})
