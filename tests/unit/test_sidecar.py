"""The sidecar's text: stable bytes, readable by the reader of bundles, and no entry that could lead outside."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infer_dev_entry.bundle.metadata import parse_sidecar
from infer_dev_entry.bundle.model import PIXI_PACK, WHEELS
from infer_dev_entry.bundle.sidecar import render_sidecar

DIGEST = "0123456789abcdef" * 4
WORD = st.from_regex(r"[a-z0-9_.+-]{1,20}", fullmatch=True).filter(lambda word: word not in (".", ".."))


def render(**changes: object) -> str:
    wanted: dict[str, object] = {
        "kind": WHEELS,
        "platform": "linux-64",
        "python": "3.12",
        "created_by": "infer-dev 1",
        "files": {"wheels/a.whl": DIGEST},
    }
    return render_sidecar(**(wanted | changes))  # type: ignore[arg-type]


def test_sidecar_has_the_fields_of_the_format() -> None:
    text = render(activation={"B": "2", "A": "1"}, verify=["python", "-c", "import x"])
    assert json.loads(text) == {
        "version": 1,
        "kind": "wheels",
        "platform": "linux-64",
        "python": "3.12",
        "created_by": "infer-dev 1",
        "files": {"wheels/a.whl": DIGEST},
        "activation": {"A": "1", "B": "2"},
        "verify": ["python", "-c", "import x"],
    }
    assert text.endswith("}\n")


def test_sidecar_of_reordered_input_has_the_same_bytes() -> None:
    files = {"b": DIGEST, "a/c": DIGEST}
    assert render(files=files) == render(files=dict(reversed(files.items())))


@pytest.mark.parametrize(
    "files",
    [
        {"../a": DIGEST},
        {"/a": DIGEST},
        {"a//b": DIGEST},
        {"": DIGEST},
        {"a\\b": DIGEST},
        {"infer-dev-bundle.json": DIGEST},
        {"a": DIGEST.upper()},
        {"a": DIGEST[1:]},
    ],
)
def test_sidecar_with_an_unclean_entry_is_refused(files: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"is not"):
        render(files=files)


def test_sidecar_of_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        render(kind="zip")


@given(
    kind=st.sampled_from([WHEELS, PIXI_PACK]),
    paths=st.lists(st.lists(WORD, min_size=1, max_size=3).map("/".join), max_size=5, unique=True),
    value=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20),
)
def test_sidecar_survives_the_reader(kind: str, paths: list[str], value: str) -> None:
    text = render(kind=kind, files=dict.fromkeys(paths, DIGEST), activation={"NAME": value}, verify=["x", value])
    found = parse_sidecar(text.encode())
    assert (found.kind, found.platform, found.python) == (kind, "linux-64", "3.12")
    assert dict(found.files) == dict.fromkeys(paths, DIGEST)
    assert (found.activation, found.verify_command) == ((("NAME", value),), ("x", value))
