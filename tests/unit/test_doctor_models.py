"""A model's files, read from real directories and judged: whole, incomplete, cut, of other downloads, and hostile."""

from __future__ import annotations

import json
import os
import struct
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from make import make_spec
from make_model import CONFIG, make_model, shard_name, write_gguf, write_safetensors

from infer_dev_entry.doctor.model_checks import check_model
from infer_dev_entry.doctor.model_files import read_model
from infer_dev_entry.doctor.rows import Row
from infer_dev_entry.doctor.wishes import Wish, read_wish

LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"


def wish_for(path: Path | str, *words: str, engine: str = "sglang") -> Wish:
    flag = "--model-path" if engine == "sglang" else "--model"
    return read_wish(make_spec(engine=engine, argv=("/p/python", "-m", "x", flag, str(path), *words)))


def rows_of(path: Path, *words: str, engine: str = "sglang", tokenizer: Path | None = None) -> dict[str, Row]:
    wish = wish_for(path, *words, engine=engine)
    found = read_model(str(path), limit_s=60)
    rows = check_model(wish, found, read_model(str(tokenizer), limit_s=60) if tokenizer else None)
    return {row.check.partition(" of ")[0]: row for row in rows}


def verdicts(rows: dict[str, Row]) -> dict[str, str]:
    return {check: str(row.verdict) for check, row in rows.items()}


WHOLE = {"model": "ok", "tokenizer": "ok", "weights": "ok"}


def test_whole_model_is_ok_and_named(tmp_path: Path) -> None:
    rows = rows_of(make_model(tmp_path / "m", shards=3))
    assert verdicts(rows) == WHOLE
    assert "Glm4MoeForCausalLM" in rows["model"].seen
    assert rows["weights"].seen == "3 safetensors, as the index says, 6 MiB of tensors, sizes right"


def test_model_in_a_cache_of_links_is_ok(tmp_path: Path) -> None:
    blobs = make_model(tmp_path / "blobs")
    (tmp_path / "snapshot").mkdir()
    for file in blobs.iterdir():
        (tmp_path / "snapshot" / file.name).symlink_to(f"../blobs/{file.name}")
    assert verdicts(rows_of(tmp_path / "snapshot")) == WHOLE


def test_missing_path_and_unmade_path_say_so(tmp_path: Path) -> None:
    assert "No such file" in rows_of(tmp_path / "none")["model"].seen
    assert check_model(wish_for("org/name"), None, None)[0].verdict == "skip"


def _no_config(model: Path) -> None:
    (model / "config.json").unlink()


def _write(name: str, text: str) -> Any:
    return lambda model: (model / name).write_text(text)


def _replace(name: str, make: Any) -> Any:
    def change(model: Path) -> None:
        (model / name).unlink()
        make(model / name)

    return change


def _cut_shard(model: Path) -> None:
    write_safetensors(model / shard_name(2, 2), {"layers.2.weight": ("BF16", (1024, 1024))}, cut=1000)


def _other_shard(model: Path) -> None:
    write_safetensors(model / shard_name(2, 2), {"something.else": ("BF16", (4, 4))})


def _claims(length: int) -> Any:
    return lambda model: (model / shard_name(1, 2)).write_bytes(struct.pack("<Q", length) + b"{}")


INDEX = "model.safetensors.index.json"


@pytest.mark.parametrize(
    ("change", "check", "clause"),
    [
        (_no_config, "model", "has no config.json"),
        (_write("config.json", "{"), "model", "config.json: is no JSON"),
        (_write("config.json", "[]"), "model", "config.json: is no JSON object"),
        (_write("config.json", "[" * 100_000), "model", "config.json: is no JSON"),
        (_write("config.json", "{}"), "model", "names no architectures"),
        (_write("config.json", '{"architectures": [3]}'), "model", "names no architectures"),
        (_write("config.json", LFS), "model", "config.json: is a Git LFS pointer"),
        (_replace("config.json", os.mkfifo), "model", "config.json: is no regular file"),
        (_replace("config.json", lambda path: path.symlink_to(path)), "model", "config.json: cannot be read"),
        (_replace("config.json", lambda path: path.symlink_to("/dev/zero")), "model", "config.json: is no regular"),
        (_replace("tokenizer.json", lambda path: None), "tokenizer", "has none of tokenizer.json"),
        (_write("tokenizer.json", LFS), "tokenizer", "tokenizer.json: is a Git LFS pointer"),
        (_write("tokenizer.json", ""), "tokenizer", "tokenizer.json: is empty"),
        (_replace(shard_name(1, 2), lambda path: None), "weights", "cannot be read: No such file"),
        (_replace(shard_name(1, 2), lambda path: path.symlink_to("../gone")), "weights", "a link that leads nowhere"),
        (_replace(shard_name(1, 2), os.mkfifo), "weights", "is no regular file"),
        (_replace(shard_name(1, 2), os.mkdir), "weights", "is no regular file"),
        (_write(shard_name(1, 2), LFS), "weights", "is a Git LFS pointer"),
        (_write(shard_name(1, 2), ""), "weights", "it has only 0 bytes"),
        (_cut_shard, "weights", "model-00002-of-00002.safetensors: it is cut short"),
        (_other_shard, "weights", "lacks 1 tensors that the index names, such as layers.2.weight"),
        (_claims(2**62), "weights", "claims a header of 4611686018427387904 bytes"),
        (_claims(90_000_000), "weights", "ends inside its header"),
        (_write(INDEX, "{}"), "weights", "the index has no weight_map"),
        (_write(INDEX, '{"weight_map": {"a": "../../etc/passwd"}}'), "weights", "no file of this directory"),
        (_write(INDEX, LFS), "weights", "is a Git LFS pointer"),
    ],
)
def test_model_that_is_not_whole_fails_with_the_file_and_the_reason(
    tmp_path: Path, change: Any, check: str, clause: str
) -> None:
    model = make_model(tmp_path / "m")
    change(model)
    rows = rows_of(model)
    assert clause in rows[check].seen
    assert verdicts(rows) == {**WHOLE, check: "fail"}
    assert rows[check].mend


def test_unreadable_file_fails_with_the_reason(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root reads every file; the integration test looks as another user")
    model = make_model(tmp_path / "m")
    (model / shard_name(1, 2)).chmod(0)
    assert "Permission denied" in rows_of(model)["weights"].seen


def test_many_faults_become_one_row(tmp_path: Path) -> None:
    model = make_model(tmp_path / "m", shards=9)
    for shard in model.glob("*.safetensors"):
        shard.unlink()
    assert rows_of(model)["weights"].seen.endswith("; and 6 more")


def test_header_too_long_to_look_into_is_a_warning_and_is_not_read(tmp_path: Path) -> None:
    model = make_model(tmp_path / "m")
    with (model / shard_name(1, 2)).open("wb") as file:
        file.write(struct.pack("<Q", 90_000_000))
        file.truncate(95_000_000)
    tracemalloc.start()
    row = rows_of(model)["weights"]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (str(row.verdict), peak < 20_000_000) == ("warn", True)
    assert "too long to be looked into" in row.seen


def test_headers_of_all_shards_together_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model(tmp_path / "m", shards=4)
    one = int.from_bytes((model / shard_name(1, 4)).read_bytes()[:8], "little")
    monkeypatch.setattr("infer_dev_entry.doctor.model_files.HEADERS_BYTES", 2 * one)
    row = rows_of(model)["weights"]
    assert (str(row.verdict), row.seen.count("too long to be looked into")) == ("warn", 2)


def test_time_that_is_up_leaves_shards_unseen_with_a_warning(tmp_path: Path) -> None:
    found = read_model(str(make_model(tmp_path / "m")), limit_s=0)
    row = check_model(wish_for(tmp_path / "m"), found, None)[-1]
    assert str(row.verdict) == "warn"
    assert "2 of 2 shards were not looked at" in row.seen


def test_a_hundred_shards_take_little_time(tmp_path: Path) -> None:
    tensors = {f"layers.{number}.experts.weight": ("F8_E4M3", (2048, 1024)) for number in range(700)}
    model = make_model(tmp_path / "m", shards=100)
    for number in range(1, 101):
        write_safetensors(
            model / shard_name(number, 100), {**tensors, f"layers.{number}.weight": ("BF16", (1024, 1024))}
        )
    begin = time.process_time()
    row = rows_of(model)["weights"]
    assert str(row.verdict) == "ok"
    assert "136.9 GiB" in row.seen
    assert time.process_time() - begin < 4


def test_dummy_weights_and_missing_tokenizer_are_as_the_config_says(tmp_path: Path) -> None:
    model = make_model(tmp_path / "m", tokenizer=False)
    for shard in model.glob("*.safetensors"):
        shard.unlink()
    rows = rows_of(model, "--load-format", "dummy", "--skip-tokenizer-init")
    assert verdicts(rows) == {"model": "ok", "tokenizer": "skip", "weights": "skip"}


def test_tokenizer_of_its_own_directory_is_looked_at_there(tmp_path: Path) -> None:
    model = make_model(tmp_path / "m", tokenizer=False)
    other = tmp_path / "t"
    other.mkdir()
    words = ("--tokenizer-path", str(other))
    assert str(rows_of(model, *words, tokenizer=other)["tokenizer"].verdict) == "fail"
    (other / "tokenizer.model").write_text("x")
    assert str(rows_of(model, *words, tokenizer=other)["tokenizer"].verdict) == "ok"


def test_weights_without_index_and_of_older_kinds(tmp_path: Path) -> None:
    model = make_model(tmp_path / "m", shards=1)
    (model / INDEX).unlink()
    assert "without an index" in rows_of(model)["weights"].seen
    (model / shard_name(1, 1)).unlink()
    assert str(rows_of(model)["weights"].verdict) == "fail"
    (model / "pytorch_model.bin").write_text("x")
    assert str(rows_of(model)["weights"].verdict) == "warn"


def test_adapter_config_is_not_a_model(tmp_path: Path) -> None:
    model = make_model(tmp_path / "m", config={**CONFIG, "architectures": []})
    assert "an adapter?" in rows_of(model)["model"].mend


def test_gguf_whole_cut_and_foreign(tmp_path: Path) -> None:
    row = rows_of(write_gguf(tmp_path / "a.gguf"), engine="llama_cpp")["model"]
    assert (str(row.verdict), "llama, 2 tensors" in row.seen) == ("ok", True)
    row = rows_of(write_gguf(tmp_path / "b.gguf", cut=100), engine="llama_cpp")["model"]
    assert (str(row.verdict), "cut short" in row.seen) == ("fail", True)
    for name, text in (("c.gguf", ""), ("d.gguf", "x" * 100), ("e.gguf", LFS)):
        (tmp_path / name).write_text(text)
        assert str(rows_of(tmp_path / name, engine="llama_cpp")["model"].verdict) == "fail"
    os.mkfifo(tmp_path / "f.gguf")
    assert "no regular file" in rows_of(tmp_path / "f.gguf", engine="llama_cpp")["model"].seen


def test_gguf_with_a_large_vocabulary_is_read_in_windows(tmp_path: Path) -> None:
    row = rows_of(write_gguf(tmp_path / "a.gguf", words=600_000), engine="llama_cpp")["model"]
    assert (str(row.verdict), "llama, 2 tensors" in row.seen) == ("ok", True)


def test_split_gguf_names_the_parts_that_are_missing(tmp_path: Path) -> None:
    first = write_gguf(tmp_path / "m-00001-of-00003.gguf")
    row = rows_of(first, engine="llama_cpp")["model"]
    assert "2 of 3 parts are missing, such as m-00002-of-00003.gguf" in row.seen
    for number in (2, 3):
        write_gguf(tmp_path / f"m-0000{number}-of-00003.gguf")
    assert str(rows_of(first, engine="llama_cpp")["model"].verdict) == "ok"


def test_directory_for_llama_cpp_fails(tmp_path: Path) -> None:
    assert "reads one GGUF file" in rows_of(make_model(tmp_path / "m"), engine="llama_cpp")["model"].seen


def test_model_package_is_left_to_the_server() -> None:
    wish = replace(wish_for("", engine="llama_cpp"), model="", model_package="some-weights")
    assert check_model(wish, None, None)[0].seen.startswith("some-weights: weights from a package")


def test_foreign_tensor_names_cannot_write_to_the_terminal(tmp_path: Path) -> None:
    from infer_dev_entry.doctor.rows import render_table

    model = make_model(tmp_path / "m")
    (model / INDEX).write_text(json.dumps({"weight_map": {"\x1b[2J\ud800": shard_name(1, 2)}}))
    table = render_table(list(rows_of(model).values()))
    assert "\\x1b[2J\\ud800" in table
    assert "\x1b" not in table
    table.encode()
