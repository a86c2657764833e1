"""Test-wide set-up: shared modules are found, signals work, and hypothesis does not flake on a loaded machine."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from hypothesis import HealthCheck, settings

# tests/unit/make.py, tests/integration/*.py, tests/e2e/engine.py and tests/sglang/real_sglang.py are imported by name,
# tests/fake_server.py runs as a module.
for folder in ("", "unit", "integration", "e2e", "sglang"):
    sys.path.insert(0, str(Path(__file__).parent / folder))

# nohup, and a shell without job control, start what runs in their background deaf to these, and programs under test
# would inherit that.
for number, handler in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGHUP, signal.SIG_DFL),
    (signal.SIGQUIT, signal.SIG_DFL),
):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handler)

settings.register_profile("default", deadline=None, suppress_health_check=[HealthCheck.too_slow])
# In CI the examples are the same each time; new ones are found where somebody is there to look at them.
settings.register_profile("ci", settings.get_profile("default"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")
