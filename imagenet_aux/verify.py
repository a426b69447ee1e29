"""Verify files against the digests in a manifest."""

from __future__ import annotations

import hashlib
import os
import stat
import sys
from typing import Any, Iterable, NamedTuple

from .manifest import MANIFEST, Manifest

_CHUNK_BYTES = 1 << 20
# Keyed by the number of hex digits. Archive digests are MD5 or SHA-256; file digests are SHA-256 or git blob ids.
_ALGORITHMS = {32: "MD5", 40: "SHA-1", 64: "SHA-256"}


class File(NamedTuple):
    """One of the dataset's files."""

    name: str  # one of the manifest's file names
    size: int  # in bytes
    lines: int | None  # number of line feeds; None if the file is not text
    verified: bool  # whether the file matches its published digest


class FileInspector:
    """Hash a file and count its lines, chunk by chunk; a git blob id also includes *size*, the file's size in bytes."""

    def __init__(self, name: str, expected: str, size: int) -> None:
        self._name = name
        self._expected = expected
        self._hash: Any = new_hash(expected) if expected else None  # without an expected digest, count only
        self._is_text = name.endswith(".txt")
        self._size = self._lines = 0
        if self._hash and self._hash.name == "sha1":
            self._hash.update(b"blob %d\0" % size)

    def update(self, chunk: bytes) -> None:
        """Add the next bytes."""
        if self._hash:
            self._hash.update(chunk)
        self._size += len(chunk)
        if self._is_text:
            self._lines += chunk.count(b"\n")

    def result(self) -> File:
        """Return the file's properties, based on the bytes added so far."""
        lines = self._lines if self._is_text else None
        verified = bool(self._hash) and self._hash.hexdigest() == self._expected
        return File(self._name, self._size, lines, verified)


def inspect_file(path: str, manifest: Manifest) -> File:
    """Read and verify one of the dataset's files, identified by its base name."""
    name = os.path.basename(path)
    with open(path, "rb") as file:
        inspector = FileInspector(name, manifest.files[name], os.fstat(file.fileno()).st_size)
        while True:
            try:
                chunk = file.read(_CHUNK_BYTES)
            except OSError as error:
                error.filename = path  # only open() sets it
                raise
            if not chunk:
                return inspector.result()
            inspector.update(chunk)


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
    present = os.listdir(folder)
    paths = [os.path.join(folder, name) for name in manifest.files if name in present]
    return [inspect_file(path, manifest) for path in paths if _is_regular_file(path)]


def _is_regular_file(path: str) -> bool:
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except FileNotFoundError:
        return False


def missing(files: Iterable[File], manifest: Manifest) -> list[str]:
    """Return the names of the dataset's files that are not in *files*."""
    present = {file.name for file in files}
    return [name for name in manifest.files if name not in present]


def new_hash(digest: str) -> Any:
    """Return a new hash object for a hex digest's algorithm; MD5 and SHA-1 also work in FIPS mode."""
    new = getattr(hashlib, digest_name(digest).replace("-", "").lower())
    return new(usedforsecurity=False) if sys.version_info >= (3, 9) else new()


def digest_name(digest: str) -> str:
    """Return the name of a hex digest's algorithm, based on its length."""
    return _ALGORITHMS[len(digest)]


def is_archive_digest(text: str) -> bool:
    """Return whether *text* is a lower-case hex MD5 or SHA-256."""
    return len(text) in (32, 64) and not text.strip("0123456789abcdef")
