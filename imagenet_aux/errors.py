"""Exceptions whose text is shown to the user."""

import re

_MAX_QUOTED = 200
_CREDENTIALS = re.compile(r"(?<!\w)//[^/?#\\\s]*@")
# A password with an unencoded delimiter, which libraries parse as a port. Neither a port nor an IPv6 address matches.
_UNENCODED_PASSWORD = re.compile(r"(?<!\w)//[^/?#\\\s@\[]*:(?!\d*[/?#\\])\S*@")


class FetchError(Exception):
    """The files could not be fetched. The message gives the cause and the remedy."""

    def __init__(self, *lines: str) -> None:
        super().__init__("\n".join(printable(redact(line)) for line in lines))


class SourceError(FetchError):
    """One source failed; another source may work."""


class ContentError(SourceError):
    """The received bytes are not the expected file."""


class TruncatedError(ContentError):
    """The received bytes are not the expected file; truncation can be the cause, if the length is unknown."""


def printable(text: str) -> str:
    r"""Escape control characters (``\x1b``), so that the text cannot control a terminal."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def shorten(value: object) -> str:
    """Convert an untrusted value to text and truncate it to 200 characters."""
    text = str(value)
    return text if len(text) <= _MAX_QUOTED else text[: _MAX_QUOTED - 3] + "..."


def redact(text: str) -> str:
    """Remove user names and passwords from any URLs in the text, even if a password is not percent-encoded."""
    return _UNENCODED_PASSWORD.sub("//", _CREDENTIALS.sub("//", text))


def has_unencoded_password(url: str) -> bool:
    """Return whether libraries parse a URL's password as a port, because it contains an unencoded delimiter."""
    return bool(_UNENCODED_PASSWORD.search(_CREDENTIALS.sub("//", url.replace(" ", "%20"))))
