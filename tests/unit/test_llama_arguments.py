"""The launcher's command line: what it refuses, its help, and its agreement with the engine's profile."""

from __future__ import annotations

import argparse

import pytest

from infer_dev_entry.engines import FlagSpec
from infer_dev_entry.engines.llama_cpp import FLAGS, PROFILE
from infer_dev_entry.llama_server.arguments import build_parser, parse_args


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--bogus", "1"], "unrecognized arguments: --bogus 1"),
        (["--ctx", "1"], "unrecognized arguments: --ctx 1"),
        (["--port", "70000"], "expected 0 to 65535, got 70000"),
        (["--ctx-size", "30k"], "expected a whole number, got '30k'"),
        (["--parallel", "0"], "expected 1 to"),
        (["--model-package", "x"], "not allowed with argument"),
        (["--chat-template", "chatml"], "expected the text of a Jinja template, got 'chatml'"),
        (["--chat-template", "{{ x }}", "--no-jinja"], "not allowed with argument --no-jinja"),
        (["--flash-attn", "maybe"], "invalid choice"),
    ],
)
def test_parse_args_bad_flag_exits_2(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse_args(["--model", "m.gguf", "--port", "1", *argv])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_parse_args_without_model_exits_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse_args(["--port", "1"])
    assert caught.value.code == 2
    assert "--model" in capsys.readouterr().err


def test_help_shows_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse_args(["--help"])
    assert caught.value.code == 0
    assert "example:\n  python -m infer_dev_entry.llama_server --model-package" in capsys.readouterr().out


@pytest.mark.parametrize(
    "flag", [flag for flag in FLAGS if flag.name not in PROFILE.secret_flags], ids=lambda f: f.name
)
def test_profile_flag_is_the_launchers(flag: FlagSpec) -> None:
    options = {option: action for action in build_parser()._actions for option in action.option_strings}
    action = options[f"--{flag.name}"]
    assert all(options.get(f"--{alias}", options.get(f"-{alias}")) is action for alias in flag.aliases)
    assert tuple(action.choices or ()) == flag.choices
    assert (flag.kind == "pair") == isinstance(action, argparse.BooleanOptionalAction)
    assert (flag.kind == "switch") == (action.nargs == 0 and flag.kind != "pair")
    assert (flag.kind == "optional") == (action.nargs == "?")


def test_profile_knows_every_flag_of_the_launcher() -> None:
    known = {flag.name for flag in FLAGS} | {alias for flag in FLAGS for alias in flag.aliases} | {"help"}
    known |= {"api-key-file"}  # the file that we write for api_key; a config's api_key_file is read by us
    options = {option for action in build_parser()._actions for option in action.option_strings}
    assert {option.removeprefix("--") for option in options if option.startswith("--")} <= known
