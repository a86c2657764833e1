"""Choose GPUs for one instance after the other: by number, all of them, or the best of those that are free.

`"auto"` prefers what moves nobody (the GPUs that a running server has), then what nobody else fills.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from infer_dev_entry.config.facts import Gpu, GpuSet, Host, Placed
from infer_dev_entry.config.faults import Faults, Path
from infer_dev_entry.config.instances import Instance
from infer_dev_entry.config.keys import MAX_REPLICAS

OLDEST_COMPUTE = (7, 5)  # SGLang's own check; below it the server refuses to start
TRIED_COMPUTE = (8, 0)
LOST_MEND = "look at it with nvidia-smi on the host, and re-create the container when it is well"

# What others hold of a GPU counts in whole steps: a desktop's or the driver's own few hundred MB make none fuller.
HELD_STEP_BYTES = 1024**3


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What one instance asks for: `per_replica` GPUs in a set."""

    instance: Instance
    per_replica: int
    parallel: int  # tp × pp: the least number of GPUs that the server starts with; 0 when it uses no CUDA device

    @property
    def name(self) -> str:
        return self.instance.name

    @property
    def path(self) -> Path:
        return self.instance.origin("gpu_ids")

    @property
    def is_sglang(self) -> bool:
        return self.instance.profile.name == "sglang"

    @property
    def replicas(self) -> int | str:
        return self.instance.control.replicas

    @property
    def wish(self) -> str | tuple[str, ...]:
        return self.instance.control.gpu_ids


class GpuDealer:
    """Knows the inventory and what is taken."""

    def __init__(self, host: Host, needs: Iterable[Need], placed: Mapping[str, Placed], faults: Faults) -> None:
        self._host = host
        self._placed = placed
        self._faults = faults
        self._inventory = host.gpus()
        self._by_unit = {unit: gpu for gpu in self._inventory or () for unit in (gpu.mig_uuids or (str(gpu.index),))}
        self._units = tuple(self._by_unit)
        self._taken: set[str] = set()
        self._kept: set[str] = set()  # by servers that run on
        self._held: Mapping[str, int] | None = None
        self.take(item for need in needs if isinstance(need.wish, tuple) for item in need.wish)

    def take(self, ids: Iterable[str]) -> None:
        """Let nobody else be dealt these; one in MIG mode is named by its number or by its slices."""
        for item in ids:
            unit = self.unit(item)
            self._taken.add(unit)
            self._taken.update(slot for slot, gpu in self._by_unit.items() if slot != unit and str(gpu.index) == unit)

    def running_words(self) -> dict[str, str]:
        """What the servers that run call their GPUs."""
        return {self.unit(item): item for placed in self._placed.values() for item in placed.gpu_ids or ()}

    def unit(self, gpu_id: str) -> str:
        """One name a GPU: its number when the inventory knows its UUID."""
        for gpu in self._inventory or ():
            if gpu_id.startswith("GPU-") and gpu.uuid.startswith(gpu_id):
                return str(gpu.index)
        return gpu_id

    def lost_gpus(self) -> tuple[Gpu, ...]:
        """Those that the driver has given up."""
        return tuple(gpu for gpu in self._inventory or () if gpu.lost)

    def deal(self, need: Need) -> tuple[GpuSet, ...]:
        if need.wish == "none":
            return self._deal_none(need)
        if isinstance(need.wish, tuple):
            self._check_ids(need, need.wish)
            if need.replicas == 1:
                self._check_count(need, need.wish)
                return (need.wish,)
            return self._split(need, need.wish)
        return self._deal_all(need)

    def _deal_none(self, need: Need) -> tuple[GpuSet, ...]:
        if isinstance(need.replicas, int):
            return ((),) * need.replicas
        mend = "set replicas to a number, or list gpu_ids"
        self._faults.add(need.instance.origin("replicas"), '"per-gpu" with gpu_ids = "none" has no GPU to count', mend)
        return (None,)

    def _deal_all(self, need: Need) -> tuple[GpuSet, ...]:
        if self._inventory is None:
            return self._deal_unknown(need)
        if need.replicas == 1:
            self._check_count(need, self._units)
            self._check_compute(need, self._units)
            return (None,)
        enough = isinstance(need.replicas, str) or len(self._units) >= need.replicas * need.per_replica
        if not need.is_sglang and not enough and "gpu_ids" not in need.instance.origins:
            return (None,) * int(need.replicas)
        if need.is_sglang and not need.parallel and isinstance(need.replicas, int):
            return (None,) * need.replicas
        self._check_compute(need, self._units)
        return self._split(need, self._units)

    def _deal_unknown(self, need: Need) -> tuple[GpuSet, ...]:
        if isinstance(need.replicas, str):
            mend = "list gpu_ids, or set replicas to a number"
            problem = '"per-gpu" needs the list of GPUs, and no NVIDIA driver answers here'
            self._faults.add(need.instance.origin("replicas"), problem, mend)
            return (None,)
        if need.replicas == 1 or not need.parallel or not need.is_sglang:
            return (None,) * need.replicas
        assumed = tuple(str(number) for number in range(need.replicas * need.per_replica))
        self._faults.warn(
            need.instance.origin("replicas"),
            f"no NVIDIA driver answers here; the replicas get GPUs 0 to {len(assumed) - 1} unseen",
        )
        return self._split(need, assumed)

    def deal_autos(self, needs: Sequence[Need]) -> dict[str, tuple[GpuSet, ...]]:
        """Deal GPUs that no instance names; first every running server keeps its own, whoever stands first."""
        kept: dict[str, dict[int, tuple[str, ...]]] = {need.name: {} for need in needs}
        for leaving in (False, True):  # one that was told to stop has given up its claim to those who have not
            for need in needs:
                kept[need.name] |= self._keep(need, leaving=leaving)
        return {need.name: self._deal_auto(need, kept[need.name]) for need in needs}

    def _keep(self, need: Need, *, leaving: bool) -> dict[int, tuple[str, ...]]:
        """Take the sets that replicas of this instance run on, if such a set is still right; return them by number."""
        kept: dict[int, tuple[str, ...]] = {}
        if need.is_sglang and not need.parallel:
            return kept
        for number in range(MAX_REPLICAS if isinstance(need.replicas, str) else need.replicas):
            placed = self._placed.get(need.instance.server_name(number))
            ids = placed.gpu_ids if placed and placed.leaving is leaving else None
            units = {self.unit(item) for item in ids or ()}
            # A driver that is silent now has told of these GPUs when the server was started.
            is_free = units <= set(self._free(need)) if self._inventory is not None else units.isdisjoint(self._taken)
            if ids and len(ids) == need.per_replica and is_free:
                kept[number] = ids
                self._taken |= units
                self._kept |= units
        return kept

    def _free(self, need: Need) -> tuple[str, ...]:
        """The GPUs that nobody has been dealt and that the engine of this need runs on."""
        return tuple(unit for unit in self._units if unit not in self._taken and not self._is_too_old(need, unit))

    def _is_too_old(self, need: Need, unit: str) -> bool:
        gpu = self._by_unit[unit]
        return need.is_sglang and not gpu.lost and gpu.compute < OLDEST_COMPUTE

    def _deal_auto(self, need: Need, kept: dict[int, tuple[str, ...]]) -> tuple[GpuSet, ...]:
        """Deal the replicas that keep nothing; of llama.cpp's, those for which no GPU is left run on the CPU."""
        if need.is_sglang and not need.parallel:
            return ((),) * (1 if isinstance(need.replicas, str) else need.replicas)
        size = need.per_replica
        there = len(self._free(need)) + len(kept) * size
        count = min(there // size, MAX_REPLICAS) if isinstance(need.replicas, str) else need.replicas
        # How many GPUs there are, and so how many replicas, only the driver knows.
        is_known = self._inventory is not None or not isinstance(need.replicas, str)
        is_enough = is_known and count > 0 and there >= count * size
        if not is_enough and (need.is_sglang or isinstance(need.replicas, str)):
            self._report_lack(need, max(count, 1) * size, there)
            return (None,)
        for number in [number for number in kept if number >= count]:
            units = {self.unit(item) for item in kept.pop(number)}
            self._taken -= units
            self._kept -= units
        missing = [number for number in range(count) if number not in kept]
        chosen = self._choose(need, min(len(missing), len(self._free(need)) // size) * size)
        sets = [chosen[start : start + size] for start in range(0, len(chosen), size)]
        dealt = dict.fromkeys(missing, ()) | dict(zip(missing, sets, strict=False)) | kept
        self._check_compute(need, [item for ids in dealt.values() for item in ids])
        self._check_count(need, min(dealt.values(), key=len))
        return tuple(dealt[number] for number in range(count))

    def _report_lack(self, need: Need, wanted: int, there: int) -> None:
        if self._inventory is None:
            mend = 'list gpu_ids, or write "all"'
            self._faults.add(need.path, '"auto" needs the list of GPUs, and no NVIDIA driver answers here', mend)
            return
        unfit = [unit for unit in self._units if unit not in self._taken and self._is_too_old(need, unit)]
        if there + len(unfit) >= wanted:
            self._check_compute(need, unfit)
            return
        problem = f'"auto" needs {wanted} GPUs that no other instance names, {there} are left'
        self._faults.add(need.path, problem, "free some, or lower tp_size or replicas")

    def _choose(self, need: Need, count: int) -> tuple[str, ...]:
        """Take the best free GPUs, in the driver's order."""
        free = self._free(need)
        if len(free) > count > 0:
            best = sorted(free, key=lambda unit: self._demerits(need, unit))[:count]  # equals keep their order
            free = tuple(unit for unit in free if unit in best)
        self._taken.update(free[:count])
        return free[:count]

    def _demerits(self, need: Need, unit: str) -> tuple[bool, bool, int, bool]:
        """The worst first: lost, known to fail, held by others, soon to be left by a server of ours."""
        gpu = self._by_unit[unit]
        if self._held is None:
            self._held = self._host.held_bytes(self._units, self._running_units())
        left = unit in self._placed_units() and unit not in self._kept
        held = max(self._held.get(unit, 0) // HELD_STEP_BYTES, int(left))
        return bool(gpu.lost), need.is_sglang and gpu.compute < TRIED_COMPUTE, held, left

    def _placed_units(self) -> set[str]:
        return {self.unit(item) for placed in self._placed.values() for item in placed.gpu_ids or ()}

    def _running_units(self) -> Collection[str]:
        """Where servers of ours may hold memory unseen. llama.cpp on "all" takes little, or is the user's choice."""
        if any(placed.gpu_ids is None and placed.engine == "sglang" for placed in self._placed.values()):
            return self._units
        return self._placed_units()

    def _split(self, need: Need, ids: tuple[str, ...]) -> tuple[GpuSet, ...]:
        """Cut ids into sets. With `share_gpu` the sets go round when there are too few."""
        size = need.per_replica
        sets = [ids[start : start + size] for start in range(0, len(ids) - size + 1, size)][:MAX_REPLICAS]
        count = len(sets) if isinstance(need.replicas, str) else need.replicas
        if not sets or (count > len(sets) and not need.instance.control.share_gpu):
            problem = f"{count or 1} replicas of {size} GPUs need {(count or 1) * size}, and there are {len(ids)}"
            mend = "lower replicas, gpus_per_replica or tp_size, or list more gpu_ids; share_gpu = true lets them share"
            self._faults.add(need.instance.origin("replicas"), problem, mend)
            return (None,)
        if size < need.parallel:
            self._check_count(need, sets[0])
        left = len(ids) - min(count, len(sets)) * size
        if left:
            self._faults.warn(need.instance.origin("replicas"), f"{left} of {len(ids)} GPUs stay unused")
        return tuple(sets[number % len(sets)] for number in range(count))

    def _check_count(self, need: Need, ids: Sequence[str]) -> None:
        if len(ids) < need.parallel:
            problem = f"tp_size × pp_size needs {need.parallel} GPUs, and there {_are(len(ids))}"
            self._faults.add(need.path, problem, "list more gpu_ids, or lower tp_size")

    def _check_ids(self, need: Need, ids: tuple[str, ...]) -> None:
        if self._inventory is None:
            if need.is_sglang:
                self._faults.note(
                    "blind", need.path, "cannot see whether these GPUs exist: no NVIDIA driver answers here"
                )
            return
        known = {str(gpu.index) for gpu in self._inventory} | set(self._units)
        missing = [item for item in ids if self.unit(item) not in known and not self._is_trusted(item)]
        if missing:
            have = f"it has {', '.join(self._units)}" if self._units else "it has none"
            problem = f"this machine has no GPU {', '.join(missing)}; {have}"
            self._faults.add(need.path, problem, "correct gpu_ids")
        self._check_compute(need, ids)

    def _is_trusted(self, gpu_id: str) -> bool:
        """True for what cannot be looked up: MIG slices, not always listed in a container, and a lost GPU's UUID."""
        return gpu_id.startswith("MIG-") or (bool(self.lost_gpus()) and gpu_id.startswith("GPU-"))

    def _check_compute(self, need: Need, ids: Sequence[str]) -> None:
        if not need.is_sglang or not need.parallel:
            return
        used = {self.unit(item) for item in ids}
        for gpu in self._inventory or ():
            if used.isdisjoint((str(gpu.index), *gpu.mig_uuids)) or gpu.compute >= TRIED_COMPUTE or gpu.lost:
                continue
            capability = ".".join(str(part) for part in gpu.compute)
            what = f"GPU {gpu.index} ({gpu.name}) has compute capability {capability}"
            if gpu.compute < OLDEST_COMPUTE:
                mend = 'use engine = "llama_cpp" for it, or other gpu_ids'
                self._faults.add(need.path, f"{what}, and SGLang needs 7.5", mend)
            else:
                self._faults.warn(
                    need.path, f"{what}; SGLang is known to fail below 8.0", 'engine = "llama_cpp" runs there'
                )


def _are(count: int) -> str:
    return f"are {count}" if count != 1 else "is 1"
