"""The Dockerfile under hadolint, and what a build without BuildKit's extras or a registry needs of it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

DOCKERFILE = Path(__file__).parents[2] / "docker" / "Dockerfile"
HADOLINT = Path(sys.executable).parent / "hadolint"


def test_hadolint_finds_nothing_but_what_is_ignored_with_a_reason() -> None:
    run = subprocess.run(
        [str(HADOLINT), "--no-color", str(DOCKERFILE)], capture_output=True, text=True, timeout=60, check=False
    )
    assert run.stdout == ""
    assert run.returncode == 0, run.stderr


def test_every_ignored_rule_has_its_reason_above() -> None:
    lines = DOCKERFILE.read_text().splitlines()
    ignored = [number for number, line in enumerate(lines) if line.startswith("# hadolint ignore=")]
    assert ignored
    assert all(lines[number - 1].startswith("# ") for number in ignored)


def test_image_says_how_it_is_run_stopped_and_checked() -> None:
    text = DOCKERFILE.read_text()
    assert 'ENTRYPOINT ["infer-dev", "entry", "--"]' in text
    assert "STOPSIGNAL SIGTERM" in text
    assert re.search(r'^HEALTHCHECK .* CMD \["infer-dev", "health"\]$', text, re.MULTILINE)
    assert not text.startswith("# syntax")  # a build without a registry could not fetch that
