"""Start order: who waits for whom, after fan-out; unknown names and circles are reported."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter

from infer_dev_entry.config.faults import Faults, shown
from infer_dev_entry.config.instances import Instance


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """Instance name → the servers it waits for, and the instances' names in start order."""

    waits: Mapping[str, tuple[str, ...]]
    names: tuple[str, ...]


def order_instances(instances: Sequence[Instance], servers: Mapping[str, Sequence[str]], faults: Faults) -> Order:
    """Work out the order. `servers` gives each instance's server names; file order stands where nobody waits."""
    owners = {server: name for name, names in servers.items() for server in names}
    owners.update({name: name for name in servers})
    waits: dict[str, tuple[str, ...]] = {}
    edges: dict[str, set[str]] = {}
    first: list[str] = []  # with background = false: all that follow wait for them
    for instance in instances:
        named = [item for item in instance.control.depends_on if _known(instance, item, owners, faults)]
        wanted = [server for item in [*first, *named] for server in servers.get(item, (item,))]
        waits[instance.name] = tuple(dict.fromkeys(wanted))
        edges[instance.name] = {owners[item] for item in [*first, *named]}
        if not instance.control.background:
            first.append(instance.name)
    return Order(waits=waits, names=_sorted(edges, instances, faults))


def _known(instance: Instance, item: str, owners: Mapping[str, str], faults: Faults) -> bool:
    path = instance.origin("depends_on")
    if item not in owners:
        known = f"enabled instances: {', '.join(list(owners)[:20])}"
        faults.add(path, f"no enabled instance is called {shown(item)}", faults.nearest(item, owners, known))
        return False
    if owners[item] == instance.name:
        faults.add(path, f"{instance.name} cannot depend on itself", "remove it")
        return False
    return True


def _sorted(edges: Mapping[str, set[str]], instances: Sequence[Instance], faults: Faults) -> tuple[str, ...]:
    """Sort by dependency, by file order where that leaves a choice."""
    place = {instance.name: number for number, instance in enumerate(instances)}
    sorter = TopologicalSorter(edges)
    try:
        sorter.prepare()
    except CycleError as error:
        _report_circle(error.args[1], instances, faults)
        return tuple(edges)
    ready = [(place[name], name) for name in sorter.get_ready()]
    heapq.heapify(ready)
    ordered: list[str] = []
    while ready:
        _, name = heapq.heappop(ready)
        ordered.append(name)
        sorter.done(name)
        for freed in sorter.get_ready():
            heapq.heappush(ready, (place[freed], freed))
    return tuple(ordered)


def _report_circle(circle: Sequence[str], instances: Sequence[Instance], faults: Faults) -> None:
    names = list(circle)[:-1]
    by_name = {instance.name: instance for instance in instances}
    named = [name for name in names if by_name[name].control.depends_on] or names
    # background = false makes edges too, so the reader is told of both keys
    faults.add(
        by_name[named[0]].origin("depends_on"),
        f"{' → '.join([*names, names[0]])} wait for each other",
        "remove one depends_on, or a background = false",
    )
