"""Names of repositories, revisions, patterns, files and directories: what is taken and what is refused."""

from __future__ import annotations

from dataclasses import replace
from fnmatch import fnmatchcase

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infer_dev_entry.errors import ModelError
from infer_dev_entry.models.listing import GIT_SHA1, SHA256, Listing, RemoteFile, is_wanted, select_files
from infer_dev_entry.models.wish import (
    ModelWish,
    escape_pattern,
    file_problem,
    pattern_problem,
    patterns_for,
    repo_problem,
    revision_problem,
    target_problem,
)

WISH = ModelWish(source="huggingface", repo_id="org/m", target="/models/m", names=("a",))


def remote(path: str, size: int = 1, algorithm: str = GIT_SHA1, digest: str = "0" * 40) -> RemoteFile:
    return RemoteFile(path=path, size=size, algorithm=algorithm, digest=digest)


@pytest.mark.parametrize("name", ["zai-org/GLM-4.7", "a/b", "Qwen/Qwen3_Embedding-8B", "0x/1.5b"])
def test_repository_name_is_taken(name: str) -> None:
    assert repo_problem(name) == ""


@pytest.mark.parametrize(
    "name",
    [
        "",
        "gpt2",
        "a/b/c",
        "../m",
        "org/..",
        "org/",
        "/m",
        "o rg/m",
        "org/m.",
        ".org/m",
        "org/m\n",
        "ö/m",
        "a" * 97 + "/m",
    ],
)
def test_repository_name_is_refused(name: str) -> None:
    assert repo_problem(name)


@pytest.mark.parametrize("name", ["main", "v1.0", "refs/pr/1", "a" * 40, "release-2_1"])
def test_revision_is_taken(name: str) -> None:
    assert revision_problem(name) == ""


@pytest.mark.parametrize("name", ["", "-x", "a..b", "a//b", "a b", "../x", "a/", "x.lock", "a" * 201, "main\n", "?x=1"])
def test_revision_is_refused(name: str) -> None:
    assert revision_problem(name)


@pytest.mark.parametrize("name", ["/models/m", "/m", "/models/ö m"])
def test_target_is_taken(name: str) -> None:
    assert target_problem(name) == ""


@pytest.mark.parametrize("name", ["", "models/m", "/", "/models/../m", "/models/\nm", "/models/" + "a" * 250])
def test_target_is_refused(name: str) -> None:
    assert target_problem(name)


@pytest.mark.parametrize("pattern", ["", "/x", "../x", "a/../b", "a\0", "a" * 2000])
def test_pattern_is_refused(pattern: str) -> None:
    assert pattern_problem(pattern)


@pytest.mark.parametrize("path", ["config.json", "a/b/c.safetensors", ".gitattributes", "a.git/x", "ö/ü"])
def test_file_name_is_taken(path: str) -> None:
    assert file_problem(path) == ""


@pytest.mark.parametrize(
    "path",
    ["", "/a", "a//b", "./a", "a/..", "..", "a\\b", "a\0b", "a\x1b[0m", ".git/config", "x/.Git/y", "a" * 256, "\ud800",
     ".infer-dev-model.json", ".Infer-Dev-Model.json", ".infer-dev-parts/x", "/".join("a" * 40), "a/"],
)  # fmt: skip
def test_file_name_is_refused(path: str) -> None:
    assert file_problem(path)


@given(st.text(max_size=40))
def test_file_name_that_is_taken_never_leaves_its_directory(path: str) -> None:
    import posixpath

    if not file_problem(path):
        joined = posixpath.normpath(posixpath.join("/models/m", path))
        assert joined == f"/models/m/{path}"


@given(st.text(alphabet="ab*?[]!.-/", max_size=12))
def test_escaped_pattern_matches_that_name_alone(name: str) -> None:
    assert fnmatchcase(name, escape_pattern(name))
    assert not fnmatchcase(name + "x", escape_pattern(name))


def test_split_gguf_wants_all_its_parts() -> None:
    (pattern,) = patterns_for("Q4/m-00001-of-00003.gguf")
    assert fnmatchcase("Q4/m-00003-of-00003.gguf", pattern)
    assert not fnmatchcase("Q8/m-00003-of-00003.gguf", pattern)
    assert patterns_for("m.gguf") == ("m.gguf",)


@pytest.mark.parametrize(
    ("path", "allow", "ignore", "expected"),
    [
        ("a.json", (), (), True),
        ("a.json", ("*.safetensors",), (), False),
        ("x/a.json", ("*.json",), (), True),
        ("x/a.json", ("x/",), (), True),
        ("x/a.json", (), ("x/",), False),
        ("a.json", ("*.json",), ("a.*",), False),
        ("A.JSON", ("*.json",), (), False),
    ],
)
def test_patterns_choose(path: str, allow: tuple[str, ...], ignore: tuple[str, ...], expected: bool) -> None:
    assert is_wanted(path, replace(WISH, allow_patterns=allow, ignore_patterns=ignore)) is expected


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ([remote("../x")], "leads elsewhere"),
        ([remote("a"), remote("a")], "lists 'a' twice"),
        ([remote("a"), remote("a/b/c")], "'a' is a file and a directory"),
        ([remote("a", size=-1)], "no usable size or digest"),
        ([remote("a", digest="x" * 40)], "no usable size or digest"),
        ([remote("a", algorithm=SHA256)], "no usable size or digest"),
        ([remote("b")], "none of its 1 files is wanted"),
    ],
)
def test_listing_is_refused(files: list[RemoteFile], expected: str) -> None:
    wish = replace(WISH, allow_patterns=("a*",))
    with pytest.raises(ModelError, match=expected):
        select_files(Listing(commit="", files=tuple(files)), wish)


def test_wishes_for_one_directory_join_or_clash() -> None:
    one = replace(WISH, allow_patterns=("a",), needed=("a",))
    other = replace(WISH, names=("b",), allow_patterns=("b",), needed=("b",))
    both = one.joined(other)
    assert both is not None
    assert (both.names, both.allow_patterns, both.needed) == (("a", "b"), ("a", "b"), ("a", "b"))
    assert one.joined(WISH).allow_patterns == ()
    assert one.joined(replace(other, revision="v2")) is None
    assert one.joined(replace(other, repo_id="org/n")) is None
