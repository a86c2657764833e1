"""The files in which a bundle describes itself: good ones are read, every other form is refused with key and mend."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from make_bundle import conda_record, json_of

from infer_dev_entry.bundle.metadata import (
    is_metadata,
    parse_pixi_pack,
    parse_repodata,
    parse_requirements,
    parse_sidecar,
    parse_wheel_name,
)
from infer_dev_entry.errors import BundleError

HASH = "ab" * 32
SIDECAR: dict[str, Any] = {
    "version": 1,
    "kind": "wheels",
    "platform": "linux-64",
    "python": "3.12",
    "created_by": "x",
    "files": {"wheels/a.whl": HASH},
    "activation": {"CUDA_HOME": "/x"},
    "verify": ["python", "-c", "import torch"],
    "packages": [],
}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("pixi-pack.json", True),
        ("infer-dev-bundle.json", True),
        ("requirements.txt", True),
        ("channel/linux-64/repodata.json", True),
        ("channel/repodata.json", False),
        ("channel/a/b/repodata.json", False),
        ("pypi/requirements.txt", False),
    ],
)
def test_is_metadata_knows_the_places(path: str, expected: bool) -> None:
    assert is_metadata(path) is expected


def test_parse_pixi_pack_good_file_gives_platform() -> None:
    assert parse_pixi_pack(b'{"version": "1", "pixi-pack-version": null, "platform": "linux-64"}') == "linux-64"


@pytest.mark.parametrize("version", ["2", 1, None, "", ["1"], {"a": 1}])
def test_parse_pixi_pack_other_version_is_refused(version: object) -> None:
    with pytest.raises(BundleError, match=r"pixi-pack\.json: version is"):
        parse_pixi_pack(json_of({"version": version, "platform": "linux-64"}))


@pytest.mark.parametrize("platform", [None, "", "../x", "linux 64", 64, "linux-64\n"])
def test_parse_pixi_pack_odd_platform_is_refused(platform: object) -> None:
    with pytest.raises(BundleError, match="platform"):
        parse_pixi_pack(json_of({"version": "1", "platform": platform}))


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"nul",
        b"\xff",
        b'{"version": NaN}',
        b'{"version": "1", "version": "1"}',
        b"[" * 10**6,
        b'{"a":' * 10**5 + b"1" + b"}" * 10**5,
        b'{"version": ' + b"9" * 5000 + b"}",
        b'{"version": "1"} x',
    ],
)
def test_parse_json_unusable_text_is_refused(text: bytes) -> None:
    for parse in (parse_pixi_pack, parse_sidecar):
        with pytest.raises(BundleError) as caught:
            parse(text)
        assert len(str(caught.value)) < 600


def test_parse_repodata_both_tables_are_read_sorted() -> None:
    text = json_of(
        {
            "packages": {"b-1-0.tar.bz2": conda_record(b"b", "b", "1!2.0")},
            "packages.conda": {"a-1-0.conda": conda_record(b"a", "a", sha256=None, size=None)},
        }
    )
    first, second = parse_repodata(text, "noarch")
    assert (first.path, first.name, first.sha256, first.size) == ("channel/noarch/a-1-0.conda", "a", "", 0)
    assert (second.version, second.size) == ("1!2.0", 1)


@pytest.mark.parametrize(
    ("file_name", "changes"),
    [
        ("../a.conda", {}),
        ("/a.conda", {}),
        ("a.whl", {}),
        ("é.conda", {}),
        (".conda", {}),
        ("a.conda", {"name": "../x"}),
        ("a.conda", {"name": None}),
        ("a.conda", {"name": "-r"}),
        ("a.conda", {"version": "1 2"}),
        ("a.conda", {"version": 1}),
        ("a.conda", {"sha256": "AB" * 32}),
        ("a.conda", {"sha256": "ab"}),
        ("a.conda", {"sha256": 1}),
        ("a.conda", {"size": -1}),
        ("a.conda", {"size": True}),
        ("a.conda", {"size": "9"}),
        ("a.conda", {"size": 1.5}),
    ],
)
def test_parse_repodata_odd_record_is_refused(file_name: str, changes: dict[str, Any]) -> None:
    text = json_of({"packages.conda": {file_name: conda_record(b"a") | changes}})
    with pytest.raises(BundleError, match=r"repodata\.json"):
        parse_repodata(text, "linux-64")


def test_parse_sidecar_good_file_is_read() -> None:
    sidecar = parse_sidecar(json_of(SIDECAR))
    assert (sidecar.kind, sidecar.platform, sidecar.python) == ("wheels", "linux-64", "3.12")
    assert sidecar.files == {"wheels/a.whl": HASH}
    assert sidecar.activation == (("CUDA_HOME", "/x"),)
    assert sidecar.verify_command == ("python", "-c", "import torch")


def test_parse_sidecar_least_file_is_read() -> None:
    sidecar = parse_sidecar(b'{"version": 1, "kind": "pixi-pack"}')
    assert (sidecar.platform, sidecar.python, sidecar.verify_command) == ("", "", ())


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"version": "1"},
        {"version": True},
        {"kind": "other"},
        {"kind": None},
        {"platform": "Linux"},
        {"python": "3"},
        {"python": "3.12.1"},
        {"python": 3.12},
        {"files": []},
        {"files": {"../x": HASH}},
        {"files": {"./x": HASH}},
        {"files": {"/x": HASH}},
        {"files": {"": HASH}},
        {"files": {"x": HASH.upper()}},
        {"files": {"x": None}},
        {"activation": {"A=B": "x"}},
        {"activation": {"": "x"}},
        {"activation": {"A": 1}},
        {"activation": {"A": "x\0y"}},
        {"activation": {"A": "\ud800"}},
        {"activation": ["A"]},
        {"verify": "python -c 1"},
        {"verify": [1]},
        {"verify": ["a\0"]},
        {"verify": [""]},
        {"verify": ["x"] * 1001},
    ],
)
def test_parse_sidecar_odd_value_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(BundleError, match=r"infer-dev-bundle\.json|is refused"):
        parse_sidecar(json_of(SIDECAR | change))


@given(st.dictionaries(st.sampled_from([*SIDECAR, "packages.conda", "a.conda", "other"]), JSON, max_size=6))
def test_parsers_any_json_gives_value_or_bundle_error(data: dict[str, Any]) -> None:
    for text in (json.dumps(data), json.dumps(SIDECAR | data), json.dumps({"packages.conda": {"a.conda": data}})):
        for parse in (parse_pixi_pack, parse_sidecar, lambda text: parse_repodata(text, "noarch")):
            try:
                parse(text.encode())
            except BundleError as error:
                assert str(error).isprintable()


def test_parse_requirements_what_uv_and_pip_tools_write_is_read() -> None:
    text = f"""# This file was autogenerated by uv
six==1.17.0 \\
    --hash=sha256:{HASH} \\
    --hash=sha256:{"cd" * 32}
    # via -r requirements.in
Foo_Bar[cuda, x]==2.6.0+cu126 ; python_version >= "3.9" and sys_platform == 'win32' --hash=sha256:{HASH.upper()}  # note
"""
    six, foo = parse_requirements(text.replace("\n", "\r\n").encode())
    assert (six.name, six.version, len(six.hashes), six.is_conditional) == ("six", "1.17.0", 2, False)
    assert (foo.name, foo.version, foo.hashes, foo.is_conditional) == ("foo-bar", "2.6.0+cu126", {HASH}, True)


@pytest.mark.parametrize(
    "line",
    [
        "six==1.17.0",
        f"six>=1 --hash=sha256:{HASH}",
        f"six==1.* --hash=sha256:{HASH}",
        f"six @ file:///x.whl --hash=sha256:{HASH}",
        "six==1 --hash=md5:abc",
        f"six==1 --hash=sha256:{HASH} --index-url=x",
        f"six==1 --index-url x --hash=sha256:{HASH}",
        "--index-url x",
        "-r other.txt",
        "-e .",
        f"--hash=sha256:{HASH}",
        "./six.whl",
    ],
)
def test_parse_requirements_other_line_is_refused(line: str) -> None:
    with pytest.raises(BundleError, match=r"requirements\.txt: expected"):
        parse_requirements(line.encode())


def test_parse_requirements_hostile_lines_take_no_time() -> None:
    for line in (b" " * 10**6 + b"x", b"a" * 10**6, b"a==" * 10**5, b"a[" + b"," * 10**6, b"#" * 10**6):
        with pytest.raises(BundleError) if line[0] != ord("#") else pytest.MonkeyPatch.context():
            parse_requirements(line)


def test_parse_requirements_other_encoding_is_refused() -> None:
    with pytest.raises(BundleError, match="UTF-8"):
        parse_requirements("six".encode("utf-16"))


def test_parse_wheel_name_parts_are_split() -> None:
    name = "wheels/torch-2.6.0+cu126-1-cp312-cp312-manylinux_2_17_x86_64.manylinux2014_x86_64.whl"
    tags = ("manylinux_2_17_x86_64", "manylinux2014_x86_64")
    assert parse_wheel_name(name) == ("torch", "2.6.0+cu126", ("cp312",), ("cp312",), tags)


@pytest.mark.parametrize(
    "name", ["a.whl", "a-1-py3-none.whl", "a-1-2-3-4-5-6.whl", "a--py3-none-any.whl", "é-1-a-b-c.whl"]
)
def test_parse_wheel_name_other_name_is_refused(name: str) -> None:
    with pytest.raises(BundleError, match="no name of a wheel"):
        parse_wheel_name(name)
