"""Makes real pixi-pack layouts for tests: conda packages with placeholders, a real Python among them, and wheels."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import zstandard

from infer_dev_entry.bundle.model import PIXI_PACK, BundleInfo, Package, UnpackedBundle

# As long as conda-build's own: room for any prefix of up to 255 bytes.
PLACEHOLDER = ("/home/build/work/" + "_placehold" * 30)[:255]
PYTHON_VERSION = "{}.{}.{}".format(*sys.version_info[:3])
PYTHON_MINOR = "{}.{}".format(*sys.version_info[:2])
PLATFORM = f"linux-{'64' if os.uname().machine == 'x86_64' else os.uname().machine}"

_LEFT_OUT = shutil.ignore_patterns(
    "__pycache__", "test", "tests", "idlelib", "tkinter", "turtledemo", "lib2to3", "pydoc_data", "_bundled",
    "site-packages", "dist-packages", "config-*", "*.a", "*.pyc",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class CondaPackage:
    """A package file, and its line in repodata.json."""

    path: Path
    record: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What goes into a package: the files of `tree`; `placeholders` (path → "text" or "binary") hold PLACEHOLDER.

    `listed` maps a path of the tree to the one that paths.json claims for it.
    """

    name: str
    version: str
    tree: Path
    build: str = "h0_0"
    depends: tuple[str, ...] = ()
    placeholders: Mapping[str, str] = field(default_factory=dict)
    listed: Mapping[str, str] = field(default_factory=dict)
    noarch: str = ""
    entry_points: tuple[str, ...] = ()

    @property
    def subdir(self) -> str:
        return "noarch" if self.noarch else PLATFORM

    @property
    def index(self) -> dict[str, Any]:
        """The text of info/index.json."""
        noarch = {"noarch": self.noarch} if self.noarch else {}
        return noarch | {
            "name": self.name,
            "version": self.version,
            "build": self.build,
            "build_number": 0,
            "depends": list(self.depends),
            "subdir": self.subdir,
            "timestamp": 1_700_000_000_000,
        }


def write_files(tree: Path, files: Mapping[str, str | bytes]) -> Path:
    """Write a tree of small files; those under bin/ are executable."""
    for name, content in files.items():
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        path.chmod(0o755 if name.startswith("bin/") else 0o644)
    return tree


def build_conda(folder: Path, recipe: Recipe, *, suffix: str = ".conda") -> CondaPackage:
    """Write `<folder>/<name>-<version>-<build><suffix>`; the suffix is `.conda` or `.tar.bz2`."""
    names = sorted(_walk(recipe.tree))
    info = _info_files(recipe, names)
    path = folder / f"{recipe.name}-{recipe.version}-{recipe.build}{suffix}"
    folder.mkdir(parents=True, exist_ok=True)
    if suffix == ".conda":
        _write_conda(path, recipe.tree, names, info)
    else:
        with tarfile.open(path, "w:bz2", compresslevel=1) as archive:
            _add_tree(archive, recipe.tree, names)
            _add_info(archive, info)
    return CondaPackage(path=path, record=recipe.index | _digests(path))


def _walk(tree: Path) -> list[str]:
    paths = (path for path in tree.rglob("*") if path.is_symlink() or path.is_file())
    return [path.relative_to(tree).as_posix() for path in paths]


def _info_files(recipe: Recipe, names: Sequence[str]) -> dict[str, str]:
    paths = [_path_entry(recipe, name) for name in names]
    info: dict[str, Any] = {
        "info/index.json": recipe.index,
        "info/paths.json": {"paths": paths, "paths_version": 1},
        "info/about.json": {"summary": "made by a test"},
    }
    if recipe.noarch == "python":
        noarch = {"type": "python", "entry_points": list(recipe.entry_points)}
        info["info/link.json"] = {"noarch": noarch, "package_metadata_version": 1}
    return {name: json.dumps(value, indent=1) for name, value in info.items()} | {"info/files": "\n".join(names) + "\n"}


def _path_entry(recipe: Recipe, name: str) -> dict[str, Any]:
    path = recipe.tree / name
    entry: dict[str, Any] = {
        "_path": recipe.listed.get(name, name),
        "path_type": "softlink" if path.is_symlink() else "hardlink",
    }
    data = path.read_bytes() if path.exists() else b""
    entry |= {"sha256": hashlib.sha256(data).hexdigest(), "size_in_bytes": len(data)}
    if name in recipe.placeholders:
        assert PLACEHOLDER.encode() in data, f"{name} holds no placeholder"
        entry |= {"file_mode": recipe.placeholders[name], "prefix_placeholder": PLACEHOLDER}
    return entry


def _write_conda(path: Path, tree: Path, names: Sequence[str], info: Mapping[str, str]) -> None:
    """A .conda file: a stored zip of metadata.json and two zstd-compressed tars."""
    stem = path.name.removesuffix(".conda")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("metadata.json", json.dumps({"conda_pkg_format_version": 2}))
        archive.writestr(f"pkg-{stem}.tar.zst", _zstd_tar(lambda tar: _add_tree(tar, tree, names)))
        archive.writestr(f"info-{stem}.tar.zst", _zstd_tar(lambda tar: _add_info(tar, info)))


def _zstd_tar(fill: Callable[[tarfile.TarFile], None]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        fill(tar)
    return zstandard.ZstdCompressor(level=1).compress(buffer.getbuffer())


def _add_tree(tar: tarfile.TarFile, tree: Path, names: Sequence[str]) -> None:
    for name in names:
        tar.add(tree / name, name, recursive=False, filter=_anonymous)


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    member.mtime = 1_700_000_000
    return member


def _add_info(tar: tarfile.TarFile, info: Mapping[str, str]) -> None:
    for name, text in info.items():
        member = tarfile.TarInfo(name)
        member.size = len(text.encode())
        tar.addfile(member, io.BytesIO(text.encode()))


def _digests(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    return {"sha256": hashlib.sha256(data).hexdigest(), "md5": hashlib.md5(data).hexdigest(), "size": len(data)}


def build_python(folder: Path, scratch: Path, patchelf: str) -> CondaPackage:
    """Package the running interpreter as conda would: its ELF finds libpython through the placeholder in its RPATH."""
    tree = scratch / "python"
    binary = Path(sys._base_executable).resolve()  # type: ignore[attr-defined]
    (tree / "bin").mkdir(parents=True)
    name = f"python{PYTHON_MINOR}"
    shutil.copy(binary, tree / "bin" / name)
    (tree / "bin" / "python").symlink_to(name)
    (tree / "bin" / "python3").symlink_to(name)
    _copy_library(tree)
    subprocess.run(
        [patchelf, "--force-rpath", "--set-rpath", f"{PLACEHOLDER}/lib", str(tree / "bin" / name)],
        check=True,
        timeout=30,
    )
    stdlib = tree / "lib" / name
    shutil.copytree(sysconfig.get_path("stdlib"), stdlib, symlinks=False, ignore=_LEFT_OUT)
    (stdlib / "site-packages").mkdir()
    write_files(tree, {f"lib/{name}/site-packages/README.txt": "packages go here\n"})
    placeholders = {f"bin/{name}": "binary"} | _plant_placeholder(tree, stdlib)
    recipe = Recipe(name="python", version=PYTHON_VERSION, tree=tree, build=f"h0_0_cp{PYTHON_MINOR.replace('.', '')}",
                    placeholders=placeholders)  # fmt: skip
    return build_conda(folder, recipe)


def _copy_library(tree: Path) -> None:
    """Copy libpython where the interpreter is built with a shared one."""
    (tree / "lib").mkdir()
    library = sysconfig.get_config_var("INSTSONAME") or ""
    source = Path(sysconfig.get_config_var("LIBDIR") or "/") / library
    if ".so" in library and source.is_file():
        shutil.copy(source, tree / "lib" / library)


def _plant_placeholder(tree: Path, stdlib: Path) -> dict[str, str]:
    """Replace the build's prefix in the text files that hold it, as conda-build does; return their paths."""
    found = {}
    for path in stdlib.glob("_sysconfigdata*.py"):
        text = path.read_text(encoding="utf-8")
        path.write_text(text.replace(sys.base_prefix, PLACEHOLDER) + f"# {PLACEHOLDER}\n", encoding="utf-8")
        found[path.relative_to(tree).as_posix()] = "text"
    return found


def build_noarch(folder: Path, scratch: Path, *, suffix: str = ".conda") -> CondaPackage:
    """A noarch Python package `sayhello` with an entry point of that name, and a data file with a prefix."""
    tree = write_files(
        scratch / "sayhello",
        {
            "site-packages/sayhello/__init__.py": "def main():\n    print('hello from noarch')\n",
            "site-packages/sayhello/prefix.txt": f"installed at {PLACEHOLDER}/share\n",
            "site-packages/sayhello-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: sayhello\nVersion: 1.0\n",
        },
    )
    recipe = Recipe(
        name="sayhello", version="1.0", tree=tree, build="pyh0_0", noarch="python", depends=("python >=3",),
        placeholders={"site-packages/sayhello/prefix.txt": "text"}, entry_points=("sayhello = sayhello:main",),
    )  # fmt: skip
    return build_conda(folder, recipe, suffix=suffix)


def build_native(folder: Path, scratch: Path, *, count: int = 0, suffix: str = ".conda") -> CondaPackage:
    """A package for this platform: a script with a prefix in its first line, activation scripts and variables, a link
    and `count` small files more."""
    tree = write_files(
        scratch / "nativetool",
        {
            "bin/nativetool": f"#!/bin/sh\n# {PLACEHOLDER}/bin\ncat '{PLACEHOLDER}/share/nativetool.txt'\n",
            "share/nativetool.txt": "native data\n",
            "etc/conda/env_vars.d/nativetool.json": json.dumps({"NATIVE_WORD": "from 'env_vars' with\nnewline $HOME"}),
            "etc/conda/activate.d/nativetool.sh": 'export NATIVE_HOME="$CONDA_PREFIX/share"\n',
            **{f"share/many/{number:04}.txt": f"file {number}\n" * 200 for number in range(count)},
        },
    )
    (tree / "share" / "link.txt").symlink_to("nativetool.txt")
    recipe = Recipe(name="nativetool", version="2.1", tree=tree, placeholders={"bin/nativetool": "text"})
    return build_conda(folder, recipe, suffix=suffix)


def build_wheel(folder: Path, name: str, version: str, files: Mapping[str, str], scripts: Mapping[str, str]) -> Path:
    """Write a pure wheel with a correct RECORD; `scripts` maps a console script to `module:function`."""
    info = f"{name}-{version}.dist-info"
    points = "".join(f"{script} = {target}\n" for script, target in scripts.items())
    content = dict(files) | {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": f"[console_scripts]\n{points}",
    }
    rows = [f"{path},{_record_hash(text)},{len(text.encode())}" for path, text in content.items()]
    content[f"{info}/RECORD"] = "\n".join([*rows, f"{info}/RECORD,,"]) + "\n"
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, text in content.items():
            archive.writestr(path, text)
    return target


def _record_hash(text: str) -> str:
    import base64

    digest = hashlib.sha256(text.encode()).digest()
    return "sha256=" + base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def write_layout(root: Path, packages: Sequence[CondaPackage], *, platform: str = PLATFORM) -> Path:
    """Write what pixi-pack writes around the packages; they are linked into `<root>/channel/<subdir>/`."""
    by_subdir: dict[str, dict[str, Any]] = {PLATFORM: {}, "noarch": {}}
    for package in packages:
        folder = root / "channel" / package.record["subdir"]
        folder.mkdir(parents=True, exist_ok=True)
        if package.path.parent != folder:
            os.link(package.path, folder / package.path.name)
        by_subdir[package.record["subdir"]][package.path.name] = package.record
    for subdir, records in by_subdir.items():
        repodata = {"info": {"subdir": subdir}, "packages": {}, "packages.conda": records, "repodata_version": 2}
        write_files(root, {f"channel/{subdir}/repodata.json": json.dumps(repodata)})
    described = {"version": "1", "pixi-pack-version": "0.7.2", "platform": platform}
    write_files(root, {"pixi-pack.json": json.dumps(described), "environment.yml": "channels:\n  - ./channel\n"})
    return root


def describe(root: Path, **changes: Any) -> UnpackedBundle:
    """Describe a layout that lies unpacked at `root`, with nothing left out and nothing checked."""
    files = tuple((name, hashlib.sha256((root / name).read_bytes()).hexdigest()) for name in sorted(_walk(root)))
    packages = [*_conda_packages(root), *_wheel_packages(root)]
    info = BundleInfo(kind=PIXI_PACK, platform=PLATFORM, python="", packages=tuple(packages), **changes)
    digest = hashlib.sha256("".join(f"{name}\0{sha}\n" for name, sha in files).encode()).hexdigest()
    size = sum((root / name).stat().st_size for name, _ in files)
    return UnpackedBundle(root=str(root), info=info, digest=digest, size_bytes=size, files=files)


def _conda_packages(root: Path) -> list[Package]:
    found = []
    for repodata in sorted(root.glob("channel/*/repodata.json")):
        for name, record in json.loads(repodata.read_text())["packages.conda"].items():
            path = f"channel/{repodata.parent.name}/{name}"
            found.append(Package(kind="conda", path=path, **{key: record[key] for key in _RECORD_KEYS}))
    return found


_RECORD_KEYS = ("name", "version", "sha256", "size")


def _wheel_packages(root: Path) -> list[Package]:
    found = []
    for path in sorted(root.glob("pypi/*.whl")):
        name, version = path.name.split("-")[:2]
        found.append(Package(kind="wheel", path=f"pypi/{path.name}", name=name, version=version, sha256="", size=0))
    return found


class QuietProgress:
    """Keeps what is reported."""

    def __init__(self) -> None:
        self.stages: list[str] = []
        self.notes: list[str] = []
        self.total = 0
        self.done = 0

    def stage(self, name: str, total: int = 0, unit: str = "B") -> None:
        self.stages.append(name)
        self.total, self.done = total, 0

    def advance(self, amount: int) -> None:
        self.done += amount

    def note(self, message: str) -> None:
        self.notes.append(message)


def install_layout(root: Path, project_dir: Path, prefix: Path) -> QuietProgress:
    """Describe the layout and install it; see `install_bundle`."""
    return install_bundle(describe(root), project_dir, prefix)


def install_bundle(bundle: UnpackedBundle, project_dir: Path, prefix: Path) -> QuietProgress:
    """Install as the installer would; `prefix` does not exist yet."""
    from infer_dev_entry.install.model import InstallRequest
    from infer_dev_entry.install.rattler import RattlerBackend
    from infer_dev_entry.install.store import Store

    Store(str(project_dir)).prepare()
    progress = QuietProgress()
    request = InstallRequest(bundle_path=bundle.root, project_dir=str(project_dir))
    RattlerBackend().install(bundle, str(prefix), request, progress)
    return progress


def main(argv: Sequence[str]) -> None:
    """`conda_bundles.py ROOT PROJECT_DIR PREFIX`: install in a process of its own; SIGTERM raises there."""
    import signal

    def stop(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, stop)
    progress = install_layout(*(Path(word) for word in argv))
    print(json.dumps(progress.notes))


if __name__ == "__main__":
    main(sys.argv[1:])
