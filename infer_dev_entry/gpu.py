"""The one door to NVML: which GPUs there are, what memory is in use and by whom. No driver is a normal answer: None."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from infer_dev_entry.config.facts import Gpu
from infer_dev_entry.gpu_wait import NO_DRIVER, GpuLook, GpuMemory, Holder

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuUse:
    """The memory of one GPU now."""

    index: int
    uuid: str
    used_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Driver:
    """The NVIDIA driver and the CUDA version that it serves; without one `cuda` is None, and `problem` says why."""

    version: str = ""
    cuda: tuple[int, int] | None = None
    problem: str = ""


class GpuDoor:
    """A connection to the driver, opened at the first question and kept, since opening takes tens of milliseconds."""

    def __init__(self, nvml: Any = None) -> None:
        self._nvml = nvml
        self._open = False

    def inventory(self) -> tuple[Gpu, ...] | None:
        """List the GPUs in the driver's order (nvidia-smi's), lost ones too; None without a driver."""
        return self._ask(self._read_gpu, _lost_gpu)

    def use(self) -> tuple[GpuUse, ...] | None:
        """Read the memory of every GPU that is not lost; None without a driver."""
        return self._ask(self._read_use, lambda _index, _error: None)

    def look(self, gpu_ids: tuple[str, ...] | None, describe: Callable[[int, int], Holder | None]) -> GpuLook:
        """Read the memory of these GPUs (numbers, UUIDs, MIG UUIDs; None: all), those that the driver has lost apart.

        `describe` turns a pid and its bytes into a holder; None says that no such process lives here.
        """
        nvml = self._nvml = self._nvml or _import_nvml()
        if nvml is None:
            return NO_DRIVER
        try:
            self._ensure_open()
            count = nvml.nvmlDeviceGetCount()
        except nvml.NVMLError as error:
            self.close()
            return GpuLook(problem=str(error))
        gpus: list[GpuMemory] = []
        lost: list[str] = []
        for gpu_id in gpu_ids if gpu_ids is not None else map(str, range(count)):
            try:
                if gpu_ids is None and self._read_mig(nvml.nvmlDeviceGetHandleByIndex(int(gpu_id))):
                    continue  # its memory is that of every slice, and others may have theirs
                gpus.append(self._read_memory(gpu_id, describe))
            except nvml.NVMLError as error:
                # Any other error is of an id that cannot be asked for here, as a MIG slice's often is.
                if self._is_lost(error):
                    lost.append(f"GPU {gpu_id} is lost: {error}")
        return GpuLook(gpus=tuple(gpus), lost=tuple(lost))

    def _read_memory(self, gpu_id: str, describe: Callable[[int, int], Holder | None]) -> GpuMemory:
        nvml = self._nvml
        if gpu_id.isdigit():
            handle = nvml.nvmlDeviceGetHandleByIndex(int(gpu_id))
        else:
            handle = nvml.nvmlDeviceGetHandleByUUID(self._full_uuid(gpu_id).encode())
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        holders: dict[int, Holder] = {}
        for read in (nvml.nvmlDeviceGetComputeRunningProcesses, nvml.nvmlDeviceGetGraphicsRunningProcesses):
            with suppress(nvml.NVMLError):  # not every driver tells a container
                for process in read(handle):
                    holder = describe(int(process.pid), int(process.usedGpuMemory or 0))
                    holders |= {holder.pid: holder} if holder else {}
        return GpuMemory(
            gpu=_text(nvml.nvmlDeviceGetUUID(handle)),
            label=f"GPU {gpu_id}",
            used_bytes=int(memory.used),
            total_bytes=int(memory.total),
            holders=tuple(holders.values()),
        )

    def _full_uuid(self, gpu_id: str) -> str:
        """CUDA takes the first letters of a GPU's UUID as well; the driver does not."""
        nvml = self._nvml
        for index in range(nvml.nvmlDeviceGetCount() if gpu_id.startswith("GPU-") else 0):
            with suppress(nvml.NVMLError):
                uuid = _text(nvml.nvmlDeviceGetUUID(nvml.nvmlDeviceGetHandleByIndex(index)))
                if uuid.startswith(gpu_id):
                    return uuid
        return gpu_id

    def driver(self) -> Driver:
        """Read the driver's versions; NVML's own words say why there are none."""
        nvml = self._nvml = self._nvml or _import_nvml()
        if nvml is None:
            return Driver(problem="the Python package nvidia-ml-py is not installed")
        try:
            self._ensure_open()
            version, cuda = _text(nvml.nvmlSystemGetDriverVersion()), int(nvml.nvmlSystemGetCudaDriverVersion_v2())
        except nvml.NVMLError as error:
            self.close()
            return Driver(problem=str(error))
        return Driver(version=version, cuda=(cuda // 1000, cuda % 1000 // 10))

    def close(self) -> None:
        """Close the connection; the next question opens it again."""
        if self._open:
            self._open = False
            with suppress(self._nvml.NVMLError):
                self._nvml.nvmlShutdown()

    def _is_lost(self, error: Any) -> bool:
        nvml = self._nvml
        return error.value in (nvml.NVML_ERROR_GPU_IS_LOST, nvml.NVML_ERROR_RESET_REQUIRED)

    def _ask(
        self, read: Callable[[int], _T], read_lost: Callable[[int, Exception], _T | None]
    ) -> tuple[_T, ...] | None:
        nvml = self._nvml = self._nvml or _import_nvml()
        if nvml is None:
            return None
        try:
            self._ensure_open()
            found = [self._read_one(index, read, read_lost) for index in range(nvml.nvmlDeviceGetCount())]
            return tuple(item for item in found if item is not None)
        except nvml.NVMLError:
            self.close()  # a driver that was reloaded answers again only to a new connection
            return None

    def _read_one(
        self, index: int, read: Callable[[int], _T], read_lost: Callable[[int, Exception], _T | None]
    ) -> _T | None:
        try:
            return read(index)
        except self._nvml.NVMLError as error:
            if not self._is_lost(error):
                raise
            return read_lost(index, error)

    def _ensure_open(self) -> None:
        if not self._open:
            self._nvml.nvmlInit()
            self._open = True

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
        return GpuUse(
            index=index,
            uuid=_text(nvml.nvmlDeviceGetUUID(handle)),
            used_bytes=int(memory.used),
            total_bytes=int(memory.total),
        )


def _lost_gpu(index: int, error: Exception) -> Gpu:
    return Gpu(index=index, uuid="", name="", memory_bytes=0, compute=(0, 0), lost=str(error))


def _import_nvml() -> Any:
    try:
        import pynvml
    except ImportError:
        return None
    return pynvml


def _text(value: str | bytes) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value  # bytes in older bindings
