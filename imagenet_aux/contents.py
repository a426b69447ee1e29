"""The eight files and their published digests, which tell whether a set is the published one."""

from __future__ import annotations

import hashlib
import os
import sys
from typing import Any, Callable, Iterable, Iterator, NamedTuple

# SHA-256 (64 digits) or, where nothing else is known of a file, the id that git gives its bytes (40 digits).
# Each digest is one that independent public repositories agree on.
FILES: dict[str, str] = {
    "det_synset_words.txt": "7b526fc8f4e4ed27a6b71d83dfec93c7ab2906b7cd257b996357bbe1aacf69ce",
    "imagenet.bet.pickle": "e77f4e9a9130e35385d2896c3d287d3a3f8836c9",
    "imagenet_mean.binaryproto": "b5863836b6777bdb3d336d94c791864500e2aebb49f7c2bf3d20110223da244f",
    "synset_words.txt": "acf75ef0abe89694b19056e0796401068b459c457baa30335f240c7692857355",
    "synsets.txt": "70002b0ff5de60a3a17a82dbfcff291931f96225ddf941ad2e182fc39e183d15",
    "test.txt": "fecd6a03eb9f74811e52791295f4ddf62d4b8b6b31de2c73eafae7e9fbd896ee",
    "train.txt": "39ce41b8efe238c4970ce04283407a3c2290711d",
    "val.txt": "4138c0cd92d2dffea9353a9339c9f352361b7c6c267d2ff989b366f154188257",
}

# What any source of them may cost, in bytes on the line, unpacked, or on the disk: about three times what they take.
MAX_BYTES = 200 << 20

_CHUNK = 1 << 20


class File(NamedTuple):
    """One of the eight files, as it stands in a folder.

    Attributes
    ----------
    name : str
        One of `FILES`.
    size : int
        In bytes.
    lines : int or None
        Number of line feeds; None where the file is not text.
    proved : bool
        Whether a published digest vouches for it.
    """

    name: str
    size: int
    lines: int | None
    proved: bool


def is_text(name: str) -> bool:
    """Whether the file of that name is made of lines."""
    return name.endswith(".txt")


def is_published(path: str) -> bool:
    """Whether the file at *path* is, byte for byte, the published one of its name.

    Parameters
    ----------
    path : str
        Ends in one of the names of `FILES`.

    Returns
    -------
    bool

    Raises
    ------
    KeyError
        If its name is none of `FILES`.
    OSError
        If it cannot be read.
    """
    published = FILES[os.path.basename(path)]
    if len(published) == 64:
        digest = hasher("sha256")
    else:
        digest = hasher("sha1")
        digest.update(b"blob %d\0" % os.path.getsize(path))  # how git begins what it hashes
    for chunk in _chunks(path):
        digest.update(chunk)
    return bool(digest.hexdigest() == published)


def examine(folder: str) -> Iterator[File]:
    """Each of the eight files that stands in *folder*, read once for its lines and once for its digest.

    Parameters
    ----------
    folder : str
        Its path.

    Yields
    ------
    File
        In the order of `FILES`.

    Raises
    ------
    OSError
        If one of them cannot be read.
    """
    for name in FILES:
        path = os.path.join(folder, name)
        if os.path.isfile(path):
            lines = sum(chunk.count(b"\n") for chunk in _chunks(path)) if is_text(name) else None
            yield File(name, os.path.getsize(path), lines, is_published(path))


def absent(files: Iterable[File]) -> list[str]:
    """The names of the eight that are not among the files."""
    there = {file.name for file in files}
    return [name for name in FILES if name not in there]


def hasher(algorithm: str) -> Any:
    """A hashlib object that also works where policy bars MD5 and SHA-1 from guarding secrets; here they name files."""
    new: Callable[..., Any] = getattr(hashlib, algorithm)
    return new(usedforsecurity=False) if sys.version_info >= (3, 9) else new()


def _chunks(path: str) -> Iterator[bytes]:
    with open(path, "rb") as file:
        while True:
            try:
                chunk = file.read(_CHUNK)
            except OSError as error:
                error.filename = path  # open names the file by itself
                raise
            if not chunk:
                return
            yield chunk
