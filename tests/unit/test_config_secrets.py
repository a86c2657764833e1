"""`api_key_file` and `api_key_env`: the key reaches the private file and nothing else, whatever holds it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_config_resolve import FakeHost, faults_of, one, plan_of, server

from infer_dev_entry.config.facts import Secret
from infer_dev_entry.config.secrets import text_problem
from infer_dev_entry.host import LiveHost
from infer_dev_entry.redact import secrets_of


class Vault(FakeHost):
    """A machine with secrets."""

    def __init__(self, **secrets: Secret | str) -> None:
        super().__init__()
        self.secrets = {name: Secret(text=item) if isinstance(item, str) else item for name, item in secrets.items()}
        self.reads: list[str] = []

    def secret_file(self, path: str, /) -> Secret:
        self.reads.append(path)
        return self.secrets[path.rpartition("/")[2]]

    def secret_variable(self, name: str, /) -> Secret:
        return self.secrets.get(name, Secret(problem="it is not set"))


@pytest.mark.parametrize("line", ['api_key_file = "/s/k"', 'api_key_env = "K"', 'api-key-file = "~/k"'])
def test_key_goes_to_the_private_file_alone(line: str) -> None:
    spec = one(server(line), Vault(k="t0p-s3cret", K="t0p-s3cret"))
    assert json.loads(spec.files[0].text) == {"api-key": "t0p-s3cret"}
    assert "t0p-s3cret" not in repr((spec.argv, spec.environment))
    assert not any(word.startswith("--api-key") for word in spec.argv)
    assert secrets_of(spec.files) == ("t0p-s3cret",)


def test_admin_key_has_sources_of_its_own() -> None:
    spec = one(server('api_key_file = "/s/k"\nadmin_api_key_env = "ADMIN"'), Vault(k="user-key", ADMIN="admin-key"))
    assert json.loads(spec.files[0].text) == {"api-key": "user-key", "admin-api-key": "admin-key"}


def test_llama_key_file_may_hold_a_key_a_line() -> None:
    spec = one(server('api_key_file = "/s/k"', "llama_cpp"), Vault(k="one\ntwo"))
    assert spec.files[0].text == "one\ntwo\n"
    assert spec.argv[-2:] == ("--api-key-file", "/run/x/config/a.key")


def test_key_of_an_instance_wins_over_the_global_one_however_they_are_given() -> None:
    text = '[instance.server]\napi_key_env = "ALL"\n' + server('api_key_file = "/s/own"')
    assert json.loads(one(text, Vault(ALL="global", own="instance")).files[0].text) == {"api-key": "instance"}
    text = '[instance.server]\napi_key_file = "/s/all"\n[instance.a.server]\nmodel_path="m"\n'
    text += '[instance.b.server]\nmodel_path="m"\nport=4\n'
    vault = Vault(all="global")
    assert len({spec.files[0].text for spec in plan_of(text, vault).servers}) == 1
    assert vault.reads == ["/s/all"]


@pytest.mark.parametrize(
    ("lines", "secret", "expected"),
    [
        (
            'api_key_file = "/s/k"',
            Secret(problem="no such file or directory"),
            'from "/s/k": no such file or directory',
        ),
        ('api_key_file = "/s/k"', Secret(text=""), 'cannot take the key from "/s/k": it is empty; give a file with'),
        ('api_key_file = "/s/k"', Secret(text="one\ntwo"), "it has several lines"),
        ('api_key_file = "/s/k"', Secret(text="-dash"), "it has a blank or a leading dash"),
        ('api_key_file = "/s/k"', Secret(text="a\x1bb"), "it has characters that no header can carry"),
        ('api_key_env = "NOPE"', Secret(), "variable NOPE: it is not set; set it in the container's environment"),
        ('api_key_file = "/s/k"\napi_key = "x"', Secret(text="0ther"), "api_key is given twice; give it in one way"),
        ("api_key_file = 7", Secret(), "api_key_file: expected"),
    ],
)
def test_key_that_cannot_be_had_is_one_fault_that_does_not_show_it(lines: str, secret: Secret, expected: str) -> None:
    (fault,) = faults_of(server(lines), Vault(k=secret))
    assert expected in fault
    assert not secret.text or repr(secret.text)[1:-1] not in fault


def test_world_readable_key_and_admin_key_of_llama_warn() -> None:
    plan = plan_of(server('api_key_file = "/s/k"'), Vault(k=Secret(text="key", warning="can be read by every user")))
    assert plan.warnings[-1].endswith('"/s/k" can be read by every user; chmod 600 /s/k')
    plan = plan_of(server('admin_api_key_env = "K"', "llama_cpp"), Vault(K="key"))
    assert plan.warnings[-1].endswith("admin_api_key_env: is not for engine llama_cpp; left out")
    assert plan.servers[0].files == ()


def test_text_alone_is_checked_without_the_secret() -> None:
    from infer_dev_entry.config import NoHost

    assert one(server('api_key_file = "/s/k"'), NoHost()).files


@given(text=st.text(max_size=80))
def test_any_text_is_a_key_or_has_a_problem_that_does_not_quote_it(text: str) -> None:
    problem = text_problem(text, many=False)
    usable = text and text.isprintable() and " " not in text and not text.startswith("-")
    assert bool(problem) != bool(usable)


# the real machine's files


def test_live_file_is_read_without_its_line_end(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_bytes(b"s3cret\r\n")
    path.chmod(0o600)
    assert LiveHost().secret_file(str(path)) == Secret(text="s3cret")
    path.chmod(0o644)
    assert LiveHost().secret_file(str(path)).warning == "can be read by every user"


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda path: None, "no such file or directory"),
        (lambda path: path.mkdir(), "it is not a file"),
        (lambda path: os.mkfifo(path), "it is not a file"),
        (lambda path: path.write_bytes(b"\xff\xfe"), "it is not UTF-8 text"),
        (lambda path: path.write_bytes(b"x" * 70_000), "it is larger than 65536 bytes"),
    ],
)
def test_live_file_that_holds_no_key_has_a_reason(tmp_path: Path, make, problem: str) -> None:
    make(tmp_path / "key")
    assert LiveHost().secret_file(str(tmp_path / "key")).problem == problem


def test_live_variable_comes_from_the_given_environment() -> None:
    assert LiveHost(environ={"K": "s3cret"}).secret_variable("K") == Secret(text="s3cret")
    assert LiveHost().secret_variable("K").problem == "it is not set"


@pytest.mark.parametrize(
    ("words", "flag"),
    [
        ('["--api-k", "sk-LEAK1234567"]', "api-key"),
        ('["--api-key=sk-LEAK1234567"]', "api-key"),
        ('["--admin-api", "sk-LEAK1234567"]', "admin-api-key"),
        ('["--ssl-keyfile-p", "sk-LEAK1234567"]', "ssl-keyfile-password"),
    ],
)
def test_secret_among_raw_words_is_moved_also_by_the_beginning_of_its_name(words: str, flag: str) -> None:
    """argparse takes the beginning of a flag for the flag."""
    plan = plan_of(server(f"extra_args = {words}"))
    (spec,) = plan.servers
    assert json.loads(spec.files[0].text) == {flag: "sk-LEAK1234567"}
    assert "sk-LEAK1234567" not in repr((spec.argv, spec.environment, plan.warnings))
    assert secrets_of(spec.files) == ("sk-LEAK1234567",)


@pytest.mark.parametrize("words", ['["--a", "x"]', '["--unknown-k", "x"]', '["--", "x"]', '["--api-keys", "x"]'])
def test_raw_words_that_begin_no_secret_are_left_alone(words: str) -> None:
    (spec,) = plan_of(server(f"extra_args = {words}")).servers
    assert "x" in spec.argv
    assert spec.files == ()


def test_port_among_raw_words_is_a_fault_also_by_the_beginning_of_its_name() -> None:
    (fault,) = faults_of(server('extra_args = ["--hos", "0.0.0.0"]'))
    assert "holds --hos; infer-dev must know it: write host in the server table" in fault


@pytest.mark.parametrize("line", ['config = "/s/mine"', 'extra_args = ["--config", "/s/mine"]'])
@pytest.mark.parametrize(
    ("text", "warns"),
    [
        ("api-key: t0p\n", True),
        ("port: 1\nadmin_api_key: t0p\n", True),
        ('{"api-key": "t0p"}', True),
        ("port: 1\n", False),
        ("# api-key: none\nmy-api-key: x\napi-key:\n", False),
    ],
)
def test_key_in_a_config_file_of_the_users_own_is_told(line: str, text: str, warns: bool) -> None:
    warnings = plan_of(server(line), Vault(mine=text)).warnings
    assert [warning for warning in warnings if "names a file with a key in it" in warning] == list(warnings) * warns
    assert "t0p" not in repr(warnings)
