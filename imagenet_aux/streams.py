"""Bytes of a URL or a path, unless they are those of a web page."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Iterable, Iterator, Union

from .errors import FetchError, SourceError

if TYPE_CHECKING:
    from .download import Download

_CHUNK = 1 << 18
_BEFORE_A_PAGE = b"\xef\xbb\xbf \t\r\n"
_MAX_BEFORE_A_PAGE = 4096


class LocalFile:
    """A file on disk, as an iterable of bytes that counts like a `Download`.

    Raises
    ------
    SourceError
        While iterating, when it cannot be read.
    """

    joined = False

    def __init__(self, path: str) -> None:
        self.received = 0
        self.size: int | None = None
        self._path = path

    def __iter__(self) -> Iterator[bytes]:
        try:
            with open(self._path, "rb") as file:
                self.size = os.fstat(file.fileno()).st_size
                while True:
                    chunk = file.read(_CHUNK)
                    if not chunk:
                        return
                    self.received += len(chunk)
                    yield chunk
        except OSError as error:
            raise SourceError(f"cannot be read: {error.strerror}") from None


Stream = Union["Download", LocalFile]


def stream_of(location: str) -> Stream:
    """What iterates over the bytes of a URL or a path, and counts them.

    Raises
    ------
    SourceError
        If the path is that of no file.
    FetchError
        If there is no package that speaks HTTP.
    """
    if is_http(location):
        try:
            from .download import Download  # brings requests, which a local source does without
        except ImportError as error:
            raise FetchError(f"http needs the package requests: pip install requests ({error})") from None

        return Download(location)
    if not os.path.isfile(location):
        raise SourceError(
            "is a folder or a device, not a file" if os.path.exists(location) else "there is no such file"
        )
    return LocalFile(location)


def is_http(location: str) -> bool:
    """Whether it is a URL that is asked over HTTP(S), rather than a path."""
    return location.lower().startswith(("http://", "https://"))


def no_page(stream: Iterable[bytes]) -> Iterator[bytes]:
    """The same bytes, once it is sure that they do not begin as a page of HTML or XML does.

    Raises
    ------
    SourceError
        While iterating, when they do: no archive does, and none of the files.
    """
    chunks = iter(stream)
    start = b""
    for chunk in chunks:
        start += chunk
        if start.strip(_BEFORE_A_PAGE) or len(start) > _MAX_BEFORE_A_PAGE:
            break
    if start.lstrip(_BEFORE_A_PAGE).startswith(b"<"):
        raise SourceError("is a page of HTML or XML, not the file: the link may have expired, or want a log-in")
    yield start
    yield from chunks
