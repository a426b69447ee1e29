"""Build the list of sources to try, from the user's source or the built-in mirrors."""

from __future__ import annotations

import os
import re
import sys

from .errors import FetchError, shorten
from .manifest import Manifest, Source
from .streams import is_http


def resolve(source: str, checksum: str, manifest: Manifest) -> list[Source]:
    """Return the sources to try, in order: the user's source, or the built-in mirrors with the selected one first."""
    address = _normalize(source)
    selected = next((mirror for mirror in manifest.mirrors if _normalize(mirror.address) == address), None)
    if source and not selected:
        found = [_user_source(source, manifest)]
    else:
        found = sorted(manifest.mirrors, key=lambda each: each is not selected)  # keeps the order of the others
    if not checksum:
        return found
    digest = checksum.lower()
    if not re.fullmatch("[0-9a-f]{32}|[0-9a-f]{64}", digest):
        raise FetchError(
            f"checksum: expected an MD5 (32 hex digits) or a SHA-256 (64 hex digits), got {shorten(repr(checksum))}"
        )
    archives = [each._replace(digest=digest, is_custom=True) for each in found if each.locations is None]
    if not archives or (source and found[0].locations is not None):
        raise FetchError(f"{found[0].address}: --checksum requires an archive, got individual files. Omit --checksum")
    return archives


def _normalize(address: str) -> str:
    """Strip the query and trailing slash from a URL, and lower-case its scheme and host."""
    scheme, separator, rest = address.partition("?")[0].rstrip("/").partition("://")
    host, slash, path = rest.partition("/")
    return scheme.lower() + separator + host.lower() + slash + path


def _user_source(source: str, manifest: Manifest) -> Source:
    if is_http(source):
        # `redact` treats a space as the end of a URL, even in a password.
        return Source(source.replace(" ", "%20"), is_custom=True)
    path = _local_path(source)
    if os.path.exists(path) and not os.path.isdir(path):
        return Source(path, is_custom=True)
    try:
        present = os.listdir(path)
    except OSError as error:  # such as a path that does not exist
        raise FetchError(f"{path} cannot be read: {error.strerror}") from None
    locations = {name: os.path.join(path, name) for name in manifest.files if name in present}
    return Source(path, locations=locations, is_custom=True)


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

    host, _, path = rest[2:].partition("/") if rest.startswith("//") else ("", "", rest[1:])
    if host.lower() not in ("", "localhost") or not rest.startswith("/"):
        raise FetchError(f"{source}: expected a local file URL, such as file:///path")
    try:
        return absolute_path(url2pathname("/" + path))
    except OSError as error:  # raised on Windows for an invalid drive
        raise FetchError(f"{source}: invalid file URL: {error}. Expected file:///C:/path") from None
