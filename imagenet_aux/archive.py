"""Unpack a gzip-compressed tar from a stream of bytes; reject hostile archives.

This module does not write to disk. Memory use is limited to a few chunks, regardless of the sizes in headers. Only
regular files and folders with safe names are accepted.
"""

from __future__ import annotations

import contextlib
import itertools
import queue
import re
import tarfile
import threading
from concurrent.futures import Future
from typing import Any, Collection, Generator, Iterable, Iterator, Tuple

from .errors import ContentError, TruncatedError, shorten
from .manifest import MAX_BYTES

try:
    from isal import isal_zlib as zlib  # optional drop-in replacement, about three times as fast
except ImportError:
    import zlib  # type: ignore[no-redef]

_Member = Tuple[str, int, Iterator[bytes]]

_MAX_ENTRIES = 1000
_MAX_PAX_BYTES = 1 << 16
_MAX_GZIP_MEMBERS = 10_000
_MIN_INPUT_BYTES = 1 << 16  # collected before each decompressor call: fewer calls, and isal rejects split gzip headers
_MAX_OUTPUT_BYTES = 1 << 20

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


def members(chunks: Iterable[bytes], wanted: Collection[str]) -> Generator[_Member, None, None]:
    """Yield the base name, size and chunks of each wanted file in a gzip-compressed tar; skip other files and folders.

    Read the chunks before the next file. Exhaust the iterator: only then are all checksums and trailers verified. Raise
    `ContentError` if the archive is damaged or hostile.
    """
    # Drop empty chunks, because an empty chunk marks the end in `_decompress` and `_TarReader`.
    compressed = filter(None, chunks)
    with contextlib.closing(_decompress(compressed)) as decompressed:
        unpacked = filter(None, decompressed)
        yield from _wanted_members(_TarReader(unpacked), wanted)
        with contextlib.suppress(_TrailingBytes):
            _exhaust(unpacked)  # zlib verifies the gzip trailer
    _exhaust(compressed)  # the size limit and the archive's digest include trailing bytes


def _wanted_members(tar: _TarReader, wanted: Collection[str]) -> Iterator[_Member]:
    seen: set[str] = set()
    is_after_pax = False
    for number in itertools.count(1):
        if tar.is_at_end() and not is_after_pax:  # after a pax header, read() reports the truncation
            return
        block = tar.read(tarfile.BLOCKSIZE)
        if not any(block):
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
            name = _file_name(header, wanted)
            content = tar.chunks(header.size)
            if name in wanted:
                if name in seen:
                    raise ContentError(f"duplicate entry {name}")
                seen.add(name)
                yield name, header.size, content
            _exhaust(content)
        tar.read(-header.size % tarfile.BLOCKSIZE)


def _exhaust(chunks: Iterator[bytes]) -> None:
    for _ in chunks:
        pass


class _TarReader:
    """Read a tar from decompressed chunks."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._chunk = b""  # the unread part of the current chunk

    def is_at_end(self) -> bool:
        """Return whether there are no more bytes."""
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


class _TrailingBytes(TruncatedError):
    """Bytes follow the last gzip member: like gzip(1), ignore them if the tar is complete."""


def _decompress(chunks: Iterator[bytes]) -> Generator[bytes, None, None]:
    """Yield decompressed chunks. While a thread makes the next one, the caller uses the last one and input is read."""
    block = _read_block(chunks)
    if not block:
        raise ContentError("empty: expected a .tar.gz archive")
    if not block.startswith(_GZIP_MAGIC):
        raise ContentError(f"not gzip: expected a .tar.gz archive, got {_guess_format(block)}")
    gunzip = _Gunzip()
    calls: queue.SimpleQueue[Any] = queue.SimpleQueue()
    worker = threading.Thread(target=_run_calls, args=(gunzip, calls), name="imagenet_aux decompress", daemon=True)
    worker.start()
    try:
        output = pending = b""  # pending: the input that the last call did not consume
        while pending or block:
            if len(pending) < _MIN_INPUT_BYTES:
                if block and len(pending) + len(block) < _MIN_INPUT_BYTES:
                    yield output  # on a slow connection, reading the rest of the block may take long
                    output, block = b"", block + _read_block(chunks)
                pending, block = pending + block, b""
            result: Future[tuple[bytes, bytes]] = Future()
            calls.put((result, pending))
            yield output  # the caller uses it while the thread works
            block = block or next(chunks, b"")
            output, pending = result.result()
        yield output
        gunzip.check_end()
    finally:
        calls.put(None)
        worker.join()


def _read_block(chunks: Iterator[bytes]) -> bytes:
    """Return the next chunks, joined to at least _MIN_INPUT_BYTES; less at the end."""
    block = b""
    for chunk in chunks:
        block += chunk
        if len(block) >= _MIN_INPUT_BYTES:
            break
    return block


def _run_calls(gunzip: _Gunzip, calls: queue.SimpleQueue[Any]) -> None:
    """Run the queued calls until None. A ThreadPoolExecutor would reject calls once the main thread has ended."""
    for result, data in iter(calls.get, None):
        try:
            result.set_result(gunzip.decompress(data))
        except BaseException as error:
            result.set_exception(error)


class _Gunzip:
    """A decompressor for several gzip members; zlib verifies their headers, CRCs and lengths."""

    def __init__(self) -> None:
        self._decompressor: Any = None  # of the current gzip member
        self._member_count = 0
        self._output_size = 0

    def decompress(self, data: bytes) -> tuple[bytes, bytes]:
        """Return the next output, perhaps empty, and the unconsumed rest of *data*, which the next call must repeat."""
        if not self._decompressor:
            if data.startswith(b"\0"):
                return b"", data.lstrip(b"\0")  # padding: the caller completes the rest to _MIN_INPUT_BYTES
            self._start_member(data)
        decompressor = self._decompressor
        try:
            output = decompressor.decompress(data, _MAX_OUTPUT_BYTES)
        except zlib.error as error:  # type: ignore[misc]
            raise ContentError(f"damaged: {error}") from None
        self._output_size += len(output)
        if self._output_size > MAX_BYTES:
            raise ContentError(f"unpacks to more than {MAX_BYTES >> 20} MiB")
        if decompressor.eof:
            self._decompressor = None
            return output, decompressor.unused_data
        # Pending output is never lost: without eof, the gzip trailer has not been read, so a call or an error follows.
        return output, decompressor.unconsumed_tail

    def _start_member(self, data: bytes) -> None:
        if not data.startswith(_GZIP_MAGIC):
            raise _TrailingBytes("truncated: expected an end-of-archive block in the tar, got trailing data")
        if self._member_count == _MAX_GZIP_MEMBERS:
            raise ContentError(f"more than {_MAX_GZIP_MEMBERS} gzip members")
        self._decompressor = zlib.decompressobj(_GZIP)
        self._member_count += 1

    def check_end(self) -> None:
        """Raise `ContentError` if the input ended too early."""
        if self._decompressor:
            raise TruncatedError("truncated: the data ends before the gzip trailer")
        if self._output_size < tarfile.BLOCKSIZE:
            raise ContentError(f"not a tar: it unpacks to {self._output_size} bytes")


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
        end = position + int(record[1]) if record else 0
        if not record or not record.end() < end <= len(records):  # a line feed ends the record
            raise ContentError("invalid pax header")
        if _PAX_OVERRIDES.fullmatch(record[2]):
            raise ContentError(f"pax header overrides {shorten(record[2].decode(errors='backslashreplace'))}")
        position = end


def _file_name(header: tarfile.TarInfo, wanted: Collection[str]) -> str:
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
    if not set(folders).isdisjoint(wanted):
        raise ContentError(f"folder {_quote(name)}: expected a regular file with this name")
    if not base_name and header.size:
        raise ContentError(f"folder {_quote(name)}: expected no data, got {header.size} bytes")
    return base_name


def _quote(name: str) -> str:
    return shorten(repr(name))
