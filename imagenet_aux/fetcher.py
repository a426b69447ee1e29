"""Fetch the dataset from the first source that works: transfer, unpack, stage, verify, publish."""

from __future__ import annotations

import logging
import os
from typing import Iterable, Mapping, NamedTuple

from . import archive, sources
from .errors import ContentError, FetchError, SourceError, TruncatedError, redact
from .manifest import ARCHIVE_NAME, MANIFEST, MAX_BYTES, Manifest, Source
from .staging import Staging, remove_leftovers, staging_folder
from .streams import Abort, LocalFile, Stream, Watch, is_http, tee
from .verify import File, digest_name, inspect_chunks, inspect_file, inspect_folder, missing, new_hash

_log = logging.getLogger(__name__)


class Result(NamedTuple):
    """The result of a successful fetch."""

    source: str  # the URL or path of the source, without credentials; *folder* if nothing was fetched
    folder: str  # the absolute path of the target folder
    files: list[File]  # in manifest order

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
    """Fetch the dataset into a folder; on failure, leave it unchanged.

    Parameters
    ----------
    source : str or path, optional
        The only source (http, https or file URL, or path of an archive or of a folder), or the mirror to try first. By
        default, the built-in mirrors, unless the target folder already contains all published files.
    into : str or path, optional
        The target folder.
    checksum : str, optional
        Expected MD5 or SHA-256 of the archive, in hex. Excludes sources that are not archives.
    replace : bool, optional
        Whether to replace files that differ from the published ones, and to remove dataset files missing from *source*.
    manifest : Manifest, optional
        The dataset's file names, digests and mirrors.
    watch : callable, optional
        Called with the `Stream` for each chunk and at least twice a second while waiting; exceptions abort the fetch.

    Returns
    -------
    Result

    Raises
    ------
    FetchError
        If every source fails, or the files cannot be written.
    """
    candidates = sources.resolve(os.fspath(source or ""), checksum, manifest)
    target = target_folder(into)
    existing = None if source or checksum else _reuse_target(target, manifest)
    return existing or _fetch_first(candidates, target, replace, manifest, watch)


def target_folder(into: str | os.PathLike[str]) -> str:
    """Return the absolute path of the target folder."""
    if not os.fspath(into):
        raise FetchError("target: expected a folder, got an empty path")
    return sources.absolute_path(into)


def _reuse_target(target: str, manifest: Manifest) -> Result | None:
    """Return a result if the target already contains all published files, after removing leftovers there."""
    try:
        result = Result(target, target, inspect_folder(target, manifest))
    except OSError:  # such as a missing folder
        return None
    if not result.verified or missing(result.files, manifest):
        return None
    _log.info("%s already contains the files", target)
    remove_leftovers(target)
    return result


def _fetch_first(candidates: list[Source], target: str, replace: bool, manifest: Manifest, watch: Watch) -> Result:
    """Return the result of the first source that works."""
    lock_wait = Stream("another process", watch)  # reports waits for a lock
    failures: list[str] = []
    for candidate in candidates:
        address = redact(candidate.address)
        _log.info("trying %s", address)
        allow_slow = candidate is candidates[-1]
        try:
            with staging_folder(target, lock_wait.report) as staging:
                files = _Fetch(candidate, staging, manifest, watch, allow_slow).stage()
                for failure in failures:  # if every source fails, they are in the error instead
                    _log.warning("%s", failure)
                staging.publish([file.name for file in files], manifest, replace)
                return Result(address, target, files)
        except Abort as abort:
            raise abort.args[0] from None
        except SourceError as error:
            failures.append(f"{address}: {error}")
    if len(candidates) == 1:
        raise FetchError(*failures)
    raise FetchError(
        f"none of the {len(candidates)} mirrors could be reached. "
        f"Download {ARCHIVE_NAME} elsewhere and pass --url=PATH "
        "(to a dependency --adr.NAME.url=PATH, without CM just PATH). Reasons:",
        *failures,
    )


class _Fetch(NamedTuple):
    """A fetch from one source into a staging folder.

    A source is accepted on this condition (*custom*: the user supplied the source or the digest):

    - custom, with a digest: the archive matches it
    - custom, without one: none
    - mirror, with a digest: the archive matches it, or each file matches its own
    - mirror, without one: each file matches its own
    """

    source: Source
    staging: Staging
    manifest: Manifest
    watch: Watch
    allow_slow: bool

    def stage(self) -> list[File]:
        """Stage and verify the source's files, and return them in manifest order."""
        if self.source.locations is None:
            files = self._stream(self.source.address).deliver(self._unpack)
        else:
            files = self._stage_files(self.source.locations)
        if not files:
            raise SourceError(f"contains none of the expected files: {', '.join(self.manifest.files)}")
        missing_names = missing(files, self.manifest)
        missing_required = [name for name in missing_names if name not in self.source.optional]
        if missing_required and not self.source.is_custom:
            raise SourceError(f"missing files: {', '.join(missing_required)}")
        differing = [file.name for file in files if not file.verified]
        if differing:  # only from a user-supplied source without a checksum
            _log.warning("differs from the published file: %s", ", ".join(differing))
        if missing_names:
            _log.warning("missing from the source: %s", ", ".join(missing_names))
        return sorted(files, key=lambda file: list(self.manifest.files).index(file.name))

    def _stage_files(self, locations: Mapping[str, str]) -> list[File]:
        """Stage the files that the source serves individually; skip optional files that fail."""
        files: list[File] = []
        for name, location in locations.items():
            try:
                files.append(self._stage_file(name, location, MAX_BYTES - sum(file.size for file in files)))
            except SourceError as error:
                if name not in self.source.optional:
                    raise SourceError(f"{name}: {error}") from None
                _log.warning("%s: %s: %s", redact(self.source.address), name, error)
        return files

    def _stage_file(self, name: str, location: str, limit: int) -> File:
        """Stage a file that the source serves individually, of at most *limit* bytes."""
        stream = self._stream(location, limit)
        return stream.deliver(lambda chunks: self._write(name, stream.size, chunks))

    def _stream(self, location: str, limit: int = MAX_BYTES) -> Stream:
        """Return the stream of a URL or a path."""
        if not is_http(location):
            return LocalFile(location, self.watch, limit)
        try:
            from .download import Download  # imports requests, which local files do not need
        except ImportError as error:
            raise FetchError(f"HTTP requires the requests package: {error}. Run: pip install requests") from None
        return Download(location, self.watch, limit, self.allow_slow)

    def _unpack(self, chunks: Iterable[bytes]) -> list[File]:
        """Stage the files in an archive, and verify them by the archive's digest or their own."""
        digest = self.source.digest
        if not digest:
            return archive.unpack(chunks, self.manifest.files, self._write)
        hasher = new_hash(digest)
        files = archive.unpack(tee(chunks, hasher.update), self.manifest.files, self._write)
        if hasher.hexdigest() == digest:
            return [file._replace(verified=True) for file in files]
        if self.source.is_custom:
            raise TruncatedError(  # without a length, trailing bytes may be missing
                f"{digest_name(digest)} mismatch: expected {digest}, got {hasher.hexdigest()}. "
                "Check the value, or download the archive again"
            )
        differing = [file.name for file in files if not file.verified]
        if differing:
            raise ContentError(f"differs from the published files: {', '.join(differing)}")
        return files

    def _write(self, name: str, size: int | None, chunks: Iterable[bytes]) -> File:
        """Write a staged file and compute its digest."""
        # If the archive must match, hashing the files too would only add a tenth to the time.
        expected = "" if self.source.is_custom and self.source.digest else self.manifest.files[name]
        with self.staging.create(name) as file:
            result = inspect_chunks(name, tee(chunks, file.write), expected, size or 0)
            if size is None:  # unknown before, but a git blob id depends on it: hash the written file
                file.flush()
                result = inspect_file(self.staging.path(name), self.manifest)
        must_match = not self.source.is_custom and not self.source.digest  # with a digest, `_unpack` decides
        if must_match and not result.verified:
            error = TruncatedError if size is None else ContentError
            raise error(f"{name} differs from the published file")
        return result
