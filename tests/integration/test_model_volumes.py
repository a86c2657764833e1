"""Models on volumes as people have them: mounts, read-only ones, snapshots of links, and files that people added."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from fleet import skip_reason
from model_pulls import FILES, WEIGHTS, Notes, run_pull
from small_hub import SmallHub, tree_of

from infer_dev_entry.models.place import place_of
from infer_dev_entry.models.pull import is_settled
from infer_dev_entry.models.wish import ModelWish

pytest_plugins = ("model_fixtures",)

needs_namespaces = pytest.mark.skipif(bool(skip_reason()), reason=skip_reason() or "none")

_PULL_AT_BOOT = """
import sys
from infer_dev_entry.models.progress import make_display
from infer_dev_entry.models.pull import pull
from infer_dev_entry.models.wish import ModelWish
wish = ModelWish(source="huggingface", repo_id="org/m", target=sys.argv[1])
print(pull(wish, None, make_display(sys.stderr), {}, latest=False).how)
"""


def run_in_mounts(hub: SmallHub, script: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a shell script in a mount namespace of its own."""
    return subprocess.run(
        ["unshare", "--mount", "sh", "-ec", script, "sh", *words],
        env={**os.environ, "HF_ENDPOINT": hub.endpoint, "AUTO_INFER_SGLANG_USER": ""},
        capture_output=True,
        text=True,
        timeout=60,
    )


@needs_namespaces
def test_mount_in_the_model_is_not_emptied_with_the_model_that_is_replaced(
    hub: SmallHub, wish: ModelWish, tmp_path: Path
) -> None:
    run_pull(hub, wish)
    hub.repos["org/m"].commit(FILES | {"config.json": b"{}"})
    inside, volume = f"{wish.target}/adapters", tmp_path / "volume"
    for folder in (inside, volume):
        os.mkdir(folder)
    (volume / "mine.bin").touch()
    script = 'mount --bind "$1" "$2"; exec "$3" -m infer_dev_entry model pull --repo-id org/m --to "$4"'
    done = run_in_mounts(hub, script, str(volume), inside, sys.executable, wish.target)
    assert (volume / "mine.bin").exists()
    assert done.returncode == 23
    assert f"{inside} is mounted in it; mount it elsewhere" in done.stderr


@needs_namespaces
def test_empty_mount_of_the_same_filesystem_is_refused_before_anything_is_fetched(
    hub: SmallHub, wish: ModelWish, tmp_path: Path
) -> None:
    Path(wish.target).mkdir(parents=True)
    (tmp_path / "models" / "with space").mkdir()
    script = 'mount --bind "$1" "$2"; exec "$3" -m infer_dev_entry model pull --repo-id org/m --to "$2"'
    done = run_in_mounts(hub, script, str(tmp_path / "models" / "with space"), wish.target, sys.executable)
    assert done.returncode == 23
    assert "it is a mount point, which no rename replaces; mount the directory above it" in done.stderr
    assert not hub.bodies(WEIGHTS)


@needs_namespaces
@pytest.mark.parametrize("has_lock", [True, False])
def test_copied_model_on_a_read_only_volume_is_hashed_and_serves(
    hub: SmallHub, wish: ModelWish, has_lock: bool
) -> None:
    run_pull(hub, wish)
    os.utime(f"{wish.target}/config.json", (1, 1))  # as a copy leaves it
    if not has_lock:
        os.unlink(place_of(wish.target).lock)
    script = 'mount --bind "$1" "$1"; mount -o remount,bind,ro "$1"; exec "$2" -c "$3" "$4"'
    done = run_in_mounts(hub, script, str(Path(wish.target).parent), sys.executable, _PULL_AT_BOOT, wish.target)
    assert done.stdout == "unchanged\n", done.stderr


def test_snapshot_of_links_is_taken_over_and_stays(hub: SmallHub, wish: ModelWish, tmp_path: Path) -> None:
    for path, data in FILES.items():
        blob, link = tmp_path / "blobs" / path, Path(wish.target, path)
        for file in (blob, link):
            file.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(data)
        link.symlink_to(blob)
    assert run_pull(hub, wish).how == "adopted"
    assert is_settled(wish)
    assert run_pull(hub, wish).how == "unchanged"
    (tmp_path / "blobs" / WEIGHTS).unlink()
    assert not is_settled(wish)
    assert run_pull(hub, wish, latest=False).how == "downloaded"
    assert tree_of(Path(wish.target)) == FILES
    assert not Path(wish.target, WEIGHTS).is_symlink()


def test_model_that_a_killed_run_had_exchanged_already_is_deleted_by_the_next(hub: SmallHub, wish: ModelWish) -> None:
    run_pull(hub, wish)
    os.rename(wish.target, f"{wish.target}.old")
    hub.repos["org/m"].commit(FILES | {"README.md": b"new"})
    run_pull(hub, wish)
    staging = place_of(wish.target).staging
    os.rename(f"{wish.target}.old", staging)
    assert run_pull(hub, wish).how == "unchanged"
    assert not os.path.exists(staging)


def test_files_that_people_added_stay_with_the_next_revision(hub: SmallHub, wish: ModelWish, tmp_path: Path) -> None:
    run_pull(hub, wish)
    added = {"adapters/mine/w.safetensors": b"mine", "chat.jinja": b"{{ x }}", "LICENSE": b"my notes"}
    for path, data in added.items():
        Path(wish.target, path).parent.mkdir(parents=True, exist_ok=True)
        Path(wish.target, path).write_bytes(data)
    Path(wish.target, "link").symlink_to(tmp_path)
    newer = {path: data for path, data in FILES.items() if path != "README.md"} | {"LICENSE": b"MIT"}
    hub.repos["org/m"].commit(newer)
    notes = Notes()
    run_pull(hub, wish, notes)
    assert tree_of(Path(wish.target)) == added | newer
    assert os.readlink(f"{wish.target}/link") == str(tmp_path)
    assert [note for note in notes.notes if "was added" in note] == [
        f"{wish.target}: LICENSE was added there, and gives way to the repository's"
    ]
