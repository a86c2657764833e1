"""The fixture `fleet`, for modules that say `pytest_plugins = ("fleet_fixtures",)`."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from fleet import Fleet, skip_reason


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    """A fleet that is not started yet; all that is left of it ends with the test."""
    reason = skip_reason()
    if reason:
        pytest.skip(reason)
    base = Path(tempfile.mkdtemp(prefix="idf", dir="/tmp"))
    base.chmod(0o755)  # a server that runs as another user gets to its own files below
    made = Fleet(base)
    try:
        yield made
    finally:
        made.close()
        shutil.rmtree(base, ignore_errors=True)
