"""Unpack a gzip-compressed tar from a stream of bytes; reject hostile archives.

This module does not write to disk. Memory use is limited to a few chunks, regardless of the sizes in headers. Only
regular files and folders with safe names are accepted.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import tarfile
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Collection, Generator, Iterable, Iterator, NamedTuple

from .errors import ContentError, shorten
from .manifest import MAX_BYTES
from .streams import limit_size

try:
    from isal import isal_zlib as zlib  # optional drop-in replacement, about three times as fast
except ImportError:
    import zlib  # type: ignore[no-redef]

_MAX_ENTRIES = 1000
_MAX_PAX_BYTES = 1 << 16
_MAX_GZIP_MEMBERS = 10_000
_MIN_MEMBER_BYTES = 1 << 16  # buffered before a gzip member starts, because isal cannot parse a split header
_CHUNK_BYTES = 1 << 18

_GZIP = 16 + zlib.MAX_WBITS  # gzip format: zlib also verifies each member's header, CRC and length
_GZIP_MAGIC = b"\x1f\x8b"
_OTHER_FORMATS = {
    b"PK\x03\x04": "a zip archive",
    b"\xfd7zXZ": "an xz archive",
    b"\x28\xb5\x2f\xfd": "a zstd archive",
    b"BZh": "a bzip2 archive",
}
_PAX_RECORD = re.compile(rb"(\d{1,8}) ([^=\n]+)=")
# Records that override the name, size or layout in a file's own header.
_PAX_OVERRIDES = re.compile(rb"path|linkpath|size|charset|hdrcharset|GNU\.sparse\..*|SCHILY\.realsize")


class Member(NamedTuple):
    """A requested file in an archive."""

    name: str  # base name
    size: int  # in bytes
    chunks: Iterator[bytes]  # valid only until the next member is read


def members(chunks: Iterable[bytes], wanted: Collection[str]) -> Generator[Member, None, None]:
    """Yield the wanted files in a gzip-compressed tar; skip other regular files and folders.

    Exhaust the iterator: only then are all checksums and trailers verified. Raise `ContentError` if the archive is
    damaged or hostile.
    """
    compressed = limit_size(_require_gzip(chunks), ContentError(f"larger than {MAX_BYTES >> 20} MiB"))
    gzip = _Gzip()
    with contextlib.closing(_decompress(compressed, gzip)) as decompressed:
        tar = _TarReader(limit_size(decompressed, ContentError(f"unpacks to more than {MAX_BYTES >> 20} MiB")))
        yield from _wanted_members(tar, wanted)
        if tar.is_at_end and gzip.has_trailing_bytes:
            text = "truncated: expected an end-of-archive block in the tar, got trailing data"
            raise ContentError(text, may_be_incomplete=True)


def _wanted_members(tar: _TarReader, wanted: Collection[str]) -> Iterator[Member]:
    seen: set[str] = set()
    is_after_pax = False
    for entry in itertools.count(1):
        block = tar.read_block(may_end=not is_after_pax)
        if not any(block):
            tar.skip_rest()
            return
        if entry > _MAX_ENTRIES:
            raise ContentError(f"more than {_MAX_ENTRIES} entries")
        header = _parse_header(block)
        is_after_pax = header.type in (tarfile.XHDTYPE, tarfile.XGLTYPE)
        if is_after_pax:
            _check_pax(tar.read_padded(header.size))
            continue
        name = _file_name(header, wanted)
        content = tar.chunks(header.size)
        if name in wanted:
            if name in seen:
                raise ContentError(f"duplicate entry {name}")
            seen.add(name)
            yield Member(name, header.size, content)
        for _unread in content:
            pass
        tar.read(-header.size % tarfile.BLOCKSIZE)


class _TarReader:
    """Read tar blocks and file contents from decompressed chunks."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._chunk = b""
        self._position = 0
        self.is_at_end = False

    def chunks(self, count: int) -> Iterator[bytes]:
        """Yield the next *count* bytes as they arrive."""
        while count > 0:
            if not self._fill():
                raise ContentError("truncated: the data ends in the middle of the tar", may_be_incomplete=True)
            part = self._chunk[self._position : self._position + count]
            self._position += len(part)
            count -= len(part)
            yield part

    def read(self, count: int) -> bytes:
        """Return the next *count* bytes."""
        return b"".join(self.chunks(count))

    def read_block(self, may_end: bool) -> bytes:
        """Return the next header block, or ``b""`` at the end of the stream if *may_end* is true."""
        self.is_at_end = may_end and not self._fill()
        return b"" if self.is_at_end else self.read(tarfile.BLOCKSIZE)

    def read_padded(self, count: int) -> bytes:
        """Return the next *count* bytes and skip the padding after them."""
        if count > _MAX_PAX_BYTES:
            raise ContentError(f"pax header of {count} bytes: expected at most {_MAX_PAX_BYTES}")
        content = self.read(count)
        self.read(-count % tarfile.BLOCKSIZE)
        return content

    def skip_rest(self) -> None:
        """Read to the end of the stream, so that zlib verifies the gzip trailer."""
        for _ in self._chunks:
            pass

    def _fill(self) -> bool:
        """Load the next chunk if the current one is used up; return False at the end of the stream."""
        if self._position == len(self._chunk):
            self._chunk, self._position = next(self._chunks, b""), 0
        return bool(self._chunk)


class _Gzip:
    """Decompress a gzip file with one or more members, chunk by chunk."""

    def __init__(self) -> None:
        self.can_read = False  # whether read() can return more bytes without another feed()
        self.has_trailing_bytes = False  # whether data follows the last member; like gzip(1), ignore it
        self._input = b""
        self._is_last = False  # whether no more input follows
        self._decompressor: Any = None
        self._members = 0
        self._size = 0

    def feed(self, chunk: bytes) -> None:
        """Add compressed bytes; an empty chunk marks the end."""
        if not self.has_trailing_bytes:
            self._input += chunk
            self._is_last = not chunk
            self.can_read = True

    def read(self) -> bytes:
        """Return up to 256 KiB of decompressed bytes."""
        self.can_read = bool(self._decompressor) or self._start_member()
        if not self.can_read:
            return b""
        try:
            output: bytes = self._decompressor.decompress(self._input, _CHUNK_BYTES)
        except zlib.error as error:  # type: ignore[misc]
            raise ContentError(f"damaged: {error}") from None
        self._size += len(output)
        is_full = len(output) == _CHUNK_BYTES  # the decompressor may have more output buffered
        if self._decompressor.eof:
            self._input, self._decompressor = self._decompressor.unused_data, None
        else:
            self._input = self._decompressor.unconsumed_tail
        self.can_read = is_full or bool(self._input)
        return output

    def finish(self) -> None:
        """Raise `ContentError` if the gzip file is incomplete or too small for a tar."""
        if self._decompressor or self._input:
            raise ContentError("truncated: the data ends before the gzip trailer", may_be_incomplete=True)
        if self._size < tarfile.BLOCKSIZE:
            raise ContentError(f"not a tar: it unpacks to {self._size} bytes")

    def _start_member(self) -> bool:
        """Start the next gzip member if there is enough input."""
        if self._members:
            self._input = self._input.lstrip(b"\0")  # padding
            if not _GZIP_MAGIC.startswith(self._input[:2]):
                self._input, self.has_trailing_bytes = b"", True
        if not self._input or not (self._is_last or len(self._input) >= _MIN_MEMBER_BYTES):
            return False
        self._members += 1
        if self._members > _MAX_GZIP_MEMBERS:
            raise ContentError(f"more than {_MAX_GZIP_MEMBERS} gzip members")
        self._decompressor = zlib.decompressobj(_GZIP)
        return True


def _decompress(chunks: Iterable[bytes], gzip: _Gzip) -> Generator[bytes, None, None]:
    """Yield decompressed chunks; a worker thread decompresses the next one while the caller uses the current one."""
    with ThreadPoolExecutor(1) as worker:
        output = b""
        for chunk in itertools.chain(chunks, [b""]):
            gzip.feed(chunk)
            while gzip.can_read:
                following = worker.submit(gzip.read)
                if output:
                    yield output
                output = following.result()
    if output:
        yield output
    gzip.finish()


def _require_gzip(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Pass chunks through; raise `ContentError` if they do not start like a gzip file."""
    iterator = iter(chunks)
    start = b""
    for chunk in iterator:
        start += chunk
        if len(start) >= tarfile.BLOCKSIZE:
            break
    if not start:
        raise ContentError("empty: expected a .tar.gz archive")
    if not start.startswith(_GZIP_MAGIC):
        raise ContentError(f"not gzip: expected a .tar.gz archive, got {_guess_format(start)}")
    yield start
    yield from iterator


def _guess_format(start: bytes) -> str:
    for magic, name in _OTHER_FORMATS.items():
        if start.startswith(magic):
            return f"{name}. Unpack it and pass the folder"
    if start[257:262] == b"ustar":
        return "an uncompressed tar. Unpack it and pass the folder"
    return f"bytes that start with {start[:16]!r}"


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
        if not record or int(record[1]) <= len(record[0]):  # the length includes a final line feed
            raise ContentError("invalid pax header")
        if _PAX_OVERRIDES.fullmatch(record[2]):
            raise ContentError(f"pax header overrides {shorten(record[2].decode(errors='backslashreplace'))}")
        position += int(record[1])
    if position > len(records):
        raise ContentError("invalid pax header")


def _file_name(header: tarfile.TarInfo, wanted: Collection[str]) -> str:
    """Return a regular file's base name, or an empty string for a folder; reject other types and unsafe names."""
    name = header.name
    parts = name.split("/")
    if not name.isprintable() or "\\" in name or ":" in parts[0] or ".." in parts or name[:1] in ("", "/"):
        raise ContentError(f"unsafe entry name {_quote(name)}")
    if header.type == tarfile.DIRTYPE:
        folders, plain = parts, ""
    elif header.type in tarfile.REGULAR_TYPES and header.type != tarfile.GNUTYPE_SPARSE and parts[-1] not in ("", "."):
        folders, plain = parts[:-1], parts[-1]
    else:
        raise ContentError(f"entry {_quote(name)}: expected a regular file or a folder, got type {header.type!r}")
    if not set(folders).isdisjoint(wanted):
        raise ContentError(f"folder {_quote(name)}: expected a regular file with this name")
    if not plain and header.size:
        raise ContentError(f"folder {_quote(name)}: expected no data, got {header.size} bytes")
    return plain


def _quote(name: str) -> str:
    return shorten(repr(name))
