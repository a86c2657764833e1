"""Downloads from a small hub on loopback, by the real clients: whole, cut, wrong, refused, killed, and two at once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from fleet import skip_reason
from model_pulls import FILES, WEIGHTS, Notes, run_pull
from small_hub import SmallHub, tree_of
from wait import wait_until

pytest.importorskip("huggingface_hub", reason="the models extra is not installed")
pytest.importorskip("modelscope_hub", reason="the models extra is not installed")

from infer_dev_entry.errors import ModelError, ModelFilesError
from infer_dev_entry.models import huggingface, retry
from infer_dev_entry.models.place import place_of
from infer_dev_entry.models.pull import is_settled
from infer_dev_entry.models.verify import check_files
from infer_dev_entry.models.wish import ModelWish

pytest_plugins = ("model_fixtures",)

CUTS = (655_360, 1_310_720, 1_966_080)  # whole pieces: the client loses the rest of one that is cut
TOKEN = "hf_" + "Secret" * 5


def run_cli(hub: SmallHub, *words: str, **environ: str) -> subprocess.Popen[str]:
    """Start `infer-dev model …` with the hub and a token."""
    own = {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": TOKEN, "AUTO_INFER_SGLANG_USER": "", **environ}
    return subprocess.Popen(
        [sys.executable, "-m", "infer_dev_entry", "model", *words],
        env={**os.environ, **own},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def leftovers(wish: ModelWish) -> set[str]:
    """Return what lies beside the model."""
    target = Path(wish.target)
    return {path.name for path in target.parent.iterdir()} - {target.name, f".{target.name}.lock"}


# -- whole


def test_pull_puts_a_whole_model_in_its_place_with_a_record(hub: SmallHub, wish: ModelWish) -> None:
    notes = Notes()
    pulled = run_pull(hub, wish, notes)
    assert (pulled.how, pulled.commit) == ("downloaded", hub.repos["org/m"].refs["main"])
    assert tree_of(Path(wish.target)) == FILES
    assert leftovers(wish) == set()
    record = json.loads((Path(wish.target) / ".infer-dev-model.json").read_text())
    assert record["commit"] == pulled.commit
    assert {file["path"]: file["algorithm"] for file in record["files"]}[WEIGHTS] == "sha256"
    assert {file["path"]: file["algorithm"] for file in record["files"]}["config.json"] == "git-sha1"
    assert notes.done == notes.stages[-1][1] == sum(map(len, FILES.values()))
    assert len([seen for seen in hub.seen if "/tree/" in seen.path]) == 3  # pages


def test_pull_again_asks_for_the_commit_and_fetches_nothing(hub: SmallHub, wish: ModelWish) -> None:
    run_pull(hub, wish)
    hub.seen.clear()
    assert run_pull(hub, wish).how == "unchanged"
    assert not [seen for seen in hub.seen if "/resolve/" in seen.path]
    hub.seen.clear()
    assert run_pull(hub, wish, latest=False).how == "unchanged"
    assert hub.seen == []


def test_pull_takes_only_what_the_patterns_let_through(hub: SmallHub, wish: ModelWish) -> None:
    wish = replace(wish, allow_patterns=("*.json", "extra/"), ignore_patterns=("tok*",))
    run_pull(hub, wish)
    assert set(tree_of(Path(wish.target))) == {"config.json", "extra/notes.txt"}


def test_pull_without_what_the_server_needs_names_what_there_is(hub: SmallHub, wish: ModelWish) -> None:
    with pytest.raises(ModelError, match=r"needs 'q8.safetensors'.* it has model-00001-of-00001.safetensors"):
        run_pull(hub, replace(wish, needed=("q8.safetensors",)))
    assert not Path(wish.target).exists()


# -- cut connections and wrong bytes


def test_cut_connections_are_resumed_where_they_were_cut(hub: SmallHub, wish: ModelWish) -> None:
    hub.fault(WEIGHTS, times=2, cut_after=600_000, resets=True, at_store=True)
    hub.fault(WEIGHTS, times=5, cut_after=400_000, at_store=True)
    notes = Notes()
    run_pull(hub, wish, notes)
    assert tree_of(Path(wish.target)) == FILES
    ranges = [seen.range for seen in hub.bodies(WEIGHTS + "?X-Amz-Signature=signed") if seen.range]
    begun = [int(text.removeprefix("bytes=").removesuffix("-")) for text in ranges]
    assert len(begun) >= 5
    assert begun == sorted(begun)
    assert begun[-1] >= 1_600_000
    assert notes.done == notes.stages[-1][1]


def test_connection_that_hangs_is_dropped_and_resumed(
    hub: SmallHub, wish: ModelWish, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infer_dev_entry.models.huggingface.STREAM_TIMEOUT_S", 2.0)
    hub.fault(WEIGHTS, hold=threading.Event(), at_store=True)
    notes = Notes()
    run_pull(hub, wish, notes)
    assert tree_of(Path(wish.target)) == FILES
    assert [note for note in notes.notes if "ReadTimeout" in note]
    assert hub.bodies("signed")[-1].range.startswith("bytes=1")


def test_connection_that_brings_nothing_is_given_up_after_bounded_tries(hub: SmallHub, wish: ModelWish) -> None:
    hub.fault(WEIGHTS, times=100, cut_after=0, at_store=True)
    with pytest.raises(ModelError, match=rf"cannot download {WEIGHTS} of org/m .*what was downloaded is kept"):
        run_pull(hub, wish)
    tries = [seen for seen in hub.seen if seen.at_store]
    assert len(tries) == retry.MAX_TRIES
    assert not Path(wish.target).exists()
    hub.faults.clear()
    hub.seen.clear()
    run_pull(hub, wish)
    assert not hub.bodies("config.json")  # what was whole is not fetched again


def test_hub_that_ignores_ranges_is_read_from_the_first_byte(hub: SmallHub, wish: ModelWish) -> None:
    hub.fault(WEIGHTS, cut_after=500_000, at_store=True)
    hub.fault(WEIGHTS, ignores_range=True, at_store=True)
    notes = Notes()
    run_pull(hub, wish, notes)
    assert tree_of(Path(wish.target)) == FILES
    assert notes.done == notes.stages[-1][1]  # what was thrown away is not counted


@pytest.mark.parametrize("name", [WEIGHTS, "config.json"])
def test_wrong_bytes_are_fetched_once_more_and_then_refused(hub: SmallHub, wish: ModelWish, name: str) -> None:
    wrong = bytes(len(FILES[name]))
    fault = hub.fault(f"/{name}", times=1, data=wrong, at_store=name == WEIGHTS)
    run_pull(hub, wish)
    assert tree_of(Path(wish.target)) == FILES
    other = replace(wish, target=wish.target + "2")
    fault.times = 100
    with pytest.raises(ModelError, match=r"its (sha256|git-sha1) is \w+, and the hub lists \w+"):
        run_pull(hub, other)
    assert not Path(other.target).exists()


@pytest.mark.parametrize("lie", [+1, -1])
def test_size_that_is_not_the_listed_one_is_refused(hub: SmallHub, wish: ModelWish, lie: int) -> None:
    size = len(FILES["README.md"]) + lie
    hub.repos["org/m"].listed["README.md"] = {"size": size}
    with pytest.raises(ModelError, match=rf"README.md of org/m: the hub sends 8 bytes, and lists {size}"):
        run_pull(hub, wish)
    assert not Path(wish.target).exists()


# -- refusals


def test_busy_hub_is_waited_for_as_long_as_it_asks(hub: SmallHub, wish: ModelWish) -> None:
    hub.fault("/revision/", status=429, headers={"Retry-After": "1"})
    hub.fault("/tree/", status=503)
    hub.fault("config.json", times=2, status=500)
    began = time.monotonic()
    assert run_pull(hub, wish).how == "downloaded"
    assert time.monotonic() - began >= 1.0


def test_hub_that_asks_for_an_hour_is_not_waited_for(hub: SmallHub, wish: ModelWish) -> None:
    hub.fault("/tree/", times=100, status=429, headers={"Retry-After": "3600"})
    with pytest.raises(ModelError, match=r"HTTP 429; try again in 3600 s; a token raises the hub's limits"):
        run_pull(hub, wish)
    assert len([seen for seen in hub.seen if "/tree/" in seen.path]) == 1


def test_hub_that_is_not_well_is_given_up(hub: SmallHub, wish: ModelWish) -> None:
    hub.fault("/api/models", times=100, status=502)
    with pytest.raises(ModelError, match="HTTP 502; the hub is not well"):
        run_pull(hub, wish)
    assert len(hub.seen) == retry.MAX_TRIES


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"repo_id": "org/other"}, "HTTP 404: no such repository; correct repo_id, or, if it is private, set HF_TOKEN"),
        ({"revision": "v9"}, "org/m@v9 from huggingface: HTTP 404: no such revision; correct revision"),
        ({"repo_id": "org/private"}, "HTTP 401; it is private or gated, or the token is not valid: set HF_TOKEN"),
        ({"repo_id": "org/gated"}, "HTTP 403: org/gated is gated; accept its licence on the model's page, then set HF"),
        ({"source": "modelscope", "repo_id": "org/other"}, "HTTP 404; correct repo_id and revision"),
        ({"source": "modelscope", "revision": "v9"}, "HTTP 404; correct repo_id and revision"),
        ({"source": "modelscope", "repo_id": "org/private"}, "HTTP 401; it is private or gated"),
    ],
)
def test_refusal_says_what_and_the_mend(hub: SmallHub, wish: ModelWish, changes: dict[str, str], expected: str) -> None:
    hub.repo("org/private", FILES).token = "another"
    hub.repo("org/gated", FILES).gated = True
    with pytest.raises(ModelError) as refused:
        run_pull(hub, replace(wish, **changes))
    assert expected in str(refused.value)
    assert not Path(wish.target).exists()


def test_no_hub_at_all_is_told_within_bounded_tries(hub: SmallHub, wish: ModelWish) -> None:
    hub.close()
    with pytest.raises(ModelError, match=r"Connect.*check network, proxy and HF_ENDPOINT"):
        run_pull(hub, wish)


def test_offline_needs_no_hub_for_a_whole_model_and_refuses_another(hub: SmallHub, wish: ModelWish) -> None:
    with pytest.raises(ModelError, match=r"HF_HUB_OFFLINE is set, and .* is not there whole"):
        run_pull(hub, wish, HF_HUB_OFFLINE="1")
    assert hub.seen == []
    run_pull(hub, wish)
    hub.seen.clear()
    assert run_pull(hub, wish, HF_HUB_OFFLINE="YES").how == "unchanged"
    assert hub.seen == []


@pytest.mark.parametrize(
    "name", ["../evil", "a/../../evil", "/tmp/evil", ".git/config", "a/.GIT/x", ".infer-dev-model.json", "a\nb", "a//b"]
)
def test_hostile_file_name_is_refused_and_nothing_is_written(hub: SmallHub, wish: ModelWish, name: str) -> None:
    hub.repo("org/m", {**FILES, name: b"evil"})
    with pytest.raises(ModelError, match="do not trust that repository"):
        run_pull(hub, wish)
    assert not Path(wish.target).parent.joinpath("evil").exists()
    assert not Path(wish.target).exists()
    assert not [seen for seen in hub.seen if "/resolve/" in seen.path]


# -- revisions and directories that are there already


def test_new_revision_replaces_the_old_and_fetches_only_what_changed(hub: SmallHub, wish: ModelWish) -> None:
    run_pull(hub, wish)
    opened = (Path(wish.target) / "README.md").open("rb")
    changed = {**FILES, "README.md": b"a better model\n"}
    commit = hub.repos["org/m"].commit(changed)
    hub.seen.clear()
    pulled = run_pull(hub, wish)
    assert (pulled.how, pulled.commit, pulled.fetched_bytes) == ("downloaded", commit, len(changed["README.md"]))
    assert tree_of(Path(wish.target)) == changed
    assert not hub.bodies(WEIGHTS)
    with opened:
        assert opened.read() == FILES["README.md"]  # who has it open keeps it
    assert leftovers(wish) == set()


def test_failed_new_revision_leaves_the_old_one_serving(hub: SmallHub, wish: ModelWish) -> None:
    run_pull(hub, wish)
    hub.repos["org/m"].commit({**FILES, WEIGHTS: b"new" * 1000, "README.md": b"new"})
    hub.fault(WEIGHTS, times=100, cut_after=0, at_store=True)
    with pytest.raises(ModelError):
        run_pull(hub, wish)
    assert tree_of(Path(wish.target)) == FILES
    assert is_settled(wish)


def test_filesystem_without_exchange_still_ends_with_the_new_one(
    hub: SmallHub, wish: ModelWish, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infer_dev_entry.models.place.exchange_paths", lambda _one, _other: False)
    run_pull(hub, wish)
    changed = {**FILES, "README.md": b"new"}
    hub.repos["org/m"].commit(changed)
    run_pull(hub, wish)
    assert tree_of(Path(wish.target)) == changed
    assert leftovers(wish) == set()


def test_directory_of_somebody_else_is_never_replaced(hub: SmallHub, wish: ModelWish) -> None:
    target = Path(wish.target)
    target.mkdir(parents=True)
    (target / "config.json").write_text("{}")
    with pytest.raises(
        ModelFilesError, match=r"infer-dev did not put it there, and 6 files are not org/m's: README.md"
    ):
        run_pull(hub, wish)
    assert tree_of(target) == {"config.json": b"{}"}
    with pytest.raises(ModelFilesError, match="it is not whole"):
        run_pull(hub, wish, latest=False)


def test_directory_of_somebody_else_is_adopted_when_every_file_is_the_hubs(hub: SmallHub, wish: ModelWish) -> None:
    for name, data in FILES.items():
        path = Path(wish.target) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    assert run_pull(hub, wish).how == "adopted"
    assert not [seen for seen in hub.seen if "/resolve/" in seen.path]
    assert is_settled(wish)


def test_copied_model_is_hashed_once_and_needs_no_hub(hub: SmallHub, wish: ModelWish) -> None:
    run_pull(hub, wish)
    for path in Path(wish.target).rglob("*"):
        os.utime(path, (1, 1))
    hub.seen.clear()
    assert not is_settled(wish)
    assert run_pull(hub, wish, latest=False).how == "unchanged"
    assert hub.seen == []
    assert is_settled(wish)


def test_verify_finds_a_flipped_byte_and_the_next_pull_fetches_that_file_alone(hub: SmallHub, wish: ModelWish) -> None:
    run_pull(hub, wish)
    bad = Path(wish.target) / WEIGHTS
    before = bad.stat()
    with bad.open("r+b") as file:
        file.seek(1000)
        file.write(b"\0\0\0\0")
    os.utime(bad, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert is_settled(wish)  # no stat can tell
    place = place_of(wish.target)
    (fault,) = check_files(place, place.record(), Notes())
    assert fault.startswith(f"{WEIGHTS}: its sha256 is ")
    hub.seen.clear()
    run_pull(hub, wish, latest=False)
    assert tree_of(Path(wish.target)) == FILES
    assert len(hub.bodies(WEIGHTS)) == 1
    assert not hub.bodies("tokenizer.json")


def test_listing_whose_pages_lead_to_each_other_ends(
    hub: SmallHub, wish: ModelWish, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface, "MAX_PAGES", 20)
    hub.loops = True
    with pytest.raises(ModelError, match="its listing has more than 20 pages"):
        run_pull(hub, wish)


def test_links_in_staging_are_not_written_through(hub: SmallHub, wish: ModelWish, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(b"mine")
    staging = Path(place_of(wish.target).staging)
    (staging / ".infer-dev-parts").mkdir(parents=True)
    (staging / "config.json").symlink_to(outside)
    (staging / "extra").symlink_to(tmp_path)
    run_pull(hub, wish)
    assert outside.read_bytes() == b"mine"
    assert not (tmp_path / "notes.txt").exists()
    assert tree_of(Path(wish.target)) == FILES


# -- processes


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_killed_download_goes_on_where_it_was(hub: SmallHub, wish: ModelWish, number: int) -> None:
    hold = threading.Event()
    hub.fault(WEIGHTS, hold=hold, at_store=True)
    words = ("pull", "--repo-id", "org/m", "--to", wish.target)
    run = run_cli(hub, *words)
    staging = Path(place_of(wish.target).staging)

    def is_half_there() -> bool:
        parts = list((staging / ".infer-dev-parts").glob("*"))
        return [part.stat().st_size >= 1_000_000 for part in parts] == [True] and (staging / "config.json").exists()

    wait_until(is_half_there, 60, "half the weights")
    run.send_signal(number)
    began = time.monotonic()
    _, errors = run.communicate(timeout=50)
    assert time.monotonic() - began < 20  # the hub holds the rest for 60 s
    assert run.returncode == (-9 if number == signal.SIGKILL else 143)
    hold.set()
    assert not Path(wish.target).exists()
    hub.seen.clear()
    again = run_cli(hub, *words)
    _, errors = again.communicate(timeout=60)
    assert again.returncode == 0, errors
    assert tree_of(Path(wish.target)) == FILES
    (body,) = [seen for seen in hub.seen if seen.at_store]
    assert int(body.range.removeprefix("bytes=").removesuffix("-")) >= 1_000_000
    assert not hub.bodies("config.json")


def test_two_pulls_at_once_fetch_once_and_the_second_says_that_it_waits(hub: SmallHub, wish: ModelWish) -> None:
    hold = threading.Event()
    hub.fault(WEIGHTS, hold=hold, at_store=True)
    words = ("pull", "--repo-id", "org/m", "--to", wish.target, "--json")
    first = run_cli(hub, *words)
    wait_until(lambda: [seen for seen in hub.seen if seen.at_store], 60, "the first one's download")
    second = run_cli(hub, *words)
    assert second.stderr is not None
    assert f"waiting for another download of {wish.target}: pid {first.pid} on " in second.stderr.readline()
    hold.set()
    hows = [json.loads(run.communicate(timeout=60)[0])["models"][0]["how"] for run in (first, second)]
    assert hows == ["downloaded", "unchanged"]
    assert len([seen for seen in hub.seen if seen.at_store]) == 1


def test_token_stays_with_the_hub_and_out_of_everything_we_write(hub: SmallHub, wish: ModelWish) -> None:
    hub.repos["org/m"].token = TOKEN
    run = run_cli(hub, "pull", "--repo-id", "org/m", "--to", wish.target, HF_DEBUG="1")
    output, errors = run.communicate(timeout=60)
    assert run.returncode == 0, errors
    assert TOKEN not in output + errors
    assert not [path for path in Path(wish.target).rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]
    assert {seen.authorization for seen in hub.seen if not seen.at_store} == {f"Bearer {TOKEN}"}
    assert {seen.authorization for seen in hub.seen if seen.at_store} == {""}
    hub.repos["org/m"].token = "another"
    run = run_cli(hub, "pull", "--repo-id", "org/m", "--to", wish.target + "2")
    output, errors = run.communicate(timeout=60)
    assert run.returncode == 23
    assert "HTTP 401" in errors
    assert TOKEN not in output + errors


def test_list_and_verify_tell_states_and_bad_files(hub: SmallHub, wish: ModelWish) -> None:
    run_pull(hub, wish)
    config = Path(wish.target).parent / "fleet.toml"
    config.write_text(
        f'[instance.a.server]\nmodel_path = "{wish.target}"\n[instance.a.model]\nrepo_id = "org/m"\n'
        f'[instance.b.server]\nmodel_path = "{wish.target}-b"\nport = 30001\n[instance.b.model]\nrepo_id = "org/o"\n'
    )
    run = run_cli(hub, "list", str(config.parent), "--config", str(config), "--json")
    rows = json.loads(run.communicate(timeout=60)[0])["models"]
    assert [(row["repo_id"], row["state"], row["instances"]) for row in rows] == [
        ("org/m", "complete", ["a"]),
        ("org/o", "missing", ["b"]),
    ]
    (Path(wish.target) / "README.md").write_bytes(b"x")
    run = run_cli(hub, "verify", "a", "--config", str(config))
    _, errors = run.communicate(timeout=60)
    assert run.returncode == 24
    assert "README.md: has 1 bytes, and should have 8" in errors


# -- disks


@pytest.mark.skipif(bool(skip_reason()), reason=skip_reason() or "-")
def test_disk_that_fills_up_keeps_what_came_and_goes_on_later(hub: SmallHub, wish: ModelWish, tmp_path: Path) -> None:
    hold = threading.Event()
    hub.fault(WEIGHTS, hold=hold, at_store=True)
    hub.repo("org/large", {"w.bin": bytes(40_000_000)})
    pull_words = f"'{sys.executable}' -m infer_dev_entry model pull --repo-id org"
    folder, flag = tmp_path / "small", tmp_path / "filled"
    folder.mkdir()
    script = f"""
        mount -t tmpfs -o size=24m none '{folder}' || exit 99
        {pull_words}/large --to '{folder}/large'; echo "large $?"
        {pull_words}/m --to '{folder}/m' & pull=$!
        until [ -n "$(find '{folder}/.m.incomplete/.infer-dev-parts' -size +1000k 2>/dev/null)" ]; do sleep 0.05; done
        cat /dev/zero > '{folder}/fill' 2>/dev/null; touch '{flag}'
        wait $pull; echo "first $?"
        [ ! -e '{folder}/m' ] && rm '{folder}/fill' && {pull_words}/m --to '{folder}/m'; echo "second $?"
        ls '{folder}/m'
    """
    run = subprocess.Popen(
        ["timeout", "150", "unshare", "--mount", "sh", "-c", script],  # its loop ends also when this test fails
        env={**os.environ, "HF_ENDPOINT": hub.endpoint},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_until(flag.exists, 60, "a full disk")
    hold.set()
    output, errors = run.communicate(timeout=60)
    assert "large 23" in output
    assert "0.06 GB are needed, 0.03 GB are free" in errors or "GB are needed, 0.02 GB are free" in errors
    assert "first 23" in output, errors
    assert "No space left on device; free space there and run it again" in errors
    assert "second 0" in output, errors
    assert WEIGHTS in output
    assert [seen.range for seen in hub.seen if seen.at_store and WEIGHTS in seen.path][-1].startswith("bytes=1")


# -- ModelScope


def test_modelscope_model_is_downloaded_and_resumed(hub: SmallHub, wish: ModelWish) -> None:
    wish = replace(wish, source="modelscope")
    hub.fault(WEIGHTS, times=3, cut_after=CUTS[0])
    pulled = run_pull(hub, wish)
    assert pulled.how == "downloaded"
    assert tree_of(Path(wish.target)) == FILES
    assert [seen.range for seen in hub.bodies(WEIGHTS)] == ["", *(f"bytes={cut}-" for cut in CUTS)]
    assert all("session_id/" + "0" * 32 in seen.user_agent for seen in hub.seen)
    hub.seen.clear()
    assert run_pull(hub, wish).how == "unchanged"
    assert not hub.bodies(WEIGHTS)


def test_modelscope_branch_that_moves_meanwhile_is_noticed_by_its_digest(hub: SmallHub, wish: ModelWish) -> None:
    hub.repos["org/m"].listed[WEIGHTS] = {"Sha256": "0" * 64}
    with pytest.raises(ModelError, match="its sha256 is"):
        run_pull(hub, replace(wish, source="modelscope"))
