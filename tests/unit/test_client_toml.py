"""Mappings as TOML."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infer_dev_entry.client.toml import render_toml
from infer_dev_entry.errors import ConfigError

TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=10)
VALUES = st.recursive(
    st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=15,
)


@given(st.dictionaries(TEXT, VALUES, max_size=4))
def test_any_mapping_comes_back_from_its_toml(config: dict[str, Any]) -> None:
    assert tomllib.loads(render_toml(config)) == config


def test_values_that_toml_has_not_are_refused_all_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        render_toml({"instance": {"a": {"server": {"port": None, "x": [1, object()]}}}})
    assert caught.value.faults == (
        "config: instance.a.server.port: a config has no NoneType; give a text, number, list or table",
        "config: instance.a.server.x[1]: a config has no object; give a text, number, list or table",
    )
