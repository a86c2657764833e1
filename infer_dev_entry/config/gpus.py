"""Deal GPUs: every replica of every instance gets its set, and overlaps, lacks and unfit GPUs are reported.

`"auto"` prefers what moves nobody (the GPUs that a running server has), then what nobody else fills.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from infer_dev_entry.config.facts import Host
from infer_dev_entry.config.faults import Faults, Path
from infer_dev_entry.config.instances import Instance
from infer_dev_entry.config.keys import MAX_REPLICAS

GpuSet = tuple[str, ...] | None  # None: all GPUs; (): none

OLDEST_COMPUTE = (7, 5)  # SGLang's own check; below it the server refuses to start
TRIED_COMPUTE = (8, 0)

# What others hold of a GPU counts in whole steps: a desktop's or the driver's own few hundred MB make none fuller.
HELD_STEP_BYTES = 1024**3


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What one instance asks for: `per_replica` GPUs in a set. `exact` is false for servers that can do with fewer."""

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


def deal_gpus(
    needs: Sequence[Need], host: Host, placed: Mapping[str, GpuSet], faults: Faults
) -> Mapping[str, tuple[GpuSet, ...]]:
    """Return name → one GPU set per replica; an instance with a fault gets one set of "all", to let checks go on.

    `placed` holds the GPUs of the servers that run now, by server.
    """
    dealer = _Dealer(host, needs, placed, faults)
    dealt = {need.name: dealer.deal(need) for need in needs if need.wish != "auto"}
    dealt |= dealer.deal_autos([need for need in needs if need.wish == "auto"])
    _check_overlaps(needs, dealt, dealer, faults)
    return dealt


class _Dealer:
    """Knows the inventory and what is taken."""

    def __init__(self, host: Host, needs: Iterable[Need], placed: Mapping[str, GpuSet], faults: Faults) -> None:
        self._host = host
        self._placed = placed
        self._faults = faults
        self._inventory = host.gpus()
        self._by_unit = {unit: gpu for gpu in self._inventory or () for unit in (gpu.mig_uuids or (str(gpu.index),))}
        self._units = tuple(self._by_unit)
        self._taken = {self.unit(item) for need in needs if isinstance(need.wish, tuple) for item in need.wish}

    def unit(self, gpu_id: str) -> str:
        """One name a GPU: its number when the inventory knows its UUID."""
        for gpu in self._inventory or ():
            if gpu_id.startswith("GPU-") and gpu.uuid.startswith(gpu_id):
                return str(gpu.index)
        return gpu_id

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
        kept = {need.name: self._keep(need) for need in needs}
        return {need.name: self._deal_auto(need, kept[need.name]) for need in needs}

    def _keep(self, need: Need) -> dict[int, tuple[str, ...]]:
        """Take the sets that replicas of this instance run on, if such a set is still right; return them by number."""
        kept: dict[int, tuple[str, ...]] = {}
        for number in range(MAX_REPLICAS if isinstance(need.replicas, str) else need.replicas):
            ids = self._placed.get(need.instance.server_name(number)) or ()
            units = {self.unit(item) for item in ids}
            if ids and len(ids) == need.per_replica and units <= set(self._free(need)):
                kept[number] = ids
                self._taken |= units
        return kept

    def _free(self, need: Need) -> tuple[str, ...]:
        """The GPUs that nobody has been dealt and that the engine of this need runs on."""
        return tuple(unit for unit in self._units if unit not in self._taken and not self._is_too_old(need, unit))

    def _is_too_old(self, need: Need, unit: str) -> bool:
        return need.is_sglang and self._by_unit[unit].compute < OLDEST_COMPUTE

    def _deal_auto(self, need: Need, kept: dict[int, tuple[str, ...]]) -> tuple[GpuSet, ...]:
        count = 1 if isinstance(need.replicas, str) else need.replicas
        if need.is_sglang and not need.parallel:
            return ((),) * count
        if self._inventory is None and need.is_sglang:
            mend = 'list gpu_ids, or write "all"'
            self._faults.add(need.path, '"auto" needs the list of GPUs, and no NVIDIA driver answers here', mend)
            return (None,)
        there = len(self._free(need)) + len(kept) * need.per_replica
        if isinstance(need.replicas, str):
            count = there // need.per_replica
        if count == 0 or there < count * need.per_replica:
            if not need.is_sglang and isinstance(need.replicas, int):
                self._taken -= {self.unit(item) for ids in kept.values() for item in ids}
                return ((),) * count
            self._report_lack(need, max(count, 1) * need.per_replica, there)
            return (None,)
        self._taken -= {self.unit(item) for number in kept if number >= count for item in kept[number]}
        missing = [number for number in range(count) if number not in kept]
        chosen = iter(self._choose(need, len(missing) * need.per_replica))
        sets = kept | {number: tuple(islice(chosen, need.per_replica)) for number in missing}
        self._check_compute(need, [item for number in range(count) for item in sets[number]])
        self._check_count(need, sets[0])
        return tuple(sets[number] for number in range(count))

    def _report_lack(self, need: Need, wanted: int, there: int) -> None:
        unfit = [unit for unit in self._units if unit not in self._taken and self._is_too_old(need, unit)]
        if there + len(unfit) >= wanted:
            self._check_compute(need, unfit)
            return
        problem = f'"auto" needs {wanted} GPUs that no other instance names, {there} are left'
        self._faults.add(need.path, problem, "free some, or lower tp_size or replicas")

    def _choose(self, need: Need, count: int) -> tuple[str, ...]:
        """Take free GPUs: known to work before others, then those that others hold least of, then the first ones."""
        free = self._free(need)
        if len(free) > count > 0:
            held = self._host.held_bytes(self._units, self._running_units())
            untried = {unit: need.is_sglang and self._by_unit[unit].compute < TRIED_COMPUTE for unit in free}
            order = {unit: (untried[unit], held.get(unit, 0) // HELD_STEP_BYTES) for unit in free}
            best = sorted(free, key=order.__getitem__)[:count]  # it keeps the driver's order among equals
            free = tuple(unit for unit in free if unit in best)
        self._taken.update(free[:count])
        return free[:count]

    def _running_units(self) -> frozenset[str]:
        """The GPUs of the servers that run now."""
        if None in self._placed.values():
            return frozenset(self._units)
        return frozenset(self.unit(item) for ids in self._placed.values() for item in ids or ())

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
        # MIG slices cannot always be listed from inside a container, so their UUIDs are taken on trust.
        missing = [item for item in ids if self.unit(item) not in known and not item.startswith("MIG-")]
        if missing:
            have = f"it has {', '.join(self._units)}" if self._units else "it has none"
            problem = f"this machine has no GPU {', '.join(missing)}; {have}"
            self._faults.add(need.path, problem, "correct gpu_ids")
        self._check_compute(need, ids)

    def _check_compute(self, need: Need, ids: Sequence[str]) -> None:
        if not need.is_sglang or not need.parallel:
            return
        used = {self.unit(item) for item in ids}
        for gpu in self._inventory or ():
            if used.isdisjoint((str(gpu.index), *gpu.mig_uuids)) or gpu.compute >= TRIED_COMPUTE:
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


def _check_overlaps(
    needs: Sequence[Need], dealt: Mapping[str, tuple[GpuSet, ...]], dealer: _Dealer, faults: Faults
) -> None:
    """Report GPUs that two instances name; that "all" covers others' GPUs is only a warning, as that is the default."""
    first: dict[str, Need] = {}
    for need in needs:
        ids = {dealer.unit(item): item for gpus in dealt[need.name] for item in gpus or ()}
        for unit, item in ids.items():
            other = first.setdefault(unit, need)
            if other is not need and not (other.instance.control.share_gpu or need.instance.control.share_gpu):
                mend = "give each its own, or set share_gpu = true"
                faults.add(need.path, f"GPU {item} is also used by instance.{other.name}", mend)
    _warn_of_all(needs, dealt, faults)


def _warn_of_all(needs: Sequence[Need], dealt: Mapping[str, tuple[GpuSet, ...]], faults: Faults) -> None:
    users = [need for need in needs if need.is_sglang and need.parallel and not need.instance.control.share_gpu]
    users = [need for need in users if any(gpus != () for gpus in dealt[need.name])]
    wide = [need for need in users if None in dealt[need.name]]
    if wide and len(users) > 1:
        others = ", ".join(need.name for need in users if need is not wide[0])
        problem = f"sees all GPUs, and so may use the same ones as {others if len(others) <= 80 else 'others'}"
        faults.warn(wide[0].instance.path, problem, "give each its gpu_ids, or set share_gpu = true to say it is meant")
