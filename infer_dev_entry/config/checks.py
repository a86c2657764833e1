"""Checks of the fleet as a whole and against the machine: ports, log files, programs, models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import PurePosixPath

from infer_dev_entry.config.downloads import is_path
from infer_dev_entry.config.facts import Host
from infer_dev_entry.config.faults import Faults, Path, shown
from infer_dev_entry.config.instances import Instance
from infer_dev_entry.render import path_problem

DOWNLOAD_GATE = "AUTO_INFER_SGLANG_MODEL_DOWNLOAD_ON_BOOT"
_WILDCARDS = ("", "0.0.0.0", "::", "[::]")


class FleetChecker:
    """Checks one server after the other, and remembers what the earlier ones use. Facts are asked for once."""

    def __init__(self, host: Host, faults: Faults) -> None:
        self._host = host
        self._faults = faults
        self._ports: dict[int, list[tuple[str, str]]] = {}
        self._logs: dict[str, str] = {}
        self._facts: dict[tuple[str, str], str | None] = {}

    def check_port(
        self,
        name: str,
        host: str,
        port: int,
        path: Path,
        use: str = "port",
        *,
        mend: str = "stop it, or choose another port",
    ) -> None:
        """Report a port that another server of the config uses, or that a process listens on."""
        users = self._ports.setdefault(port, [])
        other = next((user for address, user in users if _overlap(address, host)), "")
        users.append((host, name))
        if other:
            problem = f"{use} {port} of {name} is also used by {other}"
            self._faults.add(path, problem, "give each server a port of its own")
            return
        holder = self._host.port_holder(host, port)
        if holder:
            self._faults.add(path, f"{use} {port} of {name} is in use by {holder}", mend)

    def check_log_file(self, name: str, log_file: str, path: Path) -> None:
        """Report a log file that another server writes, or whose directory cannot be written."""
        other = self._logs.setdefault(log_file, name)
        if other != name:
            self._faults.add(path, f"{shown(log_file)} is also the log file of {other}", "give each its own log_file")
        unfit = path_problem(log_file)
        if unfit:
            self._faults.add(path, f"{shown(log_file)} cannot be a log file: {unfit}", "choose another path")
        lies_there = self._fact("log_file", log_file, self._host.log_file_problem)
        if lies_there:
            self._faults.add(path, f"{shown(log_file)} {lies_there}", "remove it, or choose another log_file")
        directory = str(PurePosixPath(log_file).parent)
        problem = self._fact("log_dir", directory, self._host.log_dir_problem)
        if problem:
            self._faults.add(path, f"cannot write logs to {shown(directory)}: {problem}", "choose another log_dir")

    def check_program(self, program: str, path: Path, mend: str) -> None:
        """Report a program that cannot be run."""
        problem = self._fact("program", program, self._host.program_problem)
        if problem:
            self._faults.add(path, f"cannot run {shown(program)}: {problem}", mend)

    def check_model(self, instance: Instance, model: str, path: Path, *, downloads: bool) -> None:
        """Report a model path that is not there; a bare `org/name` is left to the server to fetch."""
        if instance.profile.name == "llama_cpp" and model and not model.startswith(("/", "~")):
            self._faults.add(path, f"{shown(model)} is not an absolute path", "write the whole path of the GGUF file")
            return
        if not is_path(model) or (downloads and instance.model):
            return
        problem = self._fact("model", model, self._host.model_problem)
        if problem:
            mend = "correct the path, or mount the models there"
            if instance.model:
                mend = f"download it: infer-dev model pull {instance.name}, or set {DOWNLOAD_GATE}=1"
            self._faults.add(path, f"cannot read {shown(model)}: {problem}", mend)

    def check_package(self, name: str, path: Path, mend: str) -> None:
        """Report a Python distribution that our own interpreter lacks."""
        problem = self._fact("package", name, self._host.package_problem)
        if problem:
            self._faults.add(path, f"package {shown(name)}: {problem}", mend)

    def _fact(self, kind: str, subject: str, ask: Callable[[str], str | None]) -> str | None:
        if (kind, subject) not in self._facts:
            self._facts[kind, subject] = ask(subject)
        return self._facts[kind, subject]


def _overlap(first: str, second: str) -> bool:
    return first == second or first in _WILDCARDS or second in _WILDCARDS
