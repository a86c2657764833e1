"""What SGLang's flags say of its processes: how many GPUs they need, and what they bind to find each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from infer_dev_entry.config.faults import REFUSED
from infer_dev_entry.config.nodes import Nodes, gpus_of_node, int_of, parse_address


@dataclass(frozen=True, slots=True, kw_only=True)
class Parallel:
    """`gpus` are those of this node; 0 when no CUDA device is used. The rest is explained in `Arguments`."""

    gpus: int
    data_workers: bool
    dist_init: tuple[str, int] | None
    needs_dist_init: bool
    nodes: Nodes


NO_PARALLEL = Parallel(gpus=0, data_workers=False, dist_init=None, needs_dist_init=False, nodes=Nodes())


def read_parallel(values: Mapping[str, object], extra_args: Sequence[str]) -> Parallel:
    """Read the flags as SGLang will, from values by canonical name and from raw words."""

    def given(flag: str, *raw: str) -> object:
        value = values.get(flag)
        return (raw_value(extra_args, (f"--{flag}", *raw)) or None) if value is None or value is False else value

    def number(flag: str, *raw: str) -> int:
        return max(1, int_of(given(flag, *raw)) or 1)

    tp = number("tp-size", "--tensor-parallel-size", "--tp")
    pp = number("pp-size", "--pipeline-parallel-size")
    dp = number("dp-size", "--data-parallel-size", "--dp")
    nodes = Nodes(
        count=number("nnodes"),
        rank=max(0, int_of(given("node-rank")) or 0),
        raw_count=given("nnodes"),
        raw_rank=given("node-rank"),
        raw_address=given("dist-init-addr", "--nccl-init-addr"),
        tp=tp,
        pp=pp,
        sizes_known=REFUSED not in (given("tp-size"), given("pp-size"), given("nnodes")),
    )
    # Attention that is data-parallel divides the tp_size GPUs; else every one of the dp_size workers has tp_size.
    attention = number("attn-dp-size") > 1 or (dp > 1 and _is_on("enable-dp-attention", values, extra_args))
    workers = dp > 1 and not attention
    device = values.get("device") or raw_value(extra_args, ("--device",))
    on_cuda = not isinstance(device, str) or device in ("", "auto", "cuda")
    return Parallel(
        gpus=max(1, gpus_of_node(nodes) * (dp if workers else 1)) if on_cuda else 0,
        data_workers=workers,
        dist_init=None if nodes.rank else parse_address(nodes.raw_address),
        needs_dist_init=attention and nodes.count == 1 and not nodes.raw_address,
        nodes=nodes,
    )


def port_of(value: object) -> int | None:
    """The port that a number or its text means; None for anything else."""
    number = int_of(value)
    return number if number is not None and 1 <= number <= 65535 else None


def raw_value(words: Sequence[str], names: tuple[str, ...]) -> str:
    """The value that raw words give a flag, in either of its two spellings."""
    for index, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name in names:
            return value if equals else (words[index + 1] if index + 1 < len(words) else "")
    return ""


def _is_on(flag: str, values: Mapping[str, object], extra_args: Sequence[str]) -> bool:
    return values.get(flag) is True or f"--{flag}" in extra_args
