"""What a killed run leaves, at whatever moment, and what the next one makes of it."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from infer_dev_entry.errors import ModelError
from infer_dev_entry.models.content import GrowingFile, file_fault, is_as_recorded
from infer_dev_entry.models.inventory import find_models, row_of
from infer_dev_entry.models.listing import GIT_SHA1, SHA256, RemoteFile
from infer_dev_entry.models.place import JOURNAL_NAME, Place, place_of, read_record, write_record
from infer_dev_entry.models.record import KeptFile, ModelRecord
from infer_dev_entry.models.staging import Staging
from infer_dev_entry.models.wish import MARKER_NAME, ModelWish

DATA = {"a.json": b"{}", "sub/w.bin": b"weights" * 100}


def remote(path: str, data: bytes) -> RemoteFile:
    return RemoteFile(path=path, size=len(data), algorithm=SHA256, digest=hashlib.sha256(data).hexdigest())


FILES = tuple(remote(path, data) for path, data in DATA.items())


@pytest.fixture
def place(tmp_path: Path) -> Place:
    place = Place(str(tmp_path / "m"))
    place.prepare()
    return place


def grow(staging: Staging, file: RemoteFile, data: bytes) -> None:
    part = GrowingFile(staging.part(file), file, lambda _amount: None)
    part.write(data)
    staging.settle(file, part.sync())
    part.close()


def fill(place: Place) -> Staging:
    staging = Staging(place)
    for file in staging.open(FILES, None):
        grow(staging, file, DATA[file.path])
    return staging


def record_of(files: tuple[KeptFile, ...], commit: str = "c1") -> ModelRecord:
    return ModelRecord(
        source="huggingface", repo_id="org/m", revision="", commit=commit, allow_patterns=(), ignore_patterns=(),
        files=files, downloaded_at_unix=1,
    )  # fmt: skip


def publish(place: Place, staging: Staging) -> None:
    write_record(place.staging, record_of(staging.close()))
    staging.forget()
    place.publish()


def test_filled_staging_becomes_the_model_and_nothing_of_ours_but_the_record_stays(place: Place) -> None:
    publish(place, fill(place))
    names = {str(path.relative_to(place.target)) for path in Path(place.target).rglob("*") if path.is_file()}
    assert names == {*DATA, MARKER_NAME}
    assert is_as_recorded(place.target, place.record())
    assert not os.path.lexists(place.staging)


def test_file_that_is_whole_is_not_asked_for_again(place: Place) -> None:
    staging = Staging(place)
    grow(staging, staging.open(FILES, None)[0], DATA["a.json"])
    assert [file.path for file in Staging(place).open(FILES, None)] == ["sub/w.bin"]


def test_lost_journal_makes_whole_files_parts_again(place: Place) -> None:
    fill(place)
    os.unlink(f"{place.staging}/{JOURNAL_NAME}")
    staging = Staging(place)
    lacking = staging.open(FILES, None)
    assert len(lacking) == 2
    assert staging.begun_bytes(lacking) == sum(map(len, DATA.values()))


@pytest.mark.parametrize("text", ["", "{", '["a.json"', "[1,2,3,4,5]\n", "\0\0\0", "[" * 10_000])
def test_damaged_journal_says_nothing_and_does_no_harm(place: Place, text: str) -> None:
    fill(place)
    Path(place.staging, JOURNAL_NAME).write_text(text)
    assert len(Staging(place).open(FILES, None)) == 2


def test_changed_file_is_asked_for_again(place: Place) -> None:
    fill(place)
    os.utime(f"{place.staging}/a.json", ns=(1, 1))
    lacking = Staging(place).open(FILES, None)
    assert [file.path for file in lacking] == ["a.json"]


def test_other_files_and_parts_of_other_content_are_deleted(place: Place) -> None:
    fill(place)
    other = remote("a.json", b"other")
    Path(place.staging, "old").mkdir()
    Path(place.staging, "old", "gone.bin").write_bytes(b"x")
    Path(place.staging, ".infer-dev-parts", "f" * 40).write_bytes(b"x")
    lacking = Staging(place).open((other,), None)
    assert lacking == (other,)
    left = {str(path.relative_to(place.staging)) for path in Path(place.staging).rglob("*")}
    assert left == {".infer-dev-parts", JOURNAL_NAME}


def test_killed_between_record_and_rename_is_finished_by_the_next(place: Place) -> None:
    write_record(place.staging, record_of(fill(place).close()))
    place.recover()
    assert is_as_recorded(place.target, place.record())
    assert not os.path.exists(f"{place.target}/{JOURNAL_NAME}")


def test_killed_between_two_renames_brings_the_old_one_back(place: Place) -> None:
    publish(place, fill(place))
    os.rename(place.target, place.replaced)
    place.recover()
    assert place.record() is not None


def test_killed_with_all_files_and_a_record_goes_on_with_another_revision(place: Place) -> None:
    write_record(place.staging, record_of(fill(place).close()))
    newer = remote("a.json", b"newer")
    staging = Staging(place)
    assert staging.open((newer, FILES[1]), None) == (newer,)
    assert read_record(place.staging) is None


def test_replaced_model_is_swept_only_when_there_is_another(place: Place) -> None:
    os.makedirs(place.replaced)
    place.sweep()
    assert os.path.isdir(place.replaced)
    os.makedirs(place.target)
    place.sweep()
    assert not os.path.exists(place.replaced)


def test_files_of_the_model_before_are_linked(place: Place) -> None:
    publish(place, fill(place))
    place.prepare()
    moved = remote("elsewhere/w.bin", DATA["sub/w.bin"])
    staging = Staging(place)
    assert staging.open((moved,), place.record()) == ()
    assert os.stat(f"{place.staging}/elsewhere/w.bin").st_ino == os.stat(f"{place.target}/sub/w.bin").st_ino


def test_link_into_the_model_before_is_not_taken_for_a_part(place: Place) -> None:
    publish(place, fill(place))
    place.prepare()
    os.makedirs(f"{place.staging}/sub")
    os.link(f"{place.target}/sub/w.bin", f"{place.staging}/sub/w.bin")  # killed before the journal had it
    staging = Staging(place)
    staging.open(FILES, None)
    part = GrowingFile(staging.part(FILES[1]), FILES[1], lambda _amount: None)
    part.restart()
    part.close()
    assert Path(place.target, "sub/w.bin").read_bytes() == DATA["sub/w.bin"]


def test_two_names_for_one_file_are_no_whole_model(place: Place) -> None:
    staging = fill(place)
    Path(place.staging, "a.json").write_bytes(b"A.json's")  # as a filesystem does that folds case
    with pytest.raises(ModelError, match=r"a\.json is not there as it was written"):
        staging.close()


def test_growing_file_takes_up_what_is_there_and_hashes_all(tmp_path: Path) -> None:
    data = b"0123456789" * 1000
    for algorithm, digest in (
        (SHA256, hashlib.sha256(data).hexdigest()),
        (GIT_SHA1, hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()),
    ):
        path = tmp_path / algorithm
        path.write_bytes(data[:4321])
        read: list[int] = []
        file = RemoteFile(path="x", size=len(data), algorithm=algorithm, digest=digest)
        part = GrowingFile(str(path), file, read.append)
        assert (part.size, sum(read)) == (4321, 4321)
        part.write(data[4321:])
        assert part.digest() == digest
        part.close()
        assert (
            file_fault(
                str(tmp_path),
                RemoteFile(path=algorithm, size=len(data), algorithm=algorithm, digest=digest),
                read.append,
            )
            == ""
        )


def test_growing_file_without_a_digest_begins_anew(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"of another revision")
    part = GrowingFile(
        str(tmp_path / "x"), RemoteFile(path="x", size=30, algorithm="", digest=""), lambda _amount: None
    )
    assert part.size == 0
    part.close()


def test_place_follows_a_link_and_tells_whose_a_directory_is(tmp_path: Path) -> None:
    real = tmp_path / "real"
    real.mkdir()
    (tmp_path / "link").symlink_to(real)
    place = place_of(str(tmp_path / "link"))
    assert place.target == str(real)
    assert not place.is_foreign()
    (real / "x").touch()
    assert place.is_foreign()
    (real / MARKER_NAME).write_text("{}")
    assert place.is_foreign()


def test_inventory_tells_states(tmp_path: Path) -> None:
    whole = Place(str(tmp_path / "org" / "whole"))
    os.makedirs(whole.parent)
    whole.prepare()
    publish(whole, fill(whole))
    begun = Place(str(tmp_path / "begun"))
    begun.prepare()
    grow(staging := Staging(begun), staging.open(FILES, None)[0], DATA["a.json"])
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "config.json").write_text("{}")
    (tmp_path / "empty").mkdir()
    paths = find_models(str(tmp_path))
    assert [os.path.basename(path) for path in paths] == ["begun", "foreign", "whole"]
    assert [row_of(path, None).state for path in paths] == ["incomplete", "foreign", "complete"]
    wish = ModelWish(source="huggingface", repo_id="org/m", target=whole.target, revision="v2", names=("a",))
    assert row_of(whole.target, wish).state == "outdated"
    os.utime(f"{whole.target}/a.json", (1, 1))
    assert row_of(whole.target, wish).state == "changed"
    assert row_of(str(tmp_path / "none"), wish).state == "missing"
