"""What can go wrong, in sentences for the person who called."""


class FetchError(Exception):
    """The set cannot be delivered; the text is for the person who called."""

    def __init__(self, text: str) -> None:
        super().__init__(printable(text))


class SourceError(FetchError):
    """One source cannot deliver the set; another one may."""


class StartOver(SourceError):
    """What has come so far is of no use, but asking the same source again may help."""


def printable(text: str) -> str:
    r"""The text with ``\x1b`` and the like written out: a server or an archive must not steer the user's terminal."""
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)
