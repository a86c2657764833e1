"""What each server of a plan asks of the machine, read back from its resolved command line. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from infer_dev_entry.engines import GATEWAY_NAMES
from infer_dev_entry.spec import ServerSpec

# Flags that the checks look at → their other spellings.
_ALIASES = {
    "--tp": "--tp-size",
    "--tensor-parallel-size": "--tp-size",
    "--pipeline-parallel-size": "--pp-size",
    "--pp": "--pp-size",
    "--data-parallel-size": "--dp-size",
    "--dp": "--dp-size",
    "--model": "--model-path",
    "-m": "--model-path",
    "--speculative-draft-model": "--speculative-draft-model-path",
    "-c": "--context-length",
    "--ctx-size": "--context-length",
    "-ngl": "--n-gpu-layers",
    "--gpu-layers": "--n-gpu-layers",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """One server's needs. Empty strings and 0 mean "not given"; `gpu_ids` is None for all GPUs.

    `gpus` counts the GPUs that it starts with at least: 0 for a server that uses none, or needs none.
    """

    name: str
    engine: str
    python: str
    gpu_ids: tuple[str, ...] | None
    gpus: int
    tp: int
    pp: int
    model: str
    model_package: str
    draft_model: str
    tokenizer: str
    needs_tokenizer: bool
    load_format: str
    mem_fraction: float
    context_length: int
    kv_cache_dtype: str
    quantization: str
    cpu_offload_gb: float
    model_overrides: Mapping[str, Any]
    host: str
    ports: tuple[tuple[str, int], ...]
    log_file: str

    @property
    def is_sglang(self) -> bool:
        """Whether SGLang serves it."""
        return self.engine == "sglang"

    @property
    def is_gateway(self) -> bool:
        """Whether it hands requests to the others, and serves no model itself."""
        return self.engine in GATEWAY_NAMES


def read_wish(server: ServerSpec) -> Wish:
    """Read one server's needs from its arguments and its private file."""
    flags = _private_flags(server) | _read_flags(server.argv)
    tp, pp = max(1, _int(flags, "--tp-size")), max(1, _int(flags, "--pp-size"))
    return Wish(
        name=server.name,
        engine=server.engine,
        python=server.argv[0],
        gpu_ids=server.gpu_ids,
        gpus=_least_gpus(server),
        tp=tp,
        pp=pp,
        model=flags.get("--model-path", ""),
        model_package=flags.get("--model-package", ""),
        draft_model=flags.get("--speculative-draft-model-path", ""),
        tokenizer=flags.get("--tokenizer-path", ""),
        needs_tokenizer="--skip-tokenizer-init" not in flags,
        load_format=flags.get("--load-format", "auto"),
        mem_fraction=_float(flags, "--mem-fraction-static"),
        context_length=_int(flags, "--context-length"),
        kv_cache_dtype=flags.get("--kv-cache-dtype", "auto"),
        quantization=flags.get("--quantization", ""),
        cpu_offload_gb=_float(flags, "--cpu-offload-gb"),
        model_overrides=_table(flags.get("--json-model-override-args", "")),
        host=server.host,
        ports=_ports(server, flags),
        log_file=server.log_file,
    )


def _least_gpus(server: ServerSpec) -> int:
    if server.gpu_ids == ():
        return 0
    # llama.cpp does without a GPU unless the config says which.
    return server.min_gpus if server.engine == "sglang" else len(server.gpu_ids or ())


def _ports(server: ServerSpec, flags: Mapping[str, str]) -> tuple[tuple[str, int], ...]:
    named = {server.port: "port", _int(flags, "--nccl-port"): "nccl_port"}
    return tuple(
        (named.get(port, "distributed port"), port) for port in (server.port, *server.more_ports) if 0 < port < 65536
    )


def _read_flags(argv: tuple[str, ...]) -> dict[str, str]:
    """Read flag → first word of its value; the last of repeated flags wins, as in argparse."""
    found: dict[str, str] = {}
    arguments = argv[3:] if argv[1:2] == ("-m",) else argv[1:]  # the interpreter's own -m is not the model's
    words = [word for item in arguments for word in (item.split("=", 1) if item.startswith("--") else [item])]
    for word, following in zip(words, [*words[1:], ""], strict=False):
        if word.startswith("-") and not _is_number(word):
            found[_ALIASES.get(word, word)] = "" if following.startswith("--") else following
    return found


def _is_number(word: str) -> bool:
    return word[1:2].isdigit()


def _private_flags(server: ServerSpec) -> dict[str, str]:
    """The flags of SGLang's `--config` file, which infer-dev renders as JSON; a key file holds none."""
    for file in server.files if server.engine == "sglang" else ():
        table = _table(file.text)
        return {f"--{name}": value if isinstance(value, str) else json.dumps(value) for name, value in table.items()}
    return {}


def _table(text: str) -> dict[str, Any]:
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}


def _int(flags: Mapping[str, str], name: str) -> int:
    return int(_float(flags, name))


def _float(flags: Mapping[str, str], name: str) -> float:
    try:
        value = float(flags.get(name) or 0)
    except ValueError:
        return 0.0
    return value if abs(value) < 1e12 else 0.0  # not inf, not nan
