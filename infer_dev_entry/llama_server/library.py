"""The library xllamacpp: what is checked before it loads a model, its parameters, and the load."""

from __future__ import annotations

import argparse
import importlib
import mmap
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from infer_dev_entry.errors import EntryError
from infer_dev_entry.llama_server.cpus import available_cpus
from infer_dev_entry.llama_server.messages import reason_of

# A base model has no chat template, and llama.cpp then falls back on ChatML, whose marks such a model only parrots.
QUESTION_TEMPLATE = (
    "{%- for m in messages -%}"
    "{{ {'user': 'Question: ', 'assistant': 'Answer: '}.get(m.role, '') + m.content + '\\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}Answer:{%- endif -%}"
)
# The key of the template in a GGUF header. The header ends well before this, the tensors follow.
TEMPLATE_KEY = b"tokenizer.chat_template"
HEADER_LIMIT_BYTES = 64 * 1024 * 1024


def import_library() -> Any:
    """Import xllamacpp.

    Raises:
        EntryError: it is not installed.
    """
    try:
        return importlib.import_module("xllamacpp")
    except ImportError as error:
        mend = "install it with: pip install 'infer-dev-entry[cpu]'"
        raise EntryError(f"cannot start llama.cpp: the package xllamacpp is missing ({error}); {mend}") from error


def check_port(host: str, port: int) -> None:
    """Try the port before the model loads, as the library reports a taken one like any other fault.

    Raises:
        EntryError: the address cannot be bound.
    """
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, proto) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen(1)
    except OSError as error:
        mend = "stop what listens there, or choose another --port and --host"
        raise EntryError(f"cannot listen on {host} port {port}: {error.strerror or error}; {mend}") from error


def read_api_keys(path: Path) -> tuple[str, ...]:
    """Read the accepted API keys, one a line.

    Raises:
        EntryError: the file is unreadable or holds no key, which would leave the server open.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise EntryError(f"cannot read --api-key-file {path}: {reason_of(error)}") from error
    keys = tuple(line for line in lines if line and not line.startswith("#"))
    if not keys:
        raise EntryError(f"cannot use --api-key-file {path}: it holds no key; write one a line")
    return keys


def check_gguf(path: Path) -> None:
    """Refuse what is plainly not a model; deeper damage is left for the library to find.

    Raises:
        EntryError: the file is missing, unreadable or no GGUF.
    """
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise EntryError(f"cannot load model {path}: {reason_of(error)}") from error
    if magic != b"GGUF":
        raise EntryError(f"cannot load model {path}: it is not a GGUF file (starts with {magic!r}); fetch it again")


def has_chat_template(path: Path) -> bool:
    """Tell whether the model brings a chat template of its own."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return data.find(TEMPLATE_KEY, 0, HEADER_LIMIT_BYTES) >= 0


def render_params(library: Any, args: argparse.Namespace, model: Path, keys: Sequence[str]) -> Any:
    """Render the arguments as the library's CommonParams."""
    params = library.CommonParams()
    params.model.path = str(model)
    params.model_alias = {args.alias or args.model_package or model.stem}
    params.hostnames = [args.host]
    params.port = args.port
    params.api_keys = list(keys)
    params.n_ctx = args.ctx_size
    params.n_parallel = args.parallel
    params.cpuparams.n_threads = args.threads or available_cpus()
    params.cpuparams_batch.n_threads = args.threads_batch or params.cpuparams.n_threads
    params.n_batch = args.batch_size
    params.n_ubatch = args.ubatch_size
    params.n_gpu_layers = args.n_gpu_layers
    params.main_gpu = args.main_gpu
    flash_attn = {"on": "ENABLED", "off": "DISABLED", "auto": "AUTO"}[args.flash_attn]
    params.flash_attn_type = library.llama_flash_attn_type[f"LLAMA_FLASH_ATTN_TYPE_{flash_attn}"]
    params.cont_batching = args.cont_batching
    params.embedding = args.embeddings
    if args.pooling is not None:
        params.pooling_type = library.llama_pooling_type[f"LLAMA_POOLING_TYPE_{args.pooling.upper()}"]
    params.endpoint_metrics = args.metrics
    params.endpoint_slots = args.slots
    params.use_jinja = args.jinja
    params.chat_template = args.chat_template or _default_template(model, jinja=args.jinja)
    params.timeout_read = params.timeout_write = args.timeout
    params.n_predict = args.n_predict
    if args.seed >= 0:
        params.sampling.seed = args.seed
    if args.verbose:
        params.verbosity = 99
    return params


def _default_template(model: Path, *, jinja: bool) -> str:
    return QUESTION_TEMPLATE if jinja and not has_chat_template(model) else ""


def load(library: Any, params: Any, args: argparse.Namespace, model: Path) -> Any:
    """Load the model and listen; return the library's server.

    Raises:
        EntryError: the library refused.
    """
    try:
        return library.Server(params)
    except (RuntimeError, MemoryError) as error:
        # The library says the same for every fault; a port that was lost during the load is told apart here.
        check_port(args.host, args.port)
        mend = "the lines above say why; if the file is damaged, fetch it again"
        raise EntryError(f"cannot load model {model}: llama.cpp refused it or its parameters; {mend}") from error
