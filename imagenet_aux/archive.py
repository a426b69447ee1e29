"""Bytes to members: a gzip-compressed tar, read once from front to back, and refused when it is hostile.

Nothing here writes to disk. Memory stays at a few chunks, whatever a header claims. A member is a regular file
whose name is wanted; everything that could put bytes anywhere else ends the reading with `ArchiveError`.
"""

from __future__ import annotations

import itertools
import re
import tarfile
from typing import Collection, Generator, Iterable, Iterator, NamedTuple

from .contents import MAX_BYTES
from .errors import SourceError
from .prefetch import prefetch

try:
    from isal import isal_zlib as zlib  # the same interface, about three times as fast
except ImportError:
    import zlib  # type: ignore[no-redef]

_MAX_ENTRIES = 1000
_MAX_PAX_BYTES = 1 << 16
_MAX_GZIP_MEMBERS = 10_000
_PIECE = 1 << 18

_GZIP = 16 + zlib.MAX_WBITS  # has zlib check the header, the CRC and the length of each gzip member
_MAGIC = b"\x1f\x8b"
_PAX_RECORD = re.compile(rb"(\d{1,8}) ([^=\n]+)=")
# These would give a file another name, length or shape than its own header says.
_PAX_OVERRIDES = re.compile(rb"path|linkpath|size|charset|hdrcharset|GNU\.sparse\..*|SCHILY\.realsize")


class ArchiveError(SourceError):
    """The bytes are not an archive, or not one that may be unpacked."""


class CutShort(ArchiveError):
    """The bytes end before the archive does."""


class Member(NamedTuple):
    """A wanted file in an archive.

    Attributes
    ----------
    name : str
        Its plain name, without folders.
    chunks : iterator of bytes
        What it holds; to be taken before the next member is.
    """

    name: str
    chunks: Iterator[bytes]


def members(chunks: Iterable[bytes], wanted: Collection[str]) -> Iterator[Member]:
    """The wanted files of a gzip-compressed tar, each once, in the order in which they come.

    The last member is followed by the rest of the stream, up to the end of *chunks*: only a reader that has come to
    the end of this iterator knows that checksums and trailers were right.

    Parameters
    ----------
    chunks : iterable of bytes
        The archive, in pieces of any size.
    wanted : collection of str
        The plain names of the files to yield. Other regular files and folders are passed over.

    Yields
    ------
    Member
        A file's name and its bytes, to be taken before the next one is.

    Raises
    ------
    ArchiveError
        If it is no such archive, is damaged, or holds what an honest one of these files does not: links, devices,
        names that lead elsewhere or stand twice, overrides, absurd sizes or numbers.
    """
    packed = _limited(_with_magic(chunks), "is larger than")
    tar = _Blocks(prefetch(_limited(_inflate(packed), "unpacks to more than")))
    seen: set[str] = set()
    for entry in itertools.count(1):
        block = tar.read(tarfile.BLOCKSIZE)
        if not any(block):
            tar.finish()
            return
        if entry > _MAX_ENTRIES:
            raise ArchiveError(f"holds more than {_MAX_ENTRIES} entries; that cannot be right")
        header = _header(block)
        if header.type in (tarfile.XHDTYPE, tarfile.XGLTYPE):
            _check_pax(tar.read_padded(header.size))
            continue
        name = _file_name(header, wanted)
        content = tar.chunks(header.size)
        if name in wanted:
            if name in seen:
                raise ArchiveError(f"holds {name} twice")
            seen.add(name)
            yield Member(name, content)
        for _unread in content:
            pass
        tar.read(-header.size % tarfile.BLOCKSIZE)


class _Blocks:
    """What a tar is cut from: counted bytes, taken from the front."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._piece = b""
        self._position = 0

    def chunks(self, count: int) -> Iterator[bytes]:
        """The next *count* bytes, in pieces as they come."""
        while count > 0:
            if self._position == len(self._piece):
                self._piece, self._position = next(self._pieces, b""), 0
                if not self._piece:
                    raise CutShort("is cut short: its bytes end in the middle of the tar")
            part = self._piece[self._position : self._position + count]
            self._position += len(part)
            count -= len(part)
            yield part

    def read(self, count: int) -> bytes:
        """The next *count* bytes, at once."""
        return b"".join(self.chunks(count))

    def read_padded(self, count: int) -> bytes:
        """The next *count* bytes of a bounded header, without the padding that follows them."""
        if count > _MAX_PAX_BYTES:
            raise ArchiveError(f"has a header of {count} bytes")
        content = self.read(count)
        self.read(-count % tarfile.BLOCKSIZE)
        return content

    def finish(self) -> None:
        """Read on to the end, where the checksums stand."""
        for _ in self._pieces:
            pass


def _limited(chunks: Iterable[bytes], reason: str) -> Generator[bytes, None, None]:
    """The same bytes, unless they are more than anything of this set has."""
    total = 0
    for chunk in chunks:
        total += len(chunk)
        if total > MAX_BYTES:
            raise ArchiveError(f"{reason} {MAX_BYTES >> 20} MiB; that cannot be right")
        yield chunk


def _inflate(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """What a gzip file of one or more members holds, in pieces of at most 256 KiB."""
    total = 0
    gzip_members = 1
    inflater = zlib.decompressobj(_GZIP)
    for chunk in chunks:
        more = True
        while more:
            if inflater.eof:
                chunk = chunk.lstrip(b"\0")  # padding, as tapes leave it
                if not chunk:
                    break
                gzip_members += 1
                if gzip_members > _MAX_GZIP_MEMBERS:
                    raise ArchiveError(f"has more than {_MAX_GZIP_MEMBERS} gzip members")
                inflater = zlib.decompressobj(_GZIP)
            try:
                piece = inflater.decompress(chunk, _PIECE)
            except zlib.error as error:  # type: ignore[misc]
                raise ArchiveError(f"is damaged: {error}") from None
            chunk = inflater.unused_data if inflater.eof else inflater.unconsumed_tail
            more = bool(chunk) or len(piece) == _PIECE  # a full piece: the inflater may hold back the next
            total += len(piece)
            if piece:
                yield piece
    if not inflater.eof:
        raise CutShort("is cut short: its bytes end before the gzip trailer")
    if total < tarfile.BLOCKSIZE:
        raise ArchiveError(f"holds no tar: it unpacks to {total} bytes")


def _with_magic(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The same bytes, once it is sure that they begin as a gzip file does."""
    rest = iter(chunks)
    start = b""
    for chunk in rest:
        start += chunk
        if len(start) >= len(_MAGIC):
            break
    if not start:
        raise ArchiveError("is empty")
    if not start.startswith(_MAGIC):
        raise ArchiveError(f"is no gzip archive: it begins with {start[:16]!r}")
    yield start
    yield from rest


def _header(block: bytes) -> tarfile.TarInfo:
    try:
        header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.TarError, ValueError) as error:
        raise ArchiveError(f"holds no tar, or a damaged one: {error}") from None
    if not 0 <= header.size <= MAX_BYTES:
        raise ArchiveError(f"has an entry {header.name!r} of {header.size} bytes")
    return header


def _check_pax(records: bytes) -> None:
    """Refuse the records of a pax header that change what the plain header says."""
    position = 0
    while position < len(records):
        record = _PAX_RECORD.match(records, position)
        if not record or int(record[1]) <= len(record[0]):  # a line feed ends it
            raise ArchiveError("has a pax header that cannot be read")
        if _PAX_OVERRIDES.fullmatch(record[2]):
            raise ArchiveError(f"has a pax header that overrides {record[2].decode(errors='backslashreplace')}")
        position += int(record[1])
    if position > len(records):
        raise ArchiveError("has a pax header that cannot be read")


def _file_name(header: tarfile.TarInfo, wanted: Collection[str]) -> str:
    """The plain name of a regular file, '' for a folder; all else is refused."""
    name = header.name
    parts = name.split("/")
    if not name.isprintable() or "\\" in name or ":" in parts[0] or ".." in parts or name[:1] in ("", "/"):
        raise ArchiveError(f"has an entry with the unsafe name {name!r}")
    if header.type == tarfile.DIRTYPE:
        folders, plain = parts, ""
    elif header.type in tarfile.REGULAR_TYPES and header.type != tarfile.GNUTYPE_SPARSE and parts[-1] not in ("", "."):
        folders, plain = parts[:-1], parts[-1]
    else:
        raise ArchiveError(f"has an entry {name!r} that is neither a regular file nor a folder (type {header.type!r})")
    for folder in folders:
        if folder in wanted:
            raise ArchiveError(f"has a folder {name!r} under the name of a file")
    if not plain and header.size:
        raise ArchiveError(f"has a folder {name!r} of {header.size} bytes")
    return plain
