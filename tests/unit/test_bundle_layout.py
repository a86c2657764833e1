"""Layouts: pixi-pack's and the wheels', with and without a sidecar, and every way in which files miss their records."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from make_bundle import conda_record, json_of, pixi_files, sha256_of, wheels_files, with_sidecar

from infer_dev_entry.bundle.layout import Layout, find_faults, parse_layout
from infer_dev_entry.bundle.metadata import is_metadata
from infer_dev_entry.errors import BundleError

SIX = "wheels/six-1.17.0-py2.py3-none-any.whl"
DEMO = "channel/linux-64/demo-1.0-h_0.conda"
PYPI_SIX = "pypi/six-1.17.0-py2.py3-none-any.whl"


def layout_of(files: Mapping[str, bytes]) -> Layout:
    """Parse the layout of files."""
    texts = {path: data for path, data in files.items() if is_metadata(path)}
    return parse_layout(texts, {path: sha256_of(data) for path, data in files.items()})


def faults_of(files: Mapping[str, bytes]) -> tuple[str, ...]:
    """Return what is wrong with files."""
    digests = {path: sha256_of(data) for path, data in files.items()}
    return find_faults(layout_of(files), digests, {path: len(data) for path, data in files.items()})


def test_parse_layout_pixi_pack_is_described() -> None:
    info = layout_of(pixi_files()).info
    assert (info.kind, info.platform, info.python, info.has_sidecar) == ("pixi-pack", "linux-64", "", False)
    assert [(package.kind, package.name, package.version) for package in info.packages] == [
        ("conda", "demo", "1.0"),
        ("conda", "tool", "2.0"),
        ("wheel", "six", "1.17.0"),
    ]
    assert "no sha256 for 1 of its packages" in info.warnings[0]
    assert faults_of(pixi_files()) == ()


def test_parse_layout_pixi_pack_with_sidecar_has_wheel_hashes() -> None:
    files = with_sidecar(pixi_files(), platform="linux-64", python="3.12", activation={"A": "b"}, verify=["true"])
    info = layout_of(files).info
    assert info.has_sidecar
    assert info.wheels[0].sha256 == sha256_of(files[PYPI_SIX])
    assert (info.python, info.activation, info.verify_command) == ("3.12", (("A", "b"),), ("true",))
    assert info.warnings == ()
    assert faults_of(files) == ()


def test_parse_layout_conda_python_binds_no_other() -> None:
    python = b"python"
    records = {"python-3.12.1-0.conda": conda_record(python, "python", "3.12.1")}
    files = pixi_files(
        **{
            "channel/linux-64/python-3.12.1-0.conda": python,
            DEMO: None,
            "channel/linux-64/repodata.json": json_of({"packages.conda": records}),
        }
    )
    assert layout_of(with_sidecar(files, python="3.12")).info.python == ""


def test_parse_layout_wheels_are_described() -> None:
    info = layout_of(wheels_files()).info
    assert (info.kind, info.platform, info.python, info.has_sidecar) == ("wheels", "linux-64", "3.12", True)
    assert [package.sha256 for package in info.packages] == [sha256_of(b"numpy" * 100), sha256_of(b"six" * 100)]
    assert info.find_version("NUMPY") == "2.1"
    assert faults_of(wheels_files()) == ()


def test_parse_layout_wheels_without_sidecar_are_judged_by_their_tags() -> None:
    files = wheels_files()
    del files["infer-dev-bundle.json"]
    info = layout_of(files).info
    assert (info.platform, info.python, info.has_sidecar) == ("linux-64", "3.12", False)
    assert info.packages[1].sha256 == sha256_of(files[SIX])  # the one of two allowed hashes that it meets
    assert faults_of(files) == ()


def test_parse_layout_without_digests_knows_no_hash_of_several() -> None:
    files = wheels_files()
    del files["infer-dev-bundle.json"]
    texts = {path: data for path, data in files.items() if is_metadata(path)}
    numpy, six = parse_layout(texts, dict.fromkeys(files, "")).info.packages
    assert (numpy.sha256, six.sha256) == (sha256_of(b"numpy" * 100), "")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("a-1-py3-none-any.whl",), ("", "")),
        (("a-1-cp311-cp311-musllinux_1_2_aarch64.whl",), ("linux-aarch64", "3.11")),
        (("a-1-cp39-abi3-macosx_11_0_arm64.whl",), ("osx-arm64", "")),
        (("a-1-cp313-cp313-win_amd64.whl",), ("win-64", "3.13")),
        (("a-1-cp311-cp311-linux_x86_64.whl", "b-1-cp312-cp312-linux_aarch64.whl"), ("", "")),
    ],
)
def test_parse_layout_tags_that_disagree_tell_nothing(names: tuple[str, ...], expected: tuple[str, str]) -> None:
    lines = "".join(f"{name[0]}==1 --hash=sha256:{sha256_of(b'x')}\n" for name in names)
    info = layout_of({f"wheels/{name}": b"x" for name in names} | {"requirements.txt": lines.encode()}).info
    assert (info.platform, info.python) == expected


@pytest.mark.parametrize(
    ("files", "word"),
    [
        ({}, "neither pixi-pack.json nor requirements.txt"),
        ({"env/bin/python": b""}, "neither"),
        (wheels_files(**{"requirements.txt": None}), "requirements.txt is missing"),
        (with_sidecar({"requirements.txt": b""}), "pixi-pack.json is missing"),
        (with_sidecar(pixi_files(), platform="linux-aarch64"), "says platform linux-64"),
        (pixi_files(**{"channel/osx-64/repodata.json": b"{}"}), "is for platform linux-64"),
        (pixi_files(**{"pypi/six.whl": b""}), "no name of a wheel"),
    ],
)
def test_parse_layout_no_bundle_is_refused(files: dict[str, bytes], word: str) -> None:
    with pytest.raises(BundleError, match=word):
        layout_of(files)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({DEMO: None}, f"'{DEMO}' is missing"),
        ({DEMO: b"conda DEMO" * 100}, f"'{DEMO}' is corrupt"),
        ({DEMO: b"short"}, f"'{DEMO}' is corrupt"),
        ({"channel/linux-64/other-1-0.conda": b"x"}, "'channel/linux-64/other-1-0.conda' is recorded nowhere"),
        ({"channel/noarch/deep/er-1-0.tar.bz2": b"x"}, "is recorded nowhere"),
    ],
)
def test_find_faults_pixi_pack_that_misses_its_records_is_named(changes: dict[str, bytes | None], fault: str) -> None:
    (found,) = faults_of(pixi_files(**changes))
    assert fault in found


def test_find_faults_record_with_other_size_is_named() -> None:
    records = {"demo-1.0-h_0.conda": conda_record(b"conda demo" * 100, size=7)}
    (found,) = faults_of(pixi_files(**{"channel/linux-64/repodata.json": json_of({"packages.conda": records})}))
    assert found == f"'{DEMO}' has 1000 bytes, the record says 7"


@pytest.mark.parametrize(
    ("path", "data", "fault"),
    [
        (SIX, b"other", "is corrupt"),
        ("wheels/new-1-py3-none-any.whl", b"x", "is recorded nowhere"),
        ("wheels/deep/er-1-py3-none-any.whl", b"x", "is recorded nowhere"),
        ("requirements.txt", b"", "is corrupt"),
    ],
)
def test_find_faults_wheels_that_miss_their_records_are_named(path: str, data: bytes, fault: str) -> None:
    found = faults_of(wheels_files() | {path: data})
    assert any(path in line and fault in line for line in found)


def test_find_faults_missing_wheels_are_all_named() -> None:
    files = wheels_files()
    sidecar = {"infer-dev-bundle.json": files["infer-dev-bundle.json"]}
    found = faults_of({"requirements.txt": files["requirements.txt"]} | sidecar)
    assert len([line for line in found if line.endswith("is missing")]) == 4
    assert "the wheel of numpy==2.1 is missing" in found


def test_find_faults_requirement_for_other_machines_may_be_absent() -> None:
    line = f"\npywin32==1 ; sys_platform == 'win32' --hash=sha256:{'0' * 64}\n"
    files = wheels_files()
    files["requirements.txt"] += line.encode()
    del files["infer-dev-bundle.json"]
    assert faults_of(files) == ()


def test_find_faults_sidecar_against_requirements_is_a_fault() -> None:
    files = wheels_files()
    files[SIX] = b"swapped"
    del files["infer-dev-bundle.json"]
    # The sidecar vouches for the swapped wheel, requirements.txt does not.
    (found,) = faults_of(with_sidecar(files, kind="wheels"))
    assert "requirements.txt has other hashes" in found


def test_find_faults_wheel_unknown_to_the_sidecar_is_named() -> None:
    files = with_sidecar(pixi_files()) | {"pypi/extra-1-py3-none-any.whl": b"x"}
    assert faults_of(files) == ("'pypi/extra-1-py3-none-any.whl' is recorded nowhere",)
