"""What the builder reads out of a pixi.toml: activation and verify of one environment, and what cannot travel."""

from __future__ import annotations

import pytest

from infer_dev_entry.bundle.build_manifest import parse_manifest
from infer_dev_entry.errors import BuildError

TEXT = """
[activation.env]
WHO = "default"
KEPT = "yes"
[target.linux-64.activation.env]
ARCH = "64"
[target.osx-arm64.activation.env]
ARCH = "arm"
[target.linux.activation.env]
SYSTEM = "linux"
[tasks]
verify = "python -c 'import a; print(a)'"
[feature.one.activation.env]
WHO = "one"
[feature.two.activation.env]
WHO = "two"
[feature.two.tasks]
verify = { cmd = ["python", "-c", "import b && c"], description = "x" }
[environments]
one = ["one"]
both = { features = ["two", "one"] }
bare = { features = ["one"], no-default-feature = true }
"""


@pytest.mark.parametrize(
    ("environment", "who"), [("default", "default"), ("one", "one"), ("both", "two"), ("bare", "one")]
)
def test_first_feature_of_an_environment_wins(environment: str, who: str) -> None:
    variables = dict(parse_manifest(TEXT, environment, "linux-64").activation)
    assert variables["WHO"] == who
    assert ("KEPT" in variables) is (environment != "bare")


def test_targets_that_match_the_platform_count() -> None:
    variables = dict(parse_manifest(TEXT, "default", "linux-64").activation)
    assert (variables["ARCH"], variables["SYSTEM"]) == ("64", "linux")
    assert "ARCH" not in dict(parse_manifest(TEXT, "default", "linux-aarch64").activation)


def test_verify_task_is_taken_as_words() -> None:
    assert parse_manifest(TEXT, "one", "linux-64").verify == ("python", "-c", "import a; print(a)")
    assert parse_manifest(TEXT, "both", "linux-64").verify == ("python", "-c", "import b && c")
    bare = parse_manifest(TEXT, "bare", "linux-64")
    assert (bare.verify, bare.has_verify_task, bare.warnings) == ((), False, ())


@pytest.mark.parametrize("command", ["a && b", "echo $HOME", 'echo "$HOME"', "a | b", "a > f", "x 'unclosed"])
def test_verify_task_that_needs_a_shell_is_left_out_with_a_warning(command: str) -> None:
    manifest = parse_manifest(f"[tasks]\nverify = '''{command}'''\n", "default", "linux-64")
    assert (manifest.verify, manifest.has_verify_task) == ((), True)
    assert "needs a shell" in manifest.warnings[0]


def test_activation_that_cannot_travel_is_left_out_with_a_warning() -> None:
    text = '[activation]\nscripts = ["x.sh"]\n[activation.env]\nA = "$CONDA_PREFIX/x"\nB = "1"\n'
    manifest = parse_manifest(text, "default", "linux-64")
    assert manifest.activation == (("B", "1"),)
    assert len(manifest.warnings) == 2


def test_unknown_environment_names_those_that_exist() -> None:
    with pytest.raises(BuildError, match=r"'cuda9'.*default, one, both, bare.*-e"):
        parse_manifest(TEXT, "cuda9", "linux-64")


@pytest.mark.parametrize("text", ["[", "tasks = 3", "environments = 3", 'activation = "x"'])
def test_manifest_of_another_form_is_an_error_not_a_crash(text: str) -> None:
    with pytest.raises(BuildError, match=r"cannot read pixi.toml"):
        parse_manifest(text, "default", "linux-64")
