"""The pixi and pixi-unpack backends up to their tool's command line: a recorder stands in for the tool itself."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("tomlkit", reason="tomlkit is not installed: pip install tomlkit")

from infer_dev_entry.bundle.model import PIXI_PACK, WHEELS, BundleInfo, Package, UnpackedBundle
from infer_dev_entry.errors import InstallError
from infer_dev_entry.install.conda_activation import parse_activation
from infer_dev_entry.install.model import InstallRequest
from infer_dev_entry.install.pixi import PixiBackend, find_template, link_top, parse_hook
from infer_dev_entry.install.pixi_manifest import has_task, patch_manifest
from infer_dev_entry.install.pixi_unpack import PixiUnpackBackend
from infer_dev_entry.install.prefix import check_prefix
from infer_dev_entry.install.processes import ToolResult
from infer_dev_entry.install.store import Store

MANIFEST = """
# The stack.
[workspace]
name = "sglang"
channels = ["https://example.invalid/forge", "nvidia"]
platforms = ["linux-64", "linux-aarch64"]

[dependencies]
python = "3.12.*"

[pypi-options]
index-url = "https://example.invalid/simple"
extra-index-urls = ["https://example.invalid/cu129"]

[tasks]
verify = "python -c 'import sglang'"

[feature.cuda13]
channels = ["nvidia"]
platforms = ["linux-64"]
pypi-options = { index-url = "https://example.invalid/cu130" }

[feature.cuda13.dependencies]
cuda-version = "13.*"

[environments]
cuda12 = []
cuda13 = ["cuda13"]
"""


@dataclass
class Recorder:
    """Stands in for `run_tool`: keeps what it was told to run, does `work`, and returns one result after the other."""

    results: list[ToolResult] = field(default_factory=list)
    work: Callable[[Sequence[str]], None] = lambda argv: None
    argvs: list[tuple[str, ...]] = field(default_factory=list)
    envs: list[dict[str, str]] = field(default_factory=list)

    def __call__(self, argv: Sequence[str], *, env: Mapping[str, str], **_others: Any) -> ToolResult:
        self.argvs.append(tuple(argv))
        self.envs.append(dict(env))
        self.work(argv)
        return self.results.pop(0) if self.results else ToolResult(returncode=0, tail=())


class Quiet:
    """A progress that nobody sees."""

    def stage(self, name: str, total: int = 0, unit: str = "B") -> None: ...

    def advance(self, amount: int) -> None: ...

    def note(self, message: str) -> None: ...


def make_bundle(root: Path, *, kind: str = PIXI_PACK, wheels: bool = True) -> UnpackedBundle:
    (root / "channel").mkdir(parents=True)
    packages = [Package(kind="conda", path="channel/x", name="python", version="3.12", sha256="", size=1)]
    if wheels:
        (root / "pypi").mkdir()
        packages.append(Package(kind="wheel", path="pypi/x.whl", name="x", version="1", sha256="", size=1))
    info = BundleInfo(kind=kind, platform="linux-64", python="", packages=tuple(packages))
    return UnpackedBundle(root=str(root), info=info, digest="d", size_bytes=1, files=())


@pytest.fixture
def program(tmp_path: Path) -> str:
    """A path that looks like a program; nothing runs it."""
    path = tmp_path / "bin" / "tool"
    path.parent.mkdir()
    path.write_text("")
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    Store(str(tmp_path / "project")).prepare()
    return tmp_path / "project"


def make_request(project: Path, **changes: Any) -> InstallRequest:
    return InstallRequest(bundle_path="/b", project_dir=str(project), **changes)


# -- the manifest


def patched(environment: str = "cuda13", *, has_wheels: bool = True, text: str = MANIFEST) -> dict[str, Any]:
    return tomllib.loads(
        patch_manifest(
            text, source="pixi.toml", environment=environment, platform="linux-aarch64", has_wheels=has_wheels
        )
    )


def test_manifest_patched_has_the_bundle_as_its_only_source() -> None:
    doc = patched()
    assert doc["workspace"]["channels"] == ["./channel"]
    assert doc["workspace"]["platforms"] == ["linux-aarch64"]
    assert doc["pypi-options"] == {"no-build": True, "find-links": [{"path": "./pypi"}]}
    assert doc["feature"]["cuda13"]["channels"] == ["./channel"]
    assert doc["feature"]["cuda13"]["platforms"] == ["linux-aarch64"]
    assert doc["feature"]["cuda13"]["pypi-options"] == {"no-build": True}
    assert doc["dependencies"] == {"python": "3.12.*"}
    assert "example.invalid" not in str(doc)


def test_manifest_patched_keeps_the_wanted_environment_alone() -> None:
    assert patched("cuda13")["environments"] == {"cuda13": ["cuda13"]}


def test_manifest_patched_for_the_implicit_default_names_no_environment() -> None:
    assert "environments" not in patched("default")


def test_manifest_without_wheels_names_no_folder_for_them() -> None:
    assert patched(has_wheels=False)["pypi-options"] == {"no-build": True}


def test_manifest_with_old_project_table_is_patched() -> None:
    doc = patched("default", text='[project]\nname = "x"\nchannels = ["y"]\nplatforms = []\n')
    assert doc["project"]["channels"] == ["./channel"]


def test_manifest_patched_keeps_comments() -> None:
    text = patch_manifest(MANIFEST, source="s", environment="default", platform="linux-64", has_wheels=True)
    assert "# The stack." in text


@pytest.mark.parametrize(
    ("text", "environment", "message"),
    [
        ("[workspace", "default", r"cannot read pixi\.toml: .*; mend the file"),
        ("[dependencies]\n", "default", r"cannot use pixi\.toml: it has no \[workspace\] table"),
        (MANIFEST, "cuda14", r"it has no environment 'cuda14'; .* one of default, cuda12, cuda13"),
        (MANIFEST, "../../x", r"it has no environment '\.\./\.\./x'"),
    ],
)
def test_manifest_that_will_not_do_is_refused(text: str, environment: str, message: str) -> None:
    with pytest.raises(InstallError, match=message):
        patched(environment, text=text)


@pytest.mark.parametrize(("text", "found"), [(MANIFEST, True), ("[feature.a.tasks]\nverify='x'", True), ("", False)])
def test_manifest_task_is_found(text: str, found: bool) -> None:
    assert has_task(text, "verify") is found


# -- pixi


def make_template(folder: Path, text: str = MANIFEST) -> str:
    folder.mkdir()
    (folder / "pixi.toml").write_text(text)
    return str(folder)


def make_environment(argv: Sequence[str]) -> None:
    """Do what `pixi install` leaves behind."""
    if "install" in argv:
        workspace = Path(argv[argv.index("--manifest-path") + 1]).parent
        prefix = workspace / ".pixi/envs" / argv[argv.index("--environment") + 1]
        for name in ("bin", "lib", "conda-meta"):
            (prefix / name).mkdir(parents=True)


def install_pixi(tmp_path: Path, project: Path, program: str, recorder: Recorder, **changes: Any) -> Path:
    request = make_request(
        project, pixi_environment="cuda13", pixi_template_dir=make_template(tmp_path / "template"), **changes
    )
    prefix = project / "envs/abc"
    PixiBackend(program, run=recorder).install(make_bundle(tmp_path / "bundle"), str(prefix), request, Quiet())
    return prefix


def test_pixi_install_runs_lock_install_and_verify(tmp_path: Path, project: Path, program: str) -> None:
    recorder = Recorder(work=make_environment)
    prefix = install_pixi(tmp_path, project, program, recorder)
    manifest = ("--manifest-path", f"{prefix}/pixi.toml")
    assert recorder.argvs == [
        (program, "lock", *manifest),
        (program, "install", "--frozen", "--environment", "cuda13", *manifest),
        (program, "run", "--as-is", "--environment", "cuda13", *manifest, "verify"),
    ]


def test_pixi_install_that_skips_verify_does_not_run_it(tmp_path: Path, project: Path, program: str) -> None:
    recorder = Recorder(work=make_environment)
    install_pixi(tmp_path, project, program, recorder, skip_verify=True)
    assert [argv[1] for argv in recorder.argvs] == ["lock", "install"]


def test_pixi_environment_is_hermetic(
    tmp_path: Path, project: Path, program: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PIXI_LOCKED", "PIXI_CACHE_DIR", "RATTLER_AUTH_FILE", "HTTPS_PROXY", "CONDA_PREFIX", "PYTHONPATH"):
        monkeypatch.setenv(name, "/outer")
    recorder = Recorder(work=make_environment)
    install_pixi(tmp_path, project, program, recorder)
    for env in recorder.envs:
        assert "/outer" not in env.values()
        assert env["PIXI_OFFLINE"] == env["PIXI_NO_CONFIG"] == "1"
        assert all(env[name].startswith(f"{project}/.cache/") for name in ("HOME", "TMPDIR", "PIXI_CACHE_DIR"))


def test_pixi_channel_lies_beside_the_manifest_only_while_pixi_works(
    tmp_path: Path, project: Path, program: str
) -> None:
    seen = []

    def work(argv: Sequence[str]) -> None:
        make_environment(argv)
        folder = project / "envs/abc"
        seen.append((os.path.realpath(folder / "channel"), os.path.realpath(folder / "pypi")))

    prefix = install_pixi(tmp_path, project, program, Recorder(work=work))
    assert set(seen) == {(str(tmp_path / "bundle/channel"), str(tmp_path / "bundle/pypi"))}
    assert not os.path.lexists(prefix / "channel")
    assert not (project / ".cache/pixi").exists()


def test_pixi_prefix_links_to_the_environment_in_it(tmp_path: Path, project: Path, program: str) -> None:
    prefix = install_pixi(tmp_path, project, program, Recorder(work=make_environment))
    assert os.readlink(prefix / "bin") == ".pixi/envs/cuda13/bin"
    assert (prefix / "conda-meta").is_dir()


def test_pixi_links_leave_the_workspaces_own_files(tmp_path: Path) -> None:
    for path in (".pixi/envs/a/bin", ".pixi/envs/a/channel", "channel"):
        (tmp_path / path).mkdir(parents=True)
    link_top(str(tmp_path), "a")
    assert (tmp_path / "bin").is_symlink()
    assert not (tmp_path / "channel").is_symlink()


@pytest.mark.parametrize("failing", ["lock", "install", "run"])
def test_pixi_failure_names_step_and_cause(tmp_path: Path, project: Path, program: str, failing: str) -> None:
    tail = ("  × failed to solve the environment", "  ╰─▶ no candidates were found for torch 2.9.*")
    good, bad = ToolResult(returncode=0, tail=()), ToolResult(returncode=1, tail=tail)
    results = [good] * ["lock", "install", "run"].index(failing) + [bad]
    recorder = Recorder(results=results, work=make_environment)
    message = rf"pixi {failing}: failed to solve the environment: no candidates .* \(exit status 1\); check that"
    with pytest.raises(InstallError, match=message):
        install_pixi(tmp_path, project, program, recorder)
    assert recorder.argvs[-1][1] == failing


def test_pixi_that_makes_no_environment_is_an_error(tmp_path: Path, project: Path, program: str) -> None:
    with pytest.raises(InstallError, match="made no environment at"):
        install_pixi(tmp_path, project, program, Recorder())


def test_pixi_activation_is_what_shell_hook_answers(tmp_path: Path, program: str) -> None:
    (tmp_path / ".pixi/envs/cuda13/conda-meta").mkdir(parents=True)
    answer = tmp_path / ".pixi/activation.json"

    def work(argv: Sequence[str]) -> None:
        answer.write_text('{"environment_variables": {"PATH": "/p/bin:/bin", "A": "b c", "LANG": "C.UTF-8"}}')

    recorder = Recorder(work=work)
    assert PixiBackend(program, run=recorder).activation(str(tmp_path)) == (("A", "b c"), ("PATH", "/p/bin:/bin"))
    assert recorder.argvs[0][4:] == (
        *(str(answer), program, "shell-hook", "--json", "--frozen", "--no-install"),
        *("--environment", "cuda13", "--manifest-path", f"{tmp_path}/pixi.toml"),
    )


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"environment_variables": 3}'])
def test_pixi_hook_that_is_something_else_is_refused(text: str) -> None:
    with pytest.raises(InstallError, match="cannot read what pixi shell-hook --json answered"):
        parse_hook(text)


def test_pixi_template_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        InstallError, match=rf"cannot find pixi\.toml in {tmp_path}/none; set AUTO_INFER_SGLANG_PIXI_TEM"
    ):
        find_template(f"{tmp_path}/none")


# -- pixi-unpack


def install_unpack(
    tmp_path: Path, project: Path, program: str, recorder: Recorder, *, name: str = "abc"
) -> tuple[Path, str]:
    bundle = make_bundle(tmp_path / "bundle")
    prefix = project / "envs" / name
    PixiUnpackBackend(program, run=recorder).install(bundle, str(prefix), make_request(project), Quiet())
    return prefix, bundle.root


def unpack_environment(argv: Sequence[str]) -> None:
    """Do what pixi-unpack leaves behind."""
    folder = Path(argv[argv.index("--output-directory") + 1])
    (folder / argv[argv.index("--env-name") + 1] / "conda-meta").mkdir(parents=True)
    (folder / "activate.sh").write_text("export A=b\n")


def test_pixi_unpack_is_told_to_make_the_environment_at_its_prefix(tmp_path: Path, project: Path, program: str) -> None:
    recorder = Recorder(work=unpack_environment)
    prefix, root = install_unpack(tmp_path, project, program, recorder)
    folder = str(prefix.parent)
    assert recorder.argvs == [
        (program, "--output-directory", folder, "--env-name", "abc", "--shell", "bash", root),
    ]


def test_pixi_unpack_environment_is_bare_and_on_the_workspace(
    tmp_path: Path, project: Path, program: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UV_INDEX_URL", "/outer")
    monkeypatch.setenv("CONDA_PREFIX", "/outer")
    recorder = Recorder(work=unpack_environment)
    install_unpack(tmp_path, project, program, recorder)
    assert "/outer" not in recorder.envs[0].values()
    assert recorder.envs[0]["TMPDIR"].startswith(f"{project}/.cache/")
    assert not (project / ".cache/pixi-unpack").exists()


def test_pixi_unpack_script_is_kept_inside_the_environment(tmp_path: Path, project: Path, program: str) -> None:
    prefix, _ = install_unpack(tmp_path, project, program, Recorder(work=unpack_environment))
    assert (prefix / "conda-meta/activate.sh").read_text() == "export A=b\n"
    assert os.listdir(prefix.parent) == ["abc"]


def test_pixi_unpack_without_script_has_the_plain_activation(tmp_path: Path) -> None:
    assert dict(PixiUnpackBackend().activation(str(tmp_path)))["CONDA_PREFIX"] == str(tmp_path)


def test_pixi_unpack_failure_has_its_cause(tmp_path: Path, project: Path, program: str) -> None:
    tail = ("Error: Could not create prefix: could not extract", "Caused by:", "    No space left on device")
    recorder = Recorder(results=[ToolResult(returncode=1, tail=tail)])
    with pytest.raises(InstallError, match=r"could not extract: No space left on device \(exit status 1\); check the"):
        install_unpack(tmp_path, project, program, recorder)


def test_pixi_unpack_killed_by_a_signal_is_told(tmp_path: Path, project: Path, program: str) -> None:
    recorder = Recorder(results=[ToolResult(returncode=-9, tail=())])
    with pytest.raises(InstallError, match=r"signal 9 \(SIGKILL\)"):
        install_unpack(tmp_path, project, program, recorder)


def test_pixi_unpack_that_makes_no_environment_is_an_error(tmp_path: Path, project: Path, program: str) -> None:
    with pytest.raises(InstallError, match="made no environment at"):
        install_unpack(tmp_path, project, program, Recorder())


def test_pixi_unpack_given_in_the_request_wins(tmp_path: Path, project: Path, program: str) -> None:
    recorder = Recorder(work=unpack_environment)
    request = make_request(project, pixi_unpack_bin=program)
    backend = PixiUnpackBackend(run=recorder)
    backend.install(make_bundle(tmp_path / "bundle"), str(project / "envs/abc"), request, Quiet())
    assert recorder.argvs[0][0] == program


# -- what both refuse


@pytest.mark.parametrize("backend", [PixiBackend, PixiUnpackBackend])
def test_backend_without_its_program_is_a_problem(tmp_path: Path, backend: Any) -> None:
    assert "; " in backend(f"{tmp_path}/none").problem(make_bundle(tmp_path / "bundle"))


@pytest.mark.parametrize("backend", [PixiBackend, PixiUnpackBackend])
def test_backend_for_wheels_bundle_is_a_problem(tmp_path: Path, program: str, backend: Any) -> None:
    assert "kind wheels" in backend(program).problem(make_bundle(tmp_path / "bundle", kind=WHEELS))


@pytest.mark.parametrize("backend", [PixiBackend, PixiUnpackBackend])
def test_backend_with_its_program_is_no_problem(tmp_path: Path, program: str, backend: Any) -> None:
    assert backend(program).problem(make_bundle(tmp_path / "bundle")) == ""


@pytest.mark.parametrize(("prefix", "fine"), [("/w/envs/a b", True), ("/w/a'b", False), ("/" + "x" * 255, False)])
def test_prefix_is_checked(prefix: str, fine: bool) -> None:
    if fine:
        check_prefix(prefix)
    else:
        with pytest.raises(InstallError, match="cannot install into"):
            check_prefix(prefix)


def test_activation_parsed_leaves_out_functions_and_the_shells_own() -> None:
    environ = b"PATH=/p\0A=1\nx\0BASH_FUNC_f%%=() {}\0SHLVL=1\0_=/usr/bin/env\0PWD=/\0SAME=1\0E=a=b\0"
    assert parse_activation(environ, {"SAME": "1"}) == (("A", "1\nx"), ("E", "a=b"), ("PATH", "/p"))
