"""The fixtures `hub` and `wish`, for modules that say `pytest_plugins = ("model_fixtures",)`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from model_pulls import FILES
from small_hub import SmallHub

from infer_dev_entry.models import retry
from infer_dev_entry.models.wish import ModelWish


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[SmallHub]:
    """A hub with one model; waits between tries are short."""
    monkeypatch.setattr(retry, "_FIRST_WAIT_S", 0.01)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    hub = SmallHub()
    hub.repo("org/m", FILES)
    yield hub
    hub.close()


@pytest.fixture
def wish(tmp_path: Path) -> ModelWish:
    """The hub's model."""
    return ModelWish(source="huggingface", repo_id="org/m", target=str(tmp_path / "models" / "m"))
