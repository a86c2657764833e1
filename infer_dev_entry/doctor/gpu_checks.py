"""Judge driver and GPUs against what the servers want of them. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from infer_dev_entry.config.facts import Gpu
from infer_dev_entry.config.gpu_dealer import LOST_MEND, OLDEST_COMPUTE, TRIED_COMPUTE
from infer_dev_entry.doctor.rows import Row, fail, ok, size, skip, warn
from infer_dev_entry.doctor.wishes import Wish

NO_DRIVER_MEND = "start the container with --gpus all (needs the NVIDIA container toolkit), or use engine llama_cpp"


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuFacts:
    """What the driver told. Without one `cuda` (the version that it serves) is None, and `problem` says why.

    `free_bytes` is by GPU index; a GPU that is not in it did not say.
    """

    problem: str = ""
    driver: str = ""
    cuda: tuple[int, int] | None = None
    gpus: tuple[Gpu, ...] = ()
    free_bytes: Mapping[int, int] = field(default_factory=dict)


def check_gpus(facts: GpuFacts, wishes: Sequence[Wish] | None, *, require_gpu: bool) -> list[Row]:
    """Judge driver, GPUs and their compute capability. `wishes` is None without a config that can be read."""
    wanted = require_gpu or any(wish.gpus for wish in wishes or ())
    if facts.cuda is None:
        judge = fail if wanted else warn
        return [judge("driver", f"no NVIDIA driver: {facts.problem}", NO_DRIVER_MEND)]
    serves = f"driver {facts.driver}, CUDA {_dotted(facts.cuda)}"
    if not facts.gpus:
        judge = fail if wanted else warn
        return [judge("driver", f"{serves}, but no GPU that can be read", NO_DRIVER_MEND)]
    return [
        ok("driver", f"{serves}, {len(facts.gpus)} GPUs" if len(facts.gpus) > 1 else f"{serves}, 1 GPU"),
        *(_describe(gpu, facts) for gpu in facts.gpus),
        *(_check_chosen(wish, facts.gpus) for wish in wishes or () if wish.gpus and wish.gpu_ids is not None),
        _check_compute(facts.gpus, wishes),
    ]


def _describe(gpu: Gpu, facts: GpuFacts) -> Row:
    if gpu.lost:
        return fail(f"GPU {gpu.index}", f"is lost: {gpu.lost}", LOST_MEND)
    free = facts.free_bytes.get(gpu.index)
    left = f"{size(free)} of {size(gpu.memory_bytes)} free" if free is not None else size(gpu.memory_bytes)
    slices = f", {len(gpu.mig_uuids)} MIG slices" if gpu.mig_uuids else ""
    return ok(f"GPU {gpu.index}", f"{gpu.name}, compute capability {_dotted(gpu.compute)}, {left}{slices}")


def _check_chosen(wish: Wish, gpus: Sequence[Gpu]) -> Row:
    check = f"GPUs of {wish.name}"
    wanted = wish.gpu_ids or ()
    # A lost GPU does not tell its UUID, and MIG slices are not always listed in a container.
    trusted = ("MIG-", "GPU-") if any(gpu.lost for gpu in gpus) else ("MIG-",)
    missing = [item for item in wanted if not any(is_named(gpu, item) for gpu in gpus) and not item.startswith(trusted)]
    if missing:
        return fail(check, f"this machine has no GPU {', '.join(missing)}", "correct gpu_ids")
    return ok(check, ", ".join(wanted))


def _check_compute(gpus: Sequence[Gpu], wishes: Sequence[Wish] | None) -> Row:
    check = "compute capability"
    living = [gpu for gpu in gpus if not gpu.lost]
    used = [gpu for gpu in living if wishes is None or any(wish.is_sglang and uses(wish, gpu) for wish in wishes)]
    if not used:
        return skip(check, "no server uses SGLang on a GPU")
    lowest = min(used, key=lambda gpu: gpu.compute)
    seen = f"{_dotted(lowest.compute)} (GPU {lowest.index}, {lowest.name})"
    if lowest.compute >= TRIED_COMPUTE:
        return ok(check, f"{seen}; SGLang is at home from {_dotted(TRIED_COMPUTE)} on")
    mend = 'use engine = "llama_cpp" there, or other gpu_ids'
    if lowest.compute >= OLDEST_COMPUTE:
        return warn(check, f"{seen}; SGLang is known to fail below {_dotted(TRIED_COMPUTE)}", mend)
    judge = fail if wishes is not None else warn
    return judge(check, f"{seen}; SGLang refuses to start below {_dotted(OLDEST_COMPUTE)}", mend)


def uses(wish: Wish, gpu: Gpu) -> bool:
    """Say whether a server may put work on this GPU."""
    if not wish.gpus:
        return False
    return wish.gpu_ids is None or any(is_named(gpu, item) for item in wish.gpu_ids)


def is_named(gpu: Gpu, gpu_id: str) -> bool:
    """Say whether an id of CUDA_VISIBLE_DEVICES means this GPU or a slice of it; UUIDs may be cut short."""
    return gpu_id == str(gpu.index) or gpu_id in gpu.mig_uuids or (len(gpu_id) > 4 and gpu.uuid.startswith(gpu_id))


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"
