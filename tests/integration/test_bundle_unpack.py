"""Bundles on disk: every container gives the same files, and what misses its promise leaves nothing behind."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import tarfile
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from make_bundle import (
    CONTAINERS,
    SilentProgress,
    gzip_of,
    head_of_big_tar,
    json_of,
    member,
    pixi_files,
    sha256_of,
    tar_of,
    tar_of_members,
    unpack,
    wheels_files,
    write_files,
)

from infer_dev_entry.bundle.unpack import (
    check_packages,
    check_platform,
    hash_bundle,
    machine_platform,
    read_info,
    read_listing,
    unpack_bundle,
)
from infer_dev_entry.errors import BundleError, InstallError

SIX = "wheels/six-1.17.0-py2.py3-none-any.whl"


# ---- honest bundles


@pytest.mark.parametrize("kind", CONTAINERS)
@pytest.mark.parametrize("make_files", [pixi_files, wheels_files])
def test_unpack_every_container_gives_the_same_bundle(tmp_path: Path, kind: str, make_files: object) -> None:
    files = pixi_files() if make_files is pixi_files else wheels_files()
    data = CONTAINERS[kind](tar_of(files))
    archive = tmp_path / "any-name"
    archive.write_bytes(data)
    progress = SilentProgress()
    bundle = unpack_bundle(str(archive), str(tmp_path / "out"), expected_sha256=sha256_of(data), progress=progress)
    assert (bundle.root, bundle.digest, bundle.size_bytes) == (str(tmp_path / "out"), sha256_of(data), len(data))
    assert dict(bundle.files) == {path: sha256_of(content) for path, content in files.items()}
    assert {path: (tmp_path / "out" / path).read_bytes() for path in files} == files
    assert progress.done == progress.total == len(data)
    check_packages(bundle)
    in_place = unpack(write_files(tmp_path / "directory", files), tmp_path / "unused")
    assert replace(bundle, root="", digest="", size_bytes=0) == replace(in_place, root="", digest="", size_bytes=0)


@pytest.mark.parametrize("kind", CONTAINERS)
def test_unpack_members_of_every_size_have_their_own_digests(tmp_path: Path, kind: str) -> None:
    """Small ones are hashed where they are written, large ones in another thread, in pieces."""
    sizes = (0, 1, 511, 65_535, 65_536, 65_537, 1 << 20, (1 << 20) + 1, 3_000_000, 7)
    files = pixi_files(**{f"pypi/size{size}-1-py3-none-any.whl": os.urandom(size) for size in sizes})
    (tmp_path / "b").write_bytes(CONTAINERS[kind](tar_of(files)))
    bundle = unpack(tmp_path / "b", tmp_path / "out")
    assert dict(bundle.files) == {path: sha256_of(content) for path, content in files.items()}


def test_unpack_link_to_a_large_member_has_its_digest(tmp_path: Path) -> None:
    data = os.urandom(200_000)
    large = member("pypi/a-1-py3-none-any.whl", data=data)
    link = member("pypi/b-1-py3-none-any.whl", tarfile.SYMTYPE, linkname="a-1-py3-none-any.whl")
    rest = [member(path, data=content) for path, content in pixi_files().items()]
    (tmp_path / "b.tar").write_bytes(tar_of_members([link, large, *rest]))
    found = dict(unpack(tmp_path / "b.tar", tmp_path / "out").files)
    assert found["pypi/a-1-py3-none-any.whl"] == found["pypi/b-1-py3-none-any.whl"] == sha256_of(data)


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT])
def test_unpack_prefixed_names_give_the_same_bundle(tmp_path: Path, tar_format: int) -> None:
    files = wheels_files()
    for prefix in ("./", "top/", "./top/"):
        archive = tmp_path / "b.tar"
        archive.write_bytes(tar_of({prefix + path: data for path, data in files.items()}, tar_format))
        bundle = unpack(archive, tmp_path / prefix.replace("/", "_"))
        assert dict(bundle.files) == {path: sha256_of(data) for path, data in files.items()}
        assert Path(bundle.root, "requirements.txt").read_bytes() == files["requirements.txt"]
        assert read_info(str(archive)).find_version("six") == "1.17.0"
        check_packages(bundle)


@pytest.mark.skipif(shutil.which("tar") is None, reason="needs the program tar")
@pytest.mark.parametrize("tar_format", ["gnu", "pax", "ustar", "v7"])
def test_unpack_what_the_tar_program_packs_is_understood(tmp_path: Path, tar_format: str) -> None:
    files = wheels_files()
    write_files(tmp_path / "tree", files)
    os.link(tmp_path / "tree" / SIX, tmp_path / "tree" / "again")
    os.symlink(SIX, tmp_path / "tree" / "link")
    command = ["tar", f"--format={tar_format}", "-cf", str(tmp_path / "b.tar"), "-C", str(tmp_path / "tree"), "."]
    subprocess.run(command, check=True, timeout=30)
    bundle = unpack(tmp_path / "b.tar", tmp_path / "out")
    assert set(dict(bundle.files)) == {*files, "again", "link"}
    assert dict(bundle.files)["link"] == dict(bundle.files)["again"] == sha256_of(files[SIX])
    # No link that could point elsewhere is ever made: it is one more name of its file.
    assert not (tmp_path / "out" / "link").is_symlink()
    assert (tmp_path / "out" / "link").samefile(tmp_path / "out" / SIX)
    check_packages(bundle)


def test_unpack_shell_archive_is_never_run(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    script = CONTAINERS["sh"](tar_of(pixi_files())).replace(b"/tmp/was-run", str(ran).encode())
    (tmp_path / "b.sh").write_bytes(script)
    (tmp_path / "b.sh").chmod(0o755)
    unpack(tmp_path / "b.sh", tmp_path / "out")
    assert str(ran).encode() in script
    assert not ran.exists()


def test_unpack_modes_are_ours(tmp_path: Path) -> None:
    odd = [member("bin/x", mode=0o6777), member("secret", mode=0o000), member("d", tarfile.DIRTYPE, mode=0o1777)]
    rest = [member(path, data=data) for path, data in wheels_files().items()]
    (tmp_path / "b.tar").write_bytes(tar_of_members([*odd, *rest]))
    unpack(tmp_path / "b.tar", tmp_path / "out")
    modes = {path: stat.S_IMODE((tmp_path / "out" / path).lstat().st_mode) for path in ("bin/x", "secret", "d", "bin")}
    assert modes == {"bin/x": 0o755, "secret": 0o644, "d": 0o755, "bin": 0o755}


def test_unpack_directory_copies_nothing(tmp_path: Path) -> None:
    files = wheels_files()
    root = write_files(tmp_path / "bundle", files)
    bundle = unpack(root, tmp_path / "out")
    lines = "".join(f"{path}\0{sha256_of(data)}\n" for path, data in sorted(files.items()))
    assert (bundle.root, bundle.digest) == (str(root), sha256_of(lines.encode()))
    assert bundle.size_bytes == sum(map(len, files.values()))
    assert not (tmp_path / "out").exists()
    assert hash_bundle(str(root)) == (bundle.digest, bundle.size_bytes)
    assert unpack(root, tmp_path / "out", "sha256:" + bundle.digest.upper()) == bundle


@pytest.mark.parametrize("kind", [*CONTAINERS, "directory"])
def test_read_listing_tells_what_unpacking_would(tmp_path: Path, kind: str) -> None:
    files = wheels_files()
    if kind == "directory":
        archive = write_files(tmp_path / "b", files)
    else:
        archive = tmp_path / "b"
        archive.write_bytes(CONTAINERS[kind](tar_of(files)))
    listing = read_listing(str(archive))
    assert listing.container == kind
    assert dict(listing.files) == {path: len(data) for path, data in files.items()}
    assert [(package.name, package.size) for package in listing.info.packages] == [("numpy", 500), ("six", 300)]
    assert hash_bundle(str(archive))[1] == listing.size_bytes


def test_read_listing_plain_tar_is_not_read_in_full(tmp_path: Path) -> None:
    size = 64 * 2**30
    with open(tmp_path / "b.tar", "wb") as file:
        file.write(head_of_big_tar(wheels_files(), "big.bin", size))
        file.truncate(file.tell() + size + 10240)
    assert dict(read_listing(str(tmp_path / "b.tar")).files)["big.bin"] == size


# ---- bundles that miss what was promised


@pytest.mark.parametrize("kind", [*CONTAINERS, "directory"])
def test_unpack_wrong_digest_leaves_nothing(tmp_path: Path, kind: str) -> None:
    archive = tmp_path / "b"
    if kind == "directory":
        write_files(archive, wheels_files())
    else:
        archive.write_bytes(CONTAINERS[kind](tar_of(wheels_files())))
    empty = tmp_path / "empty"
    empty.mkdir()
    for target in (tmp_path / "missing", empty):
        with pytest.raises(BundleError, match=f"cannot use bundle {archive}: its sha256 is .*, expected was 0000"):
            unpack(archive, target, "0" * 64)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "empty"]
    assert list(empty.iterdir()) == []


def test_unpack_expected_digest_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"^cannot use the expected digest .* no sha256 .*BUNDLE_SHA256"):
        unpack(tmp_path / "b", tmp_path / "out", "md5:abc")


@pytest.mark.parametrize("kind", CONTAINERS)
def test_unpack_truncated_archive_leaves_nothing(tmp_path: Path, kind: str) -> None:
    data = CONTAINERS[kind](tar_of(pixi_files(**{"pypi/big-1-py3-none-any.whl": os.urandom(30000)})))
    archive = tmp_path / "b"
    for cut in (len(data) // 3, len(data) // 2, len(data) * 2 // 3):
        archive.write_bytes(data[:cut])
        with pytest.raises(BundleError, match="truncated"):
            unpack(archive, tmp_path / "out")
        with pytest.raises(BundleError, match="truncated"):
            read_info(str(archive))
    assert not (tmp_path / "out").exists()


def test_check_packages_all_faults_are_in_one_error(tmp_path: Path) -> None:
    files = wheels_files()
    del files["wheels/numpy-2.1-cp312-cp312-manylinux_2_28_x86_64.whl"]
    files |= {SIX: b"corrupt", "wheels/new-1-py3-none-any.whl": b"x"}
    (tmp_path / "b.tar").write_bytes(tar_of(files))
    with pytest.raises(BundleError) as caught:
        check_packages(unpack(tmp_path / "b.tar", tmp_path / "out"))
    first, *rest = str(caught.value).splitlines()
    assert first == f"cannot use bundle {tmp_path}/out: 4 faults; copy it anew or build it again:"
    assert [line.split()[0] for line in rest[:3]] == [
        "'wheels/new-1-py3-none-any.whl'",
        "'wheels/numpy-2.1-cp312-cp312-manylinux_2_28_x86_64.whl'",
        f"'{SIX}'",
    ]
    assert "numpy==2.1 is missing" in rest[3]


def test_check_packages_many_faults_are_counted(tmp_path: Path) -> None:
    files = wheels_files() | {f"wheels/new{number}-1-py3-none-any.whl": b"x" for number in range(30)}
    (tmp_path / "b.tar").write_bytes(tar_of(files))
    with pytest.raises(BundleError) as caught:
        check_packages(unpack(tmp_path / "b.tar", tmp_path / "out"))
    assert "30 faults" in str(caught.value)
    assert str(caught.value).endswith("… and 10 more")


@pytest.mark.parametrize("change", ["remove", "truncate", "metadata"])
def test_check_packages_files_that_changed_since_are_noticed(tmp_path: Path, change: str) -> None:
    records = tar_of(pixi_files())
    (tmp_path / "b.tar").write_bytes(records)
    bundle = unpack(tmp_path / "b.tar", tmp_path / "out")
    package = tmp_path / "out/channel/linux-64/demo-1.0-h_0.conda"
    if change == "remove":
        package.unlink()
    elif change == "truncate":
        package.write_bytes(b"")
    else:
        (tmp_path / "out/pixi-pack.json").write_bytes(json_of({"version": "1", "platform": "noarch"}))
    with pytest.raises(BundleError):
        check_packages(bundle)


def test_check_platform_other_machine_or_python_is_refused(tmp_path: Path) -> None:
    write_files(tmp_path / "b", wheels_files())
    info = read_info(str(tmp_path / "b"))
    check_platform(info, "linux-64", "3.12")
    check_platform(info, "linux-64")
    with pytest.raises(BundleError, match="is for linux-64, this machine is linux-aarch64"):
        check_platform(info, "linux-aarch64")
    with pytest.raises(BundleError, match=r"for Python 3\.12, this one is 3\.11"):
        check_platform(info, "linux-64", "3.11")
    assert machine_platform().startswith("linux-")


def test_unpack_other_format_version_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "b.tar").write_bytes(tar_of(pixi_files(**{"pixi-pack.json": json_of({"version": "2"})})))
    with pytest.raises(BundleError, match="version is '2'"):
        unpack(tmp_path / "b.tar", tmp_path / "out")
    assert not (tmp_path / "out").exists()


class ChangingProgress(SilentProgress):
    """Changes the bundle as soon as its reading begins."""

    def __init__(self, change: object) -> None:
        super().__init__()
        self.change = change

    def advance(self, amount: int) -> None:
        if self.done == 0:
            assert callable(self.change)
            self.change()
        super().advance(amount)


@pytest.mark.parametrize("how", ["append", "touch", "replace", "truncate", "remove"])
def test_unpack_archive_that_changes_meanwhile_is_refused(tmp_path: Path, how: str) -> None:
    archive = tmp_path / "b.tar"
    data = tar_of(pixi_files(**{"pypi/big-1-py3-none-any.whl": bytes(3 << 20)}))
    archive.write_bytes(data)

    def change() -> None:
        if how == "append":
            with archive.open("ab") as file:
                file.write(bytes(512))
        elif how == "touch":
            os.utime(archive, ns=(1, 1))
        elif how == "replace":
            (tmp_path / "new").write_bytes(data)
            os.replace(tmp_path / "new", archive)
        elif how == "truncate":
            os.truncate(archive, len(data) // 2)
        else:
            archive.unlink()

    with pytest.raises(BundleError, match=r"changed while it was read|truncated|No such file"):
        unpack_bundle(str(archive), str(tmp_path / "out"), progress=ChangingProgress(change))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("how", ["touch", "add", "remove"])
def test_unpack_directory_that_changes_meanwhile_is_refused(tmp_path: Path, how: str) -> None:
    root = write_files(tmp_path / "b", wheels_files())

    def change() -> None:
        if how == "add":
            (root / "new").write_bytes(b"")
        elif how == "touch":
            os.utime(root / SIX, ns=(1, 1))
        else:
            (root / SIX).unlink()

    with pytest.raises(BundleError, match=r"changed while it was read|cannot be read"):
        unpack_bundle(str(root), str(tmp_path / "out"), progress=ChangingProgress(change))


# ---- places that cannot be used


def test_unpack_no_bundle_is_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "text").write_text("hello")
    (tmp_path / "zip").write_bytes(b"PK\x03\x04")
    (tmp_path / "dir").mkdir()
    for name, word in (
        ("missing", "No such file"),
        ("fifo", "neither a file nor a directory"),
        ("empty", "it is empty"),
        ("text", "no archive"),
        ("zip", "a zip file"),
        ("dir", "no bundle"),
        ("nul\0", "null"),
    ):
        for act in (lambda path: unpack(path, tmp_path / "out"), read_info):
            with pytest.raises(BundleError, match=f"cannot use bundle .*{word}"):
                act(tmp_path / name)  # type: ignore[operator]
    assert not (tmp_path / "out").exists()


def test_unpack_target_with_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "b.tar").write_bytes(tar_of(wheels_files()))
    write_files(tmp_path / "out", {"mine": b"1"})
    with pytest.raises(InstallError, match="it is not empty"):
        unpack(tmp_path / "b.tar", tmp_path / "out")
    assert (tmp_path / "out/mine").read_bytes() == b"1"


def test_unpack_target_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "b.tar").write_bytes(tar_of(wheels_files()))
    (tmp_path / "out").write_bytes(b"")
    with pytest.raises(InstallError, match="cannot unpack into"):
        unpack(tmp_path / "b.tar", tmp_path / "out")


def run_in_small_tmpfs(tmp_path: Path, archive: Path, size: str) -> subprocess.CompletedProcess[str]:
    """Unpack in a child whose target is a tmpfs of that size, with the early check of free space switched off."""
    code = (
        "import sys; from make_bundle import SilentProgress; from infer_dev_entry.bundle import extract, unpack\n"
        "if sys.argv[3] == 'late': extract.Extractor._require_space = lambda self, need_bytes: None\n"
        "try: unpack.unpack_bundle(sys.argv[1], sys.argv[2], progress=SilentProgress())\n"
        "except unpack.InstallError as error: print(error)\n"
        "import os; print(os.listdir(os.path.dirname(sys.argv[2])))"
    )
    (tmp_path / "small").mkdir(exist_ok=True)
    (tmp_path / "code.py").write_text(code)
    mode = "late" if archive.stat().st_size < 10**6 else "early"
    script = (
        f"mount -t tmpfs -o size={size} none {tmp_path}/small && "
        f"exec {sys.executable} {tmp_path}/code.py {archive} {tmp_path}/small/out {mode}"
    )
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    return subprocess.run(
        ["unshare", "-rm", "sh", "-c", script], capture_output=True, text=True, timeout=60, env=environ, check=False
    )


def can_mount() -> bool:
    """Say whether this user may mount a tmpfs in a namespace of its own."""
    if shutil.which("unshare") is None:
        return False
    command = ["unshare", "-rm", "sh", "-c", "mount -t tmpfs none /mnt"]
    return subprocess.run(command, capture_output=True, timeout=10, check=False).returncode == 0


@pytest.mark.skipif(not can_mount(), reason="needs a mount namespace: unshare -rm is refused here")
@pytest.mark.parametrize("early", [True, False])
def test_unpack_full_disk_says_how_much_is_needed_and_leaves_nothing(tmp_path: Path, early: bool) -> None:
    files = pixi_files(**{"pypi/big-1-py3-none-any.whl": bytes(20 << 20)})
    archive = tmp_path / "b.tar"
    archive.write_bytes(tar_of(files) if early else gzip_of(tar_of(files)))
    run = run_in_small_tmpfs(tmp_path, archive, "8m")
    message, left, *_ = run.stdout.splitlines()
    expected = "20.98 MB more are needed and" if early else "No space left on device after"
    assert expected.replace("20.98 MB", "0.02 GB") in message
    assert "free space there or set AUTO_INFER_SGLANG_PIXI_PROJECT_DIR" in message
    assert left == "[]", run.stderr


class InterruptingProgress(SilentProgress):
    """Interrupts as Ctrl-C would, once reading is under way."""

    def advance(self, amount: int) -> None:
        super().advance(amount)
        if self.done > 2 << 20:
            raise KeyboardInterrupt


@pytest.mark.parametrize("kind", [*CONTAINERS, "directory"])
def test_unpack_interrupt_leaves_the_target_to_the_caller_and_no_thread(tmp_path: Path, kind: str) -> None:
    files = pixi_files(**{f"pypi/big{number}-1-py3-none-any.whl": os.urandom(1 << 20) for number in range(8)})
    if kind == "directory":
        write_files(tmp_path / "b", files)
    else:
        (tmp_path / "b").write_bytes(CONTAINERS[kind](tar_of(files)))
    with pytest.raises(KeyboardInterrupt):
        unpack_bundle(str(tmp_path / "b"), str(tmp_path / "out"), progress=InterruptingProgress())
    assert sorted(os.listdir(tmp_path)) == (["b"] if kind == "directory" else ["b", "out"])
    assert not [thread.name for thread in threading.enumerate() if thread.name.endswith("-sha256")]


@pytest.mark.skipif(not can_mount(), reason="needs a mount namespace: unshare -rm is refused here")
def test_unpack_read_only_target_is_named(tmp_path: Path) -> None:
    (tmp_path / "b.tar").write_bytes(tar_of(pixi_files()))
    run = run_in_small_tmpfs(tmp_path, tmp_path / "b.tar", "8m,ro")
    assert f"cannot unpack into {tmp_path}/small/out: Read-only file system; make it writable" in run.stdout
