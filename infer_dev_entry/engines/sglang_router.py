"""SGLang's router as a supervised program: a gateway that sends prompts with a common beginning to the same server."""

from __future__ import annotations

from infer_dev_entry.engines import EngineProfile

PACKAGE = "sglang-router"

PROFILE = EngineProfile(
    name="sglang-router",
    module="sglang_router.launch_router",
    default_host="127.0.0.1",
    default_port=8000,
    model_flag="",
    # Its own life, with and without workers; /readiness is 503 without any, which is no reason to restart it.
    startup_path="/health",
    liveness_path="/health",
    startup_deadline_s=60.0,
    period_s=5.0,
    timeout_s=3.0,
    failure_threshold=3,
    # SIGTERM closes its port; it completes running requests, then exits 0.
)
