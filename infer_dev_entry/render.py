"""Render server specs as supervisord configuration text; any string survives exactly or is refused with a reason."""

from __future__ import annotations

import re
from dataclasses import dataclass

from infer_dev_entry.errors import ConfigError
from infer_dev_entry.settings import MARK_VARIABLE
from infer_dev_entry.spec import ServerSpec

# One group, so that supervisord stops its programs in parallel; separate programs are stopped one after another.
GROUP = "sglang"
_SAFE_ARGUMENT = re.compile(r"[A-Za-z0-9_@+=:,./-]+\Z")
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True, kw_only=True)
class DaemonSpec:
    """What supervisord itself needs to know.

    `user` is the name that servers run as ("" for supervisord's own), `environment` is added to every server below its
    own variables, and `fleet_id` becomes the mark by which a sweep finds a server's processes.
    """

    run_dir: str
    user: str = ""
    is_root: bool = False
    fleet_id: str = ""
    environment: tuple[tuple[str, str], ...] = ()


def render_mark(fleet_id: str, name: str) -> str:
    """Return the value of the environment mark that every process of server `name` inherits."""
    return f"{fleet_id}/{name}"


def argument_problem(value: str) -> str | None:
    """Say why `value` cannot be an argument of a supervisord command, or None when it survives exactly."""
    for char, word in (("\0", "a NUL byte"), ("\r", "a carriage return")):
        if char in value:
            return f"it holds {word}"
    if _LONE_SURROGATE.search(value):
        return "it holds a lone surrogate"
    return None


def environment_problem(value: str) -> str | None:
    """Say why `value` cannot be an environment value in supervisord's own syntax, which has no escapes, or None."""
    problem = argument_problem(value)
    if problem:
        return problem
    if "\n" in value:
        return "it holds a newline"
    if "'" in value and '"' in value:
        return "it holds both kinds of quotes"
    if value[:1] in ("'", '"') or value[-1:] in ("'", '"'):
        return "it begins or ends with a quote"
    if re.search(r"\s[;#]", value):
        return "it holds white space before ';' or '#', which starts a comment"
    if "%(here)s" in value:
        return "it holds %(here)s"
    return None


def render_argument(value: str) -> str:
    """Quote one argument for supervisord's `command`: `%` doubled, no comment can start, newlines kept.

    Raises:
        ConfigError: the argument cannot be expressed.
    """
    problem = argument_problem(value)
    if problem:
        raise ConfigError((f"cannot render argument {value!r}: {problem}; remove it",))
    if _SAFE_ARGUMENT.match(value):
        return value
    # Each special character begins a quoted piece of its own: then a quote, never white space, stands before `;` and
    # `#` (configparser cuts a comment there), the text beside a newline cannot be stripped, and `%%` is parted from a
    # following `(here)s`, which supervisord replaces in the raw text.
    pieces = re.split(r"(\n)|(?=[;#(])", value)
    return "".join(_quoted(piece) for piece in pieces if piece) or "''"


def _quoted(piece: str) -> str:
    if piece == "\n":
        return "'\n '"  # the continuation line's indent is stripped by configparser
    return "'" + piece.replace("%", "%%").replace("'", "'\"'\"'") + "'"


def render_environment(environment: tuple[tuple[str, str], ...]) -> str:
    """Render variables as supervisord's `KEY="value",…`.

    Raises:
        ConfigError: a value cannot be expressed; all such values are named.
    """
    faults = tuple(
        f"cannot render environment variable {key}: {problem}; supervisord has no way to write it, change the value"
        for key, value in environment
        if (problem := environment_problem(value))
    )
    if faults:
        raise ConfigError(faults)
    return ",".join(f"{key}={_environment_quoted(value)}" for key, value in environment)


def _environment_quoted(value: str) -> str:
    quote = "'" if '"' in value else '"'
    return quote + value.replace("%", "%%") + quote


def path_problem(value: str) -> str | None:
    """Say why a path cannot stand on a line of its own, where supervisord knows no quotes, or None."""
    problem = argument_problem(value)
    if problem:
        return problem
    if "\n" in value or value != value.strip():
        return "it holds a newline, or white space at an end"
    if re.search(r"\s[;#]", value):
        return "it holds white space before ';' or '#', which starts a comment"
    return "it holds '%'" if "%" in value else None  # supervisord expands some paths twice and others once


def _plain(value: str, what: str) -> str:
    problem = path_problem(value)
    if problem:
        raise ConfigError((f"cannot render {what} {value!r}: {problem}; rename it",))
    return value


def render_conf(servers: tuple[ServerSpec, ...], daemon: DaemonSpec) -> str:
    """Render the whole supervisord configuration.

    Raises:
        ConfigError: a name, path, argument or variable cannot be expressed in supervisord's format.
    """
    sections = [_render_daemon(daemon, len(servers))]
    if servers:
        names = ",".join(server.name for server in servers)
        sections.append(f"[group:{GROUP}]\nprograms={names}\n")
    sections.extend(_render_program(server, daemon) for server in servers)
    return "\n".join(sections)


def _render_daemon(daemon: DaemonSpec, count: int) -> str:
    run_dir = _plain(daemon.run_dir, "run directory")
    # supervisord takes three descriptors a program and refuses to start when it cannot have `minfds`.
    lines = [
        "[supervisord]",
        "nodaemon=true",
        "silent=true",  # with -n it would copy its log to stdout, and a blocked reader there freezes it whole
        f"logfile={run_dir}/supervisord.log",
        "logfile_maxbytes=1MB",
        "logfile_backups=1",
        f"pidfile={run_dir}/supervisord.pid",
        f"childlogdir={run_dir}",
        f"minfds={max(1024, 4 * count + 128)}",
        "minprocs=1",
        *(["user=root"] if daemon.is_root else []),
        "",
        "[unix_http_server]",
        f"file={run_dir}/supervisor.sock",
        "chmod=0700",
        *([f"chown={daemon.user}"] if daemon.user else []),
        "",
        "[supervisorctl]",
        f"serverurl=unix://{run_dir}/supervisor.sock",
        "",
        "[rpcinterface:supervisor]",
        "supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface",
        "",
        "[rpcinterface:infer_dev]",
        "supervisor.rpcinterface_factory=infer_dev_entry.supervisor_plugin:make_fleet_interface",
        "",
    ]
    return "\n".join(lines)


def _render_program(server: ServerSpec, daemon: DaemonSpec) -> str:
    environment = dict(daemon.environment) | dict(server.environment)
    environment[MARK_VARIABLE] = render_mark(daemon.fleet_id, server.name)
    lines = [
        f"[program:{server.name}]",
        "command=" + " ".join(render_argument(argument) for argument in server.argv),
        "environment=" + render_environment(tuple(sorted(environment.items()))),
        *([f"user={daemon.user}"] if daemon.user else []),
        "autostart=false",  # PID 1 alone decides when a server starts
        "autorestart=false",
        "startretries=0",
        "startsecs=1",
        f"stopsignal={server.stop_signal}",
        "stopasgroup=false",  # SGLang loses requests when the whole group is signalled
        "killasgroup=true",
        # PID 1 ends the group at the deadline itself; this is the net under it.
        f"stopwaitsecs={int(server.drain_timeout_s) + 2}",
        "redirect_stderr=true",
        f"stdout_logfile={_plain(server.log_file, 'log file')}",
        f"stdout_logfile_maxbytes={server.log_max_bytes}",
        f"stdout_logfile_backups={server.log_backups}",
        "",
    ]
    return "\n".join(lines)
