"""Parameters and the checks before the load, without the library and without a process."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from infer_dev_entry.errors import EntryError
from infer_dev_entry.llama_server import __main__ as launcher
from infer_dev_entry.llama_server import library
from infer_dev_entry.llama_server.arguments import parse_args

WEIGHTS = b"GGUF" + b"w" * 100


class FakeLibrary:
    """Stands in for xllamacpp: parameters that remember what was set."""

    def __init__(self) -> None:
        self.llama_flash_attn_type = {f"LLAMA_FLASH_ATTN_TYPE_{word}": word for word in ("ENABLED", "DISABLED", "AUTO")}
        pooling = ("NONE", "MEAN", "CLS", "LAST", "RANK")
        self.llama_pooling_type = {f"LLAMA_POOLING_TYPE_{word}": word for word in pooling}

    def CommonParams(self) -> SimpleNamespace:
        names = ("model", "cpuparams", "cpuparams_batch", "sampling")
        return SimpleNamespace(**{name: SimpleNamespace() for name in names})


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(WEIGHTS)
    return path


def render(model: Path, *argv: str, keys: tuple[str, ...] = ()) -> SimpleNamespace:
    args = parse_args(["--model", str(model), "--port", "8000", *argv])
    return library.render_params(FakeLibrary(), args, model, keys)


@pytest.mark.parametrize(
    ("argv", "name", "value"),
    [
        ([], "model_alias", {"tiny"}),
        (["--alias", "nick"], "model_alias", {"nick"}),
        ([], "hostnames", ["127.0.0.1"]),
        (["--host", "0.0.0.0"], "hostnames", ["0.0.0.0"]),
        ([], "port", 8000),
        ([], "n_ctx", 4096),
        (["-c", "0"], "n_ctx", 0),
        (["--ctx-size", "512"], "n_ctx", 512),
        ([], "n_parallel", 1),
        (["-np", "3"], "n_parallel", 3),
        (["--batch-size", "256"], "n_batch", 256),
        (["-ub", "64"], "n_ubatch", 64),
        ([], "n_gpu_layers", -1),
        (["-ngl", "0"], "n_gpu_layers", 0),
        (["--main-gpu", "1"], "main_gpu", 1),
        ([], "flash_attn_type", "AUTO"),
        (["-fa", "on"], "flash_attn_type", "ENABLED"),
        (["--flash-attn", "off"], "flash_attn_type", "DISABLED"),
        (["--flash-attn"], "flash_attn_type", "ENABLED"),
        (["--gpu-layers", "3"], "n_gpu_layers", 3),
        (["--embedding"], "embedding", True),
        (["--predict", "9"], "n_predict", 9),
        ([], "cont_batching", True),
        (["--no-cont-batching"], "cont_batching", False),
        ([], "embedding", False),
        (["--embeddings", "--pooling", "last"], "pooling_type", "LAST"),
        ([], "endpoint_metrics", True),
        (["--metrics"], "endpoint_metrics", True),
        (["--no-metrics"], "endpoint_metrics", False),
        (["--no-slots"], "endpoint_slots", False),
        (["--no-jinja"], "use_jinja", False),
        (["--timeout", "30"], "timeout_read", 30),
        (["--timeout", "30"], "timeout_write", 30),
        ([], "n_predict", -1),
        (["--n-predict", "-1"], "n_predict", -1),
        (["-n", "7"], "n_predict", 7),
        (["--verbose"], "verbosity", 99),
    ],
)
def test_render_params_flag_reaches_the_library(model: Path, argv: list[str], name: str, value: object) -> None:
    assert getattr(render(model, *argv), name) == value


def test_render_params_threads_default_to_available_cpus(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "available_cpus", lambda: 5)
    params = render(model)
    assert (params.cpuparams.n_threads, params.cpuparams_batch.n_threads) == (5, 5)
    params = render(model, "-t", "2", "--threads-batch", "3")
    assert (params.cpuparams.n_threads, params.cpuparams_batch.n_threads) == (2, 3)


def test_render_params_seed_set_only_when_asked(model: Path) -> None:
    assert not hasattr(render(model, "--seed", "-1").sampling, "seed")
    assert render(model, "--seed", "42").sampling.seed == 42


def test_render_params_model_without_template_gets_the_plain_one(model: Path) -> None:
    assert render(model).chat_template == library.QUESTION_TEMPLATE
    assert render(model, "--no-jinja").chat_template == ""
    assert render(model, "--chat-template", "{{ messages }}").chat_template == "{{ messages }}"


def test_render_params_model_with_template_keeps_it(model: Path) -> None:
    model.write_bytes(WEIGHTS + library.TEMPLATE_KEY + b"{{ messages }}")
    assert render(model).chat_template == ""


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "No such file"), (b"", "not a GGUF file"), (b"<!DOCTYPE html>", "not a GGUF file (starts with b'<!DO')")],
)
def test_check_gguf_bad_file_is_one_line(tmp_path: Path, content: bytes | None, reason: str) -> None:
    path = tmp_path / "m.gguf"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(EntryError) as caught:
        library.check_gguf(path)
    assert str(caught.value).startswith(f"cannot load model {path}: ")
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_check_gguf_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EntryError, match="Is a directory"):
        library.check_gguf(tmp_path)


def test_read_api_keys_skips_comments_and_blanks(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("# team a\n  one  \n\n#two\nthree#3\r\n")
    assert library.read_api_keys(path) == ("one", "three#3")


@pytest.mark.parametrize("content", [None, b"", b"# only a comment\n", b"\xff\xfe"])
def test_read_api_keys_unusable_file_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "keys"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(EntryError, match="--api-key-file"):
        library.read_api_keys(path)


def test_main_without_library_names_the_mend(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    monkeypatch.setattr(launcher.signal, "signal", lambda *_: None)
    assert launcher.main(["--model", "m.gguf", "--port", "0"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("error: cannot start llama.cpp: the package xllamacpp is missing")
    assert "pip install 'infer-dev-entry[cpu]'" in error
