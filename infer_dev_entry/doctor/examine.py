"""Examine this machine: read the facts side by side, each in bounded time, then judge them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from infer_dev_entry.control_client import STATUS_S, ask, find_placed
from infer_dev_entry.doctor.download_checks import Download, check_coming, check_downloads, will_download
from infer_dev_entry.doctor.downloads import lacking_sources, read_downloads
from infer_dev_entry.doctor.environment import read_access, read_environment, read_installed
from infer_dev_entry.doctor.environment_checks import check_access, check_installed, check_torch
from infer_dev_entry.doctor.fleet_checks import check_entry, check_ports, states_of
from infer_dev_entry.doctor.found_model import ModelFiles
from infer_dev_entry.doctor.gpu_checks import GpuFacts, check_gpus
from infer_dev_entry.doctor.later import LateError, Later
from infer_dev_entry.doctor.machine import SHM, read_disk, read_limits, read_memory
from infer_dev_entry.doctor.machine_checks import check_disk, check_limits, check_memory, check_shm
from infer_dev_entry.doctor.model_checks import check_model
from infer_dev_entry.doctor.model_files import read_model
from infer_dev_entry.doctor.plan_facts import PlanFacts, Question, fleet_mark, read_plan
from infer_dev_entry.doctor.rows import GIB, MIB, Row, fail, warn
from infer_dev_entry.doctor.vram_checks import check_vram
from infer_dev_entry.doctor.wishes import Wish
from infer_dev_entry.errors import EntryError
from infer_dev_entry.gpu import GpuDoor
from infer_dev_entry.host import LiveHost
from infer_dev_entry.models.pull import is_offline
from infer_dev_entry.settings import Settings, parse_settings

GPU_S = 20.0  # without persistence mode the driver wakes every GPU for the question, one after the other
READ_S = 10.0
HEADERS_S = 4.0  # for the headers of one model; what was not looked at by then is named
MOST_LOG_DIRS = 8

T = TypeVar("T")


def examine(environ: Mapping[str, str], config_path: str, *, require_gpu: bool) -> tuple[Row, ...]:
    """Return every check's row."""
    settings = parse_settings(environ)
    door = GpuDoor()
    gpus = Later(lambda: read_gpus(door), GPU_S)
    status, status_problem = _read_status(environ)
    facts = _gpu_facts(gpus)
    path = config_path or settings.config or str((status or {}).get("source") or "")
    inventory = facts.gpus if facts.cuda is not None else None
    placed = find_placed(status) if status else {}
    asked = Question(path=path, settings=settings, environ=environ, placed=placed)
    plan = _read(lambda: read_plan(asked, inventory, door), _late_plan)
    door.close()
    downloads = _read(lambda: read_downloads(path, settings, environ), lambda _reason: ())
    return (
        *(warn("variables", warning) for warning in settings.warnings),
        *plan.rows,
        *check_gpus(facts, plan.wishes, require_gpu=require_gpu),
        *_download_rows(settings, environ, downloads, is_known=plan.wishes is not None),
        *_examine_rest(settings, environ, plan.wishes or (), downloads, facts, status),
        *check_entry(status, status_problem),
    )


def read_gpus(door: GpuDoor) -> GpuFacts:
    """Ask the driver everything. The door stays open, as opening it may take seconds for each GPU."""
    driver = door.driver()
    if driver.cuda is None:
        return GpuFacts(problem=driver.problem)
    inventory, use = door.inventory(), door.use()
    free = {one.index: one.total_bytes - one.used_bytes for one in use or ()}
    return GpuFacts(driver=driver.version, cuda=driver.cuda, gpus=inventory or (), free_bytes=free)


def _gpu_facts(gpus: Later[GpuFacts]) -> GpuFacts:
    try:
        return gpus.get()
    except LateError as error:
        return GpuFacts(problem=str(error))


def _read_status(environ: Mapping[str, str]) -> tuple[dict[str, Any] | None, str]:
    try:
        return ask(environ, {"op": "status"}, timeout_s=STATUS_S), ""
    except EntryError as error:
        return None, str(error)


def _late_plan(reason: str) -> PlanFacts:
    return PlanFacts(rows=(fail("config", f"cannot read it: {reason}"),))


def _examine_rest(
    settings: Settings,
    environ: Mapping[str, str],
    wishes: Sequence[Wish],
    downloads: Sequence[Download],
    facts: GpuFacts,
    status: Mapping[str, Any] | None,
) -> list[Row]:
    pid = (status or {}).get("pid")
    machine = Later(lambda: _machine_rows(settings, environ, wishes, pid if isinstance(pid, int) else 0), READ_S)
    environment = Later(lambda: _environment_rows(settings, wishes, facts), READ_S)
    models = {path: Later(partial(read_model, path, limit_s=HEADERS_S), READ_S) for path in _paths(wishes)}
    ports = Later(lambda: _port_rows(wishes, environ), READ_S)
    found = {path: _model_or_problem(path, later) for path, later in models.items()}
    access = Later(lambda: check_access(read_access(settings, _pythons(wishes), _files(found))), READ_S)
    return [
        *_rows("environment", environment),
        *_rows("files", access),
        *(row for wish in wishes if not wish.is_gateway for row in _model_rows(wish, found, downloads, settings)),
        *check_vram(wishes, found, facts, states_of(status)),
        *_rows("machine", machine),
        *_rows("ports", ports),
    ]


def _model_or_problem(path: str, later: Later[ModelFiles]) -> ModelFiles:
    try:
        return later.get()
    except LateError as error:
        return ModelFiles(path=path, problem=str(error))


def _download_rows(
    settings: Settings, environ: Mapping[str, str], downloads: Sequence[Download], *, is_known: bool
) -> list[Row]:
    gate = settings.model_download_on_boot and is_known
    return check_downloads(downloads, gate=gate, offline=is_offline(environ), lacking=lacking_sources())


def _model_rows(
    wish: Wish, found: Mapping[str, ModelFiles], downloads: Sequence[Download], settings: Settings
) -> list[Row]:
    if will_download(wish.model, downloads, gate=settings.model_download_on_boot):
        return [check_coming(wish.name)]
    return check_model(wish, found.get(wish.model), found.get(wish.tokenizer))


def _paths(wishes: Sequence[Wish]) -> list[str]:
    named = (path for wish in wishes for path in (wish.model, wish.draft_model, wish.tokenizer))
    return sorted({path for path in named if path.startswith(("/", "./", "../"))})


def _files(found: Mapping[str, ModelFiles]) -> list[str]:
    """What a server will open in its model's directory."""
    kinds = (".json", ".model", ".safetensors", ".bin", ".jinja", ".tiktoken", ".txt")
    return [
        file
        for path, model in found.items()
        if not model.problem
        for file in (path, *(f"{path}/{name}" for name in model.names if name.endswith(kinds)))
    ]


def _pythons(wishes: Sequence[Wish]) -> list[str]:
    return sorted({wish.python for wish in wishes if wish.is_sglang})


def _environment_rows(settings: Settings, wishes: Sequence[Wish], facts: GpuFacts) -> list[Row]:
    pythons = _pythons(wishes)
    tail = "/env/bin/python"
    used = sorted({python.removesuffix(tail) for python in pythons if python.endswith(tail)})
    folders = used or [os.path.abspath(settings.project_dir)]
    rows = [check_installed(read_installed(folder), is_needed=bool(used)) for folder in folders]
    for python in pythons or [f"{folder}{tail}" for folder in folders if os.path.exists(f"{folder}{tail}")]:
        wants = any(wish.gpus for wish in wishes if wish.is_sglang and wish.python == python)
        rows += check_torch(read_environment(python), facts, wants_gpu=wants)
    return rows


def _machine_rows(settings: Settings, environ: Mapping[str, str], wishes: Sequence[Wish], pid: int) -> list[Row]:
    log_dirs = sorted({os.path.dirname(wish.log_file) for wish in wishes})[:MOST_LOG_DIRS]
    clear = "delete what is not needed there, or name another directory"
    return [
        check_shm(read_disk(SHM), wishes),
        check_memory(read_memory(), wishes),
        check_limits(read_limits(pid), wishes),
        check_disk("workspace", read_disk(settings.project_dir), fail_bytes=100 * MIB, warn_bytes=2 * GIB, mend=clear),
        *(
            check_disk("log directory", read_disk(folder), fail_bytes=50 * MIB, warn_bytes=GIB, mend=clear)
            for folder in log_dirs
        ),
        check_disk(
            "TMPDIR", read_disk(environ.get("TMPDIR") or "/tmp"), fail_bytes=50 * MIB, warn_bytes=GIB, mend=clear
        ),
    ]


def _port_rows(wishes: Sequence[Wish], environ: Mapping[str, str]) -> list[Row]:
    host = LiveHost(f"{fleet_mark(environ)}/")
    return check_ports(
        [
            (wish.name, use, port, host.port_holder(wish.host if use == "port" else "", port))
            for wish in wishes
            for use, port in wish.ports
        ]
    )


def _rows(check: str, later: Later[list[Row]]) -> list[Row]:
    try:
        return later.get()
    except LateError as error:
        return [fail(check, str(error))]


def _read(read: Callable[[], T], otherwise: Callable[[str], T]) -> T:
    try:
        return Later(read, READ_S).get()
    except LateError as error:
        return otherwise(str(error))
