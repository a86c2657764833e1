"""Deal GPUs: every replica of every instance gets its set, and overlaps, lacks and unfit GPUs are reported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from infer_dev_entry.config.facts import GpuSet, Host, Placed
from infer_dev_entry.config.faults import Faults
from infer_dev_entry.config.gpu_dealer import LOST_MEND, GpuDealer, Need


def deal_gpus(
    needs: Sequence[Need], host: Host, placed: Mapping[str, Placed], faults: Faults
) -> Mapping[str, tuple[GpuSet, ...]]:
    """Return name → one GPU set per replica; an instance with a fault gets one set of "all", to let checks go on.

    `placed` are the servers that run now, by name.
    """
    dealer = GpuDealer(host, needs, placed, faults)
    dealt = {need.name: dealer.deal(need) for need in needs if need.wish != "auto"}
    dealer.take(item for sets in dealt.values() for gpus in sets for item in gpus or ())
    dealt |= dealer.deal_autos([need for need in needs if need.wish == "auto"])
    _check_overlaps(needs, dealt, dealer, faults)
    _warn_of_lost(needs, dealt, dealer, faults)
    return _with_one_name_a_gpu(dealt, dealer)


def _with_one_name_a_gpu(
    dealt: Mapping[str, tuple[GpuSet, ...]], dealer: GpuDealer
) -> Mapping[str, tuple[GpuSet, ...]]:
    """Let servers that share a GPU call it the same: as one does that runs, else by its number.

    Alone, each keeps the user's word (a number or a UUID).
    """
    words: dict[str, set[str]] = {}
    for item in (item for sets in dealt.values() for gpus in sets for item in gpus or ()):
        words.setdefault(dealer.unit(item), set()).add(item)
    running = dealer.running_words()

    def named(item: str) -> str:
        unit = dealer.unit(item)
        return running.get(unit, unit) if len(words[unit]) > 1 else item

    return {
        name: tuple(None if gpus is None else tuple(map(named, gpus)) for gpus in sets) for name, sets in dealt.items()
    }


def _check_overlaps(
    needs: Sequence[Need], dealt: Mapping[str, tuple[GpuSet, ...]], dealer: GpuDealer, faults: Faults
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


def _warn_of_lost(
    needs: Sequence[Need], dealt: Mapping[str, tuple[GpuSet, ...]], dealer: GpuDealer, faults: Faults
) -> None:
    """Tell of lost GPUs that somebody is to use; their servers alone will be held, at their start."""
    for need in needs:
        used = {dealer.unit(item) for gpus in dealt[need.name] for item in gpus or ()}
        takes_all = None in dealt[need.name] and need.parallel > 0
        for gpu in dealer.lost_gpus():
            if takes_all or str(gpu.index) in used:
                faults.warn(need.path, f"GPU {gpu.index} is lost: {gpu.lost}", LOST_MEND)
