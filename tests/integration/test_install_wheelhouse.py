"""A wheels bundle, installed by real uv as the boot's child does it: once, verified, beside what serves."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from bundles import PYTHON_MINOR, Wheel, make_wheelhouse, pack, small_wheel
from installing import Workspace, make_base
from wait import wait_until

from infer_dev_entry.errors import BundleError, InstallError
from infer_dev_entry.install.marker import make_request, read_fast
from infer_dev_entry.install.store import Store
from infer_dev_entry.install.wheelhouse import _make_own_venv, _make_venv
from infer_dev_entry.settings import parse_settings

NOBODY = 65534

needs_namespaces = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("unshare") is None, reason="namespaces need root and unshare (util-linux)"
)


@pytest.fixture
def work() -> Iterator[Workspace]:
    base = make_base()
    try:
        yield Workspace(base)
    finally:
        shutil.rmtree(base, ignore_errors=True)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The bundles `one` and `two`, packed; `two` has a newer alpha and says so in its verify command."""
    base = tmp_path_factory.mktemp("bundles")
    base.chmod(0o755)
    base.parent.chmod(0o755)
    one = make_wheelhouse(base / "one", [small_wheel("alpha"), small_wheel("beta")], activation={"A": "$PREFIX/a"})
    two = make_wheelhouse(base / "two", [small_wheel("alpha", "2.0"), small_wheel("beta")], verify=["alpha"])
    return {"one": pack(one, base / "one.tar"), "two": pack(two, base / "two.tar.gz", "w:gz"), "folder": one}


def test_fresh_install_serves_and_the_marker_says_how(work: Workspace, bundles: dict[str, Path]) -> None:
    installed = work.install(bundles["one"])["installed"]
    work.check(packages=2)
    assert work.say("alpha") == "alpha 1.0"
    assert installed["was_installed"] and installed["backend"] == "wheelhouse"
    assert installed["versions"]["beta"] == "1.0" and installed["versions"]["python"].startswith(PYTHON_MINOR)
    activation = dict(installed["activation"])
    assert activation["A"] == f"{installed['prefix']}/a"
    assert activation["PATH"].startswith(f"{installed['prefix']}/bin:")
    assert work.marker()["seconds"] > 0 and (work.project / "env").readlink() == Path(f"envs/{work.names()[0]}")


def test_venv_of_another_python_is_made_by_uv_and_works(work: Workspace) -> None:
    prefix, store = str(work.project / "envs/one"), Store(str(work.project))
    store.prepare()
    _make_venv(prefix, sys.executable, store)  # a Python by its path, as one of another version would be
    told = subprocess.run(
        [f"{prefix}/bin/python", "-c", "import sys; print(sys.prefix)"], capture_output=True, text=True, check=True
    )
    assert told.stdout.strip() == prefix
    assert os.listdir(store.cache_dir) == []


def test_venv_that_cannot_be_made_is_told() -> None:
    with pytest.raises(InstallError, match="cannot make a venv at /dev/null/env: Not a directory; check"):
        _make_own_venv("/dev/null/env")


def test_second_boot_reads_the_marker_alone(work: Workspace, bundles: dict[str, Path]) -> None:
    work.install(bundles["one"])
    settings = parse_settings(
        {"AUTO_INFER_SGLANG_BUNDLE_PATH": str(bundles["one"]), "AUTO_INFER_SGLANG_PROJECT_DIR": str(work.project)}
    )
    assert read_fast(make_request(settings)) is not None
    assert work.install(bundles["one"])["installed"]["was_installed"] is False


def test_always_verify_hashes_and_keeps(work: Workspace, bundles: dict[str, Path]) -> None:
    work.install(bundles["one"])
    again = work.install(bundles["one"], BUNDLE_VERIFY="always")
    assert again["installed"]["was_installed"] is False and "hash the bundle" in again["log"]


def test_directory_bundle_installs_without_a_copy(work: Workspace, bundles: dict[str, Path]) -> None:
    assert work.install(bundles["folder"])["installed"]["was_installed"]
    work.check(packages=2)
    assert work.install(bundles["folder"])["installed"]["was_installed"] is False
    assert sorted(os.listdir(bundles["folder"])) == ["infer-dev-bundle.json", "requirements.txt", "wheels"]


def test_changed_bundle_is_verified_and_flipped_and_rolls_back(work: Workspace, bundles: dict[str, Path]) -> None:
    bundle = work.base / "bundle"
    shutil.copy(bundles["one"], bundle)
    first = work.install(bundle)["installed"]
    shutil.copy(bundles["two"], bundle)
    second = work.install(bundle)["installed"]
    work.check(packages=2)
    assert work.say("alpha") == "alpha 2.0" and work.marker()["verify_output"] == "alpha 2.0"
    assert len(work.names()) == 2 and first["prefix"] != second["prefix"]
    run = run_command("--rollback", "--project-dir", str(work.project))
    assert run.returncode == 0, run.stderr
    work.check(packages=2)
    assert work.say("alpha") == "alpha 1.0"
    assert work.install(bundle)["installed"]["prefix"] == first["prefix"]


def run_command(*argv: str) -> subprocess.CompletedProcess[str]:
    """Run `infer-dev install`."""
    argv = (sys.executable, "-m", "infer_dev_entry", "install", *argv)
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)


def test_user_variables_of_uv_change_nothing(work: Workspace, bundles: dict[str, Path]) -> None:
    (work.base / "uv.toml").write_text("no-such-key = 1")
    answer = work.install(
        bundles["one"],
        INSTALLER="wheelhouse",
        UV_CONFIG_FILE=str(work.base / "uv.toml"),
        UV_NO_BINARY="1",
        UV_LINK_MODE="symlink",
        UV_PYTHON="9.9",
        UV_REQUIRE_HASHES="junk",
        UV_CACHE_DIR="/proc/none",
    )
    assert answer["installed"]["was_installed"], answer
    work.check(packages=2)


def expect_fault(answer: dict[str, object], code: int, *words: str) -> None:
    assert answer.get("exit_code") == code, answer
    for word in words:
        assert word in answer["faults"][0], answer["faults"]  # type: ignore[index]


def test_wrong_digest_installs_nothing(work: Workspace, bundles: dict[str, Path]) -> None:
    answer = work.install(bundles["one"], BUNDLE_SHA256="0" * 64)
    expect_fault(answer, BundleError.exit_code, "sha256", "0" * 64, "AUTO_INFER_SGLANG_BUNDLE_SHA256")
    assert work.names() == [] and os.listdir(work.project / ".staging") == []


def test_wrong_digest_of_the_installed_bundle_is_refused(work: Workspace, bundles: dict[str, Path]) -> None:
    work.install(bundles["one"])
    answer = work.install(bundles["one"], BUNDLE_SHA256="0" * 64)
    expect_fault(answer, BundleError.exit_code, "expected")
    assert work.say("alpha") == "alpha 1.0"


def spoil_corrupt(folder: Path) -> None:
    path = next((folder / "wheels").glob("alpha*"))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def spoil_missing(folder: Path) -> None:
    next((folder / "wheels").glob("alpha*")).unlink()


def spoil_added(folder: Path) -> None:
    shutil.copy(next((folder / "wheels").glob("alpha*")), folder / "wheels" / "gamma-1.0-py3-none-any.whl")


@pytest.mark.parametrize("spoil", [spoil_corrupt, spoil_missing, spoil_added])
def test_spoilt_bundle_is_refused_and_the_old_env_serves(
    work: Workspace, bundles: dict[str, Path], spoil: object
) -> None:
    work.install(bundles["one"])
    folder = work.base / "spoilt"
    make_wheelhouse(folder, [small_wheel("alpha", "3.0"), small_wheel("beta")])
    spoil(folder)  # type: ignore[operator]
    answer = work.install(pack(folder, work.base / "spoilt.tar"))
    expect_fault(answer, BundleError.exit_code, "spoilt.tar", "alpha" if spoil is not spoil_added else "gamma")
    work.check(packages=2)
    assert work.say("alpha") == "alpha 1.0" and len(work.names()) == 1


def test_wheel_with_a_bad_inside_fails_in_uv_and_leaves_nothing(work: Workspace, bundles: dict[str, Path]) -> None:
    work.install(bundles["one"])
    folder = work.base / "bad"
    (folder / "wheels").mkdir(parents=True)
    (folder / "wheels" / "alpha-9.0-py3-none-any.whl").write_bytes(b"PK no zip at all")
    from bundles import describe_wheelhouse

    answer = work.install(pack(describe_wheelhouse(folder), work.base / "bad.tar"))
    expect_fault(answer, InstallError.exit_code, "cannot install the wheels of the bundle: ", "alpha")
    assert "\n" not in answer["faults"][0]
    work.check(packages=2)
    assert work.say("alpha") == "alpha 1.0" and len(work.names()) == 1


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"python": "3.99"}, InstallError.exit_code, ("Python 3.99", "install python3.99")),
        ({"platform": "osx-arm64"}, BundleError.exit_code, ("osx-arm64", "linux-")),
        ({"verify": ["beta", "--no"]}, 0, ()),
        ({"verify": ["python", "-c", "raise SystemExit('it is broken')"]}, InstallError.exit_code, ("it is broken",)),
        ({"verify": ["no-such-program"]}, InstallError.exit_code, ("no-such-program",)),
    ],
)
def test_bundle_that_does_not_fit_is_refused(
    work: Workspace, changes: dict[str, object], code: int, words: tuple[str, ...]
) -> None:
    folder = make_wheelhouse(work.base / "odd", [small_wheel("beta")], **changes)  # type: ignore[arg-type]
    answer = work.install(pack(folder, work.base / "odd.tar"))
    if code:
        expect_fault(answer, code, *words)
        assert work.names() == [] and not work.env.exists()
    else:
        assert answer["installed"]["was_installed"]


def test_import_that_fails_is_told(work: Workspace) -> None:
    torch = Wheel("torch", "2.9.0", {"torch/__init__.py": "import no_such_module_of_cuda\n"})
    answer = work.install(make_wheelhouse(work.base / "torch", [torch]))
    expect_fault(answer, InstallError.exit_code, "import of torch", "no_such_module_of_cuda")
    assert work.names() == []


def test_torch_without_gpu_is_a_warning(work: Workspace) -> None:
    text = (
        "__version__ = '2.9.0+cu126'\n"
        "class cuda:\n    is_available = staticmethod(lambda: False)\n    device_count = staticmethod(lambda: 0)\n"
    )
    answer = work.install(make_wheelhouse(work.base / "torch", [Wheel("torch", "2.9.0", {"torch/__init__.py": text})]))
    assert answer["installed"]["versions"]["torch"] == "2.9.0+cu126"
    assert "no GPU" in work.marker()["warnings"][0] and "no GPU" in answer["log"]


@needs_namespaces
def test_install_works_without_any_network(work: Workspace, bundles: dict[str, Path]) -> None:
    assert work.install(bundles["two"], before=("unshare", "-n"))["installed"]["was_installed"]
    work.check(packages=2)


# -- two at once


def test_two_installers_at_once_one_installs_one_waits(work: Workspace) -> None:
    permit = work.base / "permit"
    code = f"import os, time\nends = time.monotonic() + 50\nwhile not os.path.exists({str(permit)!r})"
    verify = ["python", "-c", f"{code} and time.monotonic() < ends: time.sleep(0.02)"]
    bundle = pack(make_wheelhouse(work.base / "slow", [small_wheel("alpha")], verify=verify), work.base / "slow.tar")
    first = work.start(bundle)
    wait_until(lambda: work.project.is_dir() and work.names(), 20, "the first one's prefix")
    second = work.start(bundle)
    assert second.process.stderr is not None
    waits = f"pid {first.process.pid} on '{os.uname().nodename}' since 20"
    assert any(waits in line for line in second.process.stderr), "the second did not wait for the first"
    permit.touch()
    answers = [run.finish()["installed"] for run in (first, second)]
    assert [answer["was_installed"] for answer in answers] == [True, False]
    assert answers[0]["prefix"] == answers[1]["prefix"]
    work.check(packages=1)


# -- the workspace


@needs_namespaces
def test_read_only_workspace_that_is_installed_serves(work: Workspace, bundles: dict[str, Path]) -> None:
    bundle = work.base / "bundle.tar"
    shutil.copy(bundles["one"], bundle)
    work.install(bundle)
    read_only = under_mount(f"mount --bind {work.project} {work.project} && mount -o remount,ro,bind {work.project}")
    assert work.install(bundle, before=read_only)["installed"]["was_installed"] is False
    assert work.install(bundle, before=read_only, BUNDLE_VERIFY="always")["installed"]["was_installed"] is False
    os.utime(bundle, ns=(1, 1))
    touched = work.install(bundle, before=read_only)
    assert touched["installed"]["was_installed"] is False and "cannot be written" in touched["log"]
    fault = work.install(bundles["two"], before=read_only)
    expect_fault(fault, InstallError.exit_code, "Read-only file system", "mount the workspace writable")


def under_mount(command: str) -> tuple[str, ...]:
    """Return a prefix that runs a command where these mounts are in effect, and nowhere else."""
    return ("unshare", "-m", "sh", "-ec", f'{command}; exec "$@"', "sh")


@needs_namespaces
def test_disk_that_is_too_small_is_refused_before_anything(work: Workspace) -> None:
    folder = make_wheelhouse(work.base / "big", [Wheel("big", "1", {"big/data": os.urandom(6_000_000)})])
    bundle = pack(folder, work.base / "big.tar")
    work.project.mkdir()
    answer = work.install(bundle, before=under_mount(f"mount -t tmpfs -o size=20m none {work.project}"))
    expect_fault(answer, InstallError.exit_code, "MB are needed, ", "MB are free; free space there")


@needs_namespaces
@pytest.mark.parametrize("files", [30, 110])
def test_disk_that_fills_up_meanwhile_leaves_nothing(work: Workspace, bundles: dict[str, Path], files: int) -> None:
    """Few inodes: a filesystem that is full although bytes are free, in the venv or among the wheels' files."""
    many = small_wheel("many", files=200, size=10)
    bundle = pack(make_wheelhouse(work.base / "many", [many]), work.base / "many.tar")
    work.project.mkdir()
    left = work.base / "left"
    command = (
        f"mount -t tmpfs -o size=60m,nr_inodes={files} none {work.project}; "
        f'"$@"; find {work.project} -type f > {left}; exit 0'
    )
    answer = work.install(bundle, before=("unshare", "-m", "sh", "-ec", command, "sh"))
    expect_fault(answer, InstallError.exit_code, "No space left", "free space")
    assert {Path(line).name for line in left.read_text().splitlines()} <= {".install.lock"}


def test_install_as_another_user_belongs_to_it(work: Workspace, bundles: dict[str, Path]) -> None:
    if not work.use_python_for(NOBODY):
        pytest.skip("needs root, setpriv, and a Python with our dependencies that the user nobody may read")
    shutil.copy(bundles["one"], work.base / "one.tar")
    work.project = work.base / "deep" / "project"
    answer = work.install(work.base / "one.tar", USER=pwd.getpwuid(NOBODY).pw_name)
    assert answer.get("installed", {}).get("was_installed"), answer
    owners = {path.lstat().st_uid for path in (work.project.parent, *work.project.rglob("*"))}
    assert owners == {NOBODY}


def test_workspace_of_somebody_else_names_uid_path_and_mend(work: Workspace, bundles: dict[str, Path]) -> None:
    if not work.use_python_for(NOBODY):
        pytest.skip("needs root, setpriv, and a Python with our dependencies that the user nobody may read")
    work.project.mkdir()
    shutil.copy(bundles["one"], work.base / "one.tar")
    answer = work.install(work.base / "one.tar", USER=pwd.getpwuid(NOBODY).pw_name)
    expect_fault(answer, InstallError.exit_code, "uid 65534", str(work.project), "chown", "AUTO_INFER_SGLANG_USER")


def test_user_that_does_not_exist_is_a_settings_error(work: Workspace, bundles: dict[str, Path]) -> None:
    expect_fault(work.install(bundles["one"], USER="no-such-user"), 11, "no-such-user")


# -- signals


@pytest.mark.parametrize(
    ("number", "code", "ignores"),
    [(signal.SIGTERM, 143, False), (signal.SIGTERM, 143, True), (signal.SIGINT, 130, True)],
)
def test_signal_ends_a_long_install_at_once(
    work: Workspace, bundles: dict[str, Path], number: signal.Signals, code: int, ignores: bool
) -> None:
    work.install(bundles["one"])
    sleep = "import os, signal, time; print(os.getpid(), file=open('asleep', 'w'), flush=True); "
    sleep += "signal.signal(signal.SIGTERM, signal.SIG_IGN); " if ignores else ""
    verify = ["python", "-c", sleep + "time.sleep(60)"]
    bundle = pack(
        make_wheelhouse(work.base / "slow", [small_wheel("alpha", "5.0")], verify=verify), work.base / "s.tar"
    )
    run = work.start(bundle)
    asleep = wait_until(lambda: next(work.project.glob("envs/*/asleep"), None), 30, "the verify command")
    wait_until(lambda: asleep.read_text().strip())
    began = time.monotonic()
    os.kill(run.process.pid, number)
    run.finish(code=code)
    assert time.monotonic() - began < 20  # a third of what the verify command sleeps
    assert not os.path.exists(f"/proc/{asleep.read_text().strip()}")
    assert work.say("alpha") == "alpha 1.0"
    assert work.install(bundles["two"])["installed"]["was_installed"]
    work.check(packages=2)


# -- a real wheel


def test_real_wheel_of_the_cpu_engine_installs_and_imports(tmp_path: Path) -> None:
    work = Workspace(tmp_path)
    wheel = download_wheel("xllamacpp", tmp_path)
    verify = ["python", "-c", "import xllamacpp; print('xllamacpp', bool(xllamacpp.Server))"]
    folder = make_wheelhouse(work.base / "real", [], extra_wheels=[wheel], verify=verify)
    answer = work.install(pack(folder, work.base / "real.tar"))
    assert answer["installed"]["versions"]["xllamacpp"] == wheel.name.split("-")[1]
    assert work.marker()["verify_output"].endswith("xllamacpp True")
    work.check(packages=1)


def download_wheel(name: str, base: Path) -> Path:
    """Fetch a wheel from the registry that pip is set up with; skip where none answers."""
    target = base / "download"
    argv = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d", str(target), name]
    try:
        run = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    except subprocess.TimeoutExpired:
        pytest.skip(f"no registry sent the wheel of {name} within 60 s")
    if run.returncode != 0:
        pytest.skip(f"pip cannot download {name} here: {run.stderr.strip().splitlines()[-1:]}")
    return next(target.glob("*.whl"))
