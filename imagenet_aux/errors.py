"""What can go wrong, in sentences for the person who called."""


class FetchError(Exception):
    """The set cannot be delivered; the text says what was wanted, what came and what to do."""


class SourceError(FetchError):
    """One source cannot deliver the set; another one may."""


class StartOver(SourceError):
    """What has come so far is of no use, but asking the same source again may help."""
