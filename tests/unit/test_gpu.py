"""The NVML door against a hand-written driver: listing, MIG, errors, and no driver at all."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from infer_dev_entry import gpu as gpu_module
from infer_dev_entry.gpu import GpuDoor


class FakeNvml:
    """Answers as pynvml does; records opening and closing."""

    NVML_ERROR_GPU_IS_LOST = 15
    NVML_ERROR_RESET_REQUIRED = 16

    class NVMLError(Exception):
        def __init__(self, text: str, value: int = 999) -> None:
            super().__init__(text)
            self.value = value

    def __init__(
        self,
        *,
        count: int = 1,
        mig: bool = False,
        init_fails: bool = False,
        lost: tuple[int, ...] = (),
    ) -> None:
        self.lost = lost
        self.count, self.mig, self.init_fails = count, mig, init_fails
        self.calls: list[str] = []

    def nvmlInit(self) -> None:
        self.calls.append("init")
        if self.init_fails:
            raise self.NVMLError("no driver")

    def nvmlShutdown(self) -> None:
        self.calls.append("shutdown")

    def nvmlDeviceGetCount(self) -> int:
        if self.count < 0:
            raise self.NVMLError("lost")
        return self.count

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        if index in self.lost:
            raise self.NVMLError("GPU is lost", self.NVML_ERROR_GPU_IS_LOST)
        return index

    def nvmlDeviceGetCudaComputeCapability(self, handle: object) -> list[int]:
        return [9, 0]

    def nvmlDeviceGetUUID(self, handle: object) -> str | bytes:
        return f"MIG-{handle[1]}" if isinstance(handle, tuple) else f"GPU-{handle}".encode()

    def nvmlDeviceGetName(self, handle: object) -> str:
        return "NVIDIA H200"

    def nvmlDeviceGetMemoryInfo(self, handle: object) -> SimpleNamespace:
        return SimpleNamespace(total=100, used=40)

    def nvmlDeviceGetMigMode(self, handle: object) -> list[int]:
        if not self.mig:
            raise self.NVMLError("not supported")
        return [1, 1]

    def nvmlDeviceGetMaxMigDeviceCount(self, handle: object) -> int:
        return 3

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle: object, slot: int) -> tuple[str, int]:
        if slot == 1:
            raise self.NVMLError("not found")
        return ("mig", slot)

    def nvmlDeviceGetComputeRunningProcesses(self, handle: object) -> list[SimpleNamespace]:
        return [SimpleNamespace(pid=7)]


def test_inventory_lists_the_gpus_and_opens_once() -> None:
    nvml = FakeNvml(count=2)
    door = GpuDoor(nvml)
    first, second = door.inventory() or ()
    assert (first.index, first.uuid, first.name, first.memory_bytes) == (0, "GPU-0", "NVIDIA H200", 100)
    assert (second.index, second.compute, second.mig_uuids) == (1, (9, 0), ())
    door.use()
    assert nvml.calls == ["init"]
    door.close()
    door.close()
    assert nvml.calls == ["init", "shutdown"]


def test_inventory_names_the_mig_slices_that_exist() -> None:
    (only,) = GpuDoor(FakeNvml(mig=True)).inventory() or ()
    assert only.mig_uuids == ("MIG-0", "MIG-2")


def test_lost_gpu_hides_no_other() -> None:
    door = GpuDoor(FakeNvml(count=3, lost=(1,)))
    assert [(gpu.index, gpu.uuid, gpu.lost) for gpu in door.inventory() or ()] == [
        (0, "GPU-0", ""),
        (1, "", "GPU is lost"),
        (2, "GPU-2", ""),
    ]
    assert [one.index for one in door.use() or ()] == [0, 2]


def test_use_reads_memory() -> None:
    (only,) = GpuDoor(FakeNvml()).use() or ()
    assert (only.used_bytes, only.total_bytes) == (40, 100)


@pytest.mark.parametrize("nvml", [FakeNvml(init_fails=True), FakeNvml(count=-1)])
def test_no_answer_of_the_driver_is_none(nvml: FakeNvml) -> None:
    assert GpuDoor(nvml).inventory() is None


def test_a_lost_driver_is_asked_afresh() -> None:
    nvml = FakeNvml(count=-1)
    door = GpuDoor(nvml)
    assert door.use() is None
    nvml.count = 1
    assert len(door.use() or ()) == 1
    assert nvml.calls == ["init", "shutdown", "init"]


def test_without_the_bindings_there_is_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_module, "_import_nvml", lambda: None)
    assert GpuDoor().inventory() is None
    assert GpuDoor().use() is None


def test_no_gpu_at_all_is_an_empty_list() -> None:
    assert GpuDoor(FakeNvml(count=0)).inventory() == ()
