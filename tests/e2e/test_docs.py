"""The container's docs are true: their commands run as they stand, and what cannot run here is at least no fiction.

A block of `sh` or `console` is run in a copy of this checkout, unless the comment before it says what it needs that is
not here: a GPU, a network, a second machine; or which test runs it. What a page leaves open are variables that a reader
may set as well: INFER_DEV_IMAGE, HOST_PORT_SGLANG, COMPOSE_PROJECT_NAME. Blocks of the pages on infer-dev itself run
inside a container that serves, Python as well.
"""

from __future__ import annotations

import ast
import contextlib
import json
import os
import random
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from engine import ROOT, Engine
from serving import serve

from infer_dev_entry.cli import COMMANDS
from infer_dev_entry.variables import VARIABLES

# page → the part of it that is meant, and the folder that its blocks start in
PAGES = {
    "README.md": ("## Use it in a container", "."),
    "docs/container.md": ("", "docker"),
    "docs/troubleshooting.md": ("", "docker"),
    "docs/client.md": ("", "docker"),
    "docs/distributed.md": ("", "docker"),
    "docs/gateway-router.md": ("", "docker"),
    "docs/gateway.md": ("", "docker"),
    "docs/models.md": ("", "docker"),
    "docs/policy.md": ("", "docker"),
    "docs/smoke.md": ("", "docker"),
}
INSIDE = ("docs/gateway.md", "docs/smoke.md", "docs/client.md")
BUNDLE = "docker/.container/workspace/llama-cpp-bundle.tar"  # where the pages' own `bundle build` puts it
# What a page expects to be so before its first block: its reader has a container that runs.
SETTINGS = f"""COMPOSE_FILE=docker-compose.yml:docker-compose.cpu.yml
AUTO_INFER_SGLANG_BUNDLE_ON_BOOT=1
AUTO_INFER_SGLANG_BUNDLE_PATH=/hard/volume/workspace/{Path(BUNDLE).name}
AUTO_INFER_SGLANG_ON_BOOT=1
"""
UP = f"printf %s {shlex.quote(SETTINGS)} > .env && docker compose up -d --wait"
# What serving.py sets as well, for a small machine with other work: a page's container stays ready from block to block.
CALM = {"AUTO_INFER_SGLANG_OVERRIDES": serve()["AUTO_INFER_SGLANG_OVERRIDES"]}
RUNNING = "until docker compose exec -T infer-dev supervisorctl status; do sleep 0.2; done"
SETUP = {"docs/troubleshooting.md": UP}

NEEDS = ("a GPU", "a network", "a second machine", "a model and ports that may be taken")
RUN = ("sh", "console")
SHOWN = ("toml", "yaml", "json", "python", "mermaid", "text")
# Commands of two words, and of three.
GROUPS = {"bundle": 1, "config": 1, "model": 1, "gateway": 1, "gateway keys": 2}
# What a page names that is no setting.
MARKS = {"INFER_DEV_MARK"}
HELPERS = {
    "install-sglang-offline.sh": "install",
    "check-and-run-sglang.sh": "serve",
    "status": "status",
    "logs": "logs",
    "smoke": "smoke",
}
BLOCK_TIMEOUT_S = 400.0


@dataclass(frozen=True)
class Block:
    """One fenced block of a page. `needs` is what keeps it from being run here, `run_by` the test that does instead."""

    page: str
    line: int
    language: str
    text: str
    needs: str
    run_by: str = ""

    @property
    def where(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def commands(self) -> str:
        """The shell's input; of a console, the lines behind `$ `, for the others are what it printed."""
        if self.language != "console":
            return self.text
        return "\n".join(line[2:] for line in self.text.splitlines() if line.startswith("$ "))

    @property
    def is_run_here(self) -> bool:
        return self.language in RUN and not self.needs and not self.run_by


def read_page(page: str) -> str:
    """Return the text of the page, or the part of it that is meant, with the line numbers of the whole."""
    text = (ROOT / page).read_text(encoding="utf-8")
    heading = PAGES[page][0]
    if not heading:
        return text
    before, found, after = text.partition(f"{heading}\n")
    assert found, f"{page} has no section {heading!r}"
    return "\n" * before.count("\n") + heading + "\n" + re.split(r"^## ", after, maxsplit=1, flags=re.MULTILINE)[0]


def parse_blocks(page: str, text: str) -> list[Block]:
    """Return the fenced blocks in order."""
    pattern = re.compile(r"(?:^<!-- (?P<note>[^\n]*) -->\n)?^```(?P<lang>[^\n]*)\n(?P<text>.*?)^```$", re.M | re.S)
    blocks = []
    for match in pattern.finditer(text):
        note, line = match["note"] or "", text.count("\n", 0, match.start("lang")) + 1
        needs = note.removeprefix("not run: needs ") if note.startswith("not run") else ""
        run_by = note.removeprefix("run by ") if note.startswith("run by ") else ""
        blocks.append(Block(page, line, match["lang"], match["text"], needs, run_by))
    return blocks


def blocks_of(page: str) -> list[Block]:
    return parse_blocks(page, read_page(page))


ALL = [block for page in PAGES for block in blocks_of(page)]
SHELL = [block for block in ALL if block.language in RUN]
per_block = pytest.mark.parametrize("block", SHELL, ids=lambda block: block.where)
per_page = pytest.mark.parametrize("page", PAGES)
OUTSIDE = [page for page in PAGES if page not in INSIDE and any(block.is_run_here for block in blocks_of(page))]


# -- the commands run


@pytest.fixture
def checkout(bundle: Path, tmp_path: Path) -> Path:
    """What a reader has: this repository's files, and the bundle where the page's own command puts it."""
    ignored = shutil.ignore_patterns(".container", ".env", "wheels", "bin", "docker-compose.override.yml")
    for folder in ("docker", "model-configs"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=ignored)
    target = tmp_path / BUNDLE
    target.parent.mkdir(parents=True)
    os.link(bundle, target)
    return tmp_path


@pytest.fixture
def environ(engine: Engine, checkout: Path) -> Iterator[dict[str, str]]:
    """The reader's environment: an image, a project and a port of this test's own; all is removed at the end."""
    project = engine.name("docs").lower()
    image = f"{project}:latest"  # a name of its own, as the walk-through saves and loads it
    engine.docker("tag", engine.image, image)
    clean = {
        name: value
        for name, value in engine.environ.items()
        if not name.startswith(("AUTO_INFER_", "INFER_DEV_", "HOST_", "COMPOSE_"))
    }
    own = {"INFER_DEV_IMAGE": image, "COMPOSE_PROJECT_NAME": project, "HOST_PORT_SGLANG": str(free_port())}
    yield clean | own | CALM
    subprocess.run(["docker", "compose", "-p", project, "down", "-v", "-t", "5"], env=clean, timeout=180, check=False)
    engine.docker("rmi", image, check=False)


def free_port() -> int:
    """Return a port that nobody uses, and that the kernel gives to nobody else in the minutes until Docker takes it."""
    for port in random.sample(range(20000, 29000), 100):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("found no free port")


def run_shell(commands: str, folder: Path, environ: Mapping[str, str], where: str) -> str:
    """Run commands as a reader would, but stop at the first that fails; return what they printed."""
    began = time.monotonic()
    try:
        run = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", commands],
            cwd=folder,
            env=dict(environ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=BLOCK_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise AssertionError(f"{where} is not done in {BLOCK_TIMEOUT_S:g} s: {error.stdout!r}") from error
    if run.returncode:
        logs = subprocess.run(
            ["docker", "compose", "logs", "--tail", "50"],
            cwd=folder,
            env=dict(environ),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        raise AssertionError(f"{where} exits with {run.returncode}:\n{commands}\n{run.stdout}\n{logs.stdout}")
    print(f"{where}: {time.monotonic() - began:.1f} s")
    return run.stdout


@pytest.mark.timeout(900, func_only=True)  # a minute on an idle machine; four boots of a page in a row on a busy one
@pytest.mark.parametrize("page", OUTSIDE)
def test_commands_of_the_page_run_in_order(page: str, checkout: Path, environ: dict[str, str], engine: Engine) -> None:
    folder = checkout / PAGES[page][1]
    if page in SETUP:
        run_shell(SETUP[page], folder, environ, f"{page}: set-up")
    printed = {}
    for block in blocks_of(page):
        if block.is_run_here:
            if "docker load" in block.commands:  # the other machine does not have it yet
                engine.docker("rmi", environ["INFER_DEV_IMAGE"])
            if "supervisorctl status" in block.commands:  # a reader comes to it later than the first second of a server
                run_shell(RUNNING, folder, environ, f"{page}: wait for RUNNING")
            printed[block.line] = run_shell(block.commands, folder, environ, block.where)
    if "sequenceDiagram" in read_page(page):
        check_order_of_events(page, printed.values())


@pytest.mark.timeout(900, func_only=True)
def test_blocks_run_inside_a_container_that_serves(checkout: Path, environ: dict[str, str]) -> None:
    folder = checkout / "docker"
    run_shell(UP, folder, environ, "set-up")
    within = "docker compose exec -T -e PORT=30000 -w /tmp infer-dev"
    for page in INSIDE:
        ran = 0
        for block in blocks_of(page):
            if block.is_run_here:
                run_shell(f"{within} bash -euo pipefail -c {shlex.quote(block.commands)}", folder, environ, block.where)
            elif block.language == "python":
                command = f"{within} /opt/infer-dev/bin/python -c {shlex.quote(block.text)}"
                assert run_shell(command, folder, environ, block.where).strip(), f"{block.where} prints nothing"
            ran += block.is_run_here or block.language == "python"
        assert ran, f"{page} has no block that runs"


def check_order_of_events(page: str, outputs: object) -> None:
    """Every boot whose log the page prints says the events of the page's diagram in the diagram's order."""
    drawn = re.findall(r"P->>L: ([a-z]+\.[a-z]+)", read_page(page))
    boots = [boot for text in outputs for boot in parse_boots(text)]  # type: ignore[attr-defined]
    for boot in boots:
        seen = [name for name in boot if name in drawn]
        assert seen == [name for name in drawn if name in seen], f"{page} draws {drawn}, the log says {seen}"
        assert {"entry.started", "config.loaded", "server.started", "server.ready", "fleet.ready"} <= set(seen)
    assert {"bundle.installed", "bundle.unchanged"} <= {name for boot in boots for name in boot}


def parse_boots(output: str) -> list[list[str]]:
    """Return the events of every boot in the output of `docker compose logs`, each event once."""
    boots: list[list[str]] = []
    for line in output.splitlines():
        start = line.find('{"')
        if start < 0 or '"event"' not in line:
            continue
        name = json.loads(line[start:])["event"]
        if name == "entry.started":
            boots.append([])
        if boots and name not in boots[-1]:
            boots[-1].append(name)
    return boots


# -- what is not run is no fiction


@per_page
def test_blocks_are_of_a_known_kind(page: str) -> None:
    for block in blocks_of(page):
        assert block.language in (*RUN, *SHOWN), f"{block.where}: nobody knows how to run {block.language or 'it'!r}"
        assert block.needs in ("", *NEEDS), f"{block.where}: {block.needs!r} is no reason not to run it: {NEEDS}"
        if block.language in RUN:
            assert block.commands.strip(), f"{block.where} has no command; in a console they begin with `$ `"
    fences = re.findall(r"^ *```", read_page(page), flags=re.MULTILINE)
    assert len(fences) == 2 * len(blocks_of(page)), f"{page}: a fence is indented or not closed"
    assert not re.search(r"^(    |\t)\S*\b(docker|infer-dev)\b", read_page(page), flags=re.MULTILINE), "use a fence"


@per_block
def test_block_is_valid_shell(block: Block) -> None:
    run = subprocess.run(["bash", "-n"], input=block.commands, capture_output=True, text=True, timeout=20, check=False)
    assert (run.returncode, run.stderr) == (0, ""), block.where


def test_console_gives_its_commands_alone() -> None:
    (block,) = parse_blocks("x", "<!-- not run: needs a GPU -->\n```console\n$ nvidia-smi\noutput\n```\n")
    assert (block.commands, block.needs, block.line) == ("nvidia-smi", "a GPU", 2)


@per_block
def test_compose_reads_the_env_file_of_a_block_that_is_not_run(block: Block, tmp_path: Path) -> None:
    found = re.search(r"^cat > \.env <<'END'\n(.*?)^END$", block.commands, flags=re.MULTILINE | re.DOTALL)
    if found is None or not block.needs:
        return
    for path in ROOT.glob("docker/docker-compose*.yml"):
        shutil.copy(path, tmp_path)
    (tmp_path / ".env").write_text(found[1], encoding="utf-8")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("AUTO_INFER_", "COMPOSE_"))}
    run = subprocess.run(
        ["docker", "compose", "config", "--quiet"],
        cwd=tmp_path,
        env=clean,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (run.returncode, run.stderr) == (0, ""), block.where


@per_page
def test_infer_dev_commands_and_options_exist(page: str) -> None:
    for command in infer_dev_commands(read_page(page)):
        name, *rest = command
        assert name in COMMANDS, f"{page}: there is no command infer-dev {name}"
        depth = max(GROUPS.get(name, 0), GROUPS.get(" ".join(command[:2]), 0))
        within = [word for word in rest[:depth] if not word.startswith("-")]
        options = {word.partition("=")[0] for word in rest if re.match(r"--?[a-z]", word)}
        known = set(re.findall(r"(?<![\w-])--?[a-z][a-z0-9-]*", help_of(name, *within)))
        assert options <= known, f"{page}: infer-dev {' '.join(command)}: no option {options - known}"


@cache
def help_of(*words: str) -> str:
    run = subprocess.run(
        [sys.executable, "-m", "infer_dev_entry", *words, "--help"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == 0, f"infer-dev {' '.join(words)} --help: {run.stderr}"
    return run.stdout


def infer_dev_commands(text: str) -> Iterator[list[str]]:
    """Yield the words behind every `infer-dev` or helper of the text's shell blocks and inline code."""
    joined = re.sub(r"\\\n\s*", " ", text)
    for line in [*joined.splitlines(), *re.findall(r"`([^`\n]+)`", joined)]:
        for part in re.split(r"[|;&`]|(?<!\S)#", line):
            words = part.replace('"', "").replace("'", "").split()
            if words[:2] == ["docker", "compose"] and "infer-dev" in words:
                words = words[words.index("infer-dev") + 1 :]  # the first is the service
            for at, word in enumerate(words):
                base = word.rpartition("/")[2]
                rest = words[at + 1 :]
                if "/soft/app/sglang/" in word and base in HELPERS:
                    yield [HELPERS[base], *rest]
                elif base == "infer-dev" and rest and re.fullmatch(r"[a-z]+", rest[0]) and is_code(line):
                    yield rest
                elif base == "build-sglang-bundle.sh":
                    yield ["bundle", "build", *rest]


def is_code(line: str) -> bool:
    """Tell a command from a sentence with the program's name in it."""
    return bool(re.match(r"\s*(\$ )?(\./|docker |infer-dev |\S+/infer-dev )", line))


def test_commands_are_found_in_lines_and_inline_code() -> None:
    text = "so `infer-dev status --watch` or\ndocker compose exec infer-dev \\\n  infer-dev install --rollback | cat\n"
    assert list(infer_dev_commands(text)) == [["install", "--rollback"], ["status", "--watch"]]


@per_page
def test_variables_exist(page: str) -> None:
    example = (ROOT / "docker" / ".env.example").read_text(encoding="utf-8")
    compose = set(re.findall(r"^#?([A-Z][A-Z0-9_]*)=", example, flags=re.MULTILINE))
    build = set(re.findall(r"^ARG ([A-Z_0-9]+)", (ROOT / "docker" / "Dockerfile").read_text(), flags=re.MULTILINE))
    named = set(
        re.findall(
            r"\b(?:AUTO_INFER|INFER_DEV|HOST|HEALTH|STOP|SHM|PIXI|ME|IPC|BASE|APT)_[A-Z0-9_]+\b", read_page(page)
        )
    )
    assert named <= set(VARIABLES) | compose | build | MARKS


@per_page
def test_paths_of_this_repository_exist(page: str) -> None:
    folder = ROOT / PAGES[page][1]
    text = "\n".join([*(block.commands for block in blocks_of(page)), *re.findall(r"`([^`\n]+)`", read_page(page))])
    from_root = re.findall(r"(?<![\w/.-])(?:docker|model-configs|docs|tools|tests)/[\w./*-]+", text)
    beside = re.findall(
        r"(?<![\w/.$-])(?:\./)?((?:docker-compose|host-scripts|sglang-\w+-locks|stage-2)[\w./*-]*)", text
    )
    scripts = re.findall(r"(?<![\w/.])\./([\w/-]+\.sh)", text)
    made = re.compile(r"\.container|\.override\.yml|/\.env$|my-container|docker/bin/$|hf_token$")
    for path in from_root:
        assert made.search(path) or any(ROOT.glob(path.rstrip("/"))), f"{page}: {path}"
    for path in (*beside, *scripts):
        candidates = [*folder.glob(path.rstrip("/:")), *(ROOT / "docker").glob(path.rstrip("/:"))]
        assert made.search(path) or candidates, f"{page}: {path}"
    for path in re.findall(r"(?<!\w)/model-configs/([\w.-]+\.toml)", text):
        assert (ROOT / "model-configs" / path).is_file(), f"{page}: {path}"


# -- the messages of the troubleshooting page are the code's own


@cache
def literals() -> tuple[str, ...]:
    """Every piece of text in the package's source; of an f-string, what stands between its fields."""
    return tuple(
        node.value
        for path in sorted((ROOT / "infer_dev_entry").rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )


def own_messages() -> list[str]:
    """The first cells of the page's tables, but for the sections on other programs."""
    sections = re.split(r"^## ", (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    own = [text for text in sections if text.startswith(("Boot", "Installing", "Servers"))]
    return [message for text in own for message in re.findall(r"^\| `([^`]+)`", text, flags=re.MULTILINE)]


@pytest.mark.parametrize("message", own_messages())
def test_message_is_one_that_the_code_says(message: str) -> None:
    for piece in message.split("…"):
        assert is_said(piece.strip(" :;,()")), piece


def is_said(words: str, most_parts: int = 3) -> bool:
    """Whether the code says this, as a whole or put together of parts: who tried, the kernel's reason, the mend."""
    words = words.strip(" :;,()")
    if not words or any(words in text for text in literals()) or words in of_the_kernel():
        return True
    cuts = [match.start() for match in re.finditer(" ", words)] if most_parts > 1 else []
    return any(
        len(words[:cut]) >= 8 and is_said(words[:cut], 1) and is_said(words[cut:], most_parts - 1) for cut in cuts
    )


@cache
def of_the_kernel() -> frozenset[str]:
    """The kernel's own words: errors as strerror has them, and signals."""
    return frozenset([*(os.strerror(number) for number in range(1, 135)), *(item.name for item in signal.Signals)])


@pytest.mark.parametrize("words", ["was killed by SIGNUL", "cannot bake a cake", "port is taken by the cat"])
def test_message_that_the_code_does_not_say_is_found_out(words: str) -> None:
    assert not is_said(words)


def test_there_are_messages_to_look_for() -> None:
    assert len(own_messages()) > 25
