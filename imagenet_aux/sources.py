"""Build the list of sources to try, from the user's source or the built-in mirrors."""

from __future__ import annotations

import os
import re
import sys
from typing import NamedTuple

from .errors import FetchError, redact, shorten
from .manifest import Manifest, Mirror
from .streams import is_http
from .verify import is_archive_digest


class Transfer(NamedTuple):
    """One archive, or one of the dataset's files, to download or read."""

    location: str  # HTTP(S) URL or local path
    name: str = ""  # file name; empty for an archive
    optional: bool = False  # if True, the source is complete without this file


class Source(NamedTuple):
    """A built-in mirror, or a user-supplied URL, archive or folder."""

    address: str  # URL or path, without a password
    transfers: list[Transfer]
    builtin: bool = False  # if True, every file must match its published digest
    digest: str = ""  # expected digest of the archive, if known
    require_match: bool = False  # if True, reject an archive with a different digest, even if its files are verified


def resolve(source: str, checksum: str, manifest: Manifest) -> list[Source]:
    """Return the sources to try, in order: the user's source, or the built-in mirrors with the selected one first."""
    checksum = checksum.lower()
    if checksum and not is_archive_digest(checksum):
        raise FetchError(
            f"checksum: expected an MD5 (32 hex digits) or a SHA-256 (64 hex digits), got {shorten(repr(checksum))}"
        )
    address = _normalized(source)
    first = next((mirror for mirror in manifest.mirrors if _normalized(mirror.address) == address), None)
    if source and not first:
        return [_user_source(source, checksum, manifest)]
    if first and first.files and checksum:
        raise _no_archive(first.address)
    mirrors = sorted(manifest.mirrors, key=lambda mirror: mirror is not first)
    return [_mirror_source(mirror, checksum) for mirror in mirrors if not (mirror.files and checksum)]


def _normalized(address: str) -> str:
    """Strip the query and trailing slash from a URL, and lower-case its scheme and host."""
    scheme, separator, rest = address.partition("?")[0].rstrip("/").partition("://")
    host, slash, path = rest.partition("/")
    return scheme.lower() + separator + host.lower() + slash + path


def _mirror_source(mirror: Mirror, checksum: str) -> Source:
    if mirror.files:
        transfers = [Transfer(url, name, name in mirror.optional) for name, url in mirror.files.items()]
        return Source(mirror.address, transfers, builtin=True)
    transfers = [Transfer(mirror.address + mirror.query)]
    return Source(mirror.address, transfers, True, checksum or mirror.digest, require_match=bool(checksum))


def _user_source(source: str, checksum: str, manifest: Manifest) -> Source:
    if is_http(source):
        return Source(redact(source), [Transfer(source)], digest=checksum, require_match=bool(checksum))
    path = _local_path(source)
    try:
        present = set(os.listdir(path))
    except OSError as error:
        if isinstance(error, NotADirectoryError) or os.path.isfile(path):  # wine reports a different error for a file
            return Source(path, [Transfer(path)], digest=checksum, require_match=bool(checksum))
        raise FetchError(f"{path} cannot be read: {error.strerror}") from None
    if checksum:
        raise _no_archive(path)
    return Source(path, [Transfer(os.path.join(path, name), name) for name in manifest.files if name in present])


def _no_archive(address: str) -> FetchError:
    return FetchError(f"{address}: --checksum requires an archive, got individual files. Omit --checksum")


def absolute_path(path: str | os.PathLike[str]) -> str:
    """Return the absolute path, with ``~`` expanded."""
    text = os.path.abspath(os.path.expanduser(os.fspath(path)))
    if "\0" in text:
        raise FetchError(f"{text}: expected a path, got a NUL character")
    return text


def _local_path(source: str) -> str:
    """Convert a path or a file URL to an absolute path."""
    if sys.platform == "win32":
        source = re.sub('"$', r"\\", source)  # "E:\" arrives as E:", because \" is an escaped quote
    if "://" not in source and not source.lower().startswith("file:"):
        return absolute_path(source)
    scheme, _, rest = source.partition(":")
    if scheme.lower() != "file":
        raise FetchError(f"{source}: expected an http, https or file URL, or the path of an archive or folder")
    from urllib.request import url2pathname  # slow to import and rarely needed

    host, _, path = rest[2:].partition("/") if rest.startswith("//") else ("", "", rest.lstrip("/"))
    if host not in ("", "localhost"):
        raise FetchError(f"{source}: expected a local file URL, such as file:///path")
    try:
        return absolute_path(url2pathname("/" + path))
    except OSError as error:  # raised on Windows for an invalid drive
        raise FetchError(f"{source}: invalid file URL: {error}. Expected file:///C:/path") from None
