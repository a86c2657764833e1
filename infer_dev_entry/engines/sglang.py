"""SGLang as a supervised server. Its flags are data of their own: see `infer_dev_entry.config.catalogue`."""

from __future__ import annotations

from infer_dev_entry.engines import EngineProfile

# Other servers' names (vLLM, llama.cpp, and names that circulate in guides) → what to write instead.
FOREIGN_FLAGS = {
    "max_model_len": "sglang calls it context_length",
    "max_context_length": "sglang calls it context_length",
    "ctx_size": "sglang calls it context_length",
    "gpu_memory_utilization": "sglang calls it mem_fraction_static",
    "max_num_seqs": "sglang calls it max_running_requests",
    "parallel": "sglang calls it max_running_requests",
    "max_num_batched_tokens": "sglang calls it chunked_prefill_size",
    "enable_chunked_prefill": "sglang always does it; set its size with chunked_prefill_size",
    "enable_prefix_caching": "sglang always does it; disable_radix_cache = true turns it off",
    "enforce_eager": "sglang calls it disable_cuda_graph",
    "block_size": "sglang calls it page_size",
    "max_loras": "sglang calls it max_loras_per_batch",
    "hf_overrides": "sglang calls it json_model_override_args",
    "rope_scaling": "sglang takes it inside json_model_override_args",
    "enable_auto_tool_choice": "sglang needs only tool_call_parser; remove it",
    "guided_decoding_backend": "sglang calls it grammar_backend",
    "seed": "sglang calls it random_seed",
    "alias": "sglang calls it served_model_name",
    "metrics": "sglang calls it enable_metrics",
    "num_gpus": "sglang calls it tp_size",
    "n_gpu_layers": "sglang puts the whole model on the GPU; remove it",
    "api_keys_file": "sglang takes one key: use api_key_file (a file with one line), or keys in a gateway",
}

VALUE_MENDS = {
    "reasoning-parser=glm47": "glm45",  # seen in guides for GLM-4.7, whose tool parser alone is called glm47
    "tool-call-parser=glm-4.7": "glm47",
}

PROFILE = EngineProfile(
    name="sglang",
    module="sglang.launch_server",
    default_host="127.0.0.1",
    default_port=30000,
    model_flag="model-path",
    # Not /v1/models, /ready or /ping: those stay 200 with the scheduler stopped.
    startup_path="/health",
    liveness_path="/health",
    startup_deadline_s=1800.0,
    # /health generates one token (at least a second) and itself gives up after 20 s; a long prefill fails it falsely.
    period_s=20.0,
    timeout_s=15.0,
    failure_threshold=6,
    # A compilation or a slow disk may be silent for minutes.
    stall_timeout_s=900.0,
    # /v1/loads since 0.5.9; /metrics with enable_metrics. Neither makes the server generate.
    progress_paths=("/v1/loads?include=core", "/metrics"),
    counters_first=True,
    # Without these a crashed scheduler takes 66 s to exit instead of 1 s.
    environment={"SGLANG_CUDA_COREDUMP_BEFORE_CRASH": "0", "SGLANG_PYSPY_DUMP_BEFORE_CRASH": "0"},
    refused_environment={
        "SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION=0": (
            "it makes /health answer 200 with the scheduler stopped, so that a hang would never be found; remove it"
        ),
        **{
            f"SGLANG_DIAG_BYPASS_HEALTH_GENERATE={word}": (
                "it makes /health answer 200 with the scheduler stopped, so that a hang would never be found; remove it"
            )
            for word in ("1", "true", "True", "TRUE")
        },
    },
    foreign_flags=FOREIGN_FLAGS,
    value_mends=VALUE_MENDS,
    secret_flags=("api-key", "admin-api-key", "ssl-keyfile-password"),
    shorthands={"tp": "tp-size", "pp": "pp-size", "dp": "dp-size"},
    # SIGTERM to the main process only: to the group it loses running requests.
)
