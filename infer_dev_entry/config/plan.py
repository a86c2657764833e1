"""Resolve a config: text → checked document → instances → servers with their GPUs, ports and command lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from infer_dev_entry.config.arguments import ArgumentReader
from infer_dev_entry.config.checks import FleetChecker
from infer_dev_entry.config.facts import GpuSet, Host, Placed
from infer_dev_entry.config.faults import Faults
from infer_dev_entry.config.gpu_dealer import Need
from infer_dev_entry.config.gpus import deal_gpus
from infer_dev_entry.config.instances import Instance, Master, read_instances, read_master
from infer_dev_entry.config.interpolate import interpolate_document
from infer_dev_entry.config.order import order_instances
from infer_dev_entry.config.parse import Document, clean_document, merge_overrides, parse_overrides, parse_toml
from infer_dev_entry.config.ports import PortDealer, replica_port
from infer_dev_entry.config.programs import Prepared, Preparer, ResolveOptions
from infer_dev_entry.config.servers import ServerBuilder
from infer_dev_entry.errors import ConfigError
from infer_dev_entry.models.wish import ModelWish
from infer_dev_entry.spec import Plan, ServerSpec

if TYPE_CHECKING:
    from infer_dev_entry.config.gateway import Gateway


@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """One server to be: a replica of an instance, with its GPUs and its port (None: at fault)."""

    prepared: Prepared
    number: int
    gpu_ids: GpuSet
    port: int | None


def resolve(text: str, *, source: str, options: ResolveOptions, host: Host) -> Plan:
    """Resolve a config into a plan.

    Raises:
        ConfigError: the config cannot be used; it holds every fault found, one line each.
    """
    faults = Faults(source)
    document = _read_document(text, options.overrides, host, faults)
    servers = _resolve_servers(document, options, host, faults) if document is not None else ()
    _warn_of_secrets(servers, faults)
    if faults.faults:
        raise ConfigError(faults.faults)
    return Plan(source=source, servers=servers, warnings=faults.warnings)


def _warn_of_secrets(servers: Sequence[ServerSpec], faults: Faults) -> None:
    """Name the secrets that variables have brought into a command line. Keys that engines know are not in it."""
    for text, path in faults.secret_texts().items():
        if any(text in word for server in servers for word in server.argv):
            mend = "pass it in the env table, if the server can read it there"
            faults.warn(path, "may be a secret, and every user of the machine can read a command line", mend)


def resolve_downloads(text: str, *, source: str, options: ResolveOptions, host: Host) -> tuple[ModelWish, ...]:
    """Return the downloads that a config's enabled instances ask for; of `host` only `expand` matters.

    Raises:
        ConfigError: the config's text has faults; it holds every one found.
    """
    faults = Faults(source)
    document = _read_document(text, options.overrides, host, faults)
    wishes: tuple[ModelWish, ...] = ()
    if document is not None and (master := read_master(document, faults)).enable:
        preparer, instances = _preparer(document, master, options, host, faults)
        for instance in instances:
            preparer.prepare(instance)
        wishes = preparer.wishes
    if faults.faults:
        raise ConfigError(faults.faults)
    return wishes


def _read_document(text: str, overrides_text: str, host: Host, faults: Faults) -> Document | None:
    document = parse_toml(text, faults)
    overrides = parse_overrides(overrides_text, faults)
    if document is None:
        return None
    merged = merge_overrides(document, overrides, faults)
    return clean_document(interpolate_document(merged, host, faults), faults)


def _resolve_servers(document: Document, options: ResolveOptions, host: Host, faults: Faults) -> tuple[ServerSpec, ...]:
    master = read_master(document, faults)
    gateway = _read_gateway(document, faults)
    if not master.enable:
        faults.warn(("master", "enable"), "is false, so nothing starts")
        return ()
    checker = FleetChecker(host, faults)
    preparer, instances = _preparer(document, master, options, host, faults, checker)
    if not instances:
        faults.warn(("instance",), "no instance is enabled, so nothing starts")
        return ()
    prepared = [preparer.prepare(instance) for instance in instances]
    seats = _seats(prepared, options.placed, host, faults)
    dealer = PortDealer({*_given_ports(seats), gateway.port if gateway else 0})
    built = _build(seats, instances, ServerBuilder(options, dealer, checker, faults), faults)
    servers = tuple(server for group in built.values() for server in group)
    if gateway is None:
        return servers
    from infer_dev_entry.config.gateway import Backends, GatewayBuilder

    backends = Backends(
        servers={name: tuple(server for server in group if server.serves) for name, group in built.items()},
        models={item.instance.name: item.arguments.model for item in prepared},
        installed_python=preparer.installed_python,
    )
    return (*servers, GatewayBuilder(options, host, dealer, checker, faults).build(gateway, backends))


def _read_gateway(document: Document, faults: Faults) -> Gateway | None:
    if "gateway" not in document:
        return None
    from infer_dev_entry.config.gateway import read_gateway  # few configs have one

    return read_gateway(document, faults)


def _preparer(
    document: Document,
    master: Master,
    options: ResolveOptions,
    host: Host,
    faults: Faults,
    checker: FleetChecker | None = None,
) -> tuple[Preparer, tuple[Instance, ...]]:
    instances = read_instances(document, faults)
    reader = ArgumentReader(_global_server(document), frozenset(i.profile.name for i in instances), host, faults)
    return Preparer(master, options, host, reader, checker or FleetChecker(host, faults), faults), instances


def _global_server(document: Document) -> Mapping[str, object]:
    section = document.get("instance")
    server = section.get("server") if isinstance(section, dict) else None
    return server if isinstance(server, dict) else {}


def _seats(prepared: Sequence[Prepared], placed: Mapping[str, Placed], host: Host, faults: Faults) -> list[Seat]:
    """Fan instances out over their GPUs and ports."""
    needs = [
        Need(instance=item.instance, per_replica=item.per_replica, parallel=item.arguments.parallel)
        for item in prepared
    ]
    dealt = deal_gpus(needs, host, placed, faults)
    return [
        Seat(prepared=item, number=number, gpu_ids=gpus, port=_port(item, number, faults))
        for item in prepared
        for number, gpus in enumerate(dealt[item.instance.name])
    ]


def _port(item: Prepared, number: int, faults: Faults) -> int | None:
    first = item.arguments.port
    port = None if first is None else replica_port(first, number)
    if port is None and first is not None:
        path = item.arguments.origin("port", item.instance)
        faults.add(path, f"replica {number} would need port {first + number}", "begin at a lower port")
    return port


def _build(
    seats: Sequence[Seat],
    instances: Sequence[Instance],
    builder: ServerBuilder,
    faults: Faults,
) -> dict[str, tuple[ServerSpec, ...]]:
    """Build the servers of each instance, the instances in start order."""
    names = {instance.name: _server_names(instance, seats) for instance in instances}
    _check_names(names, faults)
    order = order_instances(instances, names, faults)
    built: dict[str, list[ServerSpec]] = {instance.name: [] for instance in instances}
    for seat in seats:
        name = seat.prepared.instance.name
        server = builder.build(seat.prepared, seat.number, seat.gpu_ids, seat.port, order.waits[name])
        built[name].append(server)
    return {name: tuple(built[name]) for name in order.names}


def _given_ports(seats: Sequence[Seat]) -> set[int]:
    """Every port that the config itself names, which no server is dealt."""
    ports = {seat.port or 0 for seat in seats}
    for seat in seats:
        arguments = seat.prepared.arguments
        ports |= {arguments.nccl_port + seat.number} if arguments.nccl_port else {arguments.raw_nccl_port or 0}
        ports |= {arguments.dist_init[1]} if arguments.dist_init else set()
    return ports


def _server_names(instance: Instance, seats: Sequence[Seat]) -> tuple[str, ...]:
    return tuple(seat.prepared.name_of(seat.number) for seat in seats if seat.prepared.instance is instance)


def _check_names(names: Mapping[str, Sequence[str]], faults: Faults) -> None:
    owners: dict[str, str] = {}
    for owner, servers in names.items():
        for server in servers:
            other = owners.setdefault(server, owner)
            if other != owner:
                faults.add(
                    ("instance", owner), f"server {server} also comes from instance.{other}", "rename one of them"
                )
