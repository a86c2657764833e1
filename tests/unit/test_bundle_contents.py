"""Names inside a bundle: safe ones pass unchanged, everything that could lead outside or clash is refused."""

from __future__ import annotations

import posixpath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infer_dev_entry.bundle.contents import MAX_MEMBERS, Contents, find_root, parse_member_path, render_name
from infer_dev_entry.errors import BundleError


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("a", "a"),
        ("./a/b", "a/b"),
        ("a//b/./c/", "a/b/c"),
        (".", ""),
        ("./", ""),
        ("...", "..."),
        ("a/..b", "a/..b"),
        ("1!2.0+cu126~x", "1!2.0+cu126~x"),
        ("é/日本", "é/日本"),
    ],
)
def test_parse_member_path_safe_name_gives_path(name: str, path: str) -> None:
    assert parse_member_path(name) == path


@pytest.mark.parametrize(
    "name",
    [
        "",
        "/",
        "/etc/passwd",
        "..",
        "../a",
        "a/../b",
        "a/..",
        "a\0b",
        "a\nb",
        "a\x1b[2J",
        "a\u202egnp.whl",
        "a\u2028b",
        "\ud800",
        "a" * 256,
        "é" * 128,
        "/".join("a" * 33),
        "a/" * 2049,
    ],
)
def test_parse_member_path_unsafe_name_is_refused(name: str) -> None:
    with pytest.raises(BundleError, match="is refused"):
        parse_member_path(name)


@given(st.text(alphabet=st.sampled_from("a./\\\0é~-"), max_size=20))
def test_parse_member_path_any_name_stays_inside_or_is_refused(name: str) -> None:
    try:
        path = parse_member_path(name)
    except BundleError:
        return
    assert not path.startswith("/")
    assert posixpath.normpath(posixpath.join("/root", path)) == ("/root/" + path).rstrip("/")


@given(st.text(max_size=300))
def test_render_name_any_name_is_one_printable_line(name: str) -> None:
    shown = render_name(name)
    assert shown.isprintable()
    assert len(shown) < 1100


@pytest.mark.parametrize(
    "names",
    [
        ("a", "a"),
        ("a", "./a"),
        ("a", "A"),
        ("stra\u00dfe", "STRASSE"),
        ("caf\u00e9", "cafe\u0301"),
        ("a", "a/b"),
        ("a/b", "a"),
        (".",),
    ],
)
def test_contents_clashing_files_are_refused(names: tuple[str, ...]) -> None:
    contents = Contents()
    with pytest.raises(BundleError, match="is refused"):
        for name in names:
            contents.add_file(name)


def test_contents_directory_where_file_is_is_refused() -> None:
    contents = Contents()
    contents.add_file("a/b")
    with pytest.raises(BundleError, match="folder where another member is a file"):
        contents.add_directory("a/b/c")


def test_contents_directory_twice_is_fine() -> None:
    contents = Contents()
    contents.add_directory("a/b")
    contents.add_directory("./a/b/")
    assert contents.add_file("a/b/c") == "a/b/c"


@pytest.mark.parametrize("target", ["/etc/passwd", "..", "../../x", "../b/../../x", "", "x\0y"])
def test_contents_symlink_that_leads_out_is_refused(target: str) -> None:
    contents = Contents()
    contents.add_file("x")
    with pytest.raises(BundleError, match="is refused"):
        contents.add_symlink("a/link", target)
        contents.links()


@pytest.mark.parametrize("target", ["/etc/passwd", "../x", "a/../../x", ""])
def test_contents_hard_link_that_leads_out_is_refused(target: str) -> None:
    with pytest.raises(BundleError):
        Contents().add_link("a/link", target)


def test_contents_links_to_files_are_resolved() -> None:
    contents = Contents()
    contents.add_symlink("a/before", "../real")
    contents.add_file("real")
    contents.add_link("hard", "./real")
    contents.add_symlink("a/chain", "before")
    assert contents.links() == (("a/before", "real"), ("hard", "real"), ("a/chain", "real"))


@pytest.mark.parametrize("target", ["missing", "folder", "self", "circle"])
def test_contents_link_to_no_plain_file_is_refused(target: str) -> None:
    contents = Contents()
    contents.add_directory("folder")
    contents.add_link("circle", "self")
    contents.add_symlink("self", target)
    with pytest.raises(BundleError, match="no plain file"):
        contents.links()


def test_contents_too_many_members_are_refused() -> None:
    contents = Contents()
    with pytest.raises(BundleError, match="more than 100000 members"):
        for number in range(MAX_MEMBERS + 1):
            contents.add_file(f"{number}")


def test_contents_too_many_implied_folders_are_refused() -> None:
    contents = Contents()
    with pytest.raises(BundleError, match="more than 100000 members"):
        for number in range(MAX_MEMBERS):
            contents.add_file(f"{number}/" + "a/" * 30 + "b")


@pytest.mark.parametrize(
    ("paths", "root"),
    [
        (("m", "x"), ""),
        (("top/m", "top/x/y"), "top/"),
        (("top/m", "other/x"), ""),
        (("top/m", "stray"), ""),
        (("top/deep/m",), ""),
        ((), ""),
    ],
)
def test_find_root_bundle_may_lie_one_folder_down(paths: tuple[str, ...], root: str) -> None:
    assert find_root(paths, ("m",)) == root
