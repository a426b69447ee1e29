"""Source by source: open, unpack into a staging folder, verify, publish."""

from __future__ import annotations

import logging
import os
from typing import Callable, Iterable, Iterator, NamedTuple

from . import contents, sources
from .contents import File
from .errors import FetchError, SourceError
from .sources import Source
from .staging import Staging
from .streams import Stream

_log = logging.getLogger(__name__)

_MAX_STARTS = 5

Watch = Callable[[Stream], None]


class Outcome(NamedTuple):
    """What was delivered.

    Attributes
    ----------
    source : str
        The URL or path that served.
    files : list of File
        Those that are there.
    """

    source: str
    files: list[File]

    @property
    def verified(self) -> bool:
        """Whether every file is proved against a digest, the archive's or its own."""
        return all(file.proved for file in self.files)


def fetch(named: str, checksum: str, target: str, watch: Watch) -> Outcome:
    """Put the set into a folder, or leave the folder as it is.

    Parameters
    ----------
    named : str
        The source: a URL or a path; '' for the mirrors.
    checksum : str
        MD5 or SHA-256 that the archive must have, in hex; '' for any.
    target : str
        The folder. Those of the eight files that it holds are replaced together.
    watch : callable
        Called with what is being read, whenever some of it has been.

    Returns
    -------
    Outcome

    Raises
    ------
    FetchError
        If no source could deliver, with the reason of each; or if the files cannot be written.
    """
    reasons = []
    candidates = sources.choose(named, checksum)
    for source in candidates:
        _log.info("asking %s", source.address)
        try:
            return _deliver(source, target, watch)
        except SourceError as error:
            reasons.append(f"{source.address}: {error}")
            if source is not candidates[-1]:
                _log.warning("%s", reasons[-1])
    if len(candidates) > 1:
        reasons.insert(0, "none of the sources could serve; try later, or name an archive or a folder of your own:")
    raise FetchError("\n".join(reasons))


def _deliver(source: Source, target: str, watch: Watch) -> Outcome:
    """Stage what a source has, and publish it once it is proved."""
    with Staging(target) as staging:
        lines = _stage(source, staging, watch)
        files = [_staged_file(source, staging.file(name), lines[name]) for name in contents.FILES if name in lines]
        accepted = _accepted(source, files)
        _warn_of(source, accepted)
        staging.publish([file.name for file in accepted])
    return Outcome(source.address, accepted)


def _stage(source: Source, staging: Staging, watch: Watch) -> dict[str, int | None]:
    """Write what a source has to the staging folder; the names and their numbers of lines."""
    start = 1
    while True:
        is_last = start == _MAX_STARTS
        try:
            return _stage_once(source, staging, watch, is_last)
        except SourceError as error:
            if not source.may_differ(error):
                raise
            if is_last:
                raise SourceError(f"{error} (given up after {start} starts)") from None
            _log.warning("%s: %s; starting over", source.address, error)
        start += 1


def _stage_once(source: Source, staging: Staging, watch: Watch, is_last: bool) -> dict[str, int | None]:
    """The same in one go. A file that need not be had ends it only while there is another start."""
    lines = {}
    budget = _Budget()
    for member in source.members():
        try:
            lines[member.name] = staging.write(member.name, _watched(budget.spent_on(member.chunks), source, watch))
        except SourceError as error:
            if member.name not in source.optional or (source.may_differ(error) and not is_last):
                raise
            _log.warning("%s: %s", source.address, error)
    return lines


class _Budget:
    """What all files of a set together may take on a disk."""

    def __init__(self) -> None:
        self._left = contents.MAX_BYTES

    def spent_on(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """The same pieces, for as long as they can be paid for."""
        for chunk in chunks:
            self._left -= len(chunk)
            if self._left < 0:
                raise SourceError(f"gives more than {contents.MAX_BYTES >> 20} MiB; that cannot be right")
            yield chunk


def _watched(chunks: Iterable[bytes], source: Source, watch: Watch) -> Iterator[bytes]:
    for chunk in chunks:
        if source.stream:
            watch(source.stream)
        yield chunk


def _staged_file(source: Source, path: str, lines: int | None) -> File:
    return File(os.path.basename(path), os.path.getsize(path), lines, source.proved or contents.is_published(path))


def _accepted(source: Source, files: list[File]) -> list[File]:
    """Those of the files that may be published; raises `SourceError` where that is not enough."""
    if not files:
        raise SourceError(f"holds none of the eight files: {', '.join(contents.FILES)}")
    if not source.ours:
        return files
    proved = [file for file in files if file.proved]
    lacking = [name for name in contents.absent(proved) if name not in source.optional]
    if lacking:
        raise SourceError(f"does not give the published {', '.join(lacking)}")
    return proved


def _warn_of(source: Source, files: list[File]) -> None:
    """Name those that are not the published ones, and those that are not there."""
    unproved = [file.name for file in files if not file.proved]
    absent = contents.absent(files)
    for reason, names in (("not the published file, kept as your own", unproved), ("delivered without", absent)):
        if names:
            _log.warning("%s: %s: %s", source.address, reason, ", ".join(names))
