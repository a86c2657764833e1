"""llama.cpp as a supervised server: the flags of our own launcher, named as `llama-server` names them."""

from __future__ import annotations

from infer_dev_entry.engines import EngineProfile, FlagSpec

FLAGS = (
    FlagSpec(name="model", aliases=("m",)),
    FlagSpec(name="model-package"),
    FlagSpec(name="alias", aliases=("a",)),
    FlagSpec(name="host"),
    FlagSpec(name="port", type="int"),
    FlagSpec(name="ctx-size", aliases=("c",), type="int"),
    FlagSpec(name="parallel", aliases=("np",), type="int"),
    FlagSpec(name="threads", aliases=("t",), type="int"),
    FlagSpec(name="threads-batch", aliases=("tb",), type="int"),
    FlagSpec(name="batch-size", aliases=("b",), type="int"),
    FlagSpec(name="ubatch-size", aliases=("ub",), type="int"),
    FlagSpec(name="n-gpu-layers", aliases=("gpu-layers", "ngl"), type="int"),
    FlagSpec(name="main-gpu", aliases=("mg",), type="int"),
    FlagSpec(name="flash-attn", aliases=("fa",), kind="optional", choices=("on", "off", "auto")),
    FlagSpec(name="cont-batching", aliases=("no-cont-batching",), kind="pair"),
    FlagSpec(name="embeddings", aliases=("embedding",), kind="switch"),
    FlagSpec(name="pooling", choices=("none", "mean", "cls", "last", "rank")),
    FlagSpec(name="metrics", aliases=("no-metrics",), kind="pair"),
    FlagSpec(name="slots", aliases=("no-slots",), kind="pair"),
    FlagSpec(name="api-key"),  # never on the command line: it goes to a file of ours for --api-key-file
    FlagSpec(name="chat-template"),
    FlagSpec(name="jinja", aliases=("no-jinja",), kind="pair"),
    FlagSpec(name="seed", aliases=("s",), type="int"),
    FlagSpec(name="timeout", aliases=("to",), type="int"),
    FlagSpec(name="n-predict", aliases=("predict", "n"), type="int"),
    FlagSpec(name="verbose", aliases=("v",), kind="switch"),
)

# SGLang's names, accepted with a warning so that one TOML can change engines by one key.
TRANSLATIONS = {
    "model-path": "model",
    "context-length": "ctx-size",
    "max-running-requests": "parallel",
    "served-model-name": "alias",
    "enable-metrics": "metrics",
    "random-seed": "seed",
}

PROFILE = EngineProfile(
    name="llama_cpp",
    module="infer_dev_entry.llama_server",
    default_host="127.0.0.1",
    default_port=30000,  # SGLang's, not llama-server's 8080: changing the engine must not move the URL
    model_flag="model",
    startup_path="/health",
    liveness_path="/health",
    startup_deadline_s=300.0,
    period_s=5.0,
    timeout_s=3.0,
    failure_threshold=3,
    progress_paths=("/metrics",),
    foreign_flags={
        "max_model_len": "llama_cpp calls it ctx_size",
        "n_ctx": "llama_cpp calls it ctx_size",
        "n_parallel": "llama_cpp calls it parallel",
        "n_threads": "llama_cpp calls it threads",
    },
    translations=TRANSLATIONS,
    secret_flags=("api-key",),
    shorthands={"cb": "cont-batching"},  # no alias: those of a pair negate
    # SIGTERM closes its port; it completes running and queued requests, then exits 0.
)
