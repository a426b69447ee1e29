"""Fetch the dataset from the first source that works: transfer, unpack, stage, verify, publish."""

from __future__ import annotations

import contextlib
import logging
import os
from typing import Any, Iterable, Iterator, NamedTuple

from . import archive, sources, streams
from .errors import ContentError, FetchError, SourceError
from .manifest import ARCHIVE_NAME, MANIFEST, MAX_BYTES, Manifest
from .sources import Source
from .staging import Staging
from .streams import Stream, Watch
from .verify import File, FileInspector, digest_name, inspect_file, missing, new_hash

_log = logging.getLogger(__name__)

MIN_RATE = 10_000  # bytes per second; a slower source is abandoned if another one is left
RATE_SECONDS = 30.0  # window for measuring the rate


class Result(NamedTuple):
    """The result of a successful fetch."""

    source: str  # the URL or path that the files came from, without credentials
    folder: str  # the absolute path of the target folder
    files: list[File]  # the written files, in manifest order

    @property
    def verified(self) -> bool:
        """Whether every file is verified, by its own digest or by the archive's."""
        return all(file.verified for file in self.files)

    @property
    def paths(self) -> dict[str, str]:
        """The absolute path of each file, keyed by file name."""
        return {file.name: os.path.join(self.folder, file.name) for file in self.files}


def fetch(
    source: str | os.PathLike[str] = "",
    into: str | os.PathLike[str] = "data",
    checksum: str = "",
    replace: bool = False,
    *,
    manifest: Manifest = MANIFEST,
    watch: Watch = lambda stream: None,
) -> Result:
    """Fetch the dataset into a folder, by default from the built-in mirrors; on failure, leave it unchanged.

    Parameters
    ----------
    source : str or path, optional
        The only source: an http, https or file URL, or the path of an archive or of a folder containing the files.
    into : str or path, optional
        The target folder.
    checksum : str, optional
        Expected MD5 or SHA-256 of the archive, in hex.
    replace : bool, optional
        Whether to replace files that differ from the published ones, and to remove those missing from the source.
    manifest : Manifest, optional
        The dataset's file names, digests and mirrors.
    watch : callable, optional
        Called with the `Stream` for each chunk and twice a second while waiting; its exceptions abort the fetch.

    Returns
    -------
    Result

    Raises
    ------
    FetchError
        If every source fails, or the files cannot be written.
    """
    candidates = sources.resolve(os.fspath(source or ""), checksum or "", manifest)
    try:
        return _fetch_first(candidates, target_folder(into), replace, manifest, _aborting(watch))
    except _Abort as abort:
        raise abort.error from None


def target_folder(into: str | os.PathLike[str]) -> str:
    """Return the absolute path of the target folder."""
    if not os.fspath(into):
        raise FetchError("target: expected a folder, got an empty path")
    return sources.absolute_path(into)


class _Abort(BaseException):
    """Carries an exception from *watch* past the handlers for source and file errors."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error


def _aborting(watch: Watch) -> Watch:
    def call(stream: Stream) -> None:
        try:
            watch(stream)
        except Exception as error:
            raise _Abort(error) from None

    return call


def _fetch_first(candidates: list[Source], folder: str, replace: bool, manifest: Manifest, watch: Watch) -> Result:
    """Return the result of the first source that works."""
    failures: list[str] = []
    for candidate in candidates:
        _log.info("trying %s", candidate.address)
        is_last = candidate is candidates[-1]
        try:
            with Staging(folder) as staging:
                files = _Fetch(candidate, staging, manifest, watch if is_last else _MinimumRate(watch)).stage()
                _warn(failures, files, manifest)
                staging.publish([file.name for file in files], manifest, replace)
                return Result(candidate.address, folder, files)
        except SourceError as error:
            failures.append(f"{candidate.address}: {error}")
    if len(candidates) > 1:
        failures.insert(
            0,
            f"none of the {len(candidates)} mirrors could be reached. "
            f"Download {ARCHIVE_NAME} elsewhere and pass --url=PATH "
            "(to a dependency --adr.NAME.url=PATH, without CM just PATH). Reasons:",
        )
    raise FetchError("\n".join(failures))


class _MinimumRate:
    """Wraps *watch*: raises `SourceError` for a stream that delivers less than `MIN_RATE` bytes per second."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._stream: Stream | None = None
        self._waited, self._total = 0.0, 0  # at the start of the window

    def __call__(self, stream: Stream) -> None:
        self._watch(stream)
        if stream is not self._stream:
            self._stream, self._waited, self._total = stream, stream.waited, stream.total
        seconds = stream.waited - self._waited
        if seconds >= RATE_SECONDS:
            rate = (stream.total - self._total) / seconds
            if rate < MIN_RATE:
                raise SourceError(f"too slow: expected at least {MIN_RATE:,} bytes/s, got {rate:,.0f}")
            self._waited, self._total = stream.waited, stream.total


class _Fetch(NamedTuple):
    """A fetch from one source into a staging folder."""

    source: Source
    staging: Staging
    manifest: Manifest
    watch: Watch

    def stage(self) -> list[File]:
        """Stage and verify the source's files, and return them in manifest order."""
        files: list[File] = []
        for item in self.source.transfers:
            left = MAX_BYTES - sum(file.size for file in files)
            try:
                files += self._stage_transfer(item, left)
            except SourceError as error:
                if not item.optional:
                    raise
                _log.warning("%s: %s", self.source.address, error)
        self._require_complete(files)
        return sorted(files, key=lambda file: list(self.manifest.files).index(file.name))

    def _stage_transfer(self, item: sources.Transfer, left: int) -> list[File]:
        """Stage the files from one transfer; a single file may have at most *left* bytes."""
        stream = streams.open_stream(item.location, self.watch)
        if not item.name:
            return stream.deliver(self._unpack)
        try:
            return stream.deliver(lambda chunks: [self._receive(item.name, stream, chunks, left)])
        except SourceError as error:
            raise SourceError(f"{item.name}: {error}") from None

    def _unpack(self, chunks: Iterable[bytes]) -> list[File]:
        """Stage the files in an archive, and verify them by the archive's digest or their own."""
        digest = self.source.digest
        hasher = new_hash(digest) if digest else None
        received = _hashed(streams.reject_html(chunks), hasher)
        with contextlib.closing(archive.members(received, self.manifest.files)) as members:
            files = [self._write(*member) for member in members]
        if hasher and hasher.hexdigest() == digest:
            return [file._replace(verified=True) for file in files]
        if hasher and self.source.require_match:
            raise ContentError(
                f"{digest_name(digest)} mismatch: expected {digest}, got {hasher.hexdigest()}. "
                "Check the value, or download the archive again",
                may_be_incomplete=True,
            )
        differing = [file.name for file in files if not file.verified]
        if differing and self.source.builtin:
            raise ContentError(f"differs from the published files: {', '.join(differing)}", may_be_incomplete=True)
        return files

    def _receive(self, name: str, stream: Stream, chunks: Iterable[bytes], left: int) -> File:
        """Stage a file that the source serves individually."""
        received = streams.reject_html(chunks)  # reads the first chunk, after which stream.size is set
        limited = streams.limit_size(received, SourceError(f"larger than {MAX_BYTES >> 20} MiB in total"), left)
        return self._write(name, stream.size, limited)

    def _write(self, name: str, size: int | None, chunks: Iterable[bytes]) -> File:
        """Write a staged file and compute its digest."""
        # If the archive must match, its digest is enough: hashing the files too would add a tenth to the time.
        expected = "" if self.source.require_match else self.manifest.files[name]
        inspector = FileInspector(name, expected, size or 0)
        with self.staging.create(name) as file:
            for chunk in chunks:
                file.write(chunk)
                inspector.update(chunk)
        # A git blob id depends on the size; if that is unknown, hash the file after writing it.
        result = inspector.result() if size is not None else inspect_file(self.staging.path(name), self.manifest)
        if self.source.builtin and not self.source.digest and not result.verified:
            raise ContentError(f"{name} differs from the published file", may_be_incomplete=True)
        return result

    def _require_complete(self, files: list[File]) -> None:
        if not files:
            raise SourceError(f"contains none of the expected files: {', '.join(self.manifest.files)}")
        optional = [item.name for item in self.source.transfers if item.optional]
        required = [name for name in missing(files, self.manifest) if name not in optional]
        if required and self.source.builtin:
            raise SourceError(f"missing files: {', '.join(required)}")


def _hashed(chunks: Iterable[bytes], hasher: Any) -> Iterator[bytes]:
    """Pass chunks through; update *hasher*, if any, with each."""
    for chunk in chunks:
        if hasher:
            hasher.update(chunk)
        yield chunk


def _warn(failures: list[str], files: list[File], manifest: Manifest) -> None:
    """Log failed sources, files that differ from the published ones, and missing files."""
    for failure in failures:
        _log.warning("%s", failure)
    differing = [file.name for file in files if not file.verified]
    for problem, names in (
        ("differs from the published file", differing),
        ("missing from the source", missing(files, manifest)),
    ):
        if names:
            _log.warning("%s: %s", problem, ", ".join(names))
