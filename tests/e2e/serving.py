"""The environment of a container that serves the small model, with settings that suit a test."""

from __future__ import annotations

import json
from typing import Any

from engine import SERVE


def serve(gateway: dict[str, Any] | None = None, **tables: dict[str, Any]) -> dict[str, str]:
    """Return the gates that serve; `tables` (control, probe, restart, server) are merged over those of the instance,
    `gateway` over the file, which has none.

    One thread, as llama.cpp's threads wait for each other in a busy loop: on a machine with other work two are slower.
    Such a machine delays an answer to a probe as well, by seconds; a server that serves has to stay ready meanwhile.
    """
    tables["server"] = {"threads": 1, **tables.get("server", {})}
    tables["probe"] = {"period_s": 20.0, "timeout_s": 15.0, **tables.get("probe", {})}
    overrides: dict[str, Any] = {"instance": {"gemma": tables}} | ({"gateway": gateway} if gateway else {})
    return {**SERVE, "AUTO_INFER_SGLANG_OVERRIDES": json.dumps(overrides)}
