"""Locks of wheels: which wheel is chosen, which hashes count, and that what is written can be read again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infer_dev_entry.bundle.build_lock import (
    Pin,
    Wheel,
    is_lock,
    parse_pins,
    parse_pylock,
    rank_wheel,
    render_requirements,
)
from infer_dev_entry.bundle.metadata import parse_requirements
from infer_dev_entry.errors import BuildError

A, B, C = "a" * 64, "b" * 64, "c" * 64


def entry(filename: str, sha256: str = A, **more: object) -> str:
    extra = "".join(f", {key} = {value}" for key, value in more.items())
    return f'{{ url = "https://host.invalid/x/{filename}", hashes = {{ sha256 = "{sha256}" }}{extra} }}'


def pylock(*packages: str) -> str:
    return 'lock-version = "1.0"\npackages = [\n' + ",\n".join(packages) + "\n]\n"


def package(name: str, version: str, *wheels: str) -> str:
    return f'{{ name = "{name}", version = "{version}", wheels = [{", ".join(wheels)}] }}'


def test_pylock_with_one_wheel_each_gives_sorted_wheels() -> None:
    text = pylock(
        package("zeta", "1", entry("zeta-1-py3-none-any.whl", B, size=5)),
        package("Al_pha", "2", entry("al_pha-2-py3-none-any.whl")),
    )
    first, second = parse_pylock(text, "3.12", {})
    assert first == Wheel(
        name="al-pha",
        version="2",
        filename="al_pha-2-py3-none-any.whl",
        sha256=A,
        url="https://host.invalid/x/al_pha-2-py3-none-any.whl",
    )
    assert (second.name, second.size) == ("zeta", 5)


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        ("x-1-cp312-cp312-manylinux_2_17_x86_64.whl", "x-1-cp310-abi3-manylinux_2_34_x86_64.whl"),
        ("x-1-cp310-abi3-manylinux_2_17_x86_64.whl", "x-1-cp39-abi3-manylinux_2_17_x86_64.whl"),
        ("x-1-cp310-abi3-manylinux_2_17_x86_64.whl", "x-1-py3-none-manylinux_2_17_x86_64.whl"),
        ("x-1-py3-none-manylinux_2_28_x86_64.whl", "x-1-py3-none-manylinux2014_x86_64.whl"),
        ("x-1-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl", "x-1-py3-none-manylinux1_x86_64.whl"),
        ("x-1-py3-none-linux_x86_64.whl", "x-1-py3-none-any.whl"),
        ("x-1-cp312-none-any.whl", "x-1-py3-none-any.whl"),
        ("x-1-py312-none-any.whl", "x-1-py2.py3-none-any.whl"),
        ("x-1-2-py3-none-any.whl", "x-1-1b-py3-none-any.whl"),
        ("x-1-1-py3-none-any.whl", "x-1-py3-none-any.whl"),
    ],
)
def test_wheel_that_fits_closer_ranks_higher(better: str, worse: str) -> None:
    assert rank_wheel(better, "3.12") > rank_wheel(worse, "3.12")
    text = pylock(package("x", "1", entry(worse, B), entry(better, A)))
    assert parse_pylock(text, "3.12", {})[0].filename == better


def test_pin_with_hashes_excludes_other_wheels() -> None:
    text = pylock(
        package("x", "1", entry("x-1-cp312-cp312-linux_x86_64.whl", A), entry("x-1-py3-none-any.whl", B)),
    )
    pin = Pin(name="x", version="1", hashes=(B,), size=77)
    (wheel,) = parse_pylock(text, "3.12", {"x": pin})
    assert (wheel.filename, wheel.size) == ("x-1-py3-none-any.whl", 77)


def test_pylock_with_unusable_packages_names_every_one() -> None:
    text = pylock(
        package("good", "1", entry("good-1-py3-none-any.whl")),
        package("other-hash", "1", entry("other_hash-1-py3-none-any.whl", B)),
        '{ name = "from-git", vcs = { type = "git", url = "https://host.invalid/x" } }',
        package("source-only", "3", entry("source-only-3.tar.gz")),
    )
    pins = {"other-hash": Pin(name="other-hash", version="1", hashes=(C,))}
    with pytest.raises(BuildError) as caught:
        parse_pylock(text, "3.12", pins)
    first, *faults = str(caught.value).splitlines()
    assert first == "cannot use 3 packages of the resolution:"
    assert [fault.split()[0] for fault in faults] == ["other-hash", "from-git", "source-only"]


def test_pylock_archive_takes_its_version_from_the_file_name() -> None:
    text = pylock(f'{{ name = "x", archive = {entry("x-4.5%2Bcu12-py3-none-any.whl")} }}')
    (wheel,) = parse_pylock(text, "3.12", {})
    assert (wheel.version, wheel.filename) == ("4.5+cu12", "x-4.5+cu12-py3-none-any.whl")


@pytest.mark.parametrize("text", ["not toml", "x = 1", "packages = 3", 'packages = [{ version = "1" }]'])
def test_pylock_of_another_form_is_an_error_not_a_crash(text: str) -> None:
    with pytest.raises(BuildError, match="cannot read what uv resolved"):
        parse_pylock(text, "3.12", {})


def test_pins_with_continuations_markers_and_sizes_are_read() -> None:
    text = (
        f"# comment\nFoo.Bar[x,y]==1.0 \\\n    --hash=sha256:{A} \\\n    --hash=sha256:{B}\n    # 12 bytes\n"
        f"baz==2 ; python_version > '3' --hash=sha256:{C}\n--index-url https://x\nloose>=1\n"
    )
    assert parse_pins(text) == (
        Pin(name="foo-bar", version="1.0", hashes=(A, B), size=12),
        Pin(name="baz", version="2", hashes=(C,)),
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"x==1 --hash=sha256:{A}\n", True),
        (f"# c\n\nx==1 \\\n  --hash=sha256:{A}\n  # 3 bytes\ny @ file:///a.whl --hash=sha256:{B}\n", True),
        (f"x==1 --hash=sha256:{A}\ny==2\n", False),
        (f"x>=1 --hash=sha256:{A}\n", False),
        (f"-r other.txt\nx==1 --hash=sha256:{A}\n", False),
        ("# nothing\n", False),
        ("", False),
    ],
)
def test_file_is_a_lock_only_when_all_is_pinned_with_hashes(text: str, expected: bool) -> None:
    assert is_lock(text) is expected


NAMES = st.from_regex(r"[a-z][a-z0-9]{0,8}(-[a-z0-9]{1,5})?", fullmatch=True)


@given(
    st.lists(
        st.tuples(NAMES, st.from_regex(r"[0-9]{1,3}(\.[0-9]{1,3}){0,3}(\.post[0-9])?", fullmatch=True), st.integers(0)),
        min_size=1,
        max_size=6,
        unique_by=lambda item: item[0],
    )
)
def test_rendered_requirements_are_read_back_by_both_readers(items: list[tuple[str, str, int]]) -> None:
    wheels = [Wheel(name=name, version=version, filename="f.whl", sha256=A, size=size) for name, version, size in items]
    text = render_requirements(wheels, header=("made by a test",), sizes=True)
    assert is_lock(text)
    expected = sorted((name, version, size) for name, version, size in items)
    assert [(pin.name, pin.version, pin.size) for pin in parse_pins(text)] == expected
    assert [(line.name, line.version) for line in parse_requirements(text.encode())] == [row[:2] for row in expected]
    assert "://" not in text
