"""What is said of a server's end."""

from __future__ import annotations

import signal

import pytest
from make import make_spec

from infer_dev_entry.cgroup import OOM_MEND
from infer_dev_entry.diagnosis.model import Diagnosis, Policy
from infer_dev_entry.init.death import describe_diagnosis, diagnose_death
from infer_dev_entry.spec import FileSpec
from infer_dev_entry.supervisor_rpc import ProcessInfo

OOM = "out of memory (the container's limit is 512 MiB)"
LLAMA = make_spec(engine="llama_cpp")


def info(wait_status: int | None, spawnerr: str = "") -> ProcessInfo:
    return ProcessInfo(name="a", statename="EXITED", pid=0, wait_status=wait_status, spawnerr=spawnerr)


@pytest.mark.parametrize(
    ("status", "oom", "reason"),
    [
        (signal.SIGKILL, "", "was killed by SIGKILL: that was not infer-dev"),
        (signal.SIGKILL, OOM, f"was killed by the kernel: {OOM}"),
        (1 << 8, "", "exited with status 1"),
        (1 << 8, OOM, f"exited with status 1 after the kernel had killed a process: {OOM}"),
        (signal.SIGQUIT, OOM, f"was killed by SIGQUIT after the kernel had killed a process: {OOM}"),
    ],
)
def test_death_tells_the_kernels_kill_from_any_other(status: int, oom: str, reason: str) -> None:
    found = diagnose_death(info(status), LLAMA, "", oom)
    assert describe_diagnosis(found) == reason
    assert (found.mend == OOM_MEND) is bool(oom)
    found = diagnose_death(info(status), LLAMA, "loading the model\n", oom)
    assert describe_diagnosis(found) == f"{reason}; last log line: loading the model"


def test_start_without_a_process_tells_supervisords_reason() -> None:
    found = diagnose_death(info(1 << 8, "too many dispatchers"), LLAMA, "", "")
    assert describe_diagnosis(found) == "too many dispatchers"
    assert found.mend == "see infer-dev logs a"


def test_program_that_cannot_be_executed_is_told_by_the_line_before_the_last() -> None:
    log = "supervisor: couldn't exec /opt/env/bin/python: ENOENT\nsupervisor: child process was not spawned\n"
    found = diagnose_death(info(127 << 8, "Exited too quickly (process log may have details)"), LLAMA, log, "")
    assert (found.kind, found.policy) == ("not-installed", Policy.HOLD)
    assert describe_diagnosis(found) == (
        "exited with status 127: its program cannot be run; "
        "log line: supervisor: couldn't exec /opt/env/bin/python: ENOENT"
    )


def test_line_that_is_told_is_cut_and_holds_no_secret() -> None:
    found = Diagnosis(kind="unknown", policy=Policy.RETRY, ended="exited", line="api_key='hush-hush' k3y-of-ours " * 40)
    told = describe_diagnosis(found, ("k3y-of-ours",))
    assert "hush" not in told
    assert "k3y" not in told
    assert len(told) < 350


def test_server_is_named_where_no_mend_is_known() -> None:
    spec = make_spec("glm", files=(FileSpec(path="/x", text="k\n"),))
    assert diagnose_death(info(1 << 8), spec, "", "").mend == "see infer-dev logs glm"
