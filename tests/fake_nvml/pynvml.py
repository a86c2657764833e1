"""A fake NVML for tests, as `pynvml`: put this directory on PYTHONPATH. What it tells stands in the file $FAKE_NVML.

The file is JSON, read anew at every question: `{"gpus": [{"used": BYTES, "total": BYTES, "pids": {"7": BYTES}, "lost":
false}], "error": "", "block_s": 0}`. `error` makes it refuse every connection, `block_s` is how long each answer takes.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

NVML_ERROR_GPU_IS_LOST = 15
NVML_ERROR_RESET_REQUIRED = 16
NVML_ERROR_NOT_SUPPORTED = 3


class NVMLError(Exception):
    def __init__(self, value: int, text: str) -> None:
        super().__init__(text)
        self.value = value


def _read() -> dict[str, Any]:
    told: dict[str, Any] = json.loads(Path(os.environ["FAKE_NVML"]).read_text())
    time.sleep(told.get("block_s", 0))
    if told.get("error"):
        raise NVMLError(999, told["error"])
    return told


def _gpu(handle: int) -> dict[str, Any]:
    gpu: dict[str, Any] = _read()["gpus"][handle]
    if gpu.get("lost"):
        raise NVMLError(NVML_ERROR_GPU_IS_LOST, "GPU is lost")
    return gpu


def nvmlInit() -> None:
    _read()


def nvmlShutdown() -> None:
    pass


def nvmlSystemGetDriverVersion() -> str:
    return "580.65.06"


def nvmlSystemGetCudaDriverVersion_v2() -> int:
    return 13000


def nvmlDeviceGetCount() -> int:
    return len(_read()["gpus"])


def nvmlDeviceGetHandleByIndex(index: int) -> int:
    return index


def nvmlDeviceGetUUID(handle: int) -> str:
    _gpu(handle)
    return f"GPU-{handle}"


def nvmlDeviceGetName(handle: int) -> str:
    return "Fake GPU"


def nvmlDeviceGetCudaComputeCapability(handle: int) -> tuple[int, int]:
    return (9, 0)


def nvmlDeviceGetMigMode(handle: int) -> list[int]:
    raise NVMLError(NVML_ERROR_NOT_SUPPORTED, "Not Supported")


def nvmlDeviceGetMemoryInfo(handle: int) -> SimpleNamespace:
    gpu = _gpu(handle)
    return SimpleNamespace(total=gpu["total"], used=gpu["used"])


def nvmlDeviceGetComputeRunningProcesses(handle: int) -> list[SimpleNamespace]:
    return [SimpleNamespace(pid=int(pid), usedGpuMemory=used) for pid, used in _gpu(handle).get("pids", {}).items()]


def nvmlDeviceGetGraphicsRunningProcesses(handle: int) -> list[SimpleNamespace]:
    return []
