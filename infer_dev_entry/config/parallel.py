"""What SGLang's flags say of its processes: how many GPUs they need, and what they bind to find each other."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Parallel:
    """`gpus` are those of this node; 0 when no CUDA device is used. The rest is explained in `Arguments`."""

    gpus: int
    data_workers: bool
    dist_init: tuple[str, int] | None
    needs_dist_init: bool


NO_PARALLEL = Parallel(gpus=0, data_workers=False, dist_init=None, needs_dist_init=False)


def read_parallel(values: Mapping[str, object], extra_args: Sequence[str]) -> Parallel:
    """Read the flags as SGLang will, from values by canonical name and from raw words."""

    def number(flag: str, *raw: str) -> int:
        return max(1, _int_of(values.get(flag)) or _int_of(raw_value(extra_args, (f"--{flag}", *raw))) or 1)

    tp = number("tp-size", "--tensor-parallel-size", "--tp")
    pp = number("pp-size", "--pipeline-parallel-size")
    dp = number("dp-size", "--data-parallel-size", "--dp")
    nnodes = number("nnodes")
    # Attention that is data-parallel divides the tp_size GPUs; else every one of the dp_size workers has tp_size.
    attention = number("attn-dp-size") > 1 or (dp > 1 and _is_on("enable-dp-attention", values, extra_args))
    workers = dp > 1 and not attention
    device = values.get("device") or raw_value(extra_args, ("--device",))
    on_cuda = not isinstance(device, str) or device in ("", "auto", "cuda")
    given = values.get("dist-init-addr") or raw_value(extra_args, ("--dist-init-addr", "--nccl-init-addr"))
    first_node = not (_int_of(values.get("node-rank")) or _int_of(raw_value(extra_args, ("--node-rank",))))
    return Parallel(
        gpus=max(1, tp * pp * (dp if workers else 1) // nnodes) if on_cuda else 0,
        data_workers=workers,
        dist_init=_address(given) if first_node else None,
        needs_dist_init=attention and nnodes == 1 and not given,
    )


def port_of(value: object) -> int | None:
    """The port that a number or its text means; None for anything else."""
    number = _int_of(value)
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


def _address(value: object) -> tuple[str, int] | None:
    host, _, port = value.rpartition(":") if isinstance(value, str) else ("", "", "")
    number = port_of(port)
    return (host.removeprefix("tcp://"), number) if number else None


def _int_of(value: object) -> int | None:
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,9}", value):
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None
