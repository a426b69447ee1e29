"""Verify files against the digests in a manifest."""

from __future__ import annotations

import hashlib
import os
from typing import Any, Iterable, NamedTuple

from .manifest import MANIFEST, MAX_BYTES, Manifest

_CHUNK_BYTES = 1 << 20
_ALGORITHMS = {32: "MD5", 40: "SHA-1", 64: "SHA-256"}  # by number of digits


class File(NamedTuple):
    """One of the dataset's files."""

    name: str  # one of the manifest's file names
    size: int  # in bytes
    lines: int | None  # number of line feeds; None if the file is not text, or too large
    verified: bool  # whether the file matches its published digest, or its archive the expected digest


def inspect_chunks(name: str, chunks: Iterable[bytes], expected: str, size: int) -> File:
    """Hash a file and count its lines; without an *expected* digest, only count. A git blob id includes the *size*."""
    hasher = new_hash(expected) if expected else None
    if hasher and hasher.name == "sha1":
        hasher.update(b"blob %d\0" % size)
    is_text = name.endswith(".txt")  # count() holds the GIL, unlike hashing and writing: skip large binary files
    received = lines = 0
    for chunk in chunks:
        if hasher:
            hasher.update(chunk)
        received += len(chunk)
        if is_text:
            lines += chunk.count(b"\n")
    verified = hasher is not None and hasher.hexdigest() == expected
    return File(name, received, lines if is_text else None, verified)


def inspect_file(path: str, manifest: Manifest) -> File:
    """Verify one of the dataset's files, identified by its base name."""
    name = os.path.basename(path)
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > MAX_BYTES:
            return File(name, size, None, False)  # reading it could take hours
        chunks = iter(lambda: file.read(_CHUNK_BYTES), b"")
        try:
            return inspect_chunks(name, chunks, manifest.files[name], size)
        except OSError as error:
            error.filename = path  # only open() sets it
            raise


def inspect_folder(folder: str | os.PathLike[str], manifest: Manifest = MANIFEST) -> list[File]:
    """Verify each of the dataset's files in a folder against its published digest.

    Parameters
    ----------
    folder : str or path
        The folder to inspect.
    manifest : Manifest, optional
        The expected file names and digests.

    Returns
    -------
    list of File
        The files that exist, in manifest order.

    Raises
    ------
    OSError
        If the folder or a file cannot be read.
    """
    with os.scandir(folder) as entries:
        paths = {entry.name: entry.path for entry in entries if entry.name in manifest.files and entry.is_file()}
    return [inspect_file(paths[name], manifest) for name in manifest.files if name in paths]


def missing(files: Iterable[File], manifest: Manifest) -> list[str]:
    """Return the names of the dataset's files that are not in *files*."""
    present = {file.name for file in files}
    return [name for name in manifest.files if name not in present]


def new_hash(digest: str) -> Any:
    """Return a new hash object for a hex digest's algorithm; MD5 and SHA-1 also work in FIPS mode."""
    name = digest_name(digest).replace("-", "")
    return hashlib.new(name, usedforsecurity=False)  # type: ignore[call-arg]  # Python 3.8 ignores the argument


def digest_name(digest: str) -> str:
    """Return the name of a hex digest's algorithm, based on its length."""
    return _ALGORITHMS[len(digest)]
