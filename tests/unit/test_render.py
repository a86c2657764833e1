"""Rendering, checked through supervisord's own parser: exact, or refused."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from make import make_spec
from supervisor.options import ServerOptions

from infer_dev_entry.errors import ConfigError
from infer_dev_entry.render import (
    DaemonSpec,
    argument_problem,
    environment_problem,
    render_argument,
    render_conf,
    render_environment,
)
from infer_dev_entry.settings import MARK_VARIABLE

DAEMON = DaemonSpec(run_dir="/tmp", fleet_id="cafe")
# Any text, and text dense with what supervisord's formats give a meaning.
TEXT = st.one_of(st.text(), st.text(alphabet="%(here)sENV_X;#'\"\\ \n\t=,:[]{}a$`é\u2028\x85"))


def parse_conf(text: str, directory: Path) -> ServerOptions:
    """Parse with supervisord itself."""
    path = directory / "supervisord.conf"
    path.write_text(text, encoding="utf-8", newline="")
    options = ServerOptions()
    options.realize(["-c", str(path)])
    return options


def program(options: ServerOptions, name: str = "a"):
    """Return one parsed program."""
    configs = [config for group in options.process_group_configs for config in group.process_configs]
    return next(config for config in configs if config.name == name)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("conf")


@given(arguments=st.lists(TEXT, min_size=1, max_size=4))
@example(arguments=["%(here)s", "a ;b", "# c", "x\n y\n\n", 'it\'s "5%"', "", "%%(ENV_HOME)s"])
def test_argv_survives_supervisords_parser_or_is_refused(arguments: list[str], directory: Path) -> None:
    argv = ("/bin/true", *arguments)
    if any(argument_problem(argument) for argument in arguments):
        with pytest.raises(ConfigError):
            render_conf((make_spec(argv=argv),), DAEMON)
        return
    parsed = program(parse_conf(render_conf((make_spec(argv=argv),), DAEMON), directory))
    assert tuple(shlex.split(parsed.command)) == argv


@given(values=st.lists(TEXT, min_size=1, max_size=4))
@example(values=["a;b", "50%", "", '{"a": 1}', "%(here)", "a,b=c", "\\"])
def test_environment_survives_supervisords_parser_or_is_refused(values: list[str], directory: Path) -> None:
    environment = tuple((f"KEY_{index}", value) for index, value in enumerate(values))
    spec = make_spec(environment=environment)
    if any(environment_problem(value) for value in values):
        with pytest.raises(ConfigError):
            render_conf((spec,), DAEMON)
        return
    parsed = program(parse_conf(render_conf((spec,), DAEMON), directory))
    assert parsed.environment == dict(environment) | {MARK_VARIABLE: "cafe/a"}


@pytest.mark.parametrize(
    "value",
    ["it's", 'say "hi" twice', '{"json": [1, 2]}', "a;b#c", "50%", "%(x)s", "", "  spaced  ", "ümläut", "a=b,c"],
)
def test_environment_common_values_are_not_refused(value: str) -> None:
    assert environment_problem(value) is None


@pytest.mark.parametrize(
    ("value", "word"),
    [
        ("a\nb", "newline"),
        ("'x'", "quote"),
        ("a 'b\" c", "both"),
        ("a ;b", "comment"),
        ("\0", "NUL"),
        ("\r", "carriage"),
    ],
)
def test_environment_inexpressible_value_says_why(value: str, word: str) -> None:
    with pytest.raises(ConfigError, match=f"variable KEY: .*{word}"):
        render_environment((("KEY", value),))


def test_environment_all_inexpressible_values_are_named_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        render_environment((("A", "x\ny"), ("B", "fine"), ("C", "'q'")))
    assert len(caught.value.faults) == 2


@pytest.mark.parametrize("value", ["a\0", "a\rb", "\ud800"])
def test_argument_inexpressible_is_refused(value: str) -> None:
    with pytest.raises(ConfigError, match="cannot render argument"):
        render_argument(value)


def test_program_is_never_restarted_by_supervisord(directory: Path) -> None:
    parsed = program(parse_conf(render_conf((make_spec(drain_timeout_s=7.0),), DAEMON), directory))
    assert parsed.autostart is False
    assert parsed.autorestart is False
    assert parsed.startretries == 0
    assert parsed.stopasgroup is False
    assert parsed.killasgroup is True
    assert parsed.stopwaitsecs > 7
    assert parsed.redirect_stderr is True


def test_programs_share_one_group(directory: Path) -> None:
    options = parse_conf(render_conf((make_spec("a"), make_spec("b")), DAEMON), directory)
    assert [(group.name, len(group.process_configs)) for group in options.process_group_configs] == [("sglang", 2)]


def test_log_file_and_rotation_are_exact(directory: Path) -> None:
    spec = make_spec(log_file=f"{directory}/a é.log", log_max_bytes=12345, log_backups=7)
    parsed = program(parse_conf(render_conf((spec,), DAEMON), directory))
    assert parsed.stdout_logfile == f"{directory}/a é.log"
    assert (parsed.stdout_logfile_maxbytes, parsed.stdout_logfile_backups) == (12345, 7)


@pytest.mark.parametrize("path", ["/tmp/a\nb.log", "/tmp/a ;b.log", "/tmp/x ", "/tmp/50%"])
def test_log_file_inexpressible_is_refused(path: str) -> None:
    with pytest.raises(ConfigError, match="log file"):
        render_conf((make_spec(log_file=path),), DAEMON)


def test_socket_is_private_and_no_port_is_opened(directory: Path) -> None:
    text = render_conf((make_spec(),), DAEMON)
    assert "inet_http_server" not in text
    options = parse_conf(text, directory)
    (server,) = options.server_configs
    assert server["chmod"] == 0o700
    assert server["file"] == "/tmp/supervisor.sock"


def test_user_is_rendered_for_programs_and_owns_the_socket(directory: Path) -> None:
    daemon = DaemonSpec(run_dir="/tmp", user="nobody", environment=(("HOME", "/nonexistent"),))
    options = parse_conf(render_conf((make_spec(environment=(("HOME", "/mine"),)),), daemon), directory)
    parsed = program(options)
    assert parsed.uid is not None
    assert parsed.environment["HOME"] == "/mine"
    assert options.server_configs[0]["chown"][0] == parsed.uid


def test_many_programs_get_descriptors(directory: Path) -> None:
    servers = tuple(make_spec(f"s{index}") for index in range(300))
    options = parse_conf(render_conf(servers, DAEMON), directory)
    assert options.minfds >= 3 * 300


def test_no_servers_render_a_bare_daemon(directory: Path) -> None:
    assert parse_conf(render_conf((), DAEMON), directory).process_group_configs == []


def test_conf_is_deterministic() -> None:
    spec = make_spec(environment=(("B", "2"), ("A", "1")))
    assert render_conf((spec,), DAEMON) == render_conf((spec,), DAEMON)
    assert os.linesep not in render_environment((("A", "1"), ("B", "2")))
