"""What a server gets: its exact command line and variables, a TMPDIR and a user of its own, and secrets unseen."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fleet import PREFIX, SYSTEM_PYTHON, TESTS_DIR, Fleet, free_port, free_ports, server

from infer_dev_entry.control_client import ask
from infer_dev_entry.errors import EntryError

pytest_plugins = ("fleet_fixtures",)

NOBODY = 65534

# Each breaks somebody's quoting: a shell's, supervisord's, configparser's, or Python's %-formatting.
ODD = (
    "",
    " ",
    " leading and trailing ",
    "it's",
    'say "hi"',
    "back\\slash \\n \\",
    "100 %",
    "%(ENV_HOME)s %(here)s %%",
    "a ; b # c",
    "; comment",
    "# comment",
    "$HOME `id` $(id) *",
    "tab\there",
    "a,b=c",
    "é ß 漢字 🚀 \u2028 \x7f",
    "[section]",
    "x" * 5000,
)
ODD_ARGUMENTS = (*ODD, "two\nlines", "\n", "end\n", " \n indented\n\n;x", "both ' and \"")
# supervisord has no escapes for variables; what it cannot express is refused, which has a test of its own.
_REFUSED = ('say "hi"', "%(ENV_HOME)s %(here)s %%", "a ; b # c")
ODD_VALUES = (*(value for value in ODD if value not in _REFUSED), 'say "hi" now', "%(ENV_HOME)s %%", "a;b#c")


def read_facts(path: Path) -> dict[str, Any]:
    """Read what a server wrote of its argv and environment, or {}."""
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError):
        return {}


def test_argv_and_environment_of_a_server_arrive_exactly(fleet: Fleet) -> None:
    facts = fleet.base / "facts"
    values = {f"ODD_{number}": value for number, value in enumerate(ODD_VALUES)}
    fleet.write(server("a", free_port(), "--write-env", str(facts), "--", *ODD_ARGUMENTS, env=values))
    # The container's own variables come from anywhere, and need no quoting at all.
    inherited = {"FROM_OUTSIDE": "two\nlines, 100 % \"of\" 'it' ; # %(here)s", "EMPTY": ""}
    fleet.start(**inherited)
    fleet.wait_ready("a")
    seen = read_facts(facts)
    assert tuple(seen["argv"][-len(ODD_ARGUMENTS) :]) == ODD_ARGUMENTS
    expected = values | inherited
    assert {name: seen["environ"].get(name) for name in expected} == expected


def test_variable_that_supervisord_cannot_express_is_refused_by_name(fleet: Fleet) -> None:
    odd = {"NEWLINE": "one\ntwo", "QUOTES": "both ' and \""}
    fleet.write(server("a", free_port(), env=odd))
    fleet.start(**{PREFIX + "ON_ERROR": "exit"})
    assert fleet.wait_exit() == 10
    errors = [event["error"] for event in fleet.events("boot.failed")]
    assert len(errors) == 2
    assert all(any(f"instance.a.env.{name}: " in error for error in errors) for name in odd)


def test_tmpdir_of_a_server_is_private_emptied_before_each_start_and_gone_after_the_last(fleet: Fleet) -> None:
    a, b = free_ports(2)
    facts = fleet.base / "facts"
    fleet.write(server("a", a, "--write-env", str(facts)), server("b", b))
    fleet.start()
    fleet.wait_ready("a", "b")
    tmp_dir = Path(read_facts(facts)["environ"]["TMPDIR"])
    assert tmp_dir.name == "a"
    assert tmp_dir.is_relative_to(fleet.base / "tmp")
    assert stat.S_IMODE(tmp_dir.stat().st_mode) == 0o700
    other = tmp_dir.parent / "b" / "kept"
    other.touch()
    (tmp_dir / "full").mkdir()
    (tmp_dir / "full" / "left behind").touch()
    outside = fleet.base / "outside"
    outside.mkdir()
    (outside / "precious").touch()
    (tmp_dir / "link").symlink_to(outside)
    fleet.wait_again("a", fleet.kill_server("a"))
    assert list(tmp_dir.iterdir()) == []
    assert other.exists()
    (tmp_dir / "link").symlink_to(outside)
    os.kill(fleet.pid, signal.SIGTERM)
    assert fleet.wait_exit(30) == 0
    assert list((fleet.base / "tmp").iterdir()) == []
    assert (outside / "precious").exists()


def test_tmpdir_that_is_nested_too_deeply_to_be_emptied_holds_neither_a_start_nor_the_stop(fleet: Fleet) -> None:
    facts = fleet.base / "facts"
    fleet.write(server("a", free_port(), "--write-env", str(facts)))
    fleet.start("sh", "-c", "sleep 600; exit 7")
    fleet.wait_ready("a")
    inside = read_facts(facts)["environ"]["TMPDIR"]
    subprocess.run(
        [sys.executable, "-c", "import os\nfor _ in range(3000): os.mkdir('d'); os.chdir('d')"],
        cwd=inside,
        check=True,
        timeout=60,
    )
    try:
        fleet.wait_again("a", fleet.kill_server("a"))
        fleet.kill(fleet.find_processes("sleep", "600")[0].pid)
        assert fleet.wait_exit(30) == 7
        assert fleet.wait_event("entry.stopped")["exit_code"] == 7
        assert not fleet.events("entry.bug")
    finally:
        subprocess.run(["rm", "-rf", inside], check=True, timeout=60)


def test_run_directory_that_was_deleted_meanwhile_does_not_hold_the_stop(fleet: Fleet) -> None:
    fleet.write(server("a", free_port()))
    fleet.start("sh", "-c", "sleep 600; exit 7")
    fleet.wait_ready("a")
    shutil.rmtree(fleet.run_dir)
    fleet.kill(fleet.find_processes("sleep", "600")[0].pid)
    assert fleet.wait_exit(60) == 7
    assert fleet.wait_event("entry.stopped")["exit_code"] == 7


def test_tmpdir_that_the_user_set_is_used_and_left_alone(fleet: Fleet) -> None:
    own = fleet.base / "own"
    own.mkdir()
    (own / "kept").touch()
    facts = fleet.base / "facts"
    fleet.write(server("a", free_port(), "--write-env", str(facts), env={"TMPDIR": str(own)}))
    fleet.start()
    fleet.wait_ready("a")
    fleet.wait_again("a", fleet.kill_server("a"))
    assert read_facts(facts)["environ"]["TMPDIR"] == str(own)
    os.kill(fleet.pid, signal.SIGTERM)
    assert fleet.wait_exit(30) == 0
    assert (own / "kept").exists()


def test_tmpdir_planted_by_another_user_is_not_used(fleet: Fleet) -> None:
    facts = fleet.base / "facts"
    fleet.write(server("a", free_port(), "--write-env", str(facts)))
    fleet.start()
    fleet.wait_ready("a")
    shared = Path(read_facts(facts)["environ"]["TMPDIR"]).parent
    shutil.rmtree(shared)
    shared.mkdir()
    os.chown(shared, NOBODY, NOBODY)
    fleet.kill_server("a")
    row = fleet.wait_state("a", "backoff", reason=f"it belongs to uid {NOBODY}")
    assert str(shared) in row["reason"]
    shutil.rmtree(shared)
    fleet.wait_ready("a")


def as_user(uid: int, work: Any) -> str:
    """Run a function as another user in a fork, and return what it returned, or its error."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            text = str(work())
        except EntryError as error:
            text = f"{error.exit_code}: {error}"
        except BaseException as error:
            text = repr(error)
        os.write(write_end, text.encode())
        os._exit(0)
    os.close(write_end)
    with open(read_end) as stream:
        text = stream.read()
    os.waitpid(pid, 0)
    return text


@pytest.mark.skipif(not os.access(SYSTEM_PYTHON, os.X_OK), reason=f"a server that is nobody's needs {SYSTEM_PYTHON}")
def test_server_of_another_user_runs_as_it_with_its_own_tmpdir_and_home(fleet: Fleet) -> None:
    facts, library = fleet.base / "facts", fleet.base / "library"
    library.mkdir()
    facts.mkdir()
    os.chown(facts, NOBODY, NOBODY)
    shutil.copy(TESTS_DIR / "fake_server.py", library)  # a checkout below /root is closed to others
    key = "sk-very-secret-0123456789"
    fleet.write(
        server("a", free_port(), "--write-env", str(facts / "a"), flags={"api_key": key}),
        master={"python_path": SYSTEM_PYTHON},
    )
    name = pwd.getpwuid(NOBODY).pw_name
    paths = os.pathsep.join((str(library), fleet.environ["PYTHONPATH"]))
    fleet.start(**{PREFIX + "USER": name, "PYTHONPATH": paths, "HOME": "/root"})
    pid = fleet.wait_ready("a")["a"]["pid"]
    main = next(member for member in fleet.members() if member.inner_pid == pid)
    assert main.uid == NOBODY
    seen = read_facts(facts / "a")
    assert seen["environ"]["HOME"] == pwd.getpwuid(NOBODY).pw_dir
    assert seen["environ"]["USER"] == seen["environ"]["LOGNAME"] == name
    tmp_dir = Path(seen["environ"]["TMPDIR"])
    assert (tmp_dir.stat().st_uid, stat.S_IMODE(tmp_dir.stat().st_mode)) == (NOBODY, 0o700)
    # Its secrets are its own to read, and nobody else's.
    config = Path(seen["argv"][seen["argv"].index("--config") + 1])
    assert (config.stat().st_uid, stat.S_IMODE(config.stat().st_mode)) == (NOBODY, 0o600)
    assert json.loads(as_user(NOBODY, config.read_text))["api-key"] == key
    assert "PermissionError" in as_user(NOBODY - 1, config.read_text)
    log = fleet.log_dir / "sglang-server-a.log"
    fleet.wait(lambda: "fake server" in fleet.log_of("a"), what="supervisord to have written the log")
    assert "fake server" in as_user(NOBODY, log.read_text)
    assert "PermissionError" in as_user(NOBODY - 1, log.read_text)
    # It may ask and command; others may not.
    environ = dict(fleet.environ)
    assert "'state': 'ready'" in as_user(NOBODY, lambda: ask(environ, {"op": "status"}))
    refused = as_user(NOBODY - 1, lambda: ask(environ, {"op": "stop", "names": None}))
    assert refused.startswith(f"16: uid {NOBODY - 1} may not control this fleet")
    conf = fleet.run_dir / "supervisord.conf"
    assert "PermissionError" in as_user(NOBODY, conf.read_text)
    # Crash, sweep and restart work across users.
    fleet.wait_again("a", fleet.kill_server("a"))
    assert fleet.stop() == 0


def test_program_that_the_servers_user_may_not_run_is_named_with_the_reason(fleet: Fleet) -> None:
    closed = fleet.base / "closed"
    closed.mkdir(mode=0o700)
    (closed / "python").symlink_to(sys.executable)
    fleet.write(server("a", free_port(), control={"python_path": str(closed / "python")}))
    fleet.start(**{PREFIX + "USER": pwd.getpwuid(NOBODY).pw_name})
    reason = fleet.wait_event("server.failed", "a")["reason"]
    assert f"couldn't exec {closed / 'python'}: EACCES" in reason


def test_fleet_without_another_user_is_closed_to_all_others(fleet: Fleet) -> None:
    fleet.write(server("a", free_port()))
    fleet.start()
    fleet.wait_ready("a")
    environ = dict(fleet.environ)
    assert as_user(NOBODY, lambda: ask(environ, {"op": "status"})).startswith("14: cannot reach")
    assert stat.S_IMODE(fleet.run_dir.stat().st_mode) == 0o700


def test_secrets_are_in_no_command_line_log_status_or_readable_file(fleet: Fleet) -> None:
    key, token = "sk-very-secret-0123456789", "hf_very_secret_token_987"
    fleet.write(
        server("a", free_port(), "--admin-api-key", key, flags={"api_key": key}, env={"HF_TOKEN": token}),
        server("b", free_port(), "--print", f"server_args=ServerArgs(api_key='{key}')", "--exit-after-s", "1"),
    )
    fleet.start()
    rows = fleet.wait_ready("a")
    fleet.wait_event("server.crashed", "b")
    status = fleet.cli("status", "--json")
    config = fleet.cli("config", "show", "--json", str(fleet.config))
    assert config.returncode == 0, config.stderr
    fleet.cli("serve", str(fleet.config))
    where = {
        "command lines": " ".join(
            word for member in fleet.members() for word in member.argv if member.argv[-1:] != [word]
        ),
        "events": fleet.event_log.read_text(),
        "status": status.stdout + status.stderr + str(rows),
        "config show": config.stdout + config.stderr,
        "supervisord's log": (fleet.run_dir / "supervisord.log").read_text(),
        "supervisord's output": (fleet.run_dir / "supervisord.out").read_text(),
    }
    # What b was told to print is in its own command line; that is the test's doing.
    where["command lines"] = where["command lines"].replace(f"server_args=ServerArgs(api_key='{key}')", "")
    assert [place for place, text in where.items() if key in text or token in text] == []
    known = (fleet.config, fleet.log_dir / "sglang-server-b.log")
    holding = {}
    for path in (path for path in fleet.base.rglob("*") if path.is_file() and path not in known):
        with contextlib.suppress(FileNotFoundError):  # one that is replaced just now
            if any(secret.encode() in path.read_bytes() for secret in (key, token)):
                holding[path] = stat.S_IMODE(path.stat().st_mode)
    assert holding
    assert set(holding.values()) == {0o600}, holding


def test_log_of_a_server_with_a_key_is_closed_to_others_across_rotations_and_clearing(fleet: Fleet) -> None:
    key, flood = "sk-very-secret-0123456789", ("--flood-lines-per-s", "500")
    control = {"log_max_bytes": 2000, "log_backups": 1}
    fleet.write(
        server("keyed", free_port(), *flood, flags={"api_key": key}, control=control),
        server("open", free_port(), *flood, control=control),
    )
    fleet.start()
    fleet.wait_ready()
    logs = {name: fleet.log_dir / f"sglang-server-{name}.log" for name in ("keyed", "open")}

    def modes() -> dict[str, set[int]]:
        with contextlib.suppress(FileNotFoundError):  # it is rotated just now
            return {
                name: {stat.S_IMODE(Path(f"{path}{tail}").stat().st_mode) for tail in ("", ".1")}
                for name, path in logs.items()
            }
        return {}

    expected = {"keyed": {0o600}, "open": {0o644}}
    assert fleet.wait(modes, what="both logs to be rotated") == expected
    assert fleet.cli("ctl", "clear", "sglang:keyed", "sglang:open").returncode == 0
    assert fleet.wait(modes, what="both logs to be there") == expected
    assert fleet.cli("logs", "keyed").stdout
    assert not fleet.events("server.log_open_to_others")


def test_log_that_cannot_be_closed_to_others_is_told_and_serves_on(fleet: Fleet) -> None:
    fleet.log_dir.mkdir()
    (fleet.base / "elsewhere").touch()
    (fleet.log_dir / "sglang-server-a.log").symlink_to(fleet.base / "elsewhere")
    fleet.write(server("a", free_port(), flags={"api_key": "sk-very-secret-0123456789"}))
    fleet.start()
    fleet.wait_ready("a")
    assert fleet.wait_event("server.log_open_to_others", "a")["reason"]
