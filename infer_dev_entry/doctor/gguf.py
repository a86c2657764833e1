"""Read the head of a GGUF file, which is foreign data: magic, sizes of the model, and where its tensors begin. Pure.

The layout (GGUF v2 and v3, little endian): magic, version, tensor count, key count; key-value pairs; tensor infos with
offsets; padding; tensor data. A file that was cut short is told by an offset beyond its end; no weight is read.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass

MAGIC = b"GGUF"
MAX_TENSORS = 100_000
MAX_KEYS = 100_000
MAX_NAME_BYTES = 65_536
MAX_ARRAY_ITEMS = 4_000_000  # the largest vocabularies have a few hundred thousand words
MAX_NESTED_ITEMS = 1_000

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_LENGTH = struct.Struct("<Q")
_KEPT_BYTES = 256

Value = int | float | str


class GgufError(ValueError):
    """It is no whole GGUF file; the message is a clause such as `it is cut short`."""


class ShortError(GgufError):
    """The head goes on beyond the bytes that were given."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufHead:
    """The scalar keys and the number of tensors."""

    keys: Mapping[str, Value]
    tensors: int

    @property
    def architecture(self) -> str:
        """The architecture's name, such as `llama`."""
        return str(self.keys.get("general.architecture", ""))

    def number(self, name: str) -> int:
        """Return a key of the model's architecture as a whole number; 0 when it is not one."""
        value = self.keys.get(f"{self.architecture}.{name}", 0)
        return value if type(value) is int else 0


def parse_gguf(data: bytes, file_bytes: int) -> GgufHead:
    """Parse the head from a file's first bytes.

    Raises:
        ShortError: `data` ends inside the head.
        GgufError: it is no GGUF file, or not a whole one.
    """
    if data[:4] != MAGIC:
        raise GgufError(f"it begins with {data[:4]!r}, and GGUF files with {MAGIC!r}")
    try:
        return _parse(_Reader(data), file_bytes)
    except struct.error:
        raise ShortError("it is cut short inside its head") from None


def _parse(reader: _Reader, file_bytes: int) -> GgufHead:
    version, tensors, keys = reader.number("<I"), reader.number("<Q"), reader.number("<Q")
    if version not in (2, 3):
        raise GgufError(f"it is GGUF version {version}, and 2 and 3 are known")
    if tensors > MAX_TENSORS or keys > MAX_KEYS:
        raise GgufError(f"it claims {tensors} tensors and {keys} keys")
    table: dict[str, Value] = {}
    for _ in range(keys):
        name = reader.name()
        value = reader.value(reader.number("<I"))
        if value is not None:
            table[name] = value
    last = max((_skip_tensor(reader) for _ in range(tensors)), default=0)
    alignment = table.get("general.alignment", 32)
    step = alignment if type(alignment) is int and 0 < alignment <= 65_536 else 32
    begin = -(-reader.at // step) * step + last
    if tensors and begin >= file_bytes:
        raise GgufError(f"it is cut short: {file_bytes} bytes are here, and its last tensor begins at {begin}")
    return GgufHead(keys=table, tensors=tensors)


def _skip_tensor(reader: _Reader) -> int:
    """Pass over a tensor's name, dimensions and type, and return its offset in the data."""
    reader.name()
    dimensions = reader.number("<I")
    if dimensions > 8:
        raise GgufError(f"a tensor claims {dimensions} dimensions")
    reader.skip(8 * dimensions + 4)
    return reader.number("<Q")


class _Reader:
    """A position behind the magic."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = len(MAGIC)

    def number(self, form: str) -> int:
        """Return one number."""
        (value,) = struct.unpack_from(form, self.data, self.at)
        self.at += struct.calcsize(form)
        return value  # type: ignore[no-any-return]

    def skip(self, count: int) -> None:
        """Pass over bytes."""
        self.at += count
        if self.at > len(self.data):
            raise ShortError("it is cut short inside its head")

    def name(self) -> str:
        """Return a name, which no real file makes long."""
        length = self.number("<Q")
        if length > MAX_NAME_BYTES:
            raise GgufError(f"a name in it claims {length} bytes")
        return self._text(length, MAX_NAME_BYTES)

    def value(self, kind: int) -> Value | None:
        """Return a scalar or the begin of a string (a chat template is long); None for a list, which is passed over."""
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind == _STRING:
            return self._text(self.number("<Q"), _KEPT_BYTES)
        if kind == _ARRAY:
            self._skip_array(nested=False)
            return None
        raise GgufError(f"a key in it has the unknown type {kind}")

    def _text(self, length: int, kept: int) -> str:
        start = self.at
        self.skip(length)
        return self.data[start : start + min(length, kept)].decode("utf-8", "replace")

    def _skip_array(self, *, nested: bool) -> None:
        kind, count = self.number("<I"), self.number("<Q")
        if count > (MAX_NESTED_ITEMS if kind == _ARRAY else MAX_ARRAY_ITEMS) or (nested and kind == _ARRAY):
            raise GgufError(f"a list in it claims {count} items of type {kind}")
        if kind in _SCALARS:
            self.skip(count * struct.calcsize(_SCALARS[kind]))
        elif kind == _STRING:
            self._skip_strings(count)
        elif kind == _ARRAY:
            for _ in range(count):
                self._skip_array(nested=True)
        else:
            raise GgufError(f"a list in it has the unknown type {kind}")

    def _skip_strings(self, count: int) -> None:
        """Pass over a vocabulary: a tight loop, as there are a quarter of a million words."""
        at, data, unpack = self.at, self.data, _LENGTH.unpack_from
        for _ in range(count):
            at += 8 + unpack(data, at)[0]
        self.at = at
        self.skip(0)
