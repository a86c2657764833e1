"""Add files and the sidecar to what pixi-pack made, in one streaming pass; its members keep their bytes and order."""

from __future__ import annotations

import base64
import hashlib
import os
import tarfile
from collections.abc import Callable, Iterator, Mapping
from io import BytesIO
from typing import IO

from infer_dev_entry.bundle.build_archive import (
    COPY_BYTES,
    BuiltBundle,
    HashingReader,
    HashingWriter,
    Writer,
    new_file,
    open_writer,
    replace_directory,
    tar_member,
    write_error,
)
from infer_dev_entry.bundle.decode import decode_shell
from infer_dev_entry.bundle.model import SIDECAR_NAME
from infer_dev_entry.errors import BuildError, BundleError
from infer_dev_entry.install.model import Progress

_HEADER_MARK = b"\n@@END_HEADER@@"
_HEADER_MAX_BYTES = 1024 * 1024

# From the sha256 of every file to the sidecar's text.
RenderSidecar = Callable[[Mapping[str, str]], str]


def repack(
    packed: str, output: str, extra: Mapping[str, str], render: RenderSidecar, progress: Progress
) -> BuiltBundle:
    """Write `output` from pixi-pack's tar, executable or directory `packed`, with `extra` texts and the sidecar added.

    Raises:
        BuildError: `packed` is not what pixi-pack makes, or `output` cannot be written.
    """
    try:
        if os.path.isdir(packed):
            return _repack_directory(packed, output, extra, render, progress)
        return _repack_file(packed, output, extra, render, progress)
    except (tarfile.TarError, BundleError, EOFError) as error:
        raise BuildError(f"cannot read what pixi-pack made: {error}; pack it again") from error


def _repack_file(
    packed: str, output: str, extra: Mapping[str, str], render: RenderSidecar, progress: Progress
) -> BuiltBundle:
    size = os.stat(packed).st_size
    progress.stage(f"write {os.path.basename(output)}", size)
    with open(packed, "rb") as source, new_file(output, size) as raw:
        out = HashingWriter(raw)
        if source.read(2) == b"#!":
            _copy_executable(packed, source, out, extra, render, progress)
            os.fchmod(raw.fileno(), 0o755)
        else:
            source.seek(0)
            _copy_tar(source, out, extra, render, progress)
    return BuiltBundle(path=output, digest=out.hexdigest(), size_bytes=out.size_bytes)


def _copy_tar(
    source: IO[bytes], out: Writer, extra: Mapping[str, str], render: RenderSidecar, progress: Progress
) -> None:
    """Copy a tar member by member, and append."""
    files: dict[str, str] = {}
    with (
        tarfile.open(fileobj=source, mode="r|", bufsize=COPY_BYTES) as old,
        open_writer(out) as new,
    ):
        for member in old:
            content = old.extractfile(member) if member.isfile() else None
            if content is None or member.name in extra or member.name == SIDECAR_NAME:
                if member.isdir():
                    new.addfile(member)
                continue
            reader = HashingReader(content, progress)
            new.addfile(member, reader)
            files[member.name.removeprefix("./")] = reader.hexdigest()
        for path, text in _added(files, extra, render):
            data = text.encode()
            new.addfile(tar_member(path, len(data)), BytesIO(data))


def _added(files: dict[str, str], extra: Mapping[str, str], render: RenderSidecar) -> Iterator[tuple[str, str]]:
    """Yield the files to append, the sidecar last, as it holds the hashes of all others."""
    for path, text in sorted(extra.items()):
        files[path] = hashlib.sha256(text.encode()).hexdigest()
        yield path, text
    yield SIDECAR_NAME, render(files)


def _copy_executable(
    path: str,
    source: IO[bytes],
    out: HashingWriter,
    extra: Mapping[str, str],
    render: RenderSidecar,
    progress: Progress,
) -> None:
    """Copy pixi-pack's self-extracting script with the tar in its middle exchanged; the rest stays as it is."""
    source.seek(0)
    head = source.read(_HEADER_MAX_BYTES)
    mark = head.find(_HEADER_MARK)
    begin = head.find(b"\n", mark + 1) + 1
    if mark < 0 or not begin:
        raise BuildError(f"cannot read {path}: it has no mark @@END_HEADER@@; it is not what pixi-pack 0.7 makes")
    gap = len(head[begin : begin + 16]) - len(head[begin : begin + 16].lstrip(b"\r\n"))
    out.write(head[: begin + gap])
    source.seek(0)
    chunks = _MarkFinder(source, begin)
    encoder = _Base64Writer(out)
    _copy_tar(_ChunkFile(decode_shell(iter(chunks))), encoder, extra, render, progress)
    encoder.finish()
    out.write(b"\n")
    source.seek(chunks.mark)
    while data := source.read(COPY_BYTES):
        out.write(data)


class _MarkFinder:
    """Passes a script's chunks on and notes where the mark behind its archive begins: no base64 has an @."""

    def __init__(self, source: IO[bytes], begin: int) -> None:
        self._source = source
        self._begin = begin
        self.mark = -1

    def __iter__(self) -> Iterator[bytes]:
        offset = 0
        while data := self._source.read(COPY_BYTES):
            if self.mark < 0 and (found := data.find(b"@", max(0, self._begin - offset))) >= 0:
                self.mark = offset + found
            offset += len(data)
            yield data


class _ChunkFile(BytesIO):
    """A read-only stream over chunks."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        super().__init__()
        self._chunks = chunks
        self._rest = b""

    def read(self, size: int | None = -1, /) -> bytes:
        """Read up to `size` bytes, fewer only at the end; the end is when all chunks are taken."""
        parts, have = [self._rest], len(self._rest)
        while (size is None or size < 0 or have < size) and (chunk := next(self._chunks, None)) is not None:
            parts.append(chunk)
            have += len(chunk)
        data = b"".join(parts)
        wanted = len(data) if size is None or size < 0 else size
        self._rest = data[wanted:]
        return data[:wanted]


class _Base64Writer:
    """A write-only stream that encodes what passes through into one line."""

    def __init__(self, out: HashingWriter) -> None:
        self._out = out
        self._rest = b""

    def write(self, data: bytes, /) -> int:
        """Write all of it, but for up to two bytes that wait for a third."""
        whole = self._rest + bytes(data)
        end = len(whole) // 3 * 3
        self._rest = whole[end:]
        self._out.write(base64.b64encode(whole[:end]))
        return len(data)

    def finish(self) -> None:
        """Write the end with its padding."""
        self._out.write(base64.b64encode(self._rest))
        self._rest = b""


def _repack_directory(
    packed: str, output: str, extra: Mapping[str, str], render: RenderSidecar, progress: Progress
) -> BuiltBundle:
    """Complete a directory in place and rename it."""
    paths = sorted(
        os.path.relpath(os.path.join(top, name), packed) for top, _, names in os.walk(packed) for name in names
    )
    progress.stage(
        f"hash {os.path.basename(output)}", sum(os.stat(os.path.join(packed, path)).st_size for path in paths)
    )
    files: dict[str, str] = {}
    for path in paths:
        with open(os.path.join(packed, path), "rb") as file:
            reader = HashingReader(file, progress)
            while reader.read(COPY_BYTES):
                pass
        files[path.replace(os.sep, "/")] = reader.hexdigest()
    try:
        for path, text in _added(files, extra, render):
            with open(os.path.join(packed, path), "w", encoding="utf-8", newline="") as out:
                out.write(text)
            files[path] = hashlib.sha256(text.encode()).hexdigest()
        replace_directory(packed, output)
    except OSError as error:
        raise write_error(output, error) from error
    lines = "".join(sorted(f"{path}\0{digest}\n" for path, digest in files.items()))
    total = sum(os.stat(os.path.join(output, path)).st_size for path in files)
    return BuiltBundle(path=output, digest=hashlib.sha256(lines.encode()).hexdigest(), size_bytes=total)
