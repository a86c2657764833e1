"""The door to nginx: its configuration is rendered, tested, written and loaded whenever pools or keys have changed.

What runs is asked for, not remembered: nginx says on its status page by which configuration it works. So a start by
hand, a crash or a reload that nginx gave up are all the same to us.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import time
from functools import partial
from pathlib import Path

from infer_dev_entry.errors import RunDirError
from infer_dev_entry.fleet.actions import Route
from infer_dev_entry.gateway.keys import ApiKey
from infer_dev_entry.gateway.nginx import STATUS_PATH, render_nginx
from infer_dev_entry.gateway.nginx_words import find_complaint, key_pattern
from infer_dev_entry.init.access_log import AccessLog
from infer_dev_entry.init.aside import Aside
from infer_dev_entry.init.gateway import GatewayTools, Problem
from infer_dev_entry.init.keys_watch import KeysWatch
from infer_dev_entry.init.owner import become_command, find_worker_user
from infer_dev_entry.init.reaper import describe_end
from infer_dev_entry.init.route_follower import RouteFollower
from infer_dev_entry.init.spawn import signal_group, spawn_helper
from infer_dev_entry.probe import read_page
from infer_dev_entry.redact import api_key_of, redact_line
from infer_dev_entry.rundir import read_text, write_private
from infer_dev_entry.spec import ServerSpec

# A key file and the size of a log are looked at this often.
LOOK_S = 2.0
# Testing takes some 20 ms. A file system or a resolver that hangs must not hold up every start for longer.
TEST_TIMEOUT_S = 5.0
FILES_TIMEOUT_S = 5.0
LOAD_TIMEOUT_S = 5.0
RETRY_S = 5.0
_PAUSE_S = 0.02
_PAGE_TIMEOUT_S = 1.0


class NginxDoor:
    """Works on one gateway, at one thing at a time; of the routes that come meanwhile the last one counts."""

    def __init__(self, tools: GatewayTools) -> None:
        self._tools = tools
        self._log = tools.log
        self._keys = KeysWatch(tools.log)
        self._lock = asyncio.Lock()
        self._access_log = AccessLog(tools.owner)
        self._log_problem = ""
        self._files = Aside()  # those that users choose the place of
        self._follower = RouteFollower(
            tools,
            lambda route: self._catch_up(route),
            verb="reconfigure the gateway",
            retry_s=RETRY_S,
            look=self._look,
            look_s=LOOK_S,
            notice=lambda: self._keys.problem,
        )

    # -- what the actor asks for

    def route(self, route: Route) -> None:
        """Remember what nginx is to do, and have it do so soon."""
        self._follower.follow(route)

    def look(self) -> None:
        """Nothing: what runs is looked at together with the files."""

    async def prepare(self, spec: ServerSpec) -> Problem | None:
        """Write the configuration that a start reads, tested; a problem stops the start."""
        assert spec.gateway is not None
        async with self._lock:
            route = self._follower.route
            ready = route.ready if route and route.spec.name == spec.name else ()
            try:
                await self._files.run(partial(self._make_places, spec), FILES_TIMEOUT_S)
                text, _, secrets = await self._render(spec, ready)
                problem = await self._write_tested(spec, text, secrets)
            except (OSError, RunDirError) as error:  # TimeoutError is an OSError
                problem = Problem(reason=f"cannot prepare the gateway: {str(error) or 'its files do not answer'}")
        if problem is None and not spec.gateway.api_keys_file and not spec.is_local:
            mend = "set gateway.api_keys_file: infer-dev gateway keys add FILE --name NAME makes one"
            self._log.warning("gateway.open", message=f"whoever reaches {spec.url} may use the servers", mend=mend)
        return problem

    def close(self) -> None:
        """Give up whatever is under way."""
        self._follower.close()

    # -- keeping up

    async def _look(self, route: Route) -> bool:
        """Rotate a log that is full; say whether the keys have changed, whatever comes of the log."""
        assert route.spec.gateway is not None
        try:
            return await self._files.run(partial(self._look_at_files, route), FILES_TIMEOUT_S)
        except OSError:
            return False

    def _look_at_files(self, route: Route) -> bool:
        gateway = route.spec.gateway
        assert gateway is not None
        spec = route.spec
        problem = ""
        try:
            if self._access_log.rotate(gateway.access_log, spec.log_max_bytes, spec.log_backups):
                _signal(route.pid, signal.SIGUSR1)
        except OSError as error:
            problem = str(error)
        if problem and problem != self._log_problem:
            self._log.warning("gateway.log_not_rotated", server=spec.name, reason=problem)
        self._log_problem = problem
        return self._keys.has_changed(gateway.api_keys_file)

    async def _catch_up(self, route: Route) -> Problem | None:
        """Make the running nginx work by this route; returns what kept it from that."""
        async with self._lock:
            return await self._reload(route)

    async def _reload(self, route: Route) -> Problem | None:
        began = time.monotonic()
        text, generation, secrets = await self._render(route.spec, route.ready)
        running = await self._wait_until_up(route)
        if running == generation or not _is_alive(route.pid) or not self._follower.is_current(route):
            return None
        if not running:
            mend = f"see infer-dev logs {route.spec.name}"
            return Problem(reason=f"nginx does not answer on its status port {route.spec.probe.port}", mend=mend)
        problem = await self._write_tested(route.spec, text, secrets)
        if problem is not None:
            return problem
        _signal(route.pid, signal.SIGHUP)
        if not await self._wait_until_loaded(route, generation):
            if not self._follower.is_current(route) or not _is_alive(route.pid):
                return None  # news has come meanwhile
            return Problem(
                reason=f"nginx did not take its new configuration within {LOAD_TIMEOUT_S:g} s",
                mend=f"see infer-dev logs {route.spec.name}",
            )
        names = " ".join(server.name for server in route.ready)
        took_ms = round(1000 * (time.monotonic() - began))
        self._log.info("gateway.routed", server=route.spec.name, ready=names or "none", took_ms=took_ms)
        return None

    async def _wait_until_up(self, route: Route) -> str:
        """Wait for the status page, and return the generation on it; "" when none comes.

        Until nginx handles SIGHUP that signal ends it. By its handlers in /proc it cannot be told when that is: before
        the exec they are supervisord's. A worker that answers has a master that handles it.
        """
        until = time.monotonic() + LOAD_TIMEOUT_S
        while time.monotonic() < until and _is_alive(route.pid):
            if running := await _running_generation(route.spec):
                return running
            await asyncio.sleep(_PAUSE_S)
        return ""

    async def _wait_until_loaded(self, route: Route, generation: str) -> bool:
        until = time.monotonic() + LOAD_TIMEOUT_S
        while time.monotonic() < until:
            if await _running_generation(route.spec) == generation:
                return True
            if not _is_alive(route.pid):
                return False
            await asyncio.sleep(_PAUSE_S)
        return False

    # -- the configuration

    async def _render(self, spec: ServerSpec, ready: tuple[ServerSpec, ...]) -> tuple[str, str, tuple[str, ...]]:
        """Return the text, its generation, and the secrets in it."""
        assert spec.gateway is not None
        path = spec.gateway.api_keys_file
        try:
            keys = await self._files.run(partial(self._keys.read, path), FILES_TIMEOUT_S)
        except TimeoutError:  # servers come and go all the same
            keys = self._keys.in_force(path)
        user = "" if self._tools.owner else find_worker_user()
        text, generation = render_nginx(spec, ready, keys, user=user)
        return text, generation, _secrets(keys or (), ready)

    async def _write_tested(self, spec: ServerSpec, text: str, secrets: tuple[str, ...]) -> Problem | None:
        """Put the configuration in the place of the old one, if nginx accepts it."""
        assert spec.gateway is not None
        owner = self._tools.owner
        candidate = f"{spec.gateway.conf}.new"
        ids = (owner.uid, owner.gid) if owner else None
        await asyncio.to_thread(write_private, candidate, text, owner=ids)
        try:
            refusal = await self._test(spec, candidate)
            if not refusal:
                os.replace(candidate, spec.gateway.conf)
                return None
        finally:
            with contextlib.suppress(OSError):
                os.unlink(candidate)
        reason = redact_line(refusal, secrets)
        return Problem(
            reason=f"nginx refuses its configuration: {reason}", mend="infer-dev gateway check shows it whole"
        )

    async def _test(self, spec: ServerSpec, candidate: str) -> str:
        """Run `nginx -t` as the servers' user; return what it complains of, "" when it is content."""
        tools, owner = self._tools, self._tools.owner
        argv = [*(candidate if word == spec.gateway.conf else word for word in spec.argv), "-t", "-q"]  # type: ignore[union-attr]
        if owner is not None:
            argv = [*become_command(owner), *argv]
        output = f"{tools.run_dir}/gateway-test.out"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(output)
        pid = spawn_helper(argv, {"PATH": tools.environ.get("PATH", "")}, output=output)
        exited = tools.reaper.expect(pid)
        done, _ = await asyncio.wait({exited}, timeout=TEST_TIMEOUT_S)
        if not done:
            signal_group(pid, signal.SIGKILL)
            return f"nginx -t did not end within {TEST_TIMEOUT_S:g} s"
        if exited.result() == 0:
            return ""
        return find_complaint(read_text(output)) or f"nginx -t {describe_end(exited.result())}"

    def _make_places(self, spec: ServerSpec) -> None:
        """Make the directory of the configuration, the log of requests, and let workers into nginx's own places."""
        assert spec.gateway is not None
        Path(spec.gateway.conf).parent.mkdir(mode=0o711, parents=True, exist_ok=True)
        if os.geteuid() == 0 and self._tools.owner is None:
            # As root nginx gives its workers to `nobody`, who has to reach the files of large bodies there.
            os.chmod(dict(spec.environment)["TMPDIR"], 0o711)
        self._access_log.make(spec.gateway.access_log)


def _secrets(keys: tuple[ApiKey, ...], ready: tuple[ServerSpec, ...]) -> tuple[str, ...]:
    """Every secret in the configuration, also as it is written there."""
    plain = [*(key.key for key in keys), *(api_key_of(server.files) for server in ready)]
    return tuple(dict.fromkeys(form for key in plain if key for form in (key, key_pattern(key))))


async def _running_generation(spec: ServerSpec) -> str:
    """Ask nginx by which configuration it works; "" when it does not say."""
    page = await read_page("127.0.0.1", spec.probe.port, STATUS_PATH, _PAGE_TIMEOUT_S)
    try:
        found = json.loads(page.text) if page.status == 200 else {}
    except ValueError:
        return ""
    return str(found.get("generation", "")) if isinstance(found, dict) else ""


def _is_alive(pid: int) -> bool:
    return os.path.exists(f"/proc/{pid}")


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)
