"""Secrets never survive redaction, and ordinary log lines do."""

from __future__ import annotations

import json
import string

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from infer_dev_entry.redact import MASK, api_key_of, redact_bytes, redact_line, secrets_of
from infer_dev_entry.spec import FileSpec

KEYS = st.text(alphabet=string.ascii_letters + string.digits + "-_.!$%&*+/?", min_size=8, max_size=60).filter(
    lambda key: not key.startswith(("***", "-"))
)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("server_args=ServerArgs(api_key='k3y', port=1)", "server_args=ServerArgs(api_key=***, port=1)"),
        ("admin_api_key='it\\'s k3y', x=1", "admin_api_key=***, x=1"),
        ('{"api_key": "k3y", "a": 1}', '{"api_key": ***, "a": 1}'),
        ('{"line": "{\\"api_key\\": \\"k3y\\", \\"a\\": 1}"}', '{"line": "{\\"api_key\\": ***, \\"a\\": 1}"}'),
        ("api_key='cut off by the k3y", "api_key=***"),
        ("run: --api-key k3y --port 1", "run: --api-key *** --port 1"),
        ("['--admin-api-key', 'k3y', '--port']", "['--admin-api-key', ***, '--port']"),
        ("HF_TOKEN=k3y HOME=/root", "HF_TOKEN=*** HOME=/root"),
        ("Authorization: Bearer k3y", "Authorization: ***"),
        ("(b'authorization', b'Bearer k3yk3yk3y')", "(b'authorization', b'Bearer ***')"),
        ("X-API-Key: k3y", "X-API-Key: ***"),
        ("fetching https://me:k3y@host/x", "fetching https://***@host/x"),
        ("with hf_abcdefghijk and sk-abcdefghijk.", "with *** and ***."),
        ("two: api_key='k3y' api_key=\"k3y\"", "two: api_key=*** api_key=***"),
    ],
)
def test_redact_blots_out_what_looks_like_a_secret(line: str, expected: str) -> None:
    assert redact_line(line) == expected
    assert redact_bytes(line.encode()) == expected.encode()
    assert redact_line(expected) == expected


@pytest.mark.parametrize(
    "line",
    [
        "Prefill batch, #new-seq: 1, #new-token: 7, #cached-token: 0, token usage: 0.00, #queue-req: 0,",
        "Decode batch, #running-req: 1, #token: 57, token usage: 0.00, gen throughput (token/s): 9.1",
        "ServerArgs(tokenizer_path='/m', api_key=None, admin_api_key=None, skip_tokenizer_init=False, max_tokens=32)",
        "api_key='' and api_key=\"\"",
        "BOS token        = 2 '<bos>'",
        "llama-server --api-key-file /run/infer-dev/config/a.key",
        "loading /models/risk-averse at git@github.com, http://127.0.0.1:30000/v1",
        "KeyError: 'lm_head.weight'",
        "",
    ],
)
def test_redact_keeps_ordinary_lines(line: str) -> None:
    assert redact_line(line) == line


@pytest.mark.parametrize("shape", ["api_key={!r}", "admin_api_key={!r}, x", "--api-key {}", "Authorization: Bearer {}"])
@given(key=KEYS, before=st.text(max_size=40))
def test_redact_any_key_in_a_known_shape_is_gone(shape: str, before: str, key: str) -> None:
    assume(key not in before)
    line = f"{before} {shape.format(key)}".replace("\n", " ")
    assert key not in redact_line(line)


@given(line=st.text(), key=st.text(min_size=4, max_size=40))
def test_redact_known_secret_is_gone_wherever_it_stands(line: str, key: str) -> None:
    assume(key not in MASK)
    redacted = redact_line(f"{line}\x00{key}\x00{line}", (key,))
    assert key not in redacted.replace(MASK, "")


def test_redact_longer_known_secret_goes_first() -> None:
    assert redact_line("x secret-two y", ("secret", "secret-two", "x")) == "x *** y"


@given(data=st.binary())
def test_redact_bytes_keeps_lines_and_what_is_no_text(data: bytes) -> None:
    redacted = redact_bytes(data)
    assert redacted.count(b"\n") == data.count(b"\n")
    assert redact_bytes(b"\xff api_key='k3y'\n\xfe") == b"\xff api_key=***\n\xfe"


@given(line=st.text())
def test_redact_twice_is_redact_once(line: str) -> None:
    assert redact_line(redact_line(line)) == redact_line(line)


def test_secrets_are_the_keys_of_the_private_files() -> None:
    config = json.dumps({"api-key": "k1", "admin-api-key": "k2", "served-model-name": "m"})
    files = (FileSpec(path="/r/a.yaml", text=config), FileSpec(path="/r/b.key", text="k3\nk4\n"))
    assert secrets_of((*files, FileSpec(path="/r/c.yaml", text="{"))) == ("k1", "k2", "k3", "k4")


@pytest.mark.parametrize(
    ("path", "text", "expected"),
    [
        ("/run/c/a.yaml", json.dumps({"api-key": "k1", "admin-api-key": "k2"}), "k1"),
        ("/run/c/a.yaml", json.dumps({"admin-api-key": "k2"}), ""),
        ("/run/c/a.yaml", "[1]", ""),
        ("/run/c/a.yaml", "not json", ""),
        ("/run/c/a.key", "first\nsecond\n", "first"),
        ("/run/c/a.yaml", json.dumps({"api-key": "k\r\nX: y"}), ""),
    ],
)
def test_key_for_our_own_requests_comes_from_the_private_file(path: str, text: str, expected: str) -> None:
    assert api_key_of((FileSpec(path=path, text=text),)) == expected
