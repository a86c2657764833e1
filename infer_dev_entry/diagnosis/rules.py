"""The table of failures: how each shows, what follows, and what to change. The first row that fits wins.

Messages are those of SGLang 0.5.7 to 0.5.23, torch 2.9 to 2.14, NCCL 2.27 and llama.cpp of 2026. Every row has its
proof in tests/unit/test_diagnosis.py, which says whether it was provoked or is a message recorded elsewhere. Gaps in a
pattern are bounded, so that no log can make a match slow.
"""

from __future__ import annotations

from infer_dev_entry.diagnosis.model import DISK_FULL, GPU_LOST, HOST_OOM, PORT_IN_USE, Policy, Rule

# Signal numbers are the same on every Linux machine that we run on; pure modules import no `signal`.
_SIGHUP, _SIGINT, _SIGQUIT, _SIGILL, _SIGBUS, _SIGKILL, _SIGTERM = 1, 2, 3, 4, 7, 9, 15
_E = r"[\w.]{1,120}: "  # the class of an exception
_TERMINATED = r"what\(\):\s{1,4}.{0,300}?"  # C++'s last words
# The kernel's word, where a log carries it. NVIDIA's Xid catalog answers 13, 31, 43, 45, 63 and 94 (a fault of the
# program, or a contained one) with a new start, and the others that end a program with a reset, a reboot or a repair.
_XID = r"NVRM: Xid \([^)]{1,60}\): "

_GPU_SHARE = "end what else uses the GPU (nvidia-smi names it)"
_LLAMA_INSTEAD = 'control.engine = "llama_cpp" runs GGUF models on older GPUs and on the CPU'
_RECREATE = (
    "re-create the container (docker compose up -d --force-recreate); if nvidia-smi fails on the host as well, reset "
    "or replace that GPU"
)
_WHO_KILLED = "find out who killed it: an out-of-memory killer (dmesg on the host), or a person"
_SHM_MEND = "give the container more shared memory (SHM_SIZE in docker/.env, compose shm_size, docker run --shm-size)"
_SIGBUS_SUMMARY = "a page of shared memory could not be had: /dev/shm is probably full"

RULES = (
    # -- the command line and the environment
    Rule(
        kind="bad-flag",
        policy=Policy.NEVER,
        exit_codes=(2,),
        said=(r"[\w./ -]{1,120}: error: (?:argument|unrecognized arguments|the following arguments|ambiguous option)",),
        summary="an argument was refused",
        mend="correct it in the TOML; infer-dev config check knows the arguments of the installed version",
    ),
    Rule(
        kind="bad-flag",
        policy=Policy.NEVER,
        engine="sglang",
        raised=(_E + r".{0,60}User-specified context_length \(",),
        summary="the model cannot take so long a context",
        mend="lower {context_length} to what the line derives from the model, or see what it says about overriding",
    ),
    Rule(
        kind="bad-flag",
        policy=Policy.NEVER,
        engine="sglang",
        raised=(_E + r"\d{1,9} is not divisible by \d{1,9}",),
        summary="the model cannot be split over so many GPUs",
        mend="choose {tp_size} so that it divides the model's heads and sizes: 1, 2, 4 or 8",
    ),
    Rule(
        kind="no-gpu",
        policy=Policy.HOLD,
        engine="sglang",
        raised=(
            _E + r"No accelerator \(",
            _E + r"Found no NVIDIA driver",
            _E + r"No CUDA GPUs are available",
            _E + r"Torch not compiled with CUDA enabled",
            _E + r"module 'torch\._C' has no attribute '_cuda_",
            _E + r"CUDA error: (?:no CUDA-capable device is detected|invalid device ordinal)",
            _E + r"libcuda\.so",
        ),
        summary="it sees no usable GPU",
        mend="give the container its GPUs (docker run --gpus all, compose deploy.resources) and correct "
        "control.gpu_ids; " + _LLAMA_INSTEAD,
    ),
    Rule(
        kind="driver-too-old",
        policy=Policy.HOLD,
        raised=(
            _E + r"The NVIDIA driver on your system is too old",
            _E + r"CUDA error: (?:CUDA driver version is insufficient|system has unsupported display driver)",
            _E
            + r"CUDA error: (?:the provided PTX was compiled with an unsupported|forward compatibility was attempted)",
            _E + r".{0,80}Error 80[34]: ",
        ),
        said=(r"ggml_cuda_init: failed to initialize CUDA: CUDA driver version is insufficient",),
        summary="the GPU's driver is too old for this build of CUDA",
        mend="update the driver on the host, or install the bundle for CUDA 12; infer-dev doctor shows both versions",
    ),
    Rule(
        kind="arch-unsupported",
        policy=Policy.NEVER,
        raised=(
            _E + r"FlashAttention v\d Backend requires SM",
            _E + r".{0,120}\brequires? (?:CUDA )?(?:SM|sm_?|compute capability)\s?[>=]{0,2}\s?\d",
        ),
        summary="this GPU cannot run the chosen backend",
        mend='set {attention_backend} to "flashinfer" or "triton", or leave it out',
    ),
    Rule(
        kind="arch-unsupported",
        policy=Policy.NEVER,
        raised=(
            _E + r"SGLang only supports sm\d",
            _E + r".{0,60}CUDA error: no kernel image is available",
            _E + r".{0,120}is not supported for the current GPU\. Minimum capability",
        ),
        said=(
            r"CUDA error(?: \d{1,4})?(?: at \S{1,200})?: no kernel image is available",
            r"ERROR: CUDA kernel \S{1,80} has no device code compatible with CUDA arch",
        ),
        summary="this GPU is too old, or too new, for what is installed",
        mend=f"use a GPU of compute capability 8.0 or higher, or another {{quantization}}; {_LLAMA_INSTEAD}",
    ),
    Rule(
        kind="not-installed",
        policy=Policy.HOLD,
        said=(
            r"[\w./-]{0,200}python[\d.]{0,8}: (?:Error while finding module specification for|No module named) ",
            r"error: cannot start llama\.cpp: the package xllamacpp is missing",
        ),
        raised=(r"(?:ModuleNotFoundError|ImportError): ",),
        summary="a part of the environment is missing",
        mend="run infer-dev install, or correct master.python_path; infer-dev doctor looks at the environment",
    ),
    Rule(
        kind="not-installed",
        policy=Policy.HOLD,
        exit_codes=(126, 127),
        said=(r"supervisor: couldn't exec ",),
        summary="its program cannot be run",
        mend="correct control.python_path, control.binary or master.python_path, or run infer-dev install",
    ),
    Rule(
        kind="build-tools-missing",
        policy=Policy.HOLD,
        engine="sglang",
        raised=(
            _E + r"Could not find nvcc",
            _E + r"nvcc not found at",
            _E + r"Ninja is required to load C\+\+ extensions",
            _E + r"Failed to find C compiler",
            _E + r"\[Errno 2\] No such file or directory: '[\w./-]{0,200}(?:nvcc|ninja|gcc|g\+\+|/cc)'",
        ),
        summary="kernels must be compiled here, and a compiler is missing",
        mend='set {attention_backend} to "triton" and {sampling_backend} to "pytorch", or add nvcc, ninja and g++ '
        "to the image",
    ),
    # -- the model
    Rule(
        kind="model-missing",
        policy=Policy.HOLD,
        engine="sglang",
        raised=(
            _E + r"Repo id must (?:be in the form|use alphanumeric chars)",
            _E + r".{0,300}is not a local folder and is not a valid model identifier",
            _E + r".{0,300}does not appear to have a file named",
            _E + r"Cannot find any model weights with",
            _E + r"Unrecognized model in .{1,300}Should have a `model_type` key",
            _E + r"\[Errno 2\] No such file or directory: '[^']{1,400}\.(?:json|safetensors|bin|model|gguf)'",
            r"(?:[\w.]{1,80}\.)?(?:RepositoryNotFound|GatedRepo|RevisionNotFound)Error: ",
        ),
        summary="the model is not there, or not all of it",
        mend="correct {model_path}, or mount the models there; infer-dev doctor looks at the model's files",
    ),
    Rule(
        kind="model-missing",
        policy=Policy.HOLD,
        engine="llama_cpp",
        said=(r"error: cannot load model .{1,400}: (?:No such file or directory|Permission denied|Is a directory)$",),
        summary="the model is not there, or may not be read",
        mend="correct {model}, or mount the models there",
    ),
    Rule(
        kind="model-missing",
        policy=Policy.HOLD,
        engine="sglang",
        raised=(
            _E + r"We couldn't connect to '.{0,1200}outgoing traffic has been disabled",
            r"(?:[\w.]{1,80}\.)?OfflineModeIsEnabled",
        ),
        summary="the model is not on this machine, and downloads are switched off",
        mend="give {model_path} the path of a local model",
    ),
    Rule(
        kind="model-missing",
        policy=Policy.RETRY,
        engine="sglang",
        raised=(
            _E + r"We couldn't connect to '",
            r"(?:[\w.]{1,80}\.)?LocalEntryNotFoundError",
        ),
        summary="the model is not on this machine, and its hub cannot be reached",
        mend="give {model_path} the path of a local model, or the container a network",
    ),
    Rule(
        kind="model-broken",
        policy=Policy.HOLD,
        engine="sglang",
        raised=(
            _E + r"It looks like the config file at ",
            r"(?:[\w.]{1,80}\.)?SafetensorError: ",
            _E + r"Couldn't instantiate the backend tokenizer",
        ),
        summary="the model's files are damaged or incomplete",
        mend="fetch the model again into {model_path}; infer-dev doctor looks at its files",
    ),
    Rule(
        kind="model-unsupported",
        policy=Policy.NEVER,
        raised=(
            _E + r"Cannot find model module",
            _E + r"The checkpoint you are trying to load has model type",
            _E + r"Model architectures .{1,200} not supported",
            _E + r"Unknown quantization method",
        ),
        said=(
            r"llama_model_load: error loading model: (?:error loading model architecture: )?unknown model architecture",
        ),
        summary="the installed version does not know this kind of model",
        mend="install a bundle with a newer version, or choose another model",
    ),
    Rule(
        kind="model-broken",
        policy=Policy.HOLD,
        engine="llama_cpp",
        said=(
            r"gguf_init_from_\w{1,40}: ",
            r"llama_model_load: error loading model: .{0,300}(?:corrupted or incomplete|failed to load model from)",
            r"error: cannot load model .{1,400}: it is not a GGUF file",
        ),
        summary="the model's file is damaged or incomplete",
        mend="fetch the model again into {model}",
    ),
    # -- memory and space
    Rule(
        kind="kv-cache",
        policy=Policy.RETRY,
        engine="sglang",
        raised=(_E + r"Loaded weights leave no GPU memory", _E + r"Not enough memory\. Please try to increase --mem"),
        summary="the weights leave no room for the KV cache",
        mend="raise {mem_fraction_static} or {tp_size}, or choose a smaller or quantised model; " + _GPU_SHARE,
    ),
    Rule(
        kind="cuda-oom",
        policy=Policy.RETRY,
        engine="sglang",
        raised=(
            r"(?:torch\.)?(?:cuda\.)?OutOfMemoryError: ",
            _E + r"(?:Capture cuda graph failed: )?CUDA (?:error: )?out of memory",
            _E + r"CUDA error: CUBLAS_STATUS_ALLOC_FAILED",
            _TERMINATED + r"CUDA (?:error: )?out of memory",
        ),
        summary="CUDA out of memory",
        mend="lower {mem_fraction_static}, {chunked_prefill_size} or {max_running_requests}; weights that do not fit "
        "need a higher {tp_size} or a quantised model; " + _GPU_SHARE,
    ),
    Rule(
        kind="cuda-oom",
        policy=Policy.RETRY,
        engine="llama_cpp",
        said=(
            r"ggml_backend_cuda_buffer_type_alloc_buffer: allocating .{1,80} cudaMalloc failed: out of memory",
            r"\w{1,60}: failed to allocate CUDA\d{1,3} buffer",
            r"CUDA error: out of memory",
        ),
        summary="CUDA out of memory",
        mend="lower {n_gpu_layers}, {ctx_size} or {parallel}; " + _GPU_SHARE,
    ),
    Rule(
        kind="shm-full",
        policy=Policy.RETRY,
        raised=(
            _E + r".{0,600}/dev/shm.{0,300}No space left on device",
            _E + r".{0,300}No space left on device.{0,100}/dev/shm",
            _E + r"unable to (?:open|allocate|resize|mmap) .{0,40}shared memory",
            _E + r".{0,600}Error while creating shared memory segment /dev/shm",
        ),
        said=(r"\S{0,120} ?\[\d{1,3}\] \S{1,80} NCCL WARN Error.{0,40}(?:to extend|shared memory segment) /dev/shm",),
        summary="/dev/shm is full",
        mend=_SHM_MEND,
    ),
    Rule(
        kind="shm-full",
        policy=Policy.RETRY,
        engine="sglang",
        raised=(_E + r"Rank \d{1,5} scheduler died during initialization \(exit code: -7\)",),
        said=(r"Fatal Python error: Bus error", r"Subprocess \S{1,80} \(pid=\d{1,9}\) crashed with exit code -7\b"),
        summary=_SIGBUS_SUMMARY,
        mend=_SHM_MEND,
    ),
    Rule(
        kind=DISK_FULL,
        policy=Policy.WAIT,
        raised=(
            _E + r".{0,400}No space left on device",
            r"FileNotFoundError: \[Errno 2\] No usable temporary directory found in ",
        ),
        said=(r"error: .{1,400}: No space left on device",),
        summary="a disk is full",
        mend="free space where the line says; caches (~/.cache, TMPDIR), logs and models take most",
    ),
    Rule(
        kind=HOST_OOM,
        policy=Policy.RETRY,
        engine="sglang",
        raised=(
            r"MemoryError\b",
            _E + r".{0,200}DefaultCPUAllocator: (?:can't allocate|not enough) memory",
            _E + r"\[Errno 12\] ",
            _TERMINATED + r"std::bad_alloc",
        ),
        summary="the machine's memory is used up",
        mend="give the container more memory (docker run --memory, compose mem_limit), or lower {context_length} or "
        "{max_running_requests}",
    ),
    Rule(
        kind=HOST_OOM,
        policy=Policy.RETRY,
        engine="llama_cpp",
        raised=(r"MemoryError\b", _TERMINATED + r"std::bad_alloc"),
        said=(
            r"ggml_aligned_malloc: insufficient memory",
            r"ggml_backend_cpu_buffer_type_alloc_buffer: failed to allocate",
        ),
        summary="the machine's memory is used up",
        mend="lower {ctx_size} or {parallel}, choose a smaller model, or give the container more memory",
    ),
    # -- its surroundings
    Rule(
        kind=PORT_IN_USE,
        policy=Policy.WAIT,
        raised=(
            _E + r".{0,300}EADDRINUSE",
            _E + r"\[Errno 98\] ",
            _E + r"Address already in use",
        ),
        said=(r"\[Errno 98\] ", r"error: cannot listen on .{1,200}: Address already in use"),
        summary="a port is taken",
        mend="end the process that holds it, or set another {port}; NCCL and the ranks have ports of their own",
    ),
    Rule(
        kind="cuda-error",
        policy=Policy.RETRY,
        said=(_XID + r"(?:13|31|43|45|63|94)\b",),
        summary="the driver stopped a computation on the GPU, which itself goes on",
        mend="if it happens again: look for hardware errors (nvidia-smi -q -d ECC, dmesg on the host)",
    ),
    Rule(
        kind=GPU_LOST,
        policy=Policy.HOLD,
        raised=(_E + r".{0,200}(?:GPU is lost|GPU has fallen off the bus|GpuIsLost)",),
        said=(_XID, r".{0,80}GPU has fallen off the bus"),
        summary="a GPU is lost",
        mend=_RECREATE,
    ),
    Rule(
        kind="gpu-ecc",
        policy=Policy.RETRY,
        raised=(
            _E + r"CUDA error: uncorrectable ECC error",
            _TERMINATED + r"CUDA error: uncorrectable ECC error",
        ),
        summary="the GPU's memory has an error that cannot be corrected",
        mend="if it happens again: reset or replace that GPU (nvidia-smi -q -d ECC,ROW_REMAPPER on the host)",
    ),
    Rule(
        kind="cuda-error",
        policy=Policy.RETRY,
        raised=(_E + r".{0,60}CUDA error: ", _TERMINATED + r"CUDA error: "),
        said=(r"CUDA error: ",),
        summary="a computation on the GPU failed",
        mend='if it happens again: [env] CUDA_LAUNCH_BLOCKING = "1" for one run names the kernel; another '
        "{attention_backend} may avoid it",
    ),
    # -- consequences, and what the status alone tells
    Rule(
        kind="nccl",
        policy=Policy.RETRY,
        vague=True,
        raised=(
            r"(?:torch\.distributed\.)?Dist\w{0,20}Error: ",
            _E + r".{0,100}NCCL error",
            _TERMINATED + r"Watchdog caught collective operation timeout",
        ),
        said=(r".{0,300}Watchdog caught collective operation timeout",),
        summary="the GPUs of this server could not talk to each other",
        mend='[env] NCCL_DEBUG = "INFO" tells more; see that all its GPUs live (nvidia-smi) and that /dev/shm has room',
    ),
    Rule(
        kind="killed",
        policy=Policy.RETRY,
        vague=True,
        engine="sglang",
        raised=(_E + r"Rank \d{1,5} scheduler died during initialization \(exit code: -9\)",),
        said=(r"Subprocess \S{1,80} \(pid=\d{1,9}\) crashed with exit code -9\b",),
        summary="one of its processes was killed",
        mend=_WHO_KILLED,
    ),
    Rule(
        kind="shm-full",
        policy=Policy.RETRY,
        engine="sglang",
        signals=(_SIGBUS,),
        summary=_SIGBUS_SUMMARY,
        mend=_SHM_MEND,
    ),
    Rule(
        kind="model-broken",
        policy=Policy.RETRY,
        engine="llama_cpp",
        signals=(_SIGBUS,),
        summary="a page of a mapped file could not be had: the model was cut short, or its disk is gone",
        mend="fetch the model again into {model}, or see to its disk",
    ),
    Rule(
        kind="arch-unsupported",
        policy=Policy.NEVER,
        signals=(_SIGILL,),
        summary="its program uses instructions that this processor does not have",
        mend="install a build for this processor",
    ),
    Rule(
        kind="killed",
        policy=Policy.RETRY,
        engine="sglang",
        signals=(_SIGKILL,),
        summary="by somebody, or by SGLang itself, which does so when one of its processes has died",
        mend=_WHO_KILLED,
    ),
    Rule(
        kind="killed",
        policy=Policy.RETRY,
        signals=(_SIGKILL, _SIGTERM, _SIGINT, _SIGHUP, _SIGQUIT),
        summary="that was not infer-dev",
        mend=_WHO_KILLED,
    ),
)
