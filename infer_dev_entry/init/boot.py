"""Boot a fleet as PID 1: run directory, control socket, the stages that the gates ask for, the command, the loop."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
from collections.abc import Iterable, Mapping
from functools import partial

from infer_dev_entry.errors import BundleError, ConfigError, EntryError, InstallError, ModelError, SettingsError
from infer_dev_entry.fleet import Fleet
from infer_dev_entry.fleet.observations import ShutdownWish
from infer_dev_entry.init.act import Actor
from infer_dev_entry.init.aside import Aside
from infer_dev_entry.init.command import Command
from infer_dev_entry.init.control import serve_control
from infer_dev_entry.init.loop import FleetLoop
from infer_dev_entry.init.mirror_child import MirrorChild
from infer_dev_entry.init.owner import Owner, find_owner
from infer_dev_entry.init.parent import follow_parent, remove_traces
from infer_dev_entry.init.reaper import Reaper
from infer_dev_entry.init.requests import Requests
from infer_dev_entry.init.stages import Stages
from infer_dev_entry.init.status_http import parse_address, serve_status
from infer_dev_entry.log import LineWriter, configure_log, get_log
from infer_dev_entry.render import DaemonSpec
from infer_dev_entry.rundir import (
    control_socket,
    default_run_dir,
    instance_tmp_dir,
    prepare_run_dir,
    read_fleet_id,
    write_private,
)
from infer_dev_entry.settings import Settings

# What a disk that hangs, or a million files, may add to a stop.
REMOVE_S = 1.0

_STOP = (signal.SIGTERM, signal.SIGINT)
# Left to the kernel: for these a Python handler would run for ever on the faulting instruction.
_FAULTS = {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL}
_UNCATCHABLE = {signal.SIGKILL, signal.SIGSTOP}


def run_fleet(
    settings: Settings,
    command: tuple[str, ...],
    environ: Mapping[str, str],
    *,
    mask: Iterable[int],
    keeper: bool,
    parent: int = 0,
) -> int:
    """Boot, supervise, drain; return the exit code of the container."""
    configure_log(settings.log_format, settings.log_level)
    return asyncio.run(_Entry(settings, command, environ, tuple(mask), keeper, parent).run())


class _Entry:
    """One life of the entry: what is shared between the boot line, the signals and the end."""

    def __init__(
        self,
        settings: Settings,
        command: tuple[str, ...],
        environ: Mapping[str, str],
        mask: tuple[int, ...],
        keeper: bool,
        parent: int,
    ) -> None:
        self._settings = settings
        self._environ = environ
        self._parent = parent
        self._parent_gone = False
        self._log = get_log()
        self._run_dir = default_run_dir(environ)
        self._fleet_id = ""
        self._reaper = Reaper()
        self._loop: FleetLoop | None = None
        planning = {name: environ[name] for name in ("PATH", "TMPDIR") if name in environ}
        self._requests = Requests(keeper=keeper, planning=planning)
        self._mirror = MirrorChild(self._reaper, environ, self._run_dir, self._log)
        self._command = Command(
            command, environ, mask, reaper=self._reaper, log=self._log, on_exit=self._take_command_exit
        )
        self._stages = Stages(self._settings, self._environ, self._run_dir, self._reaper)
        self._boot: asyncio.Task[None] | None = None
        self._servers: list[asyncio.Server] = []
        self._on_terminal = os.isatty(0)  # asked now: a terminal that hung up is none
        self._stops = 0
        self._stopping = asyncio.Event()
        self._exit_code = 0

    # -- the life

    async def run(self) -> int:
        self._catch_signals()
        for warning in self._settings.warnings:
            self._log.warning("settings.odd", message=warning)
        self._boot = asyncio.get_running_loop().create_task(self._boot_line())
        if self._parent:
            follow_parent(self._parent, self._take_parent_end)
        await self._wait_for_end()
        await self._end()
        # asyncio closes the pipe that its handlers write to before it removes them: a late SIGCHLD gave a traceback.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        return self._exit_code

    async def _wait_for_end(self) -> None:
        """Wait for a stop signal, the end of the command, or the end of a hand-started fleet."""
        while not self._stopping.is_set():
            await self._stopping.wait()

    async def _boot_line(self) -> None:
        """The boot stages, in order. An error ends the container or is kept for `status`, as the settings say."""
        try:
            await self._open_run_dir()
            await self._run_stages()
            self._requests.stage = "running"
        except EntryError as error:
            self._take_boot_error(error)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            self._log.error("entry.bug", error=repr(error), exc_info=error)
            self._take_boot_error(EntryError(f"cannot boot: {error!r}; this is a bug in infer-dev"))
        if not self._stopping.is_set():
            self._command.start()

    def _take_boot_error(self, error: EntryError) -> None:
        """Log every fault on a line of its own, the first one first."""
        self._requests.take_boot_error(error)
        faults = error.faults if isinstance(error, ConfigError) else (str(error),)
        for fault in faults:
            self._log.error("boot.failed", error=fault, exit_code=error.exit_code)
        if self._settings.exit_on_error or self._requests.keeper:
            self._exit_code = error.exit_code
            self._stopping.set()
        else:
            by_hand = "infer-dev install, then " if isinstance(error, (BundleError, InstallError)) else ""
            by_hand = "infer-dev model pull, then " if isinstance(error, ModelError) else by_hand
            mend = f"mend the cause, then: {by_hand}infer-dev serve CONFIG.toml; or restart the container"
            self._log.warning("boot.staying", mend=mend)

    # -- boot stages

    async def _open_run_dir(self) -> None:
        owner, no_owner = self._find_owner()
        self._lock = prepare_run_dir(self._run_dir, shared=owner is not None)
        fleet_id = self._fleet_id = read_fleet_id(self._run_dir)
        write_private(f"{self._run_dir}/entry.pid", f"{os.getpid()}\n")
        daemon = DaemonSpec(
            run_dir=self._run_dir,
            user=owner.name if owner else "",
            is_root=os.geteuid() == 0,
            fleet_id=fleet_id,
            environment=owner.home_environment if owner else (),
        )
        self._loop = FleetLoop(
            lambda loop: Actor(
                daemon=daemon,
                owner=owner,
                environ=self._environ,
                reaper=self._reaper,
                log=self._log,
                post=loop.post,
                poke=loop.poke,
                plan_again=self._stages.make_plan_again,
            ),
            self._log,
            on_ready=self._greet,
            on_turn=self._take_turn,
        )
        self._requests.attach(self._loop, run_dir=self._run_dir, fleet_id=fleet_id)
        self._loop_task = asyncio.get_running_loop().create_task(self._loop.run())
        uids = frozenset({0, os.geteuid(), *([owner.uid] if owner else [])})
        self._servers.append(await serve_control(control_socket(self._run_dir), self._requests.handle, uids))
        if self._settings.status_addr:
            host, port = parse_address(self._settings.status_addr)
            self._servers.append(await serve_status(host, port, self._requests))
        self._log.info("entry.started", pid=os.getpid(), run_dir=self._run_dir, fleet_id=fleet_id)
        if no_owner:  # said only now, when `status` can be asked; servers must not run as root instead
            self._requests.refuse_plans(str(no_owner))
            raise no_owner

    def _find_owner(self) -> tuple[Owner | None, SettingsError | None]:
        try:
            return find_owner(self._settings), None
        except SettingsError as error:
            return None, error

    async def _run_stages(self) -> None:
        stages = self._stages
        if self._settings.bundle_on_boot:
            self._requests.stage = "installing"
            installed = await stages.install()
            event = "bundle.installed" if installed.was_installed else "bundle.unchanged"
            self._log.info(event, env=installed.link, backend=installed.backend, sha256=installed.bundle_sha256)
        if self._settings.model_download_on_boot:
            self._requests.stage = "downloading"
            for model in await stages.download():
                self._log.info(f"model.{model.pop('how')}", **model)
        if self._settings.on_boot:
            self._requests.stage = "planning"
            plan = await stages.make_plan()
            for warning in plan.warnings:
                self._log.warning("config.note", message=warning)
            self._log.info("config.loaded", source=plan.source, servers=len(plan.servers))
            self._requests.apply(plan)

    def _take_command_exit(self, code: int) -> None:
        self._exit_code = code
        self._stopping.set()

    # -- signals

    def _catch_signals(self) -> None:
        """Handle every signal that can be handled, then let those through that came before.

        Also those that our parent had blocked: that mask is for the command, and would leave us deaf.
        """
        loop = asyncio.get_running_loop()
        for number in signal.valid_signals() - _FAULTS - _UNCATCHABLE:
            with contextlib.suppress(OSError, ValueError, RuntimeError):
                loop.add_signal_handler(number, self._take_signal, number)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        self._reaper.reap()  # whoever exec'ed us may have left dead children, of whom no signal tells any more

    def _take_signal(self, number: int) -> None:
        if number == signal.SIGCHLD:
            self._reaper.reap()
        elif number in _STOP or (number == signal.SIGHUP and self._is_hangup()):
            self._take_stop(number)
        elif self._command.is_running:
            self._command.signal(number)
        else:
            self._log.debug("signal.ignored", signal=_signal_name(number))

    def _is_hangup(self) -> bool:
        """A closed terminal ends a fleet that runs in it by hand; a container's PID 1 takes SIGHUP for the command."""
        return not self._command.argv and os.getpid() != 1 and self._on_terminal

    def _take_stop(self, number: int) -> None:
        self._stops += 1
        self._log.info("entry.stopping", signal=_signal_name(number), cut_short=self._stops > 1)
        self._command.signal(number if self._stops == 1 else signal.SIGKILL)
        if self._stops > 1 and self._loop:
            self._loop.wish(ShutdownWish(now=True))
        self._stopping.set()

    def _take_parent_end(self) -> None:
        self._log.warning("entry.parent_gone", pid=self._parent)
        self._parent_gone = True
        self._stopping.set()

    # -- the end

    async def _end(self) -> None:
        """Drain every server in parallel, end the command, and report who had to be killed."""
        began = asyncio.get_running_loop().time()
        if self._boot and not self._boot.done():
            self._boot.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._boot
        loop = self._loop
        if loop is not None:
            loop.wish(ShutdownWish(now=self._stops > 1))
            await self._loop_task
            await loop.actor.stop_planning()
            await loop.actor.supervisord.stop()
        drains = [server.spec.drain_timeout_s for server in loop.fleet.servers] if loop else []
        await self._command.end(began, drains, lambda: self._stops > 1)
        if loop is not None:
            await self._mirror.stop(in_a_hurry=self._stops > 1)
            for server in self._servers:
                server.close()
            loop.actor.clean_up()
            await self._remove_tmp_files()
            killed = loop.fleet.had_to_kill
            took_s = round(asyncio.get_running_loop().time() - began, 2)
            self._log.info("entry.stopped", took_s=took_s, had_to_kill=list(killed), exit_code=self._exit_code)
            if self._parent_gone:
                remove_traces(self._run_dir)

    async def _remove_tmp_files(self) -> None:
        """Remove the servers' own TMPDIRs, which nobody reads any more; what cannot be removed in time stays."""
        folder = instance_tmp_dir(self._environ, self._fleet_id)
        with contextlib.suppress(Exception):  # such as RecursionError: whatever is in them, the report is to follow
            await Aside().run(partial(shutil.rmtree, folder, ignore_errors=True), REMOVE_S)

    # -- small ones

    def _greet(self, line: str) -> None:
        """Show the ready table to a person; a log collector has the event."""
        if self._settings.log_format == "console" or (not self._settings.log_format and os.isatty(2)):
            LineWriter(2).write_line(line)

    def _take_turn(self, fleet: Fleet) -> None:
        if self._settings.log_mirror:
            self._mirror.follow({server.spec.name: server.spec.log_file for server in fleet.servers})
        if self._requests.keeper and self._requests.is_over():
            self._stopping.set()


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
