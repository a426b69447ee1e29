"""Unpack a gzip-compressed tar from a stream of bytes; reject hostile archives.

Memory use is limited to a few chunks. Only regular files and folders with safe names are accepted.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import tarfile
from typing import Callable, Collection, Iterable, Iterator, TypeVar

from .errors import ContentError, TruncatedError, shorten
from .gunzip import TrailingBytes, decompress
from .manifest import MAX_BYTES

T = TypeVar("T")

_MAX_ENTRIES = 1000
_MAX_PAX_BYTES = 1 << 16
_PAX_RECORD = re.compile(rb"(\d{1,8}) ([^=\n]+)=")
# Records that override the name, size or layout in a file's own header.
_PAX_OVERRIDES = re.compile(rb"path|linkpath|size|charset|hdrcharset|GNU\.sparse\..*|SCHILY\.realsize")


def unpack(chunks: Iterable[bytes], wanted: Collection[str], use: Callable[[str, int, Iterator[bytes]], T]) -> list[T]:
    """Call *use* with the base name, size and chunks of each wanted file in a gzip-compressed tar; return the results.

    Skip other files and folders. Raise `ContentError` if the archive is damaged or hostile.
    """
    # An empty chunk would mark the end in `decompress` and `_TarReader`.
    compressed = filter(None, chunks)
    with contextlib.closing(decompress(compressed)) as decompressed:
        tar_chunks = filter(None, decompressed)
        results = [use(*entry) for entry in _wanted_entries(_TarReader(tar_chunks), wanted)]
        with contextlib.suppress(TrailingBytes):
            _exhaust(tar_chunks)  # zlib verifies the gzip trailer
    _exhaust(compressed)  # the size limit and the archive's digest include trailing bytes
    return results


def _wanted_entries(tar: _TarReader, wanted: Collection[str]) -> Iterator[tuple[str, int, Iterator[bytes]]]:
    seen: set[str] = set()
    is_after_pax = False
    for number in itertools.count(1):
        if tar.is_at_end() and not is_after_pax:  # a pax header without an entry is truncated: read() raises
            return
        block = tar.read(tarfile.BLOCKSIZE)
        if not any(block):  # the end-of-archive block
            return
        if number > _MAX_ENTRIES:
            raise ContentError(f"more than {_MAX_ENTRIES} entries")
        header = _parse_header(block)
        is_after_pax = header.type in (tarfile.XHDTYPE, tarfile.XGLTYPE)
        if is_after_pax:
            if header.size > _MAX_PAX_BYTES:
                raise ContentError(f"pax header of {header.size} bytes: expected at most {_MAX_PAX_BYTES}")
            _check_pax(tar.read(header.size))
        else:
            name = _safe_base_name(header, wanted)
            content = tar.chunks(header.size)
            if name in wanted:
                if name in seen:
                    raise ContentError(f"duplicate entry {name}")
                seen.add(name)
                yield name, header.size, content
            _exhaust(content)
        tar.read(-header.size % tarfile.BLOCKSIZE)  # padding


def _exhaust(chunks: Iterator[bytes]) -> None:
    for _ in chunks:
        pass


class _TarReader:
    """Read a tar from decompressed chunks."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._chunk = b""  # the unread part of the current chunk

    def is_at_end(self) -> bool:
        """Load the next chunk if the current one is used up; return whether there is none."""
        self._chunk = self._chunk or next(self._chunks, b"")
        return not self._chunk

    def chunks(self, count: int) -> Iterator[bytes]:
        """Yield the next *count* bytes as they arrive."""
        while count > 0:
            if self.is_at_end():
                raise TruncatedError("truncated: the data ends in the middle of the tar")
            part, self._chunk = self._chunk[:count], self._chunk[count:]
            count -= len(part)
            yield part

    def read(self, count: int) -> bytes:
        """Return the next *count* bytes."""
        return b"".join(self.chunks(count))


def _parse_header(block: bytes) -> tarfile.TarInfo:
    try:
        header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.TarError, ValueError) as error:
        raise ContentError(f"not a tar, or damaged: {error}") from None
    if not 0 <= header.size <= MAX_BYTES:
        raise ContentError(f"entry {_quote(header.name)}: expected 0 to {MAX_BYTES >> 20} MiB, got {header.size} bytes")
    return header


def _check_pax(records: bytes) -> None:
    """Reject pax records that override fields of the entry's own header."""
    position = 0
    while position < len(records):
        record = _PAX_RECORD.match(records, position)
        end = position + int(record[1]) if record else 0
        if not record or not record.end() < end <= len(records):  # "=" and at least the final line feed
            raise ContentError("invalid pax header")
        if _PAX_OVERRIDES.fullmatch(record[2]):
            raise ContentError(f"pax header overrides {shorten(record[2].decode(errors='backslashreplace'))}")
        position = end


def _safe_base_name(header: tarfile.TarInfo, wanted: Collection[str]) -> str:
    """Return a regular file's base name, or an empty string for a folder; reject other types and unsafe names."""
    name = header.name
    parts = name.split("/")
    if not name.isprintable() or "\\" in name or ":" in parts[0] or ".." in parts or not name or name[0] == "/":
        raise ContentError(f"unsafe entry name {_quote(name)}")
    if header.type == tarfile.DIRTYPE:
        folders, base_name = parts, ""
    elif header.type in tarfile.REGULAR_TYPES and header.type != tarfile.GNUTYPE_SPARSE and parts[-1] not in ("", "."):
        folders, base_name = parts[:-1], parts[-1]
    else:
        raise ContentError(f"entry {_quote(name)}: expected a regular file or a folder, got type {header.type!r}")
    if any(folder in wanted for folder in folders):
        raise ContentError(f"folder {_quote(name)}: expected a regular file with this name")
    if not base_name and header.size:
        raise ContentError(f"folder {_quote(name)}: expected no data, got {header.size} bytes")
    return base_name


def _quote(name: str) -> str:
    return shorten(repr(name))
