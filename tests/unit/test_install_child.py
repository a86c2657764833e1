"""The child's answer, the command's output, and what a failed verification tells."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import pytest
from install_fakes import FakeProgress, make_bundle, make_request, make_unpacked, put_installed

from infer_dev_entry.cli import install as command
from infer_dev_entry.errors import BundleError, InstallError, SettingsError
from infer_dev_entry.install import verify
from infer_dev_entry.install.marker import read_fast
from infer_dev_entry.install.processes import ToolResult
from infer_dev_entry.install.result import parse_answer
from infer_dev_entry.install.run import install


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return parser.parse_args(argv)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    path = tmp_path / "project"
    path.mkdir()
    put_installed(path, make_bundle(tmp_path / "bundle.tar", "one"))
    return path


def test_answer_survives_json(project: Path) -> None:
    installed = read_fast(make_request(project, project.parent / "bundle.tar"))
    assert installed is not None
    assert parse_answer(json.loads(json.dumps({"installed": asdict(installed)}))) == installed


def test_answer_of_a_failure_keeps_message_and_code() -> None:
    with pytest.raises(InstallError, match="no room") as caught:
        parse_answer({"faults": ["no room"], "exit_code": 20})
    assert caught.value.exit_code == BundleError.exit_code


def test_install_without_a_bundle_names_the_variable(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="AUTO_INFER_SGLANG_BUNDLE_PATH"):
        install(make_request(tmp_path, Path("/b"), bundle_path=""), FakeProgress(), {})


def test_install_of_a_missing_bundle_makes_nothing(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="No such file"):
        install(make_request(tmp_path / "project", tmp_path / "none.tar"), FakeProgress(), {})
    assert not (tmp_path / "project").exists()


def test_command_with_nothing_to_do_says_so(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--bundle", str(project.parent / "bundle.tar"), "--project-dir", str(project)]
    assert command.run(parse(argv), {}) == 0
    said = capsys.readouterr().out
    assert said.startswith("nothing to do: ") and "torch 2.9.0 (1 packages, wheelhouse)" in said


def test_command_json_is_the_marker(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    environ = {
        "AUTO_INFER_SGLANG_BUNDLE_PATH": str(project.parent / "bundle.tar"),
        "AUTO_INFER_SGLANG_PROJECT_DIR": str(project),
    }
    assert command.run(parse(["--json"]), environ) == 0
    data = json.loads(capsys.readouterr().out)
    assert data == json.loads((project / ".installed-from.json").read_text()) | {"was_installed": False}


def test_option_beats_the_environment() -> None:
    from infer_dev_entry.settings import parse_settings

    settings = parse_settings({"AUTO_INFER_SGLANG_BUNDLE_PATH": "/env.tar", "AUTO_INFER_SGLANG_INSTALLER": "pixi"})
    argv = ["--bundle", "/own.tar", "--sha256", "AB", "--backend", "wheelhouse", "--force", "--require-gpu"]
    request = command._make_request(parse(argv), settings)
    assert (request.bundle_path, request.expected_sha256, request.backend) == ("/own.tar", "ab", "wheelhouse")
    assert request.force and request.require_gpu and not request.skip_verify


class FakeTool:
    """Answers in the place of the environment's Python."""

    def __init__(self, *results: ToolResult) -> None:
        self.results = list(results)
        self.argvs: list[list[str]] = []

    def __call__(self, argv: list[str], **_options: object) -> ToolResult:
        self.argvs.append(list(argv))
        return self.results.pop(0)


def probe(gpus: int) -> ToolResult:
    answer = json.dumps({"versions": {"python": "3.11.7", "torch": "2.9.0"}, "gpus": gpus})
    return ToolResult(returncode=0, tail=("noise", f"infer-dev-probe: {answer}", "noise at exit"))


def run_verify(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tool: FakeTool, *, require_gpu: bool = False, **changes: object
) -> verify.Verified:
    (tmp_path / "bin").mkdir(exist_ok=True)
    (tmp_path / "bin" / "python").touch()
    monkeypatch.setattr(verify, "run_tool", tool)
    from infer_dev_entry.bundle.model import Package

    torch = Package(kind="wheel", path="wheels/torch.whl", name="torch", version="2.9.0", sha256="", size=0)
    info = make_unpacked(**({"packages": (torch,)} | changes)).info  # type: ignore[arg-type]
    return verify.verify_env(
        str(tmp_path), info, (("PATH", "/e/bin"),), {}, require_gpu=require_gpu, progress=FakeProgress()
    )


def test_verify_without_a_gpu_warns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = run_verify(tmp_path, monkeypatch, FakeTool(probe(0)))
    assert found.gpus == 0 and "no GPU" in found.warnings[0] and found.versions["torch"] == "2.9.0"


def test_verify_that_requires_a_gpu_fails_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InstallError, match="CUDA sees no GPU, and one is required; start the container with --gpus"):
        run_verify(tmp_path, monkeypatch, FakeTool(probe(0)), require_gpu=True)


def test_verify_with_gpus_counts_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = run_verify(tmp_path, monkeypatch, FakeTool(probe(8)), require_gpu=True)
    assert found.gpus == 8 and found.warnings == ()


def test_verify_command_of_the_bundle_runs_from_its_bin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = FakeTool(ToolResult(returncode=0, tail=("checked", "all fine")), probe(1))
    found = run_verify(tmp_path, monkeypatch, tool, verify_command=("python", "-m", "check"))
    assert tool.argvs[0] == [f"{tmp_path}/bin/python", "-m", "check"]
    assert found.output == "checked\nall fine"


def test_verify_command_that_fails_tells_its_last_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = FakeTool(ToolResult(returncode=3, tail=("one", "it is broken")))
    with pytest.raises(InstallError, match=r"'check --all' ended with exit status 3: it is broken; build the bundle"):
        run_verify(tmp_path, monkeypatch, tool, verify_command=("check", "--all"))


@pytest.mark.parametrize(
    ("tail", "message"),
    [
        (
            ("ImportError: libcudart.so.12: cannot open shared object file", "bye"),
            "import of torch.*libcudart.*library",
        ),
        (("ImportError: /lib/libc.so.6: version `GLIBC_2.38' not found",), "newer base image"),
        (("Segmentation fault",), "Segmentation fault"),
    ],
)
def test_verify_import_that_fails_names_reason_and_mend(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tail: tuple[str, ...], message: str
) -> None:
    with pytest.raises(InstallError, match=message):
        run_verify(tmp_path, monkeypatch, FakeTool(ToolResult(returncode=1, tail=tail)))


def test_verify_without_python_says_so(tmp_path: Path) -> None:
    with pytest.raises(InstallError, match="has no bin/python"):
        verify.verify_env(str(tmp_path), make_unpacked().info, (), {}, require_gpu=False, progress=FakeProgress())
