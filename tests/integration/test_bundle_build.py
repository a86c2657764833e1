"""Bundles built by the real uv and pip: from a local index with faults, and from the registry where one answers.

No package registry ships pixi and pixi-pack: a recording stub stands in for them where argv, environment, retries and
exit handling are concerned, and one test runs the real ones when PIXI_BIN names pixi.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from email.utils import formatdate
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from bundles import PYTHON_MINOR, make_wheel, small_wheel
from installing import Workspace
from wait import wait_until

REPO = Path(__file__).parents[2]
LOCKS = REPO / "docker" / "sglang-wheel-locks"
NAMES = ("alpha", "beta", "gamma", "delta")
PASSWORD = "s3cret-Pa55"


def run_bundle(*words: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run `infer-dev bundle` and return how it ended."""
    return subprocess.run(bundle_argv(*words), env=environ(variables), capture_output=True, text=True, timeout=120)


def bundle_argv(*words: str | Path) -> list[str]:
    return [sys.executable, "-m", "infer_dev_entry", "bundle", *map(str, words)]


def environ(variables: dict[str, str]) -> dict[str, str]:
    return dict(os.environ) | variables


class Index:
    """A package index on the loopback: files of a folder, with faults on demand."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.served: Counter[str] = Counter()
        self.broken: dict[str, int] = {}  # file name → how many more times it is served with wrong bytes
        self.gate = threading.Event()  # downloads of wheels wait for it
        self.gate.set()
        self.refused = 0
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._make_handler())
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def variables(self, user: str = "") -> dict[str, str]:
        """Return what points uv at this index, and pip at nothing else; pip follows uv."""
        url = f"http://{user}127.0.0.1:{self._server.server_port}/simple"
        unset = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "UV_EXTRA_INDEX_URL", "UV_FIND_LINKS")
        return dict.fromkeys(unset, "") | {"UV_DEFAULT_INDEX": url, "PIP_CONFIG_FILE": os.devnull, "UV_NO_CONFIG": "1"}

    def close(self) -> None:
        self.gate.set()
        self._server.shutdown()
        self._server.server_close()

    def wheels_served(self) -> int:
        return sum(self.served[name] for name in self.served if name.startswith(NAMES))

    def _make_handler(index) -> type[BaseHTTPRequestHandler]:  # noqa: N805
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                wanted = "Basic " + base64.b64encode(f"me:{PASSWORD}".encode()).decode()
                if self.headers.get("Authorization") != wanted:
                    index.refused += 1
                    self.send_response(401)
                    self.send_header("WWW-Authenticate", 'Basic realm="test"')
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                parts = self.path.strip("/").split("/")
                get = index.page if parts[0] == "simple" else index.file if self.command == "GET" else index.peek
                data = get(parts[-1])
                self.send_response(200 if data else 404)
                self.send_header("Content-Type", "text/html" if parts[0] == "simple" else "application/octet-stream")
                self.send_header("Content-Length", str(len(data)))
                self.send_header("Last-Modified", formatdate(0, usegmt=True))
                self.end_headers()
                with suppress(BrokenPipeError):  # the client was killed
                    self.wfile.write(data if self.command == "GET" else b"")

            do_HEAD = do_GET  # noqa: N815

            def log_message(self, format: str, *args: object) -> None:
                """Silence."""

        return Handler

    def page(self, name: str) -> bytes:
        """List the files of a package, with hashes."""
        links = ""
        for path in sorted(self.folder.iterdir()):
            if path.name.split("-")[0].replace("_", "-") == name:
                digest = hashlib.sha256(path.read_bytes()).hexdigest()
                # With the metadata beside it (PEP 658), resolving downloads no wheel.
                links += f'<a href="/files/{path.name}#sha256={digest}" data-core-metadata="true">{path.name}</a>\n'
        return f"<!DOCTYPE html><html><body>{links}</body></html>".encode() if links else b""

    def peek(self, name: str) -> bytes:
        """Return a file's bytes for their length; no fault is spent on it."""
        path = self.folder / name
        return path.read_bytes() if path.is_file() else b""

    def file(self, name: str) -> bytes:
        """Return a file's bytes, or others when it is to be broken."""
        path = self.folder / name.removesuffix(".metadata")
        if name.endswith(".metadata"):
            with zipfile.ZipFile(path) as archive:
                return archive.read(next(item for item in archive.namelist() if item.endswith("/METADATA")))
        if name.startswith(NAMES):
            self.gate.wait(60)
        if not path.is_file():
            return b""
        self.served[name] += 1
        if self.broken.get(name, 0) > 0:
            self.broken[name] -= 1
            return b"PK" + b"x" * (path.stat().st_size - 2)
        return path.read_bytes()


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    """An index with four small wheels, one of them for another Python too, behind a password, and pip itself."""
    folder = tmp_path / "index"
    folder.mkdir()
    for name in NAMES:
        make_wheel(folder, small_wheel(name))
    other = make_wheel(folder, small_wheel("alpha", files=1))
    native = other.rename(folder / f"alpha-1.0-cp{PYTHON_MINOR.replace('.', '')}-none-any.whl")
    retag(native)
    make_wheel(folder, small_wheel("alpha"))
    for entry in (resources.files("ensurepip") / "_bundled").iterdir():
        if entry.name.startswith("pip-"):
            (folder / entry.name).write_bytes(entry.read_bytes())
    server = Index(folder)
    yield server
    server.close()


def retag(path: Path) -> None:
    """Make the wheel's WHEEL file say what its name says; RECORD lists no hash of it then."""
    with zipfile.ZipFile(path) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    tag = "-".join(path.stem.split("-")[2:])
    for name, data in contents.items():
        if name.endswith("/WHEEL"):
            contents[name] = data.replace(b"py3-none-any", tag.encode())
            changed = name
    for name, data in contents.items():
        if name.endswith("/RECORD"):
            lines = data.decode().splitlines()
            contents[name] = "\n".join(f"{changed},," if line.startswith(changed) else line for line in lines).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in contents.items():
            archive.writestr(zipfile.ZipInfo(name, (2020, 1, 1, 0, 0, 0)), data)


@pytest.fixture
def asked(tmp_path: Path) -> Path:
    """A requirements file that asks for all of the index."""
    path = tmp_path / "requirements.in"
    path.write_text("\n".join(NAMES) + "\n")
    return path


def options(tmp_path: Path) -> list[str | Path]:
    return ["--cache-dir", tmp_path / "cache", "--python", PYTHON_MINOR, "--retry-sleep", "0", "--jobs", "2"]


def credentials(index: Index) -> dict[str, str]:
    return index.variables(f"me:{PASSWORD}@")


def test_bundle_from_an_index_with_a_password_installs_and_shows_no_password(
    tmp_path: Path, index: Index, asked: Path
) -> None:
    out = tmp_path / "out" / "bundle.tar"
    run = run_bundle("build", "-r", asked, "-o", out, "--json", *options(tmp_path), **credentials(index))
    assert run.returncode == 0, run.stderr
    assert PASSWORD not in run.stdout + run.stderr
    assert index.refused == 0 or index.wheels_served()
    built = json.loads(run.stdout)
    assert built["digest"] == hashlib.sha256(out.read_bytes()).hexdigest()
    with tarfile.open(out) as tar:
        text = "".join(tar.extractfile(name).read().decode() for name in tar.getnames()[:2])  # type: ignore[union-attr]
        assert PASSWORD not in text and "127.0.0.1" not in text
        assert f"wheels/alpha-1.0-cp{PYTHON_MINOR.replace('.', '')}-none-any.whl" in tar.getnames()
    inspected = json.loads(run_bundle("inspect", out, "--json").stdout)
    assert {package["name"] for package in inspected["packages"]} == set(NAMES)
    assert (inspected["sha256"], inspected["python"]) == (built["digest"], PYTHON_MINOR)
    assert "4 packages" in run_bundle("verify", out, "--sha256", built["digest"]).stdout
    workspace = Workspace(tmp_path)
    workspace.install(out, BUNDLE_SHA256=built["digest"])
    assert workspace.say("gamma") == "gamma 1.0"


def test_lock_builds_the_same_bytes_again_without_a_download(tmp_path: Path, index: Index, asked: Path) -> None:
    lock, first, second = tmp_path / "lock.txt", tmp_path / "one.tar", tmp_path / "two.tar"
    words = ("build", "-r", asked, "-o", first, "--write-lock", lock)
    assert run_bundle(*words, *options(tmp_path), **credentials(index)).returncode == 0
    assert lock.read_text().count(" bytes\n") == 4
    served = index.wheels_served()
    words = ("build", "--lock", lock, "-o", second)
    run = run_bundle(*words, *options(tmp_path), **credentials(index))
    assert (run.returncode, index.wheels_served()) == (0, served)
    assert first.read_bytes() == second.read_bytes()


def test_dry_run_downloads_nothing_and_tells_count_and_size(tmp_path: Path, index: Index) -> None:
    lock = tmp_path / "lock.txt"
    digest = hashlib.sha256((index.folder / "beta-1.0-py3-none-any.whl").read_bytes()).hexdigest()
    lock.write_text(f"beta==1.0 --hash=sha256:{digest}\n    # 1234567 bytes\n")
    run = run_bundle("build", "--lock", lock, "--dry-run", *options(tmp_path), **credentials(index))
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[-1] == "1 packages, 1.2 MB in all"
    assert index.served["beta-1.0-py3-none-any.whl"] == 0
    assert not (tmp_path / "cache" / "wheels").exists()


def test_download_that_is_broken_once_is_tried_again(tmp_path: Path, index: Index, asked: Path) -> None:
    index.broken["beta-1.0-py3-none-any.whl"] = 1
    out = tmp_path / "bundle.tar"
    run = run_bundle("build", "-r", asked, "-o", out, *options(tmp_path), **credentials(index))
    assert run.returncode == 0, run.stderr
    assert "attempt 2" in run.stderr
    assert run_bundle("verify", out).returncode == 0


def test_download_that_stays_broken_fails_by_name_and_keeps_the_rest(tmp_path: Path, index: Index, asked: Path) -> None:
    index.broken["beta-1.0-py3-none-any.whl"] = 99
    out = tmp_path / "bundle.tar"
    words = ("build", "-r", asked, "-o", out, "--retries", "1")
    run = run_bundle(*words, *options(tmp_path), **credentials(index))
    assert run.returncode == 22
    assert "cannot fetch 1 of 4 wheels: beta 1.0: " in run.stderr
    assert not out.exists()
    kept = sorted(path.name.split("-")[0] for path in (tmp_path / "cache" / "wheels").glob("*/*"))
    assert kept == ["alpha", "delta", "gamma"]


def test_damaged_cache_is_noticed_and_mended(tmp_path: Path, index: Index, asked: Path) -> None:
    out = tmp_path / "bundle.tar"
    words = ("build", "-r", asked, "-o", out, *options(tmp_path))
    assert run_bundle(*words, **credentials(index)).returncode == 0
    (cached,) = (tmp_path / "cache" / "wheels").glob("*/gamma*")
    cached.write_bytes(b"x" * cached.stat().st_size)
    run = run_bundle(*words, **credentials(index))
    assert (run.returncode, "damaged in the cache" in run.stderr) == (0, True)
    assert run_bundle("verify", out).returncode == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["term", "kill"])
def test_build_that_is_ended_goes_on_at_the_next_run(
    tmp_path: Path, index: Index, asked: Path, number: signal.Signals
) -> None:
    index.gate.clear()
    out = tmp_path / "bundle.tar"
    words = ("build", "-r", asked, "-o", out, *options(tmp_path))
    build = subprocess.Popen(bundle_argv(*words), env=environ(credentials(index)), stderr=subprocess.PIPE, text=True)
    wait_until(lambda: list((tmp_path / "cache").glob("tmp/*/*/requirements.txt")), 60, "a download")
    build.send_signal(number)
    stderr = build.communicate(timeout=20)[1]
    index.gate.set()
    if number == signal.SIGTERM:
        assert build.returncode == 143, stderr
        assert not list((tmp_path / "cache" / "tmp").iterdir())
    assert not out.exists()
    assert run_bundle(*words, **credentials(index)).returncode == 0
    assert run_bundle("verify", out).returncode == 0


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("-r", "/no/such.in"), "cannot read requirements /no/such.in: No such file or directory"),
        (("--lock", "loose.in"), "not every requirement is pinned"),
        (("-r", "missing.in"), "cannot resolve missing.in"),
        (("-r", "loose.in", "-p", "win-64"), "servers run on linux-64, linux-aarch64"),
        (("-r", "loose.in", "-o", "x.tar.gz"), "a bundle is a plain .tar"),
        (("-r", "loose.in", "--python", "3"), "expected a minor version"),
        (("--kind", "wheels"), "neither -r nor --lock is given"),
        (("--kind", "pixi", "--dry-run"), "its lock is pixi.lock"),
    ],
)
def test_build_that_cannot_begin_says_why_in_one_line(
    tmp_path: Path, index: Index, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], reason: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loose.in").write_text("alpha\n")
    (tmp_path / "missing.in").write_text("no-such-package-here\n")
    run = run_bundle("build", *words, **credentials(index))
    assert (run.returncode, reason in run.stderr.splitlines()[-1]) == (22, True), run.stderr


def test_verify_of_a_damaged_bundle_names_every_fault(tmp_path: Path, index: Index, asked: Path) -> None:
    out = tmp_path / "bundle"
    words = ("build", "-r", asked, "-o", out, "--directory-only", *options(tmp_path))
    assert run_bundle(*words, **credentials(index)).returncode == 0
    for name in ("beta", "gamma"):
        (path,) = out.glob(f"wheels/{name}*")
        path.unlink()
        path.write_bytes(b"evil")
    run = run_bundle("verify", out)
    assert run.returncode == 20
    assert "has 2 faults" in run.stderr and "beta" in run.stderr and "gamma" in run.stderr
    report = json.loads(run_bundle("verify", out, "--json").stdout)
    assert (report["ok"], len(report["faults"])) == (False, 2)


@cache
def registry_problem() -> str:
    """Say why the configured registry cannot be used, or ""."""
    from infer_dev_entry.install.uv import find_uv

    argv = [find_uv() or "uv", "pip", "compile", "--no-deps", "--quiet", "-"]
    try:
        run = subprocess.run(argv, input="einops==0.8.2\n", capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"no package registry answers: {error}"
    return "" if run.returncode == 0 else f"no package registry answers: {run.stderr.strip()[-200:]}"


def need_registry() -> None:
    if problem := registry_problem():
        pytest.skip(problem)


def test_bundle_from_the_registry_is_for_the_target_not_for_this_host(tmp_path: Path) -> None:
    need_registry()
    asked, out = tmp_path / "asked.in", tmp_path / "bundle.tar"
    asked.write_text("einops==0.8.2\nmarkupsafe==3.0.2\nzstandard==0.25.0\n")
    target = "3.12" if PYTHON_MINOR != "3.12" else "3.13"
    words = ("build", "-r", asked, "-o", out, "--python", target, "-p", "linux-aarch64")
    run = run_bundle(*words, "--cache-dir", tmp_path / "cache")
    assert run.returncode == 0, run.stderr
    with tarfile.open(out) as tar:
        wheels = [name for name in tar.getnames() if name.endswith(".whl")]
    assert len(wheels) == 3
    tag = f"cp{target.replace('.', '')}-manylinux"
    assert sum(tag in name and "aarch64" in name for name in wheels) == 2, wheels
    assert run_bundle("verify", out).returncode == 0


@pytest.mark.parametrize("stack", ["cuda12", "cuda13"])
def test_lock_of_sglang_itself_can_be_had_in_full(tmp_path: Path, stack: str) -> None:
    need_registry()
    lock = LOCKS / f"{stack}.txt"
    words = ("build", "--lock", lock, "--dry-run", "--json", "--cache-dir", tmp_path / "cache")
    run = run_bundle(*words)
    assert run.returncode == 0, run.stderr
    plan = json.loads(run.stdout)
    assert plan["count"] == lock.read_text().count("--hash=sha256:")
    versions = {item["name"]: item["version"] for item in plan["packages"]}
    assert versions["sglang"] and versions["torch"]
    assert not list(tmp_path.rglob("*.whl"))


STUB = """#!{python}
# Stands in for pixi and pixi-pack: records how it is called, and answers as the test says. It is not the real thing.
import json, os, sys
home = {home!r}
name = os.path.basename(sys.argv[0])
with open(home + "/calls.jsonl", "a") as log:
    kept = {{key: os.environ.get(key, "") for key in ("RATTLER_CACHE_DIR", "PIXI_CACHE_DIR", "PIXI_PROJECT_ROOT")}}
    log.write(json.dumps({{"name": name, "argv": sys.argv[1:], "cwd": os.getcwd(), "env": kept}}) + "\\n")
word = sys.argv[1] if name == "pixi" else "pack"
print("fetching through http://me:{password}@proxy.invalid:3128", flush=True)
plan = json.load(open(home + "/plan.json"))
codes = plan.get(word, [])
code = codes.pop(0) if codes else 0
json.dump(plan, open(home + "/plan.json", "w"))
if code:
    print("error: could not reach https://me:{password}@mirror.invalid/x", file=sys.stderr)
    sys.exit(code)
if word == "lock":
    open("pixi.lock", "w").write("version: 7\\n")
    os.makedirs(".pixi", exist_ok=True)
if word == "pack" and not plan.get("no_output"):
    out = sys.argv[sys.argv.index("--output-file") + 1]
    os.link(home + ("/packed.sh" if "--create-executable" in sys.argv else "/packed.tar"), out)
"""


class Stub:
    """The recording stub, its home and its calls."""

    def __init__(self, home: Path) -> None:
        self.home = home
        (home / "plan.json").write_text("{}")
        for name in ("pixi", "pixi-pack"):
            path = home / name
            path.write_text(STUB.format(python=sys.executable, home=str(home), password=PASSWORD))
            path.chmod(0o755)
        tar = make_packed_tar()
        (home / "packed.tar").write_bytes(tar)
        script = b"#!/bin/sh\n@@END_HEADER@@\n\n" + base64.b64encode(tar) + b"\n@@END_ARCHIVE@@\nUFJPRw==\n"
        (home / "packed.sh").write_bytes(script)

    def plan(self, **codes: Any) -> None:
        """Let the words (lock, run, pack) exit with these codes, one a call, then with 0."""
        (self.home / "plan.json").write_text(json.dumps(codes))

    def calls(self) -> list[dict[str, Any]]:
        path = self.home / "calls.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def make_packed_tar() -> bytes:
    import io

    record = {"name": "p", "version": "1", "build": "0", "sha256": hashlib.sha256(b"conda").hexdigest(), "size": 5}
    files = {
        "channel/linux-64/p-1-0.conda": b"conda",
        "channel/linux-64/repodata.json": json.dumps({"packages.conda": {"p-1-0.conda": record}}).encode(),
        "pypi/a-1-py3-none-any.whl": b"wheel",
        "pixi-pack.json": b'{"version": "1", "pixi-pack-version": "0.7.6", "platform": "linux-64"}',
    }
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for path, data in files.items():
            member = tarfile.TarInfo(path)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return out.getvalue()


@pytest.fixture
def stub(tmp_path: Path) -> Stub:
    home = tmp_path / "stub"
    home.mkdir()
    return Stub(home)


@pytest.fixture
def template(tmp_path: Path) -> Path:
    return Path(shutil.copytree(REPO / "docker" / "sglang-pixi-template", tmp_path / "template"))


def run_pixi(
    stub: Stub, template: Path, out: Path, *words: str | Path, **variables: str
) -> subprocess.CompletedProcess[str]:
    base = ["build", "--kind", "pixi", "--template-dir", template, "-o", out, "--cache-dir", out.parent / "cache"]
    path = f"{stub.home}:{os.environ['PATH']}"
    return run_bundle(*base, "--retry-sleep", "0", *words, PATH=path, **variables)


def on_linux_64() -> bool:
    return sys.platform == "linux" and os.uname().machine == "x86_64"


def test_stubbed_pixi_build_locks_verifies_packs_and_adds_the_sidecar(
    tmp_path: Path, stub: Stub, template: Path
) -> None:
    out = tmp_path / "bundle.tar"
    before = sorted(path.name for path in template.iterdir())
    run = run_pixi(stub, template, out, "-e", "cuda12", PIXI_PROJECT_ROOT="/elsewhere")
    assert run.returncode == 0, run.stderr
    words = [call["argv"][0] if call["name"] == "pixi" else "pack" for call in stub.calls()]
    assert words == (["lock", "run", "pack"] if on_linux_64() else ["lock", "pack"])
    pack = stub.calls()[-1]
    assert pack["argv"][:4] == ["--environment", "cuda12", "--platform", "linux-64"]
    assert pack["argv"][-1] == f"{pack['cwd']}/pixi.toml"
    assert pack["argv"][pack["argv"].index("--use-cache") + 1] == str(tmp_path / "cache" / "pixi-pack")
    assert pack["env"]["RATTLER_CACHE_DIR"] == pack["env"]["PIXI_CACHE_DIR"] == str(tmp_path / "cache" / "rattler")
    assert pack["env"]["PIXI_PROJECT_ROOT"] == ""
    assert sorted(path.name for path in template.iterdir()) == before
    assert not Path(pack["cwd"]).exists()
    assert PASSWORD not in run.stdout + run.stderr
    assert "http://***@proxy.invalid:3128" in run.stderr
    assert run_bundle("verify", out).returncode == 0
    report = json.loads(run_bundle("inspect", out, "--json").stdout)
    assert report["verify_command"][:2] == ["python", "-c"]
    assert report["activation"]["SGLANG_PYSPY_DUMP_BEFORE_CRASH"] == "0"
    with tarfile.open(out) as tar:
        assert {"pixi.toml", "pixi.lock"} <= set(tar.getnames())


def test_stubbed_pixi_build_passes_the_classic_options_on(tmp_path: Path, stub: Stub, template: Path) -> None:
    config, out = tmp_path / "mirrors.toml", tmp_path / "bundle.tar"
    config.write_text("[mirrors]\n")
    words = ["--create-executable", "--ignore-pypi-non-wheel", "--skip-verify", "--update-lock"]
    words += ["--rattler-config", str(config), "--rattler-cache-dir", str(tmp_path / "r")]
    run = run_pixi(stub, template, out, *words, "--pixi-pack-cache-dir", tmp_path / "p", "--retries", "0")
    assert run.returncode == 0, run.stderr
    lock, pack = stub.calls()
    assert lock["argv"][0] == "lock" and lock["env"]["RATTLER_CACHE_DIR"] == str(tmp_path / "r")
    assert {"--create-executable", "--ignore-pypi-non-wheel"} <= set(pack["argv"])
    assert pack["argv"][pack["argv"].index("--config") + 1] == f"{pack['cwd']}/.pixi/config.toml"
    assert pack["argv"][pack["argv"].index("--use-cache") + 1] == str(tmp_path / "p")
    assert (template / "pixi.lock").read_text() == "version: 7\n"
    assert not (template / ".pixi").exists()
    made = tmp_path / "bundle.sh"
    assert json.loads(run_bundle("inspect", made, "--json").stdout)["container"] == "sh"
    assert run_bundle("verify", made).returncode == 0


def test_stubbed_pixi_pack_that_fails_is_tried_again(tmp_path: Path, stub: Stub, template: Path) -> None:
    stub.plan(lock=[1], pack=[3, 3])
    run = run_pixi(stub, template, tmp_path / "bundle.tar", "--retries", "2", "--skip-verify")
    assert run.returncode == 0, run.stderr
    assert [call["name"] for call in stub.calls()] == ["pixi", "pixi", "pixi-pack", "pixi-pack", "pixi-pack"]


@pytest.mark.parametrize(
    ("plan", "reason"),
    [
        (
            {"lock": [1, 1]},
            "cannot lock the template: it failed 2 times: could not reach https://***@mirror.invalid",
        ),
        ({"pack": [3, 3]}, "cannot pack the environment: it failed 2 times"),
        ({"no_output": True}, "without an output"),
        pytest.param(
            {"run": [7]},
            "cannot verify environment 'default'",
            marks=pytest.mark.skipif(not on_linux_64(), reason="verification runs on a linux-64 host alone"),
        ),
    ],
)
def test_stubbed_pixi_build_that_fails_leaves_nothing_and_no_password(
    tmp_path: Path, stub: Stub, template: Path, plan: dict[str, Any], reason: str
) -> None:
    stub.plan(**plan)
    out = tmp_path / "bundle.tar"
    run = run_pixi(stub, template, out, "--retries", "1")
    assert (run.returncode, reason in run.stderr) == (22, True), run.stderr
    assert PASSWORD not in run.stderr
    assert not out.exists()
    assert not list((tmp_path / "cache" / "work").iterdir())


def test_pixi_build_without_pixi_says_what_to_do(tmp_path: Path, template: Path) -> None:
    words = ("build", "--kind", "pixi", "--template-dir", template, "-o", tmp_path / "x.tar")
    run = run_bundle(*words, PATH="/nonexistent", PIXI_BIN="")
    assert (run.returncode, "--kind wheels" in run.stderr) == (22, True), run.stderr


def test_script_passes_its_options_on_behind_the_defaults(tmp_path: Path) -> None:
    recorder = tmp_path / "recorder"
    recorder.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    recorder.chmod(0o755)
    script = REPO / "docker" / "host-scripts" / "build-sglang-bundle.sh"
    run = subprocess.run(
        [script, "-e", "cuda12", "-o", "my.tar"],
        env=environ({"BUNDLE_BUILDER": str(recorder)}),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=20,
        check=True,
    )
    words = run.stdout.splitlines()
    workspace = REPO / "docker" / ".container" / "workspace"
    assert words[:4] == ["bundle", "build", "--cache-dir", str(workspace / ".cache")]
    assert words[words.index("--output") + 1] == str(workspace / "sglang-offline-bundle.tar")
    assert words[-4:] == ["-e", "cuda12", "-o", "my.tar"]


@pytest.mark.skipif(
    not os.environ.get("PIXI_BIN"), reason="no pixi here: set PIXI_BIN (and PIXI_PACK_BIN) to run the real one"
)
def test_real_pixi_builds_a_bundle(tmp_path: Path) -> None:
    template = tmp_path / "template"
    template.mkdir()
    (template / "pixi.toml").write_text(
        '[workspace]\nname = "x"\nchannels = ["conda-forge"]\nplatforms = ["linux-64"]\n'
        '[dependencies]\npython = "3.12.*"\n[tasks]\nverify = "python -V"\n'
    )
    out = tmp_path / "bundle.tar"
    run = run_bundle("build", "--template-dir", template, "-o", out, "--cache-dir", tmp_path / "cache")
    assert run.returncode == 0, run.stderr
    assert not (template / ".pixi").exists()
    assert run_bundle("verify", out).returncode == 0
