"""The schema and the pages made from the key table agree with the code, and the schema with the parser."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import jsonschema
import pytest

from infer_dev_entry.config import NoHost, ResolveOptions, resolve
from infer_dev_entry.config.docs import render_key_table
from infer_dev_entry.config.keys import CONTROL, GATEWAY, INSTANCE_TABLES, MASTER
from infer_dev_entry.config.schema import render_schema
from infer_dev_entry.errors import ConfigError

DOCS = Path(__file__).parents[2] / "docs"
SERVER = '[instance.a.server]\nmodel_path = "org/m"\n'


def validator() -> jsonschema.Draft202012Validator:
    schema = json.loads(render_schema())
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def resolves(text: str) -> bool:
    options = ResolveOptions(project_dir="/p", engine_python="/py", run_dir="/run/x", tmp_dir="/tmp/x")
    try:
        resolve(text, source="f", options=options, host=NoHost(8))
    except ConfigError:
        return False
    return True


@pytest.mark.parametrize(
    "text",
    [
        SERVER,
        SERVER + 'tp_size = "8"\nenable_metrics = true\ncuda_graph_bs_decode = [1]\ntool_call_parser = "glm47"\n',
        SERVER + "json_model_override_args = {a = 1}\nmodel_checksum = true\nchat_template = false\n",
        SERVER + "log_requests_level = 2\nextra_args = ['--x']\n[instance.a.yaml]\nmax_running_requests = 4\n",
        SERVER + "[instance.a.control]\ngpu_ids = [0, 1]\nreplicas = 'per-gpu'\nstart_stagger_s = 1\n",
        SERVER + "[instance.a.env]\nA = 1\nB = true\n[instance.a.probe]\nperiod_s = 30\n",
        SERVER + "tp_size = '${TP}'\nenable_metrics = '${ON}'\ntool_call_parser = '${PARSER:-glm47}'\n",
        SERVER + "[instance.a.control]\nreplicas = '${N}'\nenabled = '${ON}'\n[instance.a.probe]\nperiod_s = '${S}'\n",
        "[instance.control]\ngpu_ids = 'none'\n[instance.server]\nport = 1\n" + SERVER,
        '[instance.a.control]\nengine = "llama_cpp"\n[instance.a.server]\nmodel = "/m"\nctx_size = 8\n',
    ],
)
def test_schema_accepts_what_resolves(text: str) -> None:
    assert resolves(text)
    assert list(validator().iter_errors(tomllib.loads(text))) == []


@pytest.mark.parametrize(
    "text",
    [
        "x = 1\n" + SERVER,
        SERVER + "enable_metrics = 'true'\n",
        SERVER + "tool_call_parser = 'glm48'\n",
        SERVER + "tp_size = [1, 2]\n",
        SERVER + "[instance.a.control]\nreplicas = 0\n",
        SERVER + "[instance.a.control]\nlogdir = 'x'\n",
        SERVER + "[instance.a.probe]\nperiod_s = 0\n",
        SERVER + "[instance.a.env]\nA-B = 1\n",
        SERVER + "[instance.a.contrl]\n",
        SERVER + "[instance.'a b'.server]\n",
        "[master]\nenable = 'yes'\n" + SERVER,
    ],
)
def test_schema_refuses_what_is_refused(text: str) -> None:
    assert not resolves(text)
    assert list(validator().iter_errors(tomllib.loads(text)))


def test_committed_schema_is_the_generated_one() -> None:
    assert (DOCS / "sglang-config-toml.schema.json").read_text("utf-8") == render_schema(), (
        "run: infer-dev config schema > docs/sglang-config-toml.schema.json"
    )


def test_page_holds_the_generated_key_table() -> None:
    page = (DOCS / "def-sglang-config-toml.md").read_text("utf-8")
    assert render_key_table() in page, (
        "paste the output of infer_dev_entry.config.docs.render_key_table() into the page"
    )


def test_key_table_has_a_row_for_every_key() -> None:
    keys = [*MASTER, *GATEWAY, *(key for table, _ in INSTANCE_TABLES.values() for key in table)]
    assert render_key_table().count("\n") == len(keys) + 2
    assert all(key.text for key in keys)


def test_absent_keys_say_what_they_mean() -> None:
    for key in (*MASTER, *CONTROL):
        assert (key.default is None) == bool(key.default_text), key.name


def test_page_examples_resolve() -> None:
    page = (DOCS / "def-sglang-config-toml.md").read_text("utf-8")
    blocks = [block.split("```")[0] for block in page.split("```toml\n")[1:]]
    assert len(blocks) >= 3
    for block in blocks:
        assert resolves(block), block
