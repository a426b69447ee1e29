"""Try source after source: transfer, unpack, stage, verify, publish."""

from __future__ import annotations

import contextlib
import logging
import os
from dataclasses import dataclass
from typing import Any, Iterable, Iterator, NamedTuple

from . import archive, sources, transfer
from .errors import FetchError, SourceError, VerificationError
from .manifest import ARCHIVE_NAME, MANIFEST, MAX_BYTES, Manifest
from .sources import Source
from .staging import Staging
from .transfer import Stream, Watch
from .verify import File, FileInspector, digest_name, inspect_file, missing, new_hash

_log = logging.getLogger(__name__)

MIN_RATE = 10_000  # bytes per second, below which the next source is tried


class Result(NamedTuple):
    """What was fetched.

    Attributes
    ----------
    source : str
        The URL or path that served the files, without a password.
    folder : str
        Absolute path of the folder that holds them.
    files : list of File
        In the order of the manifest.
    """

    source: str
    folder: str
    files: list[File]

    @property
    def verified(self) -> bool:
        """Whether every file is verified, by its own digest or the archive's."""
        return all(file.verified for file in self.files)

    @property
    def paths(self) -> dict[str, str]:
        """The absolute path of each file, by its name."""
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
    """Fetch the dataset into a folder, or leave the folder as it is.

    Parameters
    ----------
    source : str or path, optional
        The only source: http, https or file URL, path of an archive, or path of a folder that holds the files. By
        default the built-in mirrors are tried in turn.
    into : str or path, optional
        The folder.
    checksum : str, optional
        MD5 or SHA-256 that the archive must have, in hex.
    replace : bool, optional
        Whether to replace files in the folder that differ from the published ones, and to remove files that the source
        lacks.
    manifest : Manifest, optional
        Names, digests and mirrors.
    watch : callable, optional
        Called with the `Stream` that is being read, whenever bytes arrive and twice a second while none do. If it
        raises an exception, the fetch ends with it.

    Returns
    -------
    Result

    Raises
    ------
    FetchError
        If no source works, or if the files cannot be written.
    """
    folder = os.path.abspath(into)
    candidates = sources.resolve(os.fspath(source), checksum, manifest)
    failures: list[str] = []
    for candidate in candidates:
        _log.info("trying %s", candidate.address)
        min_rate = 0 if candidate is candidates[-1] else MIN_RATE
        try:
            with Staging(folder, manifest, replace) as staging:
                files = _Fetch(candidate, staging, manifest, watch, min_rate).files()
                _warn(failures, files, manifest)
                staging.publish([file.name for file in files])
                return Result(candidate.address, folder, files)
        except SourceError as error:
            failures.append(f"{candidate.address}: {error}")
    if len(candidates) > 1:
        failures.insert(
            0,
            f"none of the {len(candidates)} mirrors could be reached. "
            f"Download {ARCHIVE_NAME} elsewhere and pass --url=PATH. Reasons:",
        )
    raise FetchError("\n".join(failures))


@dataclass(frozen=True)
class _Fetch:
    """One source and where its files go."""

    source: Source
    staging: Staging
    manifest: Manifest
    watch: Watch
    min_rate: float

    def files(self) -> list[File]:
        """Stage the source's files and return those that may be published."""
        files: list[File] = []
        for item in self.source.transfers:
            left = MAX_BYTES - sum(file.size for file in files)
            try:
                files += self._transfer(item, left)
            except SourceError as error:
                if not item.optional:
                    raise
                _log.warning("%s: %s", self.source.address, error)
        self._require_complete(files)
        return sorted(files, key=lambda file: list(self.manifest.files).index(file.name))

    def _transfer(self, item: sources.Transfer, left: int) -> list[File]:
        """Receive an archive or a single file, within the bytes that are left."""
        stream = transfer.open_stream(item.location, self.watch, self.min_rate)
        if not item.name:
            return stream.deliver(lambda chunks: self._unpack(chunks))
        try:
            return stream.deliver(lambda chunks: [self._receive(item.name, stream, chunks, left)])
        except SourceError as error:
            raise SourceError(f"{item.name}: {error}") from None

    def _unpack(self, chunks: Iterable[bytes]) -> list[File]:
        """Stage the files of an archive, and verify its digest."""
        digest = self.source.digest
        hasher = new_hash(digest) if digest else None
        files = []
        received = _hashed(transfer.reject_html(chunks), hasher)
        with contextlib.closing(archive.members(received, self.manifest.files)) as members:
            for member in members:
                files.append(self._write(member.name, member.size, member.chunks))
        if hasher and hasher.hexdigest() == digest:
            return [file._replace(verified=True) for file in files]
        if hasher and self.source.require_match:
            raise VerificationError(
                f"{digest_name(digest)} mismatch: expected {digest}, got {hasher.hexdigest()}. "
                "Check the value, or download the archive again"
            )
        differing = [file.name for file in files if not file.verified]
        if differing and self.source.builtin:
            raise VerificationError(f"differs from the published files: {', '.join(differing)}")
        return files

    def _receive(self, name: str, stream: Stream, chunks: Iterable[bytes], left: int) -> File:
        """Stage a single file."""
        received = transfer.reject_html(chunks)  # after the first bytes, the stream knows its size
        limited = transfer.limit_size(received, SourceError(f"larger than {MAX_BYTES >> 20} MiB in total"), left)
        return self._write(name, stream.size, limited)

    def _write(self, name: str, size: int | None, chunks: Iterable[bytes]) -> File:
        """Write a staged file while its digest is computed."""
        inspector = FileInspector(name, self.manifest.files[name], size or 0)
        with self.staging.create(name) as file:
            for chunk in chunks:
                file.write(chunk)
                inspector.update(chunk)
        # Without a size no git blob id can be computed on the way.
        result = inspector.result() if size is not None else inspect_file(self.staging.path(name), self.manifest)
        if self.source.builtin and not self.source.digest and not result.verified:
            raise VerificationError(f"{name} differs from the published file")
        return result

    def _require_complete(self, files: list[File]) -> None:
        if not files:
            raise SourceError(f"holds none of the files {', '.join(self.manifest.files)}")
        optional = [item.name for item in self.source.transfers if item.optional]
        lacking = [name for name in missing(files, self.manifest) if name not in optional]
        if lacking and self.source.builtin:
            raise SourceError(f"lacks the files {', '.join(lacking)}")


def _hashed(chunks: Iterable[bytes], hasher: Any) -> Iterator[bytes]:
    """Pass chunks through a hash, if there is one."""
    for chunk in chunks:
        if hasher:
            hasher.update(chunk)
        yield chunk


def _warn(failures: list[str], files: list[File], manifest: Manifest) -> None:
    """Log the sources that failed, the files that differ from the published ones, and those that are missing."""
    for failure in failures:
        _log.warning("%s", failure)
    differing = [file.name for file in files if not file.verified]
    for problem, names in (
        ("differs from the published file", differing),
        ("missing from the source", missing(files, manifest)),
    ):
        if names:
            _log.warning("%s: %s", problem, ", ".join(names))
