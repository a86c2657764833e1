"""Document → instances, each with its tables checked and merged with the global ones."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from infer_dev_entry.config.faults import REFUSED, Faults, Path, is_secret, shown
from infer_dev_entry.config.keys import (
    CONTROL,
    GLOBAL_TABLES,
    INSTANCE_TABLES,
    MASTER,
    PROBE,
    RESTART,
    SERVER,
    TOP_TABLES,
    Value,
    defaults_of,
)
from infer_dev_entry.config.parse import Document, parse_table
from infer_dev_entry.engines import EngineProfile, profile_of
from infer_dev_entry.render import environment_problem
from infer_dev_entry.settings import MARK_VARIABLE
from infer_dev_entry.spec import ProbeSpec, RestartSpec

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
NAME_RULE = "a name is 1 to 64 letters, digits, dots, dashes and underscores, and begins with a letter or digit"


# Each start of an SGLang reads the whole of it, compiles and fills a GPU; the disk and the CPU are one for all of them.
PER_GPU_STAGGER_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Master:
    """The `[master]` table. Empty paths mean "not given"."""

    enable: bool
    project_dir: str
    python_path: str
    server_module: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """The merged control table of one instance. Empty strings and 0 GPUs per replica mean "not given"."""

    enabled: bool
    engine: str
    log_dir: str
    log_file: str
    gpu_ids: str | tuple[str, ...]
    share_gpu: bool
    background: bool
    python_path: str
    binary: str
    replicas: int | str
    warm_first: bool
    gpus_per_replica: int
    depends_on: tuple[str, ...]
    start_stagger_s: float
    drain_timeout_s: float
    gpu_wait_s: float
    log_max_bytes: int
    log_backups: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """One enabled instance. `origins` says where each given control key stands; `server` and `yaml` are still raw."""

    name: str
    profile: EngineProfile
    control: Control
    origins: Mapping[str, Path]
    server: Document
    extra_args: tuple[str, ...]
    environment: Mapping[str, str]
    yaml: Document
    probe: ProbeSpec
    restart: RestartSpec
    model: Mapping[str, Value]  # the valid keys of the model table

    @property
    def path(self) -> Path:
        """Where the instance stands in the document."""
        return ("instance", self.name)

    def origin(self, key: str) -> Path:
        """Where a control key was given; the instance itself when it was not."""
        return self.origins.get(key, self.path)

    def server_name(self, number: int) -> str:
        """The name of a replica; with `replicas = 1` the instance keeps its own."""
        return self.name if self.control.replicas == 1 else f"{self.name}-{number}"


def read_master(document: Document, faults: Faults) -> Master:
    """Read `[master]`, and report tables that no config has."""
    for name in document:
        if name not in TOP_TABLES:
            faults.add((name,), "unknown table", faults.nearest(name, TOP_TABLES, f"known: {', '.join(TOP_TABLES)}"))
    values = parse_table(document.get("master", {}), MASTER, ("master",), faults)
    return Master(
        enable=values.get("enable", True) is True,
        project_dir=str(values.get("project_dir", "")),
        python_path=str(values.get("python_path", "")),
        server_module=str(values.get("server_module", "")),
    )


def read_instances(document: Document, faults: Faults) -> tuple[Instance, ...]:
    """Read every instance in file order, and return the enabled ones."""
    table = document.get("instance", {})
    if not isinstance(table, dict):
        if table is not REFUSED:
            faults.add(("instance",), f"expected a table, got {shown(table)}", "write [instance.<name>.server]")
        return ()
    control = parse_table(table.get("control", {}), CONTROL, ("instance", "control"), faults)
    extra_args = _extra_args(table.get("server", {}), ("instance", "server"), faults)
    names = [name for name in table if name not in GLOBAL_TABLES]
    if not names:
        faults.add_line("has no instance; add [instance.<name>.server] with model_path")
    found = [_read_instance(name, table[name], control, extra_args, faults) for name in names]
    return tuple(instance for instance in found if instance)


def _extra_args(table: object, path: Path, faults: Faults) -> tuple[str, ...]:
    values = parse_table(table, SERVER, path, faults, open_=True)
    return cast("tuple[str, ...]", values.get("extra_args", ()))


def _read_instance(
    name: str, raw: object, below: Mapping[str, Value], extra_args: tuple[str, ...], faults: Faults
) -> Instance | None:
    path = ("instance", name)
    if not _NAME.fullmatch(name):
        faults.add(path, "not a usable name", f"{NAME_RULE}; rename it")
        return None
    if not isinstance(raw, dict):
        if raw is not REFUSED:
            faults.add(path, f"expected a table, got {shown(raw)}", f"write [instance.{name}.server]")
        return None
    for table in raw:
        if table not in INSTANCE_TABLES:
            known = f"known: {', '.join(INSTANCE_TABLES)}"
            faults.add((*path, table), "unknown table", faults.nearest(table, INSTANCE_TABLES, known))
    return _merge_instance(name, raw, below, extra_args, faults)


def _merge_instance(
    name: str, raw: Document, below: Mapping[str, Value], extra_args: tuple[str, ...], faults: Faults
) -> Instance | None:
    path = ("instance", name)
    own = parse_table(raw.get("control", {}), CONTROL, (*path, "control"), faults)
    own_args = _extra_args(raw.get("server", {}), (*path, "server"), faults)
    model = parse_table(raw.get("model", {}), INSTANCE_TABLES["model"][0], (*path, "model"), faults)
    environment = _environment(raw.get("env", {}), (*path, "env"), faults)
    if "engine" in _table(raw.get("control")) and "engine" not in own:
        return None  # nothing more can be said of an instance whose engine is not known
    control = _control({**below, **own})
    profile = profile_of(control.engine)
    probe = _probe(raw.get("probe", {}), profile, (*path, "probe"), faults)
    restart = _restart(raw.get("restart", {}), (*path, "restart"), faults)
    yaml = _open_table(raw.get("yaml", {}), (*path, "yaml"), faults)
    if not control.enabled:
        return None
    return Instance(
        name=name,
        profile=profile,
        control=control,
        origins={
            key: (*path, "control", key) if key in own else ("instance", "control", key) for key in {**below, **own}
        },
        server=_table(raw.get("server", {})),
        extra_args=(*extra_args, *own_args),
        environment=environment,
        yaml=yaml,
        probe=probe,
        restart=restart,
        model=model,
    )


def _table(raw: object) -> Document:
    return raw if isinstance(raw, dict) else {}


def _open_table(raw: object, path: Path, faults: Faults) -> Document:
    parse_table(raw, (), path, faults, open_=True)  # only says when it is no table
    return _table(raw)


def _control(given: Mapping[str, Value]) -> Control:
    absent = {"log_file": "", "python_path": "", "binary": "", "gpus_per_replica": 0}
    values: dict[str, object] = {**defaults_of(CONTROL), **absent, **given}
    is_sglang = values["engine"] == "sglang"
    values["warm_first"] = given.get("warm_first", is_sglang)
    stagger_s = PER_GPU_STAGGER_S if is_sglang and values["replicas"] == "per-gpu" else 0.0
    values["start_stagger_s"] = given.get("start_stagger_s", stagger_s)
    return Control(**values)  # type: ignore[arg-type]  # parse_table checked every type


def _probe(raw: object, profile: EngineProfile, path: Path, faults: Faults) -> ProbeSpec:
    given = parse_table(raw, PROBE, path, faults)
    defaults = {key.name: getattr(profile, key.name) for key in PROBE}
    values = {**defaults, **given}
    if not values["timeout_s"] < values["period_s"]:
        faults.add(
            (*path, "timeout_s" if "timeout_s" in given else "period_s"),
            f"timeout_s {values['timeout_s']:g} is not below period_s {values['period_s']:g}",
            "a probe must end before the next one: raise period_s or lower timeout_s",
        )
    return ProbeSpec(
        startup_path=profile.startup_path,
        liveness_path=profile.liveness_path,
        progress_paths=profile.progress_paths,
        counters_first=profile.counters_first,
        **values,
    )


def _restart(raw: object, path: Path, faults: Faults) -> RestartSpec:
    given = parse_table(raw, RESTART, path, faults)
    restart = RestartSpec(**{**defaults_of(RESTART), **given})  # type: ignore[arg-type]
    if restart.backoff_initial_s > restart.backoff_max_s:
        faults.add(
            (*path, "backoff_initial_s" if "backoff_initial_s" in given else "backoff_max_s"),
            f"backoff_initial_s {restart.backoff_initial_s:g} is above backoff_max_s {restart.backoff_max_s:g}",
            "raise backoff_max_s or lower backoff_initial_s",
        )
    return restart


def _environment(raw: object, path: Path, faults: Faults) -> dict[str, str]:
    table = _open_table(raw, path, faults)
    variables: dict[str, str] = {}
    for name, value in table.items():
        if value is REFUSED:
            continue
        problem, mend = _variable_problem(name, value)
        if problem:
            faults.add((*path, name), problem, mend)
        else:
            variables[name] = _variable_text(value)
    return variables


def _variable_problem(name: str, value: object) -> tuple[str, str]:
    if not _VARIABLE.fullmatch(name):
        return "not a usable name of a variable", "use letters, digits and underscores; do not begin with a digit"
    if name == MARK_VARIABLE:
        return "infer-dev sets this variable itself", "remove it"
    if isinstance(value, dict | list):
        return f"expected a str, a number or a bool, got {shown(value)}", "write it as one string"
    unfit = environment_problem(_variable_text(value))
    return (f"cannot be passed: {unfit}", "change the value") if unfit else ("", "")


def _variable_text(value: object) -> str:
    if isinstance(value, bool):
        return "1" if value else "0"
    return str(value)


def masked_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return variables with asterisks for the values of secret ones."""
    return {name: "***" if is_secret(name) and value else value for name, value in environment.items()}
