"""The one door to NVML: which GPUs there are, what memory is in use and by whom. No driver is a normal answer: None."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from infer_dev_entry.config.facts import Gpu

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuUse:
    """The memory of one GPU now. `pids` are the driver's, which inside a container may be the host's."""

    index: int
    uuid: str
    used_bytes: int
    total_bytes: int
    pids: tuple[int, ...]


class GpuDoor:
    """A connection to the driver, opened at the first question and kept, since opening takes tens of milliseconds."""

    def __init__(self, nvml: Any = None) -> None:
        self._nvml = nvml
        self._open = False

    def inventory(self) -> tuple[Gpu, ...] | None:
        """List the GPUs in the driver's order (nvidia-smi's); None without a driver."""
        return self._ask(self._read_gpu)

    def use(self) -> tuple[GpuUse, ...] | None:
        """Read every GPU's memory and processes; None without a driver."""
        return self._ask(self._read_use)

    def close(self) -> None:
        """Close the connection; the next question opens it again."""
        if self._open:
            self._open = False
            with suppress(self._nvml.NVMLError):
                self._nvml.nvmlShutdown()

    def _ask(self, read: Callable[[int], _T]) -> tuple[_T, ...] | None:
        nvml = self._nvml = self._nvml or _import_nvml()
        if nvml is None:
            return None
        try:
            if not self._open:
                nvml.nvmlInit()
                self._open = True
            return tuple(read(index) for index in range(nvml.nvmlDeviceGetCount()))
        except nvml.NVMLError:
            self.close()  # a driver that was reloaded answers again only to a new connection
            return None

    def _read_gpu(self, index: int) -> Gpu:
        nvml = self._nvml
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
        return Gpu(
            index=index,
            uuid=_text(nvml.nvmlDeviceGetUUID(handle)),
            name=_text(nvml.nvmlDeviceGetName(handle)),
            memory_bytes=int(nvml.nvmlDeviceGetMemoryInfo(handle).total),
            compute=(int(major), int(minor)),
            mig_uuids=self._read_mig(handle),
        )

    def _read_mig(self, handle: Any) -> tuple[str, ...]:
        nvml = self._nvml
        uuids: list[str] = []
        with suppress(nvml.NVMLError):  # a GPU without MIG says "not supported"
            if nvml.nvmlDeviceGetMigMode(handle)[0]:
                for slot in range(nvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
                    with suppress(nvml.NVMLError):  # an empty slot
                        uuids.append(
                            _text(nvml.nvmlDeviceGetUUID(nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, slot)))
                        )
        return tuple(uuids)

    def _read_use(self, index: int) -> GpuUse:
        nvml = self._nvml
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        processes: list[Any] = []
        with suppress(nvml.NVMLError):  # not every driver tells a container
            processes = nvml.nvmlDeviceGetComputeRunningProcesses(handle)
        return GpuUse(
            index=index,
            uuid=_text(nvml.nvmlDeviceGetUUID(handle)),
            used_bytes=int(memory.used),
            total_bytes=int(memory.total),
            pids=tuple(int(process.pid) for process in processes),
        )


def _import_nvml() -> Any:
    try:
        import pynvml
    except ImportError:
        return None
    return pynvml


def _text(value: str | bytes) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value  # bytes in older bindings
