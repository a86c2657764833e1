"""The layout of the project directory: environments, the link that is flipped, staging, and what is swept away."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass

from infer_dev_entry.errors import InstallError
from infer_dev_entry.install.marker import (
    COMPLETE_NAME,
    LEGACY,
    LINK_NAME,
    EnvRecord,
    is_usable,
    read_record,
)
from infer_dev_entry.install.records import sync_dir

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_MAX_PREFIXES = 100


@dataclass(frozen=True, slots=True)
class Store:
    """The paths below one project directory, and the changes that keep `env` pointing at something whole.

    Everything but reading is done with the install lock held.
    """

    project_dir: str

    @property
    def envs_dir(self) -> str:
        """Where every environment has its final place."""
        return f"{self.project_dir}/envs"

    @property
    def link(self) -> str:
        """The stable path of the environment in use."""
        return f"{self.project_dir}/{LINK_NAME}"

    @property
    def staging_dir(self) -> str:
        """Where archives are unpacked, on the environments' filesystem; whatever lies in it between runs is rubbish."""
        return f"{self.project_dir}/.staging"

    @property
    def cache_dir(self) -> str:
        """Where backends keep what they hardlink from."""
        return f"{self.project_dir}/.cache"

    def prefix(self, name: str) -> str:
        """Return the path of the environment of that name."""
        return f"{self.envs_dir}/{name}"

    def current_name(self) -> str:
        """Return the name of the environment that `env` links to; "" when it is no such link."""
        try:
            folder, _, name = os.readlink(self.link).rpartition("/")
        except OSError:
            return ""
        return (
            name if os.path.realpath(os.path.join(self.project_dir, folder)) == os.path.realpath(self.envs_dir) else ""
        )

    def has_real_env(self) -> bool:
        """Say whether `env` is a directory, as the older bash installer left it."""
        return os.path.isdir(self.link) and not os.path.islink(self.link)

    def records(self) -> Iterator[tuple[str, EnvRecord]]:
        """Yield name and record of every complete environment below `envs/`."""
        with contextlib.suppress(FileNotFoundError):
            for name in sorted(os.listdir(self.envs_dir)):
                record = read_record(self.prefix(name), self.project_dir)
                if record is not None:
                    yield name, record

    def is_whole(self, name: str, record: EnvRecord) -> bool:
        """Say whether `envs/<name>` can be put in use: complete, with a Python, and made for the place that it gets.

        A workspace that was mounted elsewhere holds environments with another place baked in.
        """
        place = self.link if record.backend == LEGACY else self.prefix(name)
        folders = {os.path.realpath(os.path.dirname(path)) for path in (place, record.prefix)}
        at_home = len(folders) == 1 and os.path.basename(place) == os.path.basename(record.prefix)
        return at_home and is_usable(self.prefix(name))

    # -- making room

    def prepare(self) -> bool:
        """Make the directories, and sweep away what killed runs left; say whether there was any.

        A cache that outlived a crash may hold files whose data never reached the disk, so it goes as well.
        """
        with _explained(f"cannot use project directory {self.project_dir}"):
            os.makedirs(self.envs_dir, exist_ok=True)
            os.makedirs(self.staging_dir, exist_ok=True)
            doomed = [entry.path for entry in os.scandir(self.staging_dir)]
            doomed += [entry.path for entry in os.scandir(self.envs_dir) if not _is_whole(entry)]
        if doomed:
            doomed.append(self.cache_dir)
        for path in doomed:
            self.remove(path)
        return bool(doomed)

    def make_staging(self) -> str:
        """Make a fresh directory for an archive's content, and return its path."""
        path = f"{self.staging_dir}/{os.urandom(6).hex()}"
        with _explained(f"cannot make {path}"):
            os.mkdir(path, 0o755)
        return path

    def free_prefix(self, digest: str) -> str:
        """Return a name for a new environment of that bundle: `<sha12>`, or `<sha12>-2` while the first is in use.

        An environment cannot be made beside the one in use and moved later, as its prefix is baked in.
        """
        in_use = self.current_name()
        for count in range(1, _MAX_PREFIXES):
            name = digest[:12] + (f"-{count}" if count > 1 else "")
            if name != in_use:
                self.remove(self.prefix(name))
                return name
        raise InstallError(f"cannot find a free name below {self.envs_dir}; remove what is not in use there")

    def remove(self, path: str) -> None:
        """Delete a file or tree; it is moved to staging first, so that half of it is never taken for an environment.

        Raises:
            InstallError: it cannot be deleted.
        """
        if not os.path.lexists(path):
            return
        doomed = path if os.path.dirname(path) == self.staging_dir else self.discard(path)
        with _explained(f"cannot delete {path}"):
            if os.path.islink(doomed) or not os.path.isdir(doomed):
                os.unlink(doomed)
            else:
                _remove_tree(doomed)

    def discard(self, path: str) -> str:
        """Move a file or tree to staging, for `sweep` or the next install to delete, and return where it is now.

        Raises:
            InstallError: it cannot be moved.
        """
        doomed = f"{self.staging_dir}/gone-{os.urandom(6).hex()}"
        with _explained(f"cannot delete {path}"):
            os.makedirs(self.staging_dir, exist_ok=True)
            os.rename(path, doomed)
        return doomed

    def sweep(self) -> None:
        """Delete all that lies in staging.

        Raises:
            InstallError: something cannot be deleted.
        """
        with _explained(f"cannot read {self.staging_dir}"):
            doomed = [entry.path for entry in os.scandir(self.staging_dir)]
        for path in doomed:
            self.remove(path)

    def prune(self, keep: set[str]) -> tuple[str, ...]:
        """Delete every environment but those named, and return the names of the deleted."""
        with _explained(f"cannot read {self.envs_dir}"):
            doomed = tuple(name for name in sorted(os.listdir(self.envs_dir)) if name not in keep)
        for name in doomed:
            self.remove(self.prefix(name))
        return doomed

    # -- the flip

    def flip(self, name: str, *, aside: str) -> None:
        """Make `env` link to that environment, in one rename. A real `env/` goes to `envs/<aside>` in the same instant.

        Raises:
            InstallError: the filesystem refused; `env` is what it was.
        """
        with _explained(f"cannot flip {self.link}"):
            if self.has_real_env():
                self._exchange(self.prefix(aside), link_to=f"envs/{name}")
            else:
                temporary = f"{self.staging_dir}/link-{os.urandom(6).hex()}"
                os.symlink(f"envs/{name}", temporary)
                os.replace(temporary, self.link)
            sync_dir(self.project_dir)

    def restore_real_env(self, name: str) -> None:
        """Move `envs/<name>`, a legacy environment, back to `env/`, the only place where its prefix is right.

        Raises:
            InstallError: the filesystem refused.
        """
        with _explained(f"cannot move {self.prefix(name)} back to {self.link}"):
            if exchange_paths(self.prefix(name), self.link):
                os.unlink(self.prefix(name))
            else:
                os.unlink(self.link)
                os.rename(self.prefix(name), self.link)
            sync_dir(self.project_dir)

    def _exchange(self, aside: str, *, link_to: str) -> None:
        """Put a link at `aside` and swap the two; where the filesystem cannot swap, two renames leave a short gap."""
        os.symlink(link_to, aside)
        if exchange_paths(aside, self.link):
            return
        temporary = f"{self.staging_dir}/link-{os.urandom(6).hex()}"
        os.rename(aside, temporary)
        os.rename(self.link, aside)
        os.rename(temporary, self.link)


def legacy_name(record: EnvRecord | None) -> str:
    """Return the name below `envs/` for a real `env/` that is moved aside."""
    return f"{LEGACY}-{record.bundle_sha256[:12] if record else 'unmarked'}"


def _is_whole(entry: os.DirEntry[str]) -> bool:
    """A directory with `.complete`. A legacy one was moved here by us after it had served, and is as good as it was."""
    if not entry.is_dir(follow_symlinks=False):
        return False
    return entry.name.startswith(f"{LEGACY}-") or os.path.isfile(f"{entry.path}/{COMPLETE_NAME}")


def exchange_paths(one: str, other: str) -> bool:
    """Swap two paths in one step (renameat2(2)); False when kernel, libc or filesystem cannot."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        return False
    done = libc.renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE)
    number = ctypes.get_errno()
    if done == 0:
        return True
    if number in (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP):
        return False
    raise OSError(number, os.strerror(number), one, None, other)


def _remove_tree(path: str) -> None:
    """Delete a tree, also where packages made directories read-only. What vanishes meanwhile is no error."""
    for attempt in range(2):
        try:
            shutil.rmtree(path)
            return
        except FileNotFoundError:
            if not os.path.lexists(path):
                return
        except PermissionError:
            if attempt:
                raise
            _make_writable(path)


def _make_writable(path: str) -> None:
    os.chmod(path, stat.S_IRWXU)
    for folder, names, _ in os.walk(path):
        for name in names:  # before walk enters it
            below = os.path.join(folder, name)
            if not os.path.islink(below):
                os.chmod(below, stat.S_IRWXU)


@contextlib.contextmanager
def _explained(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InstallError(f"{what}: {explain_os_error(error)}") from error


def explain_os_error(error: OSError) -> str:
    """Return the reason and the mend of a refused write to the workspace."""
    reason = error.strerror or str(error)
    if error.errno in (errno.EACCES, errno.EPERM):
        at = error.filename or "it"
        return f"{at}: {reason} for uid {os.geteuid()}; give it to that user (chown) or set AUTO_INFER_SGLANG_USER"
    if error.errno == errno.EROFS:
        return f"{reason}; mount the workspace writable for the first install"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{reason}; free space on the workspace's filesystem"
    return f"{reason}; check the workspace's filesystem"
