"""Fixtures of the tests with the real SGLang; all of them skip where it is not installed."""

from __future__ import annotations

from pathlib import Path

import pytest
from fleet import skip_reason
from real_sglang import sglang_home


@pytest.fixture(scope="session")
def home() -> Path:
    """The directory that tools/sglang-cpu.sh has made."""
    found = sglang_home()
    if not (found / "launch").exists():
        pytest.skip(f"no SGLang in {found}: run make sglang, or set SGLANG_CPU_DIR")
    reason = skip_reason()
    if reason:
        pytest.skip(reason)
    return found
