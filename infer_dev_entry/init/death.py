"""Say how a server ended, from what supervisord, the kernel's OOM counter and its log tell."""

from __future__ import annotations

import os
from dataclasses import replace

from infer_dev_entry.cgroup import OOM_MEND
from infer_dev_entry.diagnosis.classify import classify
from infer_dev_entry.diagnosis.model import HOST_OOM, Death, Diagnosis
from infer_dev_entry.init.reaper import describe_end
from infer_dev_entry.logtail import clean_line
from infer_dev_entry.spec import ServerSpec
from infer_dev_entry.supervisor_rpc import ProcessInfo

# supervisord's child writes this after the line that says why, such as "couldn't exec …: EACCES".
_EPILOGUE = "supervisor: child process was not spawned"


def diagnose_death(info: ProcessInfo, spec: ServerSpec, log: str, oom: str) -> Diagnosis:
    """Diagnose a program's last end. `log` is what this run wrote last, `oom` what the kernel's counter tells."""
    exit_code, number = exit_status(info)
    lines = log.rstrip("\n").split("\n")
    if lines[-1].strip() == _EPILOGUE:
        log = "\n".join(lines[:-1])
    found = classify(
        Death(
            engine=spec.engine,
            argv=spec.argv,
            ended=describe_info(info),
            exit_code=exit_code,
            signal=number,
            oom=oom,
            log=log,
        )
    )
    mend = OOM_MEND if oom and found.kind == HOST_OOM else found.mend
    return replace(found, mend=mend or f"see infer-dev logs {spec.name}")


def exit_status(info: ProcessInfo) -> tuple[int | None, int | None]:
    """Return exit code and signal number of a program's last run; one of them is None, both when none ran."""
    if info.wait_status is None or not _ran(info):
        return None, None
    code = os.waitstatus_to_exitcode(info.wait_status)
    return (code, None) if code >= 0 else (None, -code)


def describe_info(info: ProcessInfo) -> str:
    """Say how a program's last run ended."""
    if info.wait_status is not None and _ran(info):
        return describe_end(info.wait_status)
    return info.spawnerr or "ended for a reason that supervisord does not tell"


def _ran(info: ProcessInfo) -> bool:
    # supervisord calls these two spawn errors as well; any other means that there was no process, and the status is
    # that of an earlier run.
    return not info.spawnerr or info.spawnerr.startswith(("Exited too quickly", "Bad exit code"))


def describe_diagnosis(found: Diagnosis, secrets: tuple[str, ...] = ()) -> str:
    """Say in one line what a death was: the end, what it means, and the line of the log that tells it."""
    told = f"{found.ended}: {found.summary}" if found.summary else found.ended
    line = clean_line(found.line, secrets)
    if not line:
        return told
    return f"{told}; {'last log line' if found.is_last else 'log line'}: {line}"
