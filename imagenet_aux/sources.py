"""Where the set can be had: the mirrors with their digests, or what the user named.

A source yields names and bytes, whatever it is made of: an archive, a folder, or a list of single files.
"""

from __future__ import annotations

import os
import re
import sys
from typing import TYPE_CHECKING, Collection, Iterator, NamedTuple, Union

from . import archive, contents
from .archive import Member
from .errors import FetchError, SourceError, StartOver

if TYPE_CHECKING:
    from .download import Download


class Mirror(NamedTuple):
    """A host of ``caffe_ilsvrc12.tar.gz``.

    Attributes
    ----------
    address : str
        How it is known, and shown.
    digest : str
        MD5 or SHA-256 of the archive that it serves, in hex; '' where none is known.
    query : str
        What the address needs in order to answer with the archive.
    """

    address: str
    digest: str
    query: str = ""


# In the order in which they are asked.
MIRRORS = (
    Mirror(
        "https://www.dropbox.com/s/92n2fyej3lzy3s3/caffe_ilsvrc12.tar.gz",
        "ee346d67141e476df9c1a3f813552503",
        "?dl=1",  # without it, a page about the archive
    ),
    Mirror(
        "http://dl.caffe.berkeleyvision.org/caffe_ilsvrc12.tar.gz",
        "e35c0c1994a21f7d8ed49d01881ce17ab766743d3b0372cdc0183ff4d0dfc491",
    ),
    Mirror("https://armi.in/files/caffe_ilsvrc12.tar.gz", "ee346d67141e476df9c1a3f813552503"),
    Mirror("https://download.openmmlab.com/mmclassification/datasets/imagenet/meta/caffe_ilsvrc12.tar.gz", ""),
)

# The same files lie in the history of repositories on GitHub, under addresses that are their content.
GITHUB = "https://raw.githubusercontent.com/BVLC/caffe/e155a2d1a0417dd3540002742a567c96b29b3ed6/data"
_GITHUB_FORK = "https://raw.githubusercontent.com/xjsXjtu/caffe/d72c9e722fe951609da2dc37355cf3b621cbb6a6/data/ilsvrc12"
_GITHUB_FILES = {
    "synsets.txt": f"{GITHUB}/ilsvrc_2012_synsets.txt",
    "synset_words.txt": f"{GITHUB}/ilsvrc_2012_synset_words.txt",
    "imagenet_mean.binaryproto": f"{GITHUB}/ilsvrc_2012_mean.binaryproto",
    "val.txt": f"{GITHUB}/ilsvrc_2012_val.txt",
    "test.txt": f"{GITHUB}/ilsvrc_2012_test.txt",
    "train.txt": f"{GITHUB}/ilsvrc_2012_train.txt",
}
_GITHUB_EXTRAS = {
    "det_synset_words.txt": f"{_GITHUB_FORK}/det_synset_words.txt",
    "imagenet.bet.pickle": f"{_GITHUB_FORK}/imagenet.bet.pickle",
}

_CHUNK = 1 << 18
_BEFORE_A_PAGE = b"\xef\xbb\xbf \t\r\n"
_MOST_BEFORE_A_PAGE = 4096
_DIGEST_NAMES = {32: "MD5", 64: "SHA-256"}


class LocalFile:
    """A file on disk, as an iterable of bytes that counts like a `Download`."""

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

        Raises
        ------
        SourceError
            While iterating, for whatever keeps it from delivering.
        """
        raise NotImplementedError

    def may_differ(self, error: SourceError) -> bool:
        """Whether the same source, asked again, may not meet that error."""
        if isinstance(error, StartOver):
            return True
        if isinstance(error, archive.CutShort) and self.stream and self.stream.size is None:
            return True  # a server that gives no length: a cut looks like the end
        return isinstance(error, archive.ArchiveError) and bool(self.stream and self.stream.joined)

    def _read(self, location: str) -> Iterator[bytes]:
        """The bytes of a URL or a path, unless they are those of a web page."""
        self.stream = _open(location)
        chunks = iter(self.stream)
        start = b""
        for chunk in chunks:
            start += chunk
            if start.strip(_BEFORE_A_PAGE) or len(start) > _MOST_BEFORE_A_PAGE:
                break
        if start.lstrip(_BEFORE_A_PAGE).startswith(b"<"):  # none of the files does, and no archive
            raise SourceError("is a page of HTML or XML, not the file: the link may have expired, or want a log-in")
        yield start
        yield from chunks

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

    def _compare(self, digest: str) -> None:
        self.proved = digest == self._digest
        if self._demanded and not self.proved:
            name = _DIGEST_NAMES[len(digest)]
            kind = StartOver if self.stream and self.stream.joined else SourceError
            raise kind(f"its {name} should be {self._digest}, and is {digest}: one of the two is the wrong one")


class Folder(Source):
    """The set as a folder that holds the files."""

    def members(self) -> Iterator[Member]:
        """The files of the set that stand in the folder."""
        for name in contents.FILES:
            path = os.path.join(self.address, name)
            if os.path.lexists(path):
                yield Member(name, self._read_one(name, path))


class SingleFiles(Source):
    """The set as a file for each address.

    Parameters
    ----------
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

    Raises
    ------
    FetchError
        If these are no orders that could be carried out.
    """
    checksum = checksum.lower()
    if checksum and not re.fullmatch("[0-9a-f]{32}|[0-9a-f]{64}", checksum):
        raise FetchError(f"a checksum is an MD5 (32 hex digits) or a SHA-256 (64 hex digits), not {checksum!r}")
    address = named.partition("?")[0].rstrip("/")
    if checksum and address == GITHUB:
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
        for mirror in MIRRORS
    ]
    return archives if checksum else [*archives, SingleFiles(GITHUB, _GITHUB_FILES, _GITHUB_EXTRAS)]


def _named(named: str, checksum: str) -> Source:
    """The source that the user means."""
    if _is_http(named):
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
        raise FetchError(f"{named}: this is no URL of a file: {error}") from None


def _without_password(url: str) -> str:
    return re.sub("^([^:]*://)[^/?#]*@", r"\1", url)


def _is_http(location: str) -> bool:
    return location.lower().startswith(("http://", "https://"))


def _open(location: str) -> Stream:
    if _is_http(location):
        try:
            from .download import Download  # brings requests, which a local source does without
        except ImportError as error:
            raise FetchError(f"http needs the package requests: pip install requests ({error})") from None

        return Download(location)
    if not os.path.isfile(location):
        raise SourceError(
            f"{location} is no plain file" if os.path.exists(location) else f"there is no file {location}"
        )
    return LocalFile(location)
