"""nginx as a supervised program: the gateway in front of the servers."""

from __future__ import annotations

from infer_dev_entry.engines import EngineProfile

PROFILE = EngineProfile(
    name="nginx",
    module="",
    default_host="127.0.0.1",
    default_port=8000,
    model_flag="",
    # On a loopback port of its own: with TLS, limits or a flood on the public one it still answers.
    startup_path="/gateway/health",
    liveness_path="/gateway/health",
    startup_deadline_s=30.0,
    period_s=5.0,
    timeout_s=3.0,
    failure_threshold=3,
    stop_signal="QUIT",
    # SIGQUIT closes its ports; it completes running requests, then exits 0.
)
