"""The file of API keys: what is taken, and how each problem is told by its line without the key."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infer_dev_entry.errors import KeysFileError
from infer_dev_entry.gateway.keys import ApiKey, default_name, parse_keys
from infer_dev_entry.keys_file import add_key

KEY = "sk-0123456789abcdefXYZ"
OTHER = "sk-another.key+with/all~of_them=="


def test_keys_with_names_comments_and_blank_lines_are_taken() -> None:
    found = parse_keys(f"# ours\n\nalice: {KEY}\n  bob@lab :{OTHER}  \r\n")
    assert found.problems == ()
    assert found.keys == (ApiKey(name="alice", key=KEY), ApiKey(name="bob@lab", key=OTHER))


def test_key_without_name_gets_one_that_does_not_hang_on_its_line() -> None:
    (first,) = parse_keys(KEY).keys
    (second,) = parse_keys(f"\n# moved down\n{KEY}\n").keys
    assert first == second == ApiKey(name=default_name(KEY), key=KEY)
    assert KEY not in first.name


def test_two_keys_may_share_a_name_so_that_a_client_can_change_over() -> None:
    assert len(parse_keys(f"alice: {KEY}\nalice: {OTHER}").keys) == 2


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "it holds no key"),
        ("# nothing\n\n", "it holds no key"),
        (f"alice: {KEY}\n{KEY}\n", "line 2: the same key as in line 1"),
        ("\nalice: sk-short\n", "line 2: the key has 8 characters; at least 16 are needed"),
        (f"{'k' * 513}\n", "line 1: the key has 513 characters; at most 512 are possible"),
        (f"alice {KEY}\n", "line 1: white space in the key; a line is `key` or `name: key`"),
        ("alice:\n", "line 1: no key after the name"),
        ('alice: sk-0123456789"; return 200;#\n', "line 1: white space in the key"),
        ("sk-0123456789abc$def\n", "line 1: a character that a key cannot hold"),
        ("sk-0123456789\\abcdef\n", "line 1: a character that a key cannot hold"),
        ("sk-0123456789äbcdefgh\n", "line 1: a character that a key cannot hold"),
        (f"two words: {KEY}\n", "line 1: not a usable name"),
        (f'x"; evil: {KEY}\n', "line 1: not a usable name"),
        ("\0" * 40, "line 1: a character that a key cannot hold"),
    ],
)
def test_problem_is_told_by_its_line(text: str, problem: str) -> None:
    found = parse_keys(text)
    assert found.problems[0].startswith(problem)


def test_problems_are_all_told_and_a_flood_is_cut() -> None:
    found = parse_keys("short\n" * 500)
    assert len(found.problems) == 21
    assert found.problems[-1] == "and 480 more"


def test_too_many_keys_are_refused() -> None:
    found = parse_keys("\n".join(f"sk-0123456789abcdef-{number}" for number in range(1001)))
    assert found.problems == ("it holds 1001 keys, and the limit is 1000",)


@given(st.text(alphabet=st.characters(codec="utf-8"), min_size=1, max_size=60))
def test_no_problem_ever_quotes_the_line(line: str) -> None:
    for problem in parse_keys(line).problems:
        known = "a character that a key cannot hold; use letters, digits and - . _ ~ + / (and = at the end)"
        words = [word for word in line.split() if len(word) >= 8 and word not in known]
        assert not any(word in problem for word in words)


@given(st.lists(st.from_regex(r"\A[A-Za-z0-9._~+/-]{16,40}={0,2}\Z"), unique=True, min_size=1, max_size=8))
def test_every_possible_key_survives(keys: list[str]) -> None:
    found = parse_keys("\n".join(keys))
    assert found.problems == ()
    assert [key.key for key in found.keys] == keys


# ------------------------------------------------------------------------------------------------ adding to the file


def test_added_key_makes_a_private_file_that_parses(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    first, second = add_key(str(path), "alice"), add_key(str(path), "bob")
    assert first != second and len(first) > 40
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert parse_keys(path.read_text()).keys == (ApiKey(name="alice", key=first), ApiKey(name="bob", key=second))


def test_added_key_gets_a_line_of_its_own_after_one_without_an_end(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(f"alice: {KEY}")
    added = add_key(str(path), "bob")
    assert path.read_text() == f"alice: {KEY}\nbob: {added}\n"


def test_key_is_not_added_through_a_link_or_to_a_directory(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for path in (tmp_path / "link", tmp_path):
        with pytest.raises(KeysFileError, match="cannot write"):
            add_key(str(path), "alice")
    assert not (tmp_path / "elsewhere").exists()
