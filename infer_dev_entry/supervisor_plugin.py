"""An XML-RPC namespace inside supervisord: exact wait statuses, and group updates that leave other programs running.

Runs in supervisord's process. supervisord alone reports a signal death as exit status -1, and its own `update` restarts
every program of a changed group. The servers are also offered to the kernel's OOM killer before PID 1 and supervisord,
and logs that are closed to others stay so. Of those that it shows secrets are blotted out.
"""

from __future__ import annotations

import signal
from contextlib import suppress
from typing import Any

from supervisor import loggers
from supervisor.process import Subprocess
from supervisor.states import STOPPED_STATES, ProcessStates, SupervisorStates, getProcessStateDescription
from supervisor.xmlrpc import Faults, RPCError

from infer_dev_entry.private_log import ClosedLogs
from infer_dev_entry.render import GROUP
from infer_dev_entry.supervisor_logs import redact_logs

NO_STATUS = -1
# Thousandths of the memory limit, added to a server's own share when the kernel looks for whom to kill. From 300 MB of
# memory on that alone is more than PID 1 holds; much more would single our servers out on a shared host.
OOM_SCORE_RAISE = 100
_OOM_SCORE_FILE = "/proc/self/oom_score_adj"
# The signals that supervisord handles and that end a program.
_STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR2)


class FleetInterface:
    """The methods `infer_dev.status` and `infer_dev.update`."""

    def __init__(self, supervisord: Any) -> None:
        self._supervisord = supervisord

    def status(self) -> list[dict[str, Any]]:
        """Reap, then return one struct a program: name, statename, pid, wait_status (-1: none yet) and spawnerr."""
        self._supervisord.reap()
        group = self._supervisord.process_groups.get(GROUP)
        if group is None:
            return []
        for process in group.processes.values():
            process.transition()
        return [
            {
                "name": process.config.name,
                # While supervisord shuts down, a stop is its own doing, and no wish for this server.
                "statename": self._statename(process),
                "pid": process.pid,
                "wait_status": getattr(process, "infer_dev_wait_status", NO_STATUS),
                "spawnerr": process.spawnerr or "",
            }
            for process in group.processes.values()
        ]

    def _statename(self, process: Any) -> str:
        state = process.get_state()
        ending = self._supervisord.options.mood < SupervisorStates.RUNNING
        if ending and state in (ProcessStates.STOPPED, ProcessStates.STOPPING):
            return "SHUTDOWN"
        return str(getProcessStateDescription(state))

    def update(self) -> list[str]:
        """Read the configuration file again and apply it program by program; return the names left as they were
        because they still run with an older configuration.

        Raises:
            RPCError: CANT_REREAD when supervisord cannot parse the file; nothing is changed then.
        """
        self._supervisord.reap()
        options = self._supervisord.options
        try:
            options.process_config(do_usage=False)
        except ValueError as error:
            raise RPCError(Faults.CANT_REREAD, str(error)) from error
        wanted = next((config for config in options.process_group_configs if config.name == GROUP), None)
        group = self._supervisord.process_groups.get(GROUP)
        if group is None:
            if wanted is not None:
                wanted.after_setuid()
                self._supervisord.add_process_group(wanted)
            return []
        return _update_group(group, wanted)


def _update_group(group: Any, wanted: Any) -> list[str]:
    configs = {config.name: config for config in (wanted.process_configs if wanted else [])}
    busy = []
    for name, process in list(group.processes.items()):
        if configs.get(name) == process.config:
            continue
        if process.get_state() not in STOPPED_STATES:
            busy.append(name)
            continue
        del group.processes[name]
    for name, config in configs.items():
        if name not in group.processes:
            config.create_autochildlogs()
            group.processes[name] = config.make_process(group)
    if wanted is not None:
        group.config = wanted
    return busy


def make_fleet_interface(supervisord: Any, **_config: str) -> FleetInterface:
    """Make the namespace; named in supervisord.conf as `supervisor.rpcinterface_factory`."""
    _keep_wait_statuses()
    lose_no_signal(Subprocess)
    _offer_servers_to_oom_killer()
    redact_logs()
    vars(loggers)["open"] = ClosedLogs()  # a module's own name hides the built-in
    return FleetInterface(supervisord)


def _keep_wait_statuses() -> None:
    """Have every program remember the raw status that waitpid gave, which supervisord only writes to its log."""
    original = Subprocess.finish

    def finish(self: Any, pid: int, sts: int) -> Any:
        self.infer_dev_wait_status = sts
        return original(self, pid, sts)

    Subprocess.finish = finish


def lose_no_signal(subprocess: Any) -> None:
    """Have a signal that comes between fork and exec end the child, as it would end the program.

    The child still has supervisord's handlers there: they would take a stop, and exec would forget it. The server would
    then load its model until the drain's deadline.
    """
    spawn, spawn_as_child = subprocess.spawn, subprocess._spawn_as_child
    before: set[Any] = set()

    def spawn_blocked(self: Any) -> Any:
        before.clear()
        before.update(signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals()))
        try:
            return spawn(self)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)  # the child does not come here

    def spawn_as_child_unblocked(self: Any, filename: str, argv: list[str]) -> Any:
        for number in _STOPS:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return spawn_as_child(self, filename, argv)

    subprocess.spawn, subprocess._spawn_as_child = spawn_blocked, spawn_as_child_unblocked


def _offer_servers_to_oom_killer() -> None:
    """Have every program raise its own OOM score between fork and exec; where that is refused it starts all the same.

    A container without memory then loses a server, which comes back, and not PID 1, with which everything would go.
    """
    original = Subprocess._spawn_as_child

    def spawn_as_child(self: Any, filename: str, argv: list[str]) -> Any:
        with suppress(OSError, ValueError):
            raise_oom_score()
        return original(self, filename, argv)

    Subprocess._spawn_as_child = spawn_as_child


def raise_oom_score() -> None:
    """Raise this process's OOM score; what the container was given (docker run --oom-score-adj) is where it starts.

    Raises:
        OSError, ValueError: the file cannot be read or written.
    """
    with open(_OOM_SCORE_FILE, "r+", encoding="ascii") as file:
        score = min(1000, int(file.read()) + OOM_SCORE_RAISE)
        file.seek(0)
        file.write(f"{score}\n")
