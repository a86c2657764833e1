"""The table of all TOML keys. Validation, the JSON Schema and the documentation are all made from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from infer_dev_entry.engines import ENGINE_NAMES, GATEWAY_NAMES
from infer_dev_entry.models.wish import SOURCES

Value = str | int | float | bool | tuple[str, ...] | None

MAX_REPLICAS = 1024
LARGEST = 1_000_000.0  # of a plain number
LONGEST_S = 31_536_000.0  # a year; longer is a slip, and far longer overflows timers


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """One key of a table.

    `kind` is `bool`, `str`, `path`, `int`, `seconds`, `number`, `names` (a list of strings), `choice`, `gpu_ids` or
    `replicas`.
    `default` is what an absent key means; None when the text says what it depends on (`default_text`).
    """

    name: str
    kind: str
    text: str
    default: Value = None
    default_text: str = ""
    minimum: float = 0
    positive: bool = False  # a `seconds` above 0, not 0 itself
    choices: tuple[str, ...] = ()


MASTER = (
    Key(name="enable", kind="bool", default=True, text="false: nothing starts"),
    Key(
        name="project_dir",
        kind="path",
        default_text="`AUTO_INFER_SGLANG_PIXI_PROJECT_DIR`",
        text="where the installed environment lives",
    ),
    Key(
        name="python_path",
        kind="path",
        default_text="`<project_dir>/env/bin/python`",
        text="interpreter of SGLang; `AUTO_INFER_SGLANG_PYTHON` wins over it",
    ),
    Key(name="server_module", kind="str", default="sglang.launch_server", text="module that serves SGLang"),
)

CONTROL = (
    Key(name="enabled", kind="bool", default=True, text="false: this instance does not exist"),
    Key(
        name="engine",
        kind="choice",
        default="sglang",
        choices=ENGINE_NAMES,
        text="`sglang` (GPU) or `llama_cpp` (CPU, or GPUs too old for SGLang)",
    ),
    Key(name="log_dir", kind="path", default="/tmp", text="directory of the log file"),
    Key(
        name="log_file",
        kind="path",
        default_text="`<log_dir>/sglang-server-<name>.log`",
        text="the log file; a relative one is in `log_dir`; replicas get `-<i>` before its suffix",
    ),
    Key(
        name="gpu_ids",
        kind="gpu_ids",
        default="all",
        text='`"all"`, `"none"`, `"auto"` (GPUs that no other instance names, free ones first), `"0,1"`, `"0-3"`, '
        "`[0, 1]` or UUIDs; numbers are nvidia-smi's",
    ),
    Key(name="share_gpu", kind="bool", default=False, text="true: other instances may use the same GPUs"),
    Key(
        name="background",
        kind="bool",
        default=True,
        text="false: the instances after this one wait until it is ready",
    ),
    Key(
        name="python_path",
        kind="path",
        default_text="`[master]`'s for `sglang`, infer-dev's own for `llama_cpp`",
        text="interpreter of this server",
    ),
    Key(
        name="binary",
        kind="path",
        default_text="none",
        text="`llama_cpp` only: a `llama-server` to run instead of the packaged launcher",
    ),
    Key(
        name="replicas",
        kind="replicas",
        default=1,
        text='a number, or `"per-gpu"`: fans out into `<name>-0`, `<name>-1`…, one GPU set each, ports counted up',
    ),
    Key(
        name="warm_first",
        kind="bool",
        default_text="`true` (`llama_cpp`: `false`)",
        text="true: the first replica loads alone, so that the others find the model in the page cache",
    ),
    Key(
        name="gpus_per_replica",
        kind="int",
        minimum=1,
        default_text="`tp_size × pp_size` (`llama_cpp`: 1)",
        text="GPUs in the set of one replica",
    ),
    Key(
        name="depends_on",
        kind="names",
        default=(),
        text="instances that must be ready first; a fanned-out name means all its replicas",
    ),
    Key(
        name="start_stagger_s",
        kind="seconds",
        default_text='`0`; `2` for SGLang with `replicas = "per-gpu"`',
        text="pause between this start and the one before it",
    ),
    Key(
        name="drain_timeout_s",
        kind="seconds",
        default=30.0,
        text="time for running requests after SIGTERM, before SIGKILL",
    ),
    Key(
        name="gpu_wait_s",
        kind="seconds",
        default=60.0,
        text="a start that waits so long for GPU memory is reported with its holders; it waits on, or moves if its "
        "GPUs were dealt",
    ),
    Key(name="log_max_bytes", kind="int", default=50_000_000, text="size at which the log rotates; 0: never"),
    Key(name="log_backups", kind="int", default=3, text="rotated logs that are kept"),
)

PROBE = (
    Key(
        name="startup_deadline_s",
        kind="seconds",
        positive=True,
        default_text="1800 (`llama_cpp`: 300)",
        text="time from start to ready; after it the server is restarted",
    ),
    Key(
        name="period_s",
        kind="seconds",
        positive=True,
        default_text="20 (`llama_cpp`: 5)",
        text="time between probes",
    ),
    Key(
        name="timeout_s",
        kind="seconds",
        positive=True,
        default_text="15 (`llama_cpp`: 3)",
        text="time for one probe; below `period_s`",
    ),
    Key(
        name="failure_threshold",
        kind="int",
        minimum=1,
        default_text="6 (`llama_cpp`: 3)",
        text="failures in a row, with no progress in the server's counters, that make a hang",
    ),
    Key(
        name="stall_timeout_s",
        kind="seconds",
        default_text="900 (`llama_cpp`: 0)",
        text="a start whose log says nothing for so long is restarted; 0: never",
    ),
)

RESTART = (
    Key(name="backoff_initial_s", kind="seconds", positive=True, default=1.0, text="wait before the first restart"),
    Key(name="backoff_max_s", kind="seconds", positive=True, default=60.0, text="longest wait; each doubles the last"),
    Key(
        name="reset_after_s",
        kind="seconds",
        positive=True,
        default=300.0,
        text="ready for so long: the count and the wait start afresh",
    ),
    Key(name="max_restarts", kind="int", default=8, text="restarts in a row before `failed`; 0: never give up"),
)

MODEL = (
    Key(name="repo_id", kind="str", default_text="none", text="repository of the optional download, `org/name`"),
    Key(
        name="source",
        kind="choice",
        choices=SOURCES,
        default_text="`AUTO_INFER_SGLANG_MODEL_SOURCE`",
        text="hub of that repository: `huggingface` or `modelscope`",
    ),
    Key(
        name="revision",
        kind="str",
        default_text="the default branch",
        text="branch, tag or commit of that repository; only a commit stays the same for ever",
    ),
    Key(
        name="local_dir",
        kind="path",
        default_text="the server's `model_path` (`llama_cpp`: the directory of `model`)",
        text="directory the download goes to; the server's model is it, or lies in it",
    ),
    Key(
        name="allow_patterns",
        kind="names",
        default_text="all files (a `.gguf`: that file)",
        text='files to download, such as `["*.safetensors", "*.json"]`; `*` also matches `/`',
    ),
    Key(name="ignore_patterns", kind="names", default=(), text='files to leave out, such as `["original/*"]`'),
)

SERVER = (
    Key(name="extra_args", kind="names", default=(), text="raw command-line words, appended as they are"),
    Key(
        name="api_key_file", kind="path", default_text="none", text="file with the API key (`llama_cpp`: a key a line)"
    ),
    Key(name="api_key_env", kind="str", default_text="none", text="name of a variable of infer-dev's with the API key"),
    Key(name="admin_api_key_file", kind="path", default_text="none", text="`sglang` only: file with the admin key"),
    Key(name="admin_api_key_env", kind="str", default_text="none", text="`sglang` only: variable with the admin key"),
)

ROUTER_POLICIES = ("cache_aware", "round_robin", "random", "power_of_two")

GATEWAY = (
    Key(name="enable", kind="bool", default=True, text="false: there is no gateway"),
    Key(
        name="engine",
        kind="choice",
        default="nginx",
        choices=GATEWAY_NAMES,
        text="the program before the servers; `sglang-router` sends prompts that begin alike to the same one",
    ),
    Key(name="host", kind="str", default="127.0.0.1", text='address it listens on; `"0.0.0.0"` for all'),
    Key(name="port", kind="int", minimum=1, default=8000, text="port it listens on"),
    Key(
        name="instances",
        kind="names",
        default_text="all enabled ones",
        text="instances behind `/v1/`; each has its own `/<instance>/v1/` as well",
    ),
    Key(
        name="api_keys_file",
        kind="path",
        default_text="none: no key is asked for",
        text="file of API keys, a line each: `key` or `name: key`; read anew when it changes",
    ),
    Key(name="tls_certificate", kind="path", default_text="none", text="PEM file of the certificate and its chain"),
    Key(name="tls_certificate_key", kind="path", default_text="none", text="PEM file of its key"),
    Key(name="http2", kind="bool", default=True, text="HTTP/2 beside HTTP/1.1, with TLS"),
    Key(name="rate_per_s", kind="number", default=0, text="requests a second for each key; 0: no limit"),
    Key(name="burst", kind="int", default=20, text="requests above the rate that pass at once"),
    Key(name="max_connections", kind="int", default=0, text="requests of a key that run at once; 0: no limit"),
    Key(name="max_body_bytes", kind="int", minimum=1, default=33_554_432, text="longest body of a request"),
    Key(
        name="client_timeout_s",
        kind="seconds",
        positive=True,
        default=15.0,
        text="time for the head of a request, and longest pause in its body",
    ),
    Key(
        name="read_timeout_s",
        kind="seconds",
        positive=True,
        default=3600.0,
        text="longest pause in a server's answer, and longest life of a stream after a reload",
    ),
    Key(name="workers", kind="int", minimum=1, default=4, text="worker processes"),
    Key(name="access_log", kind="bool", default=True, text="false: requests are not logged"),
    Key(name="log_dir", kind="path", default_text="`[instance.control]`'s", text="directory of its logs"),
    Key(
        name="drain_timeout_s",
        kind="seconds",
        default_text="the longest of its servers'",
        text="time for running requests when it stops",
    ),
    Key(name="log_max_bytes", kind="int", default=50_000_000, text="size at which its logs rotate; 0: never"),
    Key(name="log_backups", kind="int", default=3, text="rotated logs that are kept"),
    Key(
        name="binary",
        kind="path",
        default_text="`nginx` on PATH",
        text="the nginx to run; `sglang-router`: an interpreter that has it",
    ),
    Key(
        name="policy",
        kind="choice",
        default="cache_aware",
        choices=ROUTER_POLICIES,
        text="`sglang-router` only: which server gets a request",
    ),
)

# Table → (its keys, what it is). `server`, `env` and `yaml` are open: they take flags and variables.
INSTANCE_TABLES: Mapping[str, tuple[tuple[Key, ...], str]] = {
    "control": (CONTROL, "how infer-dev runs the server"),
    "server": (SERVER, "arguments of the server: `tp_size = 8` → `--tp-size 8`"),
    "env": ((), "extra environment variables of the server"),
    "yaml": ((), "arguments that go into SGLang's `--config` file (mode 0600) instead of the command line"),
    "probe": (PROBE, "how the server is probed"),
    "restart": (RESTART, "the back-off of the server"),
    "model": (MODEL, "the optional download of the model"),
}
GLOBAL_TABLES = ("control", "server")
TOP_TABLES = ("master", "instance", "gateway")


def names_of(keys: tuple[Key, ...]) -> tuple[str, ...]:
    """Return the names of keys, in their order."""
    return tuple(key.name for key in keys)


def defaults_of(keys: tuple[Key, ...]) -> dict[str, Value]:
    """Return name → default of keys."""
    return {key.name: key.default for key in keys}
