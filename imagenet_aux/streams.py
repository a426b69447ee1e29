"""The base class of all transfers, local files, and operations on chunks."""

from __future__ import annotations

import contextlib
import itertools
import os
import stat
from typing import Callable, Generator, Iterable, Iterator, TypeVar

from .errors import ContentError, SourceError
from .manifest import MAX_BYTES

_CHUNK_BYTES = 1 << 18
_IGNORABLE_PREFIX = b"\xef\xbb\xbf \t\r\n"
_MAX_PREFIX_BYTES = 4096

T = TypeVar("T")


class Abort(BaseException):
    """Carries an exception from *watch* past the handlers for source and file errors."""


Watch = Callable[["Stream"], None]


class Stream:
    """One transfer: the contents of one URL or local file, as an iterable of chunks."""

    def __init__(self, label: str, watch: Watch, limit: int = MAX_BYTES) -> None:
        self._watch = watch
        self._limit = limit  # in bytes, for *total*
        self.label = label  # the host name, or the file's base name
        self.total = 0  # bytes received, including those received again after a restart
        self.received = 0  # position in the contents, in bytes; 0 again after a restart
        self.size: int | None = None  # in bytes; None if unknown
        self.waited = 0.0  # seconds spent waiting: for data, between attempts, or for a lock

    def deliver(self, consume: Callable[[Iterable[bytes]], T]) -> T:
        """Return ``consume(chunks)``, called when the first chunk has arrived and *size* is set.

        Raise `ContentError` if the stream is HTML or XML. A subclass may retry: it then calls *consume* again, with all
        chunks.
        """
        with contextlib.closing(iter(self)) as chunks:  # do not wait for garbage collection to close the file
            return consume(reject_html(chunks))

    def __iter__(self) -> Generator[bytes, None, None]:
        raise NotImplementedError

    def report(self, seconds: float = 0.0) -> None:
        """Call *watch*, after a wait of this duration."""
        self.waited += seconds
        try:
            self._watch(self)
        except Exception as error:
            raise Abort(error) from None

    def _count(self, chunk: bytes) -> None:
        self.received += len(chunk)
        self.total += len(chunk)
        if self.total > self._limit:  # counts restarts: a server may truncate each response a little later
            raise SourceError(f"larger than {MAX_BYTES >> 20} MiB in total")


class LocalFile(Stream):
    """The contents of a local file."""

    def __init__(self, path: str, watch: Watch, limit: int = MAX_BYTES) -> None:
        super().__init__(os.path.basename(path), watch, limit)
        self._path = path

    def __iter__(self) -> Generator[bytes, None, None]:
        try:
            if not stat.S_ISREG(os.stat(self._path).st_mode):  # opening a FIFO would block
                raise SourceError("not a regular file: expected an archive, or one of the dataset's files")
            with open(self._path, "rb") as file:
                self.size = os.fstat(file.fileno()).st_size
                for chunk in iter(lambda: file.read(_CHUNK_BYTES), b""):
                    self._count(chunk)
                    self.report()
                    yield chunk
        except OSError as error:
            raise SourceError(f"cannot be read: {error.strerror}") from None


def is_http(location: str) -> bool:
    """Return whether the location is an HTTP(S) URL."""
    return location.lower().startswith(("http://", "https://"))


def tee(chunks: Iterable[bytes], use: Callable[[bytes], object]) -> Iterator[bytes]:
    """Pass chunks through; call *use* with each."""
    for chunk in chunks:
        use(chunk)
        yield chunk


def reject_html(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Return an iterator over all chunks; raise `ContentError` if they begin as HTML or XML."""
    iterator = iter(chunks)
    start = b""
    for chunk in iterator:
        start += chunk
        if start.lstrip(_IGNORABLE_PREFIX) or len(start) > _MAX_PREFIX_BYTES:
            break
    if start.lstrip(_IGNORABLE_PREFIX).startswith(b"<"):
        raise ContentError("HTML or XML instead of the file: a link may have expired, or may require a login")
    return itertools.chain([start], iterator)
