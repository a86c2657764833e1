"""The plan's JSON form."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from make import make_spec

from infer_dev_entry.spec import FileSpec, Plan, parse_plan, render_plan


@given(
    argv=st.lists(st.text(), max_size=3).map(tuple),
    environment=st.lists(st.tuples(st.text(), st.text()), max_size=3).map(tuple),
    gpu_ids=st.none() | st.lists(st.text(), max_size=3).map(tuple),
)
def test_plan_survives_its_json_form(argv: tuple, environment: tuple, gpu_ids: tuple | None) -> None:
    files = (FileSpec(path="/x.yaml", text="{}"),)
    spec = make_spec(argv=argv, environment=environment, gpu_ids=gpu_ids, files=files, depends_on=("b",))
    plan = Plan(source="/c.toml", servers=(spec, make_spec("b")), warnings=("w",))
    assert parse_plan(render_plan(plan)) == plan


@pytest.mark.parametrize(
    "text", ["", "[]", "null", "{}", '{"source": "x", "servers": [1], "warnings": []}', "{", '"x"']
)
def test_plan_unreadable_text_raises_value_error(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_plan(text)


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("0.0.0.0", "http://127.0.0.1:30000"),
        ("::", "http://[::1]:30000"),
        ("10.1.2.3", "http://10.1.2.3:30000"),
        ("fd00::1", "http://[fd00::1]:30000"),
        ("gpu-box", "http://gpu-box:30000"),
    ],
)
def test_url_is_reachable_from_this_machine(host: str, url: str) -> None:
    assert make_spec(host=host).url == url
