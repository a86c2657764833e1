"""What children of PID 1 do, bounded in time: install, model download, reading the config, at boot and again."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Mapping
from typing import Any

from infer_dev_entry.errors import ConfigError, EntryError, ModelError, SettingsError, with_exit_code
from infer_dev_entry.init.reaper import Reaper, describe_end
from infer_dev_entry.init.spawn import signal_group, spawn_helper
from infer_dev_entry.install.marker import make_request, read_fast
from infer_dev_entry.install.model import InstalledEnv
from infer_dev_entry.install.result import parse_answer
from infer_dev_entry.settings import Settings
from infer_dev_entry.spec import Plan, parse_plan

PLAN_TIMEOUT_S = 60.0
REPLAN_TIMEOUT_S = 30.0  # it reads what was read before
# Gigabytes onto a slow network volume, behind another container's install of the same: hours, but not for ever.
INSTALL_TIMEOUT_S = 6 * 3600.0
# Hundreds of gigabytes over a slow line.
DOWNLOAD_TIMEOUT_S = 24 * 3600.0
# A child of a boot stage that is told to stop gets this long before SIGKILL.
STAGE_STOP_S = 1.5


class Stages:
    """Runs the stages. Each child writes its answer, JSON, to a private file in the run directory."""

    def __init__(self, settings: Settings, environ: Mapping[str, str], run_dir: str, reaper: Reaper) -> None:
        self._settings = settings
        self._environ = dict(environ) | {"INFER_DEV_RUN_DIR": run_dir}
        self._run_dir = run_dir
        self._reaper = reaper

    async def install(self) -> InstalledEnv:
        """Return the bundle's environment: at once when the marker proves it, else installed by a child.

        Raises:
            EntryError: no bundle is named, or what the child found, with its exit code.
        """
        if not self._settings.bundle_path:
            raise SettingsError(
                "cannot install at boot: AUTO_INFER_SGLANG_BUNDLE_ON_BOOT=1 needs AUTO_INFER_SGLANG_BUNDLE_PATH; "
                "set it to a bundle"
            )
        known = read_fast(make_request(self._settings))
        if known is not None:
            return known
        answer = await self._ask_child(
            "infer_dev_entry.install.child", "install.json", INSTALL_TIMEOUT_S, "install the bundle"
        )
        return parse_answer(answer)

    async def download(self) -> tuple[dict[str, Any], ...]:
        """Have a child download the models that the config wishes; return what became of each.

        Raises:
            EntryError: no config is named, or what the child found, with its exit code.
        """
        if not self._settings.config:
            raise SettingsError(
                "cannot download models at boot: AUTO_INFER_SGLANG_MODEL_DOWNLOAD_ON_BOOT=1 needs "
                "AUTO_INFER_SGLANG_CONFIG; set it to a TOML file"
            )
        answer = await self._ask_child(
            "infer_dev_entry.models.child", "models.json", DOWNLOAD_TIMEOUT_S, "download the models"
        )
        if "models" not in answer:
            error = _rebuild_error(answer)
            if isinstance(error, ConfigError | SettingsError):
                raise error
            raise with_exit_code(ModelError(str(error)), error.exit_code)
        return tuple(answer["models"])

    async def make_plan(self) -> Plan:
        """Have a child read and check the config.

        Raises:
            EntryError: what the child found, with its exit code.
        """
        return await self._make_plan("plan.json", PLAN_TIMEOUT_S)

    async def make_plan_again(self) -> Plan:
        """Have a child plan the fleet that runs, from the same config: which GPUs would its servers be dealt now?

        Raises:
            EntryError: what the child found, with its exit code.
        """
        return await self._make_plan("again.json", REPLAN_TIMEOUT_S, "again")

    async def _make_plan(self, answer_name: str, timeout_s: float, *words: str) -> Plan:
        answer = await self._ask_child("infer_dev_entry.planner", answer_name, timeout_s, "read the config", *words)
        if "plan" not in answer:
            raise _rebuild_error(answer)
        try:
            return parse_plan(json.dumps(answer["plan"]))
        except ValueError as error:
            raise SettingsError(f"cannot read the config: {error}") from error

    async def _ask_child(
        self, module: str, answer_name: str, timeout_s: float, verb: str, *words: str
    ) -> Mapping[str, Any]:
        """Run a module of ours as a child, with these words, and return the JSON object that it wrote.

        Raises:
            SettingsError: it failed without an answer, or took longer than `timeout_s`.
        """
        path = f"{self._run_dir}/{answer_name}"
        try:
            status = await self._run((sys.executable, "-m", module, path, *words), timeout_s)
            if status != 0:
                raise SettingsError(f"cannot {verb}: the child {describe_end(status)}")
            with open(path, encoding="utf-8") as file:
                answer = json.load(file)
            if not isinstance(answer, dict):
                raise ValueError("the child's answer is no object")
            return answer
        except TimeoutError as error:
            raise SettingsError(f"cannot {verb}: not done in {timeout_s:g} s") from error
        except (OSError, ValueError) as error:
            raise SettingsError(f"cannot {verb}: {error}") from error
        finally:
            with contextlib.suppress(OSError):
                os.unlink(path)  # it may hold the servers' environment

    async def _run(self, argv: tuple[str, ...], timeout_s: float) -> int:
        """Run a child and return its wait status; it is ended when time runs out or boot is cancelled.

        Raises:
            TimeoutError: it took longer than `timeout_s`.
        """
        pid = spawn_helper(argv, self._environ)
        exited = self._reaper.expect(pid)
        try:
            return await asyncio.wait_for(asyncio.shield(exited), timeout_s)
        finally:
            if not exited.done():
                signal_group(pid, signal.SIGTERM)
                await asyncio.wait({exited}, timeout=STAGE_STOP_S)
                signal_group(pid, signal.SIGKILL)


def _rebuild_error(answer: Mapping[str, Any]) -> EntryError:
    faults = tuple(str(fault) for fault in answer.get("faults", ())) or ("the child gives no reason",)
    if answer.get("exit_code") == ConfigError.exit_code:
        return ConfigError(faults)
    if answer.get("exit_code", SettingsError.exit_code) == SettingsError.exit_code:
        return SettingsError("; ".join(faults))
    return with_exit_code(EntryError("; ".join(faults)), int(answer["exit_code"]))
