"""Where the set can be had: our mirrors, or what the user named.

A source yields names and bytes, whatever it is made of: an archive, a folder, or a list of single files.
"""

from __future__ import annotations

import os
import re
import sys
from typing import Collection, Iterator

from . import archive, contents, mirrors, streams
from .archive import Member
from .errors import FetchError, SourceError, StartOver
from .streams import Stream

_DIGEST_NAMES = {32: "MD5", 64: "SHA-256"}


class Source:
    """Where the set may be had.

    Parameters
    ----------
    address : str
        A URL or a path, as it is shown.
    ours : bool
        Whether we name it: then nothing unproved is taken from it. What the user names holds the user's own.

    Attributes
    ----------
    optional : collection of str
        The files without which it still serves.
    proved : bool
        Once all members have been taken: whether a digest of the whole vouches for each of them.
    stream : Download or LocalFile or None
        What is being read, with the counts of its bytes.
    """

    optional: Collection[str] = ()

    def __init__(self, address: str, ours: bool = False) -> None:
        self.address = address
        self.ours = ours
        self.proved = False
        self.stream: Stream | None = None

    def members(self) -> Iterator[Member]:
        """The files of the set that it has, from the beginning.

        Yields
        ------
        Member
            A file's name and its bytes, to be taken before the next one is.

        Raises
        ------
        SourceError
            While iterating, for whatever keeps it from delivering.
        """
        raise NotImplementedError

    def may_differ(self, error: SourceError) -> bool:
        """Whether the same source, asked again, may not meet that error."""
        return isinstance(error, StartOver)

    def _read(self, location: str) -> Iterator[bytes]:
        """The bytes of a URL or a path."""
        self.stream = streams.stream_of(location)
        yield from streams.no_page(self.stream)

    def _read_one(self, name: str, location: str) -> Iterator[bytes]:
        """The bytes of one file, the errors with its name."""
        try:
            yield from self._read(location)
        except SourceError as error:
            raise type(error)(f"{name}: {error}") from None


class Archive(Source):
    """The set in one archive, on a server or on disk.

    Parameters
    ----------
    digest : str
        MD5 or SHA-256 that vouches for its bytes, in hex; '' where there is none.
    demanded : bool
        Whether an archive of another digest is refused, whatever it holds.
    location : str, optional
        What to read, where that is not the address.
    """

    def __init__(self, address: str, digest: str, *, demanded: bool, ours: bool = False, location: str = "") -> None:
        super().__init__(address, ours)
        self._digest = digest
        self._demanded = demanded
        self._location = location or address

    def members(self) -> Iterator[Member]:
        """The files of the set that the archive holds; at their end, its digest is compared."""
        hasher = contents.hasher("md5" if len(self._digest) == 32 else "sha256") if self._digest else None

        def hashed() -> Iterator[bytes]:
            for chunk in self._read(self._location):
                if hasher:
                    hasher.update(chunk)
                yield chunk

        yield from archive.members(hashed(), contents.FILES)
        if hasher:
            self._compare(hasher.hexdigest())

    def may_differ(self, error: SourceError) -> bool:
        """Whether it is the line that may have damaged the archive."""
        if isinstance(error, archive.CutShort) and self.stream and self.stream.size is None:
            return True  # a server that gives no length: a cut looks like the end
        if isinstance(error, archive.ArchiveError) and self.stream and self.stream.joined:
            return True
        return super().may_differ(error)

    def _compare(self, digest: str) -> None:
        self.proved = digest == self._digest
        if self._demanded and not self.proved:
            name = _DIGEST_NAMES[len(digest)]
            kind = StartOver if self.stream and self.stream.joined else SourceError
            raise kind(f"its {name} should be {self._digest}, and is {digest}: check it, or fetch the archive again")


class Folder(Source):
    """The set as a folder that holds the files; its address is the path of the folder."""

    def members(self) -> Iterator[Member]:
        """The files of the set that stand in the folder."""
        for name in contents.FILES:
            path = os.path.join(self.address, name)
            if os.path.lexists(path):
                yield Member(name, self._read_one(name, path))


class SingleFiles(Source):
    """The set as a file for each URL.

    Parameters
    ----------
    address : str
        What stands for all of them, and is shown.
    required, extras : dict of str
        The URL of each file that it must have, and of each without which it still serves.
    """

    def __init__(self, address: str, required: dict[str, str], extras: dict[str, str]) -> None:
        super().__init__(address, ours=True)
        self.optional = extras
        self._urls = {**required, **extras}

    def members(self) -> Iterator[Member]:
        """The files, each asked for when its turn comes."""
        for name, url in self._urls.items():
            yield Member(name, self._read_one(name, url))


def choose(named: str, checksum: str) -> list[Source]:
    """The sources to ask, in turn.

    Parameters
    ----------
    named : str
        A URL or a path, and then the only source, unless it is the address of one of ours: then this one is asked
        first, and the others after it. '': ours, in their order.
    checksum : str
        MD5 or SHA-256 that the archive must have, in hex; '' for any.

    Returns
    -------
    list of Source
        Never empty.

    Raises
    ------
    FetchError
        If these are no orders that could be carried out.
    """
    checksum = checksum.lower()
    if checksum and not re.fullmatch("[0-9a-f]{32}|[0-9a-f]{64}", checksum):
        raise FetchError(f"a checksum is an MD5 (32 hex digits) or a SHA-256 (64 hex digits), not {checksum!r}")
    address = named.partition("?")[0].rstrip("/")
    if checksum and address == mirrors.GITHUB:
        raise FetchError(f"{address}: has the files one by one, and a checksum is of an archive: leave it out")
    ours = _ours(checksum)
    if named and address not in [source.address for source in ours]:
        return [_named(named, checksum)]
    return sorted(ours, key=lambda source: source.address != address)


def _ours(checksum: str) -> list[Source]:
    """The mirrors in their order, then the single files; where a checksum is demanded, the archives alone."""
    archives: list[Source] = [
        Archive(
            mirror.address,
            checksum or mirror.digest,
            demanded=bool(checksum),
            ours=True,
            location=mirror.address + mirror.query,
        )
        for mirror in mirrors.MIRRORS
    ]
    if checksum:
        return archives
    return [*archives, SingleFiles(mirrors.GITHUB, mirrors.GITHUB_FILES, mirrors.GITHUB_EXTRAS)]


def _named(named: str, checksum: str) -> Source:
    """The source that the user means."""
    if streams.is_http(named):
        return Archive(_without_password(named), checksum, demanded=bool(checksum), location=named)
    path = _path(named)
    if os.path.isdir(path):
        if checksum:
            raise FetchError(f"{path}: is a folder, and a checksum is of an archive: leave it out, or name the archive")
        return Folder(path)
    if not os.path.exists(path):
        raise FetchError(f"{path}: there is no such file or folder")
    return Archive(path, checksum, demanded=bool(checksum))


def _path(named: str) -> str:
    """The absolute path that a path or a file URL means."""
    if sys.platform == "win32":
        named = re.sub('"$', r"\\", named)  # what is left of a quoted path that ends in a backslash, as "E:\" does
    if "://" not in named and not named.lower().startswith("file:"):
        return os.path.abspath(os.path.expanduser(named))
    scheme, _, rest = named.partition(":")
    if scheme.lower() != "file":
        shown = _without_password(named)
        raise FetchError(f"{shown}: a source is an http, https or file URL, or the path of an archive or a folder")
    from urllib.request import url2pathname  # slow to import, and seldom needed

    host, _, path = rest[2:].partition("/") if rest.startswith("//") else ("", "", rest.lstrip("/"))
    if host not in ("", "localhost"):
        raise FetchError(f"{_without_password(named)}: a file URL names a file of this machine, as file:///path does")
    try:
        return os.path.abspath(url2pathname("/" + path))
    except OSError as error:  # Windows' own, for a drive that is none
        raise FetchError(f"{named}: cannot be read as a file URL, as file:///C:/path can: {error}") from None


def _without_password(url: str) -> str:
    return re.sub("^([^:]*://)[^/?#]*@", r"\1", url)
