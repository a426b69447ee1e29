"""Exceptions, each with one sentence for the user."""

from __future__ import annotations

import re

_MAX_QUOTED = 200


class FetchError(Exception):
    """The files could not be fetched; the text tells the user why and what to do."""

    def __init__(self, text: str) -> None:
        super().__init__(printable(redact(text)))


class SourceError(FetchError):
    """One source failed; another one may work."""


class ContentError(SourceError):
    """The bytes received are not the expected file.

    Attributes
    ----------
    may_be_incomplete : bool
        Whether missing bytes at the end could have caused the error.
    """

    may_be_incomplete = False


class VerificationError(ContentError):
    """A digest does not match."""

    may_be_incomplete = True


def printable(text: str) -> str:
    r"""Return the text with control characters escaped (``\x1b``), so that it cannot control a terminal."""
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


def shorten(value: object) -> str:
    """Return a value that comes from a server or an archive, cut to at most 200 characters."""
    text = str(value)
    return text if len(text) <= _MAX_QUOTED else text[: _MAX_QUOTED - 3] + "..."


def redact(text: str) -> str:
    """Return the text without the user names and passwords of URLs in it."""
    return re.sub(r"//[^/?#\s]*@", "//", text)
