"""SGLang over several nodes: what each needs, what is refused, and what a node beside the first becomes."""

from __future__ import annotations

import pytest
from test_config_resolve import EIGHT, FakeHost, faults_of, one, plan_of, server

from infer_dev_entry.config.nodes import Nodes, gpus_of_node, is_spread_evenly, parse_address

GROUP = 'tp_size = 16\nnnodes = 2\ndist_init_addr = "10.0.0.1:20000"\n'


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("10.0.0.1:20000", ("10.0.0.1", 20000)),
        ("tcp://node-0:1", ("node-0", 1)),
        ("[fd00::1]:65535", ("fd00::1", 65535)),
        ("fd00::1:20000", None),
        ("node-0", None),
        ("node-0:0", None),
        ("node-0:65536", None),
        ("a b:1", None),
        ("node-0:1x", None),
        (":5", ("", 5)),
        (7, None),
    ],
)
def test_address_is_host_and_port(value: object, expected: tuple[str, int] | None) -> None:
    assert parse_address(value) == expected


@pytest.mark.parametrize(
    ("tp", "pp", "count", "gpus"),
    [
        (16, 1, 2, 8),
        (8, 1, 1, 8),
        (8, 2, 2, 8),
        (4, 4, 2, 8),
        (8, 2, 4, 4),
        (3, 1, 2, None),
        (4, 3, 2, None),
        (4, 2, 3, None),
    ],
)
def test_gpus_are_spread_as_sglang_spreads_its_ranks(tp: int, pp: int, count: int, gpus: int | None) -> None:
    nodes = Nodes(count=count, tp=tp, pp=pp)
    assert is_spread_evenly(nodes) == (gpus is not None)
    assert gpus is None or gpus_of_node(nodes) == gpus


def test_first_node_owns_the_address_and_serves() -> None:
    spec = one(server(GROUP + "node_rank = 0"), FakeHost(EIGHT))
    assert spec.more_ports == (20000,)
    assert spec.serves and not spec.probe.by_pid
    assert (spec.url, spec.note) == ("http://127.0.0.1:30000", "")
    assert "--nccl-port" not in spec.argv  # nodes meet at the address; a dealt port would only be in the way
    (fault,) = faults_of(server(GROUP + "node_rank = 0"), FakeHost(EIGHT, ports={20000: "pid 7 (x)"}))
    assert "dist_init_addr 20000 of a is in use by pid 7 (x)" in fault


def test_other_node_is_watched_by_its_process_and_binds_nothing_of_the_group() -> None:
    host = FakeHost(EIGHT, ports={20000: "pid 7 (x)", 20001: "pid 8 (y)"})
    spec = one(server(GROUP + 'node_rank = "1"'), host)
    assert spec.more_ports == ()
    assert spec.probe.by_pid and not spec.serves
    assert spec.url == ""
    assert spec.note == "rank 1 of 2: watched by its process; rank 0 answers"


@pytest.mark.parametrize("where", ["extra_args", "yaml"])
def test_nodes_are_told_by_raw_words_and_yaml_too(where: str) -> None:
    if where == "yaml":
        lines = '[instance.a.yaml]\nnnodes = 2\nnode_rank = 1\ntp_size = 16\ndist_init_addr = "10.0.0.1:20000"'
    else:
        flags = ("--nnodes", "2", "--node-rank=1", "--tp", "16", "--dist-init-addr", "10.0.0.1:20000")
        lines = f"extra_args = {list(flags)}".replace("'", '"')
    spec = one(server(lines), FakeHost(EIGHT))
    assert spec.probe.by_pid and not spec.serves and spec.more_ports == ()


def test_each_node_needs_its_share_of_the_gpus() -> None:
    assert one(server(GROUP + "node_rank = 1"), FakeHost(EIGHT))
    (fault,) = faults_of(server(GROUP + "node_rank = 1"), FakeHost(EIGHT[:4]))
    assert "needs 8 GPUs, and there are 4" in fault


def test_two_nodes_of_one_file_share_the_address_that_the_first_one_owns() -> None:
    text = (
        f'[instance.control]\ngpu_ids = "none"\n[instance.server]\ndevice = "cpu"\nmodel_path = "m"\n{GROUP}'
        "[instance.a.server]\nnode_rank = 0\nport = 4000\n[instance.b.server]\nnode_rank = 1\nport = 4001\n"
    )
    a, b = plan_of(text).servers
    assert (a.more_ports, b.more_ports) == ((20000,), ())
    both = text.replace("node_rank = 1", "node_rank = 0")
    (fault,) = faults_of(both)
    assert "dist_init_addr 20000 of b is also used by a" in fault


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("nnodes = 2\ntp_size = 2", ["nnodes = 2 needs node_rank, the number of this node from 0; write node_rank =",
                                     "nnodes = 2 needs dist_init_addr, where node 0 waits for the others"]),
        (GROUP + "node_rank = 2", ["node_rank 2 is not below nnodes, which is 2; nodes are counted from 0"]),
        ("node_rank = 1", ["node_rank 1 is not below nnodes, which is 1"]),
        (GROUP + "node_rank = -1", ["node_rank must be at least 0, got -1"]),
        ("nnodes = 0", ["nnodes must be at least 1, got 0"]),
        (GROUP + 'node_rank = "x"', ['server.node_rank: expected int, got "x"']),
        (GROUP.replace("10.0.0.1:20000", "node-0") + "node_rank = 0", ['expected host:port, got "node-0"']),
        (GROUP.replace("10.0.0.1", "0.0.0.0") + "node_rank = 1", ["no address at which other nodes can find node 0"]),
        (GROUP.replace("16", "15") + "node_rank = 0", ["tp_size 15 × pp_size 1 cannot be spread evenly over 2 nodes"]),
        (GROUP + "node_rank = 0\ndp_size = 2", ["dp_size without data-parallel attention works on one node"]),
    ],
)  # fmt: skip
def test_fault_of_a_group_says_what_is_wrong(lines: str, expected: list[str]) -> None:
    faults = faults_of(server(lines))
    assert len(faults) == len(expected)
    assert all(text in fault for text, fault in zip(expected, faults, strict=True)), faults


def test_replicas_of_a_node_are_a_fault() -> None:
    text = '[instance.a.control]\nreplicas = 2\ngpu_ids = "0-15"\n[instance.a.server]\nmodel_path = "m"\n'
    faults = faults_of(text + GROUP + "node_rank = 1")
    assert any("every replica would be node 1 of the same group; write an instance for each" in f for f in faults)


def test_loopback_address_is_a_warning_as_no_other_machine_finds_it() -> None:
    plan = plan_of(server(GROUP.replace("10.0.0.1", "127.0.0.1") + "node_rank = 0"))
    assert any('"127.0.0.1:20000" is found from this machine alone' in warning for warning in plan.warnings)
