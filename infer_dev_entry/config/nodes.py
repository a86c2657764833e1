"""SGLang over several machines, one node of it on each: which node this is, and what all nodes must agree on.

SGLang finds most of these faults late or never: a node whose partner is missing waits, and the others wait with it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from infer_dev_entry.config.faults import REFUSED, Faults, Path, shown

_WILDCARDS = ("", "0.0.0.0", "::")
_LOOPBACK = re.compile(r"localhost|127\.[0-9.]+|::1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Nodes:
    """What the flags say of nodes. `count` and `rank` are 1 and 0 where they are absent, unknown or at fault.

    The raw values (None: not given) are what the checks read; `tp` and `pp` are sizes over all nodes.
    """

    count: int = 1
    rank: int = 0
    raw_count: object = None
    raw_rank: object = None
    raw_address: object = None
    tp: int = 1
    pp: int = 1
    sizes_known: bool = True

    @property
    def note(self) -> str:
        """What to know of a node that answers no requests; "" for the one that does."""
        return f"rank {self.rank} of {self.count}: watched by its process; rank 0 answers" if self.rank else ""


def gpus_of_node(nodes: Nodes) -> int:
    """Return how many GPUs SGLang takes on each node, by its own arithmetic."""
    pp_here, nodes_per_stage = _shares(nodes)
    return pp_here * (nodes.tp // nodes_per_stage)


def _shares(nodes: Nodes) -> tuple[int, int]:
    """The pipeline stages of one node, and the nodes of one stage (SGLang's `_calculate_rank_ranges`)."""
    return max(nodes.pp // nodes.count, 1), max(nodes.count // nodes.pp, 1)


def is_spread_evenly(nodes: Nodes) -> bool:
    """Whether every rank has exactly one node that starts it; else SGLang leaves ranks out, and waits for them."""
    pp_here, nodes_per_stage = _shares(nodes)
    stages = pp_here * nodes.count == nodes.pp * nodes_per_stage
    return stages and nodes.tp % nodes_per_stage == 0


def parse_address(value: object) -> tuple[str, int] | None:
    """Parse `host:port`, with or without `tcp://`; an IPv6 host stands in brackets, and loses them."""
    text = value.removeprefix("tcp://") if isinstance(value, str) else ""
    match = re.fullmatch(r"(?:\[([^\[\]\s]*)\]|([^:\[\]\s]*)):([0-9]{1,5})", text)
    if not match or not 1 <= int(match[3]) <= 65535:
        return None
    return match[1] if match[1] is not None else match[2], int(match[3])


class NodeChecker:
    """Checks the flags of one instance; `origins` says where each stands, and `table` where one that lacks belongs."""

    def __init__(self, nodes: Nodes, origins: Mapping[str, Path], table: Path, faults: Faults) -> None:
        self._nodes = nodes
        self._origins = origins
        self._table = table
        self._faults = faults

    def check(self, *, replicas: int | str, replicas_at: Path, data_workers: bool) -> None:
        """Report every fault of a group of nodes."""
        nodes = self._nodes
        self._check_number("nnodes", nodes.raw_count, least=1)
        self._check_number("node-rank", nodes.raw_rank, least=0)
        self._check_rank()
        if nodes.count == 1:
            return
        self._check_address()
        group = f"nnodes = {nodes.count}"
        if nodes.sizes_known and not is_spread_evenly(nodes):
            sizes = f"tp_size {nodes.tp} × pp_size {nodes.pp} cannot be spread evenly over {nodes.count} nodes"
            mend = "make tp_size a multiple of nnodes; or pp_size one, which gives each node whole stages"
            self._faults.add(self._path("tp-size"), sizes, mend)
        if data_workers:
            problem = f"dp_size without data-parallel attention works on one node, and {group}"
            self._faults.add(self._path("dp-size"), problem, "set enable_dp_attention = true, or remove dp_size")
        if replicas != 1:
            problem = f"{group}, and every replica would be node {nodes.rank} of the same group"
            mend = "write an instance for each group, with a dist_init_addr of its own"
            self._faults.add(replicas_at, problem, mend)

    def _path(self, flag: str) -> Path:
        return self._origins.get(flag, self._table)

    def _check_number(self, flag: str, value: object, *, least: int) -> None:
        number = int_of(value)
        if value is None or value is REFUSED or (number is not None and number >= least):
            return
        if isinstance(value, int) or re.fullmatch(r"[+-]?[0-9]+", str(value)):  # any other text is no int, and reported
            problem = f"{flag.replace('-', '_')} must be at least {least}, got {shown(value)}"
            self._faults.add(self._path(flag), problem, "nodes are counted from 0 to nnodes - 1")

    def _check_rank(self) -> None:
        nodes = self._nodes
        if nodes.rank >= nodes.count and nodes.raw_count is not REFUSED:
            problem = f"node_rank {nodes.rank} is not below nnodes, which is {nodes.count}"
            self._faults.add(self._path("node-rank"), problem, "nodes are counted from 0 to nnodes - 1")
        elif nodes.count > 1 and nodes.raw_rank is None:
            problem = f"nnodes = {nodes.count} needs node_rank, the number of this node from 0"
            mend = 'write node_rank = "${NODE_RANK}", and set that variable on each machine'
            self._faults.add(self._table, problem, mend)

    def _check_address(self) -> None:
        nodes, raw = self._nodes, self._nodes.raw_address
        mend = 'write dist_init_addr = "<address of node 0>:<port>", the same on every node'
        if raw in (None, ""):
            problem = f"nnodes = {nodes.count} needs dist_init_addr, where node 0 waits for the others"
            self._faults.add(self._table, problem, mend)
            return
        if raw is REFUSED:
            return
        address = parse_address(raw)
        if address is None:
            self._faults.add(self._path("dist-init-addr"), f"expected host:port, got {shown(raw)}", mend)
        elif address[0] in _WILDCARDS:
            problem = f"{shown(raw)} is no address at which other nodes can find node 0"
            self._faults.add(self._path("dist-init-addr"), problem, mend)
        elif _LOOPBACK.fullmatch(address[0]):
            problem = f"{shown(raw)} is found from this machine alone"
            self._faults.warn(self._path("dist-init-addr"), problem, "for other machines, give an address of node 0's")


def int_of(value: object) -> int | None:
    """The number, not below 0, that a value or its text means; None for anything else."""
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,9}", value):
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None
