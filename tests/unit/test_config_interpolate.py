"""`${NAME}` in a config: what it becomes, where it counts, what is left alone, and how its faults are worded."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_config_resolve import FakeHost, faults_of, one, plan_of, server

from infer_dev_entry.config import NoHost
from infer_dev_entry.config.faults import Faults
from infer_dev_entry.config.interpolate import MAX_ADDED_CHARACTERS, interpolate_document, typed


class Machine(FakeHost):
    """A machine whose environment is known."""

    def __init__(self, **variables: str) -> None:
        super().__init__(environ=variables)

    def knows_variables(self) -> bool:
        return True


def interpolated(text: str, **variables: str) -> object:
    faults = Faults("f")
    found = interpolate_document({"k": text}, Machine(**variables), faults)["k"]
    assert faults.faults == ()
    return found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("${A}", "one"),
        ("x${A}y${B_2}z", "xoneytwoz"),
        ("${A}${A}", "oneone"),
        ("${EMPTY}", ""),
        ("${NONE:-}", ""),
        ("${NONE:-a b}", "a b"),
        ("${EMPTY:-d}", "d"),
        ("${A:-d}", "one"),
        ("$${A}", "${A}"),
        ("$$${A}", "$${A}"),
        ("${REFERS}", "${A}"),  # what a variable holds is not read again
        ("${REFERS}}", "${A}}"),
        ("${${A}}", "${one}"),  # and what stands around it neither
    ],
)
def test_reference_becomes_what_the_variable_holds_once(text: str, expected: str) -> None:
    assert interpolated(text, A="one", B_2="two", EMPTY="", REFERS="${A}") == expected


@pytest.mark.parametrize(
    "text",
    [
        "$HOME",
        "$A",
        "a $ b",
        "$$",
        "$$A",
        "${}",
        "${1A}",
        "${A-x}",
        "${A:?x}",
        "${ A }",
        "${A",
        "{{ x }}",
        "${{A}}",
        "$(A)",
    ],
)
def test_other_dollar_signs_are_left_as_they_are(text: str) -> None:
    assert interpolated(text, A="one", HOME="/root") == text


def test_every_table_and_the_overrides_are_interpolated_and_keys_are_not() -> None:
    text = (
        '[master]\npython_path = "${PY}/python"\n[instance.a.control]\nlog_dir = "${LOGS}"\ngpu_ids = "${GPUS}"\n'
        '[instance.a.server]\nmodel_path = "${MODEL}"\nport = "${PORT}"\nenable_metrics = "${ON}"\n'
        'extra_args = ["--log-level", "${LEVEL}"]\n[instance.a.env]\nX = "${MODEL}!"\n'
        '[instance.a.probe]\nperiod_s = "${PERIOD}"\n[instance.a.restart]\nmax_restarts = "${MOST}"\n'
    )
    machine = Machine(
        PY="/py", LOGS="/logs", GPUS="0,1", MODEL="/m", PORT="4000", ON="true", LEVEL="debug", PERIOD="20.5", MOST="3"
    )
    overrides = json.dumps({"instance": {"a": {"server": {"served_model_name": "at-${PORT}"}}}})
    spec = one(text, machine, overrides=overrides)
    assert spec.argv[:3] == ("/py/python", "-m", "sglang.launch_server")
    assert spec.argv[-2:] == ("--log-level", "debug")
    assert "--enable-metrics" in spec.argv
    assert spec.argv[spec.argv.index("--served-model-name") + 1] == "at-4000"
    assert (spec.port, spec.gpu_ids, spec.log_file) == (4000, ("0", "1"), "/logs/sglang-server-a.log")
    assert dict(spec.environment)["X"] == "/m!"
    assert (spec.probe.period_s, spec.restart.max_restarts) == (20.5, 3)
    (fault,) = faults_of(server('"${PORT}" = 1'), machine)
    assert '"${PORT}": sglang has no such flag' in fault


def test_same_text_without_a_variable_keeps_its_type() -> None:
    """A number in quotes is no number for infer-dev's own keys, unless it came from a variable."""
    assert 'expected int, got "3"' in faults_of(server("") + '[instance.a.restart]\nmax_restarts = "3"\n')[0]
    assert "expected true or false" in faults_of(server('enable_metrics = "true"'))[0]


@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [
        ("int", " 7 ", 7),
        ("int", "-1", -1),
        ("int", "7.5", "7.5"),
        ("int", "", ""),
        ("bool", "Yes", True),
        ("bool", "0", False),
        ("bool", "", ""),
        ("bool", "maybe", "maybe"),
        ("seconds", "1.5", 1.5),
        ("seconds", "1e999", "1e999"),
        ("seconds", "nan", "nan"),
        ("str", "7", "7"),
    ],
)
def test_text_of_a_variable_is_typed_when_it_fits(kind: str, text: str, expected: object) -> None:
    found = typed(kind, text)
    assert (found, type(found)) == (expected, type(expected))


def test_variables_that_are_not_set_are_all_faults_at_once() -> None:
    lines = (
        'nnodes = 2\ntp_size = 2\nnode_rank = "${NODE_RANK}"\ndist_init_addr = "${MASTER}:${PORT}"\nport = "${PORT}"'
    )
    faults = faults_of(server(lines), Machine())
    assert [fault.partition(";")[0] for fault in faults] == [
        "f.toml: instance.a.server.node_rank: variable NODE_RANK is not set",
        "f.toml: instance.a.server.dist_init_addr: variable MASTER is not set",
        "f.toml: instance.a.server.dist_init_addr: variable PORT is not set",
        "f.toml: instance.a.server.port: variable PORT is not set",
    ]
    assert faults[0].endswith("or write ${NODE_RANK:-a default} ($${NODE_RANK} is the text itself)")


def test_variable_that_an_override_replaces_need_not_be_set() -> None:
    overrides = json.dumps({"instance": {"a": {"server": {"port": 4000}}}})
    assert one(server('port = "${NOPE}"'), Machine(), overrides=overrides).port == 4000


def test_variable_of_another_machine_is_a_warning_and_what_it_stands_for_is_not_judged() -> None:
    lines = 'nnodes = "${N}"\nnode_rank = "${R}"\ntp_size = "${TP}"\ndist_init_addr = "${A}:1"\nport = "${P}"\n'
    text = server(lines + 'extra_args = ["${X}"]') + '[instance.a.env]\nE = "${E}"\n'
    plan = plan_of(text, NoHost(8))
    told = [warning.partition("variable ")[2] for warning in plan.warnings if " is not set here; " in warning]
    assert [text.partition(" ")[0] for text in told] == ["N", "R", "TP", "A", "P", "X", "E"]


def test_known_variables_are_judged_on_another_machine_too() -> None:
    (fault,) = faults_of(server('port = "${P}"'), NoHost(environ={"P": "x"}))
    assert 'instance.a.server.port (from ${P}): expected int, got "x"' in fault


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("a\rb", "holds a carriage return"),
        ("a\udc80b", "holds a lone surrogate"),
        ("/m\n", "model_path"),
    ],
)
def test_hostile_value_meets_the_checks_of_a_literal(value: str, expected: str) -> None:
    text = '[instance.a.server]\nmodel_path = "${M}"\n'
    literal = f"[instance.a.server]\nmodel_path = {json.dumps(value)}\n"
    if expected == "model_path":  # a newline survives quoting, as it does in a literal
        assert one(text, Machine(M=value)).argv == one(literal).argv
    else:
        (fault,) = faults_of(text, Machine(M=value))
        assert fault.startswith("f.toml: instance.a.server.model_path (from ${M}): ") and expected in fault


def test_value_cannot_become_a_flag_or_a_second_word() -> None:
    argv = one(server('served_model_name = "${X}"'), Machine(X="--trust-remote-code --port 1")).argv
    assert "--served-model-name=--trust-remote-code --port 1" in argv


def test_references_cannot_fill_the_memory() -> None:
    size = 100_000
    text = server("extra_args = [" + '"${BIG}",' * (MAX_ADDED_CHARACTERS // size + 1000) + "]")
    faults = faults_of(text, Machine(BIG="x" * size))
    assert faults == (f"f.toml: its variables hold more than {MAX_ADDED_CHARACTERS} characters; use shorter ones",)


# secrets

KEY = "sk-t0p-s3cret-key"


@pytest.mark.parametrize(
    "line",
    ['api_key = "${API_KEY}"', 'extra_args = ["--api-key", "${API_KEY}"]', 'extra_args = ["--api-key=${API_KEY}"]'],
)
def test_key_from_a_variable_goes_to_the_private_file_alone(line: str) -> None:
    plan = plan_of(server(line), Machine(API_KEY=KEY))
    (spec,) = plan.servers
    assert json.loads(spec.files[0].text) == {"api-key": KEY}
    assert KEY not in repr((spec.argv, spec.environment, plan.warnings))


def test_fault_in_a_secret_variable_does_not_show_it() -> None:
    text = (
        server('port = "${MY_TOKEN}"\napi_key = "${API_KEY}"\nlog_level = 3') + '[instance.a.env]\nE = "${API_KEY}"\n'
    )
    faults = faults_of(text, Machine(MY_TOKEN=KEY * 9, API_KEY=f'-{KEY}"' + "'"))
    assert len(faults) >= 3
    assert not any("s3cret" in fault for fault in faults)
    assert any('port (from ${MY_TOKEN}): expected int, got "***"' in fault for fault in faults)


def test_secret_variable_in_a_command_line_is_a_warning() -> None:
    plan = plan_of(server('served_model_name = "x-${MY_TOKEN}"'), Machine(MY_TOKEN=KEY))
    (warning,) = [warning for warning in plan.warnings if "may be a secret" in warning]
    assert "served_model_name (from ${MY_TOKEN}): may be a secret, and every user of the machine can read" in warning
    assert KEY not in warning


@given(st.text(), st.text(max_size=20))
def test_any_text_is_replaced_or_refused_and_never_raises(text: str, value: str) -> None:
    faults = Faults("f")
    interpolate_document({"k": [text, {"x": text}]}, Machine(A=value), faults)
    assert all(len(fault.splitlines()) == 1 for fault in faults.faults)


@given(st.text().filter(lambda text: "${" not in text))
def test_text_without_a_reference_is_never_changed(text: str) -> None:
    assert interpolated(text, A="x") == text


@pytest.mark.parametrize("text", ["${A:?no address}", "x${A-d}", "${NONE:+x}", "${NONE=d}"])
def test_other_form_of_a_shell_stays_and_is_warned_of(text: str) -> None:
    faults = Faults("f")
    assert interpolate_document({"k": text}, Machine(A="one"), faults) == {"k": text}
    (warning,) = faults.warnings
    assert "is no form that is read here, and stays as it is; write ${NAME} or ${NAME:-text}" in warning


@pytest.mark.parametrize("text", ["$${A:?x}", "${A}", "${NONE:-d}", "${1}", "${{ a }}", "${A", "${ A }"])
def test_text_that_no_shell_reads_otherwise_is_not_warned_of(text: str) -> None:
    faults = Faults("f")
    interpolate_document({"k": text}, Machine(A="one"), faults)
    assert not faults.warnings
