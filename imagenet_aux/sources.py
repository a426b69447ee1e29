"""Turn the user's source, or the built-in mirrors, into a list of sources to try."""

from __future__ import annotations

import os
import re
import sys
from typing import NamedTuple

from .errors import FetchError, redact, shorten
from .manifest import Manifest, Mirror
from .transfer import is_http
from .verify import is_archive_digest


class Transfer(NamedTuple):
    """One thing to download or read: an archive, or one of the dataset's files."""

    location: str  # HTTP(S) URL or local path
    name: str = ""  # of the file; empty for an archive
    optional: bool = False  # whether the source is complete without it


class Source(NamedTuple):
    """A place that has the dataset, as one archive or as single files."""

    address: str  # URL or path, without a password
    transfers: list[Transfer]
    builtin: bool = False  # a built-in mirror, of which every file must be verified
    digest: str = ""  # of the archive, if known
    require_match: bool = False  # whether an archive with another digest is refused, whatever it holds


def resolve(source: str, checksum: str, manifest: Manifest) -> list[Source]:
    """Return the sources to try, in order: the user's, or the built-in mirrors, of which the user's choice is first."""
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
    """Return a URL without its query and trailing slash, its scheme and host in lower case."""
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
    except NotADirectoryError:
        return Source(path, [Transfer(path)], digest=checksum, require_match=bool(checksum))
    except OSError as error:
        raise FetchError(f"{path} cannot be read: {error.strerror}") from None
    if checksum:
        raise _no_archive(path)
    return Source(path, [Transfer(os.path.join(path, name), name) for name in manifest.files if name in present])


def _no_archive(address: str) -> FetchError:
    return FetchError(f"{address} holds single files, but a checksum needs an archive. Leave --checksum out")


def _local_path(source: str) -> str:
    """Return the absolute path that a path or a file URL denotes."""
    if sys.platform == "win32":
        source = re.sub('"$', r"\\", source)  # cmd passes "E:\" as E:", because \" escapes the quote
    if "://" not in source and not source.lower().startswith("file:"):
        return os.path.abspath(os.path.expanduser(source))
    scheme, _, rest = source.partition(":")
    if scheme.lower() != "file":
        raise FetchError(f"{source}: expected an http, https or file URL, or the path of an archive or a folder")
    from urllib.request import url2pathname  # slow to import and rarely needed

    host, _, path = rest[2:].partition("/") if rest.startswith("//") else ("", "", rest.lstrip("/"))
    if host not in ("", "localhost"):
        raise FetchError(f"{source}: expected a file URL of this machine, such as file:///path")
    try:
        return os.path.abspath(url2pathname("/" + path))
    except OSError as error:  # on Windows, for an invalid drive
        raise FetchError(f"{source}: invalid file URL: {error}. Expected file:///C:/path") from None
