"""Which server is meant, and whether it can be asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from infer_dev_entry.client.target import Target, check_ready, choose_row, find_target, parse_url
from infer_dev_entry.errors import ClientError, NotReadyError, RefusedKeyError, UnknownServerError


def row(name: str, state: str = "ready", engine: str = "sglang", **more: Any) -> dict[str, Any]:
    return {"name": name, "state": state, "engine": engine, "reason": "", "mend": "", "url": "http://x", **more}


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("http://127.0.0.1:30000", "http://127.0.0.1:30000"),
        ("http://127.0.0.1:30000/", "http://127.0.0.1:30000"),
        ("http://127.0.0.1:30000/v1", "http://127.0.0.1:30000"),
        ("http://127.0.0.1:30000/v1/", "http://127.0.0.1:30000"),
        ("https://host/glm/v1", "https://host/glm"),
        ("http://[::1]:8000", "http://[::1]:8000"),
    ],
)
def test_url_loses_its_version(text: str, url: str) -> None:
    assert parse_url(text) == url


@pytest.mark.parametrize(
    "text",
    [
        "ftp://host",
        "http://",
        "http://:80",
        "http://host:99999",
        "http://host:0",
        "http://host:x",
        "http://[::1",
        "http://ho st",
        "http://host/\x00",
        "http://host/?key=secret123",
        "http://user:secret123@host",
    ],
)
def test_url_that_cannot_be_used_is_refused(text: str) -> None:
    with pytest.raises(ClientError) as caught:
        parse_url(text)
    assert "secret123" not in str(caught.value)


def test_server_is_chosen_by_name() -> None:
    rows = [row("a"), row("b", "failed")]
    assert choose_row(rows, "b") is rows[1]
    with pytest.raises(UnknownServerError, match="it has: a, b"):
        choose_row(rows, "c")


@pytest.mark.parametrize(
    ("rows", "chosen"),
    [
        ([row("a")], "a"),
        ([row("a", "loading")], "a"),
        ([row("a", "failed"), row("b")], "b"),
        ([row("a"), row("b"), row("gate", engine="nginx")], "gate"),
        ([row("a"), row("gate", "starting", engine="gateway")], "gate"),
    ],
)
def test_no_name_means_the_gateway_or_the_only_one(rows: list[dict[str, Any]], chosen: str) -> None:
    assert choose_row(rows, "")["name"] == chosen


@pytest.mark.parametrize("rows", [[row("a"), row("b")], [row("a", "failed"), row("b", "loading")]])
def test_no_name_among_several_is_refused_with_their_names(rows: list[dict[str, Any]]) -> None:
    with pytest.raises(ClientError, match="name one of a, b"):
        choose_row(rows, "")


def test_fleet_without_servers_says_how_to_start_some() -> None:
    with pytest.raises(UnknownServerError, match="infer-dev serve"):
        choose_row([], "")


def test_server_that_is_not_ready_says_its_state_reason_and_mend() -> None:
    check_ready(row("a"))
    with pytest.raises(NotReadyError, match="a: it is failed: CUDA out of memory; lower mem_fraction_static"):
        check_ready(row("a", "failed", reason="CUDA out of memory", mend="lower mem_fraction_static"))
    with pytest.raises(NotReadyError, match=r"a: it is loading \(weights\); wait for it"):
        check_ready(row("a", "loading", phase="weights"))


def test_key_is_never_shown() -> None:
    target = find_target("http://host", api_key="secret123", environ={})
    assert target.api_key == "secret123"
    assert "secret123" not in repr(target)
    with pytest.raises(ClientError) as caught:
        find_target("http://host", api_key="secret 123\n", environ={})
    assert "secret" not in str(caught.value)


def test_key_of_the_environment_is_for_who_gives_none() -> None:
    environ = {"INFER_DEV_API_KEY": "from-env"}
    assert find_target("http://host", api_key=None, environ=environ).api_key == "from-env"
    assert find_target("http://host", api_key="", environ=environ).api_key == ""
    assert Target(url="http://host").api_key == ""


class FakeEntry:
    """Answers `ask` for one server that has these private files."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, files: list[str], **more: Any) -> None:
        self._answers = {"status": {"servers": [row("a", **more)]}, "launch": {"argv": ["x"], "files": files}}
        monkeypatch.setattr("infer_dev_entry.client.target.ask", lambda environ, request: self._answers[request["op"]])


def test_key_is_read_from_the_servers_private_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text('{"api-key": "own-key"}')
    FakeEntry(monkeypatch, [str(path)])
    assert find_target("a", api_key=None, environ={"INFER_DEV_API_KEY": "from-env"}).api_key == "own-key"
    assert find_target("a", api_key="mine", environ={}).api_key == "mine"


def test_key_that_cannot_be_read_is_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    FakeEntry(monkeypatch, [str(tmp_path / "gone")])
    with pytest.raises(RefusedKeyError, match=r"cannot read.*give api_key, or set INFER_DEV_API_KEY"):
        find_target("a", api_key=None, environ={})
    assert find_target("a", api_key=None, environ={"INFER_DEV_API_KEY": "from-env"}).api_key == "from-env"


def test_files_of_a_gateway_are_not_taken_for_a_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "nginx.conf"
    path.write_text("worker_processes 1;\n")
    FakeEntry(monkeypatch, [str(path)], engine="nginx")
    assert find_target("a", api_key=None, environ={}).api_key == ""
