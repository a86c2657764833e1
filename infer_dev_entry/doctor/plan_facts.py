"""Resolve the config for the doctor: its faults as rows, and what its servers wish for even when it has faults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from infer_dev_entry.config import Gpu, Host, NoHost, resolve
from infer_dev_entry.config.facts import Placed
from infer_dev_entry.doctor.rows import Row, fail, ok, skip, warn
from infer_dev_entry.doctor.wishes import Wish, read_wish
from infer_dev_entry.errors import ConfigError
from infer_dev_entry.gpu import GpuDoor
from infer_dev_entry.host import LiveHost, expand_path, read_config
from infer_dev_entry.planner import resolve_options
from infer_dev_entry.rundir import client_run_dir, read_text
from infer_dev_entry.settings import Settings
from infer_dev_entry.spec import Plan

MOST_ROWS = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanFacts:
    """The rows of the config itself, and its servers' wishes: None without a config that can be read."""

    rows: tuple[Row, ...]
    wishes: tuple[Wish, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """Which config is asked about, and where: `placed` are the servers that run here now."""

    path: str
    settings: Settings
    environ: Mapping[str, str]
    placed: Mapping[str, Placed]


class _DoctorHost(LiveHost):
    """This machine, but for what the doctor looks at itself, in more detail: ports, models, and GPUs, already read."""

    def __init__(self, gpus: tuple[Gpu, ...] | None, environ: Mapping[str, str], door: GpuDoor) -> None:
        super().__init__(f"{fleet_mark(environ)}/", door, environ=environ)
        self._read_gpus = gpus

    def gpus(self) -> tuple[Gpu, ...] | None:
        return self._read_gpus

    def port_holder(self, _host: str, _port: int) -> str | None:
        return None

    def model_problem(self, _path: str) -> str | None:
        return None


class _TextHost(NoHost):
    """The same machine's GPUs and home, and no complaint: for reading on in a config that has faults here."""

    def expand(self, path: str) -> str:
        return expand_path(path)


def read_plan(asked: Question, gpus: tuple[Gpu, ...] | None, door: GpuDoor) -> PlanFacts:
    """Resolve the config against this machine."""
    if not asked.path:
        return PlanFacts(rows=(skip("config", "none is named: give CONFIG, or set AUTO_INFER_SGLANG_CONFIG"),))
    try:
        plan = _resolve(asked, _DoctorHost(gpus, asked.environ, door))
    except ConfigError as error:
        faults = _limited([fail("config", fault) for fault in error.faults])
        return PlanFacts(rows=faults, wishes=_read_on(asked, gpus))
    warnings = [warn("config", warning) for warning in plan.warnings]
    count = f"{len(plan.servers)} server{'' if len(plan.servers) == 1 else 's'}"
    return PlanFacts(
        rows=(ok("config", f"{asked.path}: {count}"), *_limited(warnings)), wishes=tuple(map(read_wish, plan.servers))
    )


def _read_on(asked: Question, gpus: tuple[Gpu, ...] | None) -> tuple[Wish, ...] | None:
    for host in (_TextHost(gpus=gpus, environ=asked.environ), _TextHost(environ=asked.environ)):
        try:
            plan = _resolve(asked, host)
        except ConfigError:
            continue
        return tuple(map(read_wish, plan.servers))
    return None


def _resolve(asked: Question, host: Host) -> Plan:
    run_dir, fleet_id = client_run_dir(asked.environ), fleet_mark(asked.environ)
    options = resolve_options(asked.settings, asked.environ, run_dir=run_dir, fleet_id=fleet_id, placed=asked.placed)
    return resolve(read_config(asked.path), source=asked.path, options=options, host=host)


def fleet_mark(environ: Mapping[str, str]) -> str:
    """Return the id of the fleet whose ports are not in the way; looking makes no run directory."""
    return read_text(f"{client_run_dir(environ)}/fleet-id").strip() or "doctor"


def _limited(rows: list[Row]) -> tuple[Row, ...]:
    if len(rows) <= MOST_ROWS:
        return tuple(rows)
    more = Row(
        check="config", verdict=rows[0].verdict, seen=f"and {len(rows) - MOST_ROWS} more: infer-dev config check"
    )
    return (*rows[:MOST_ROWS], more)
