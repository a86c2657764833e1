"""The pixi backends run programs: a labelled recording stub here, and the real ones where PIXI_BIN and PIXI_UNPACK_BIN
name them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("zstandard", reason="zstandard is not installed: pip install zstandard")
pytest.importorskip("tomlkit", reason="tomlkit is not installed: pip install tomlkit")

import conda_bundles as make
import psutil

from infer_dev_entry.errors import InstallError
from infer_dev_entry.install.model import InstallRequest
from infer_dev_entry.install.pixi import PixiBackend
from infer_dev_entry.install.pixi_unpack import PixiUnpackBackend
from infer_dev_entry.install.processes import run_tool
from infer_dev_entry.install.store import Store

# NOT pixi and NOT pixi-unpack: it writes down how it was called, and makes the directories that they would make.
STUB = """#!{python} -I
import json, os, pathlib, sys
argv = sys.argv[1:]
with open({record!r}, "a") as file:
    file.write(json.dumps({{"argv": argv, "env": dict(os.environ), "cwd": os.getcwd()}}) + "\\n")
def after(word):
    return argv[argv.index(word) + 1]
if {fail!r} in argv:
    print("  × the stub was told to fail", file=sys.stderr)
    sys.exit(3)
if "--output-directory" in argv:
    prefix = pathlib.Path(after("--output-directory"), after("--env-name"))
    (prefix / "conda-meta").mkdir(parents=True)
    (prefix.parent / "activate.sh").write_text(f"export STUB_PREFIX='{{prefix}}'\\n")
elif argv[0] == "install":
    prefix = pathlib.Path(after("--manifest-path")).parent / ".pixi/envs" / after("--environment")
    (prefix / "conda-meta").mkdir(parents=True)
    (prefix / "bin").mkdir()
elif argv[0] == "shell-hook":
    print(json.dumps({{"environment_variables": {{"STUB": "x" * 2000 + "\\n$y"}}}}))
"""


class Stub:
    """The recording stub on disk."""

    def __init__(self, folder: Path, fail: str = "never") -> None:
        self.path = folder / "stub"
        self._record = folder / "record"
        text = STUB.format(python=sys.executable, record=str(self._record), fail=fail)
        self.path.write_text(text)
        self.path.chmod(0o755)

    @property
    def calls(self) -> list[dict[str, Any]]:
        """What it was called with."""
        return [json.loads(line) for line in self._record.read_text().splitlines()]


def make_request(folder: Path, **changes: Any) -> tuple[InstallRequest, str]:
    """Return a request for a fresh project directory, and the prefix to install to."""
    project = folder / "project"
    Store(str(project)).prepare()
    return InstallRequest(bundle_path="/b", project_dir=str(project), **changes), f"{project}/envs/abc"


def make_bundle(folder: Path) -> Any:
    """A described layout of one native package."""
    package = make.build_native(folder / "packages", folder / "scratch")
    return make.describe(make.write_layout(folder / "bundle", [package]))


def make_template(folder: Path) -> str:
    """A template whose environment is that one package."""
    text = (
        '[workspace]\nname = "t"\nchannels = ["nowhere"]\nplatforms = []\n'
        '[dependencies]\nnativetool = "*"\n[tasks]\nverify = "nativetool"\n'
    )
    make.write_files(folder, {"template/pixi.toml": text})
    return str(folder / "template")


# -- with the recording stub


def test_pixi_unpack_stub_gets_bare_environment_and_its_script_is_captured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UV_INDEX_URL", "outer")
    stub = Stub(tmp_path)
    request, prefix = make_request(tmp_path, pixi_unpack_bin=str(stub.path))
    backend = PixiUnpackBackend()
    backend.install(make_bundle(tmp_path), prefix, request, make.QuietProgress())
    (call,) = stub.calls
    assert call["argv"][-1] == str(tmp_path / "bundle")
    assert "UV_INDEX_URL" not in call["env"]
    assert call["env"]["TMPDIR"].startswith(request.project_dir)
    assert ("STUB_PREFIX", prefix) in backend.activation(prefix)


def test_pixi_stub_is_run_step_by_step_in_the_prefix(tmp_path: Path) -> None:
    stub = Stub(tmp_path)
    request, prefix = make_request(tmp_path, pixi_template_dir=make_template(tmp_path))
    backend = PixiBackend(str(stub.path))
    backend.install(make_bundle(tmp_path), prefix, request, make.QuietProgress())
    assert [call["argv"][0] for call in stub.calls] == ["lock", "install", "run"]
    assert {call["cwd"] for call in stub.calls} == {prefix}
    assert backend.activation(prefix) == (("STUB", "x" * 2000 + "\n$y"),)


@pytest.mark.parametrize("step", ["lock", "install", "run"])
def test_pixi_stub_that_fails_is_told(tmp_path: Path, step: str) -> None:
    request, prefix = make_request(tmp_path, pixi_template_dir=make_template(tmp_path))
    with pytest.raises(InstallError, match=rf"pixi {step}: the stub was told to fail \(exit status 3\)"):
        backend = PixiBackend(str(Stub(tmp_path, fail=step).path))
        backend.install(make_bundle(tmp_path), prefix, request, make.QuietProgress())


# -- with the real programs, which no package registry carries


def real(variable: str) -> str:
    """Return the real program's path, or skip."""
    path = os.environ.get(variable, "")
    if not path:
        pytest.skip(f"{variable} is not set: the real program is not here, and only a stub was run")
    return path


def test_pixi_unpack_real_installs_at_prefix(tmp_path: Path) -> None:
    request, prefix = make_request(tmp_path, pixi_unpack_bin=real("PIXI_UNPACK_BIN"))
    backend = PixiUnpackBackend()
    backend.install(make_bundle(tmp_path), prefix, request, make.QuietProgress())
    check_native(prefix)
    assert dict(backend.activation(prefix))["NATIVE_HOME"] == f"{prefix}/share"


def test_pixi_real_installs_offline(tmp_path: Path) -> None:
    backend = PixiBackend(real("PIXI_BIN"))
    request, prefix = make_request(tmp_path, pixi_template_dir=make_template(tmp_path))
    backend.install(make_bundle(tmp_path), prefix, request, make.QuietProgress())
    check_native(prefix)
    assert dict(backend.activation(prefix))["NATIVE_HOME"].endswith("/share")


def check_native(prefix: str) -> None:
    done = subprocess.run([f"{prefix}/bin/nativetool"], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout == "native data\n"


# -- the door itself


def run_shell(script: str, **options: Any) -> Any:
    return run_tool(["/bin/sh", "-c", script], env={"PATH": os.environ["PATH"]}, **{"timeout_s": 20.0} | options)


def test_tool_result_has_status_and_last_lines(tmp_path: Path) -> None:
    lines: list[str] = []
    result = run_shell(
        "i=0; while [ $i -lt 100 ]; do echo line $i; i=$((i+1)); done; echo bad >&2; exit 4", on_line=lines.append
    )
    assert result.returncode == 4
    assert result.last_line == "bad"
    assert len(result.tail) == 40
    assert len(lines) == 101


def test_tool_output_in_one_endless_line_stays_bounded() -> None:
    result = run_shell("head -c 5000000 /dev/zero | tr '\\0' x")
    assert sum(map(len, result.tail)) <= 40 * 500


def test_tool_that_does_not_end_is_stopped_with_its_children(tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(InstallError, match=r"has not ended after 2 s and was stopped; last line: started"):
        run_shell("trap '' TERM; echo started; sleep 97.125 & sleep 97.125", timeout_s=2)
    assert time.monotonic() - began < 15
    make_sure_gone("97.125")


def test_tool_leaves_no_child_behind_when_it_ends_well() -> None:
    began = time.monotonic()
    assert run_shell("sleep 97.25 & echo done").tail == ("done",)
    assert time.monotonic() - began < 15
    make_sure_gone("97.25")


def test_tool_ends_when_the_caller_is_interrupted() -> None:
    def interrupt(line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_shell("echo go; sleep 97.375", on_line=interrupt)
    make_sure_gone("97.375")


def test_tool_dies_with_its_killed_caller(tmp_path: Path) -> None:
    code = (
        "from infer_dev_entry.install.processes import run_tool\n"
        "run_tool(['/bin/sh', '-c', 'echo ready; exec sleep 97.5'], env={'PATH': '/usr/bin:/bin'}, timeout_s=90,"
        " on_line=lambda line: print(line, flush=True))"
    )
    caller = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        env={"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert caller.stdout is not None
    with caller, caller.stdout:
        assert caller.stdout.readline() == b"ready\n"
        caller.kill()
    make_sure_gone("97.5")


def test_tool_tick_is_called_while_it_runs() -> None:
    ticks: list[int] = []
    run_shell("sleep 1.3", on_tick=lambda: ticks.append(1))
    assert ticks


def test_tool_that_is_missing_is_told() -> None:
    with pytest.raises(InstallError, match="cannot run /nowhere/tool: No such file or directory; check that"):
        run_tool(["/nowhere/tool"], env={}, timeout_s=5)


def test_tool_killed_by_a_signal_is_described() -> None:
    assert run_shell("kill -9 $$").ending == "signal 9 (SIGKILL)"


def still_running(mark: str) -> bool:
    """Say whether a `sleep` of that odd length is alive."""
    return any(
        mark in (process.info["cmdline"] or []) and process.info["status"] != psutil.STATUS_ZOMBIE
        for process in psutil.process_iter(["cmdline", "status"])
    )


def make_sure_gone(mark: str) -> None:
    from wait import wait_until

    wait_until(lambda: not still_running(mark), 15, f"sleep {mark} to die")
