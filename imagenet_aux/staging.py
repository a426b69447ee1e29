"""A folder beside the target in which a set is put together, and from which it is published once it is proved."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
import time
from types import TracebackType
from typing import IO, Collection, Iterable, Iterator

from .contents import FILES, is_text
from .errors import FetchError

_SUFFIX = ".imagenet-aux"
_LOCK = "lock"
_READER_SECONDS = 5.0


class StagingError(FetchError):
    """The files cannot be written."""


class Staging:
    """A context manager: a new folder, gone again at its end.

    What a killed process left of its own folder is cleared away by the next one; a lock that the system holds for as
    long as a process lives tells those of the living from those of the dead.

    Parameters
    ----------
    target : str
        The folder to publish to. It is touched by `publish` alone.
    """

    def __init__(self, target: str) -> None:
        self.target = os.path.realpath(target)  # beside a link's own end, which may be on another disk
        self.path = ""
        self._lock: IO[bytes] | None = None

    def __enter__(self) -> Staging:
        with _said_as_unwritable(self.target):
            _clear_abandoned(self.target)
            while self._lock is None:
                self.path = tempfile.mkdtemp(_SUFFIX, _prefix(self.target), os.path.dirname(self.target))
                self._lock = _locked(os.path.join(self.path, _LOCK), "xb")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lock:
            self._lock.close()  # first: Windows removes no open file
        shutil.rmtree(self.path, ignore_errors=True)

    def write(self, name: str, chunks: Iterable[bytes]) -> int | None:
        """Write a file; the number of its line feeds, None where it is not text.

        Raises
        ------
        StagingError
            If there is no room, or no right to write.
        """
        lines = 0
        count_lines = is_text(name)
        path = self.file(name)
        with _said_as_unwritable(path):
            file = open(path, "wb")  # noqa: SIM115 - closed below, where a full disk may say so
        try:
            for chunk in chunks:
                with _said_as_unwritable(path):
                    file.write(chunk)
                if count_lines:
                    lines += chunk.count(b"\n")
        finally:
            with _said_as_unwritable(path):
                file.close()
        return lines if count_lines else None

    def file(self, name: str) -> str:
        """The path of a staged file."""
        return os.path.join(self.path, name)

    def publish(self, names: Collection[str]) -> None:
        """Make the target hold these of the staged files, and none of the other of the eight.

        Each file is put in its place by one rename: whoever looks finds the old one whole or the new one whole.
        """
        with _said_as_unwritable(self.target):
            os.makedirs(self.target, exist_ok=True)
            places = {name: os.path.join(self.target, name) for name in FILES}
            for place in places.values():  # first, so that it is all or nothing
                _check_replaceable(place)
            for name, place in places.items():
                if name in names:
                    _replace(self.file(name), place)
                else:
                    with contextlib.suppress(FileNotFoundError):
                        os.remove(place)


def _check_replaceable(path: str) -> None:
    if os.path.isdir(path):
        raise StagingError(f"cannot write {path}: there is a folder of that name")
    if os.path.exists(path):
        _replace(path, path)


def _replace(source: str, path: str) -> None:
    """Rename. Windows refuses that while anybody has the file at *path* open, so a reader is waited for."""
    until = time.monotonic() + _READER_SECONDS
    with _said_as_unwritable(path):
        while True:
            try:
                os.replace(source, path)
                return
            except PermissionError:
                if sys.platform != "win32" or time.monotonic() > until:
                    raise
            time.sleep(0.05)


def _prefix(target: str) -> str:
    return os.path.basename(target) + "."


def _clear_abandoned(target: str) -> None:
    """Remove the staging folders of processes that live no more."""
    with os.scandir(os.path.dirname(target)) as entries:
        left = [e.path for e in entries if e.name.startswith(_prefix(target)) and e.name.endswith(_SUFFIX)]
    for path in left:
        with contextlib.suppress(OSError):
            os.rmdir(path)  # its process was killed before it had a lock
        with contextlib.suppress(OSError):
            lock = _locked(os.path.join(path, _LOCK), "r+b")
            if lock:
                with lock:  # still held, lest a maker that comes to it only now takes the folder for its own
                    shutil.rmtree(path, ignore_errors=True)
                shutil.rmtree(path, ignore_errors=True)  # Windows removes no open file


def _locked(path: str, mode: str) -> IO[bytes] | None:
    """The file, open and locked by this process; None if another one has it, or has removed its folder."""
    try:
        file = open(path, mode)  # noqa: SIM115 - its lock lives as long as it is open
    except FileNotFoundError:
        return None
    try:
        _lock(file)
    except (BlockingIOError, PermissionError):
        file.close()
        return None
    except OSError:
        # A file system without locks: nobody can tell the living from the dead, so nothing is cleared away.
        if "r" in mode:
            file.close()
            return None
    if not os.path.exists(path):  # cleared away before it was locked
        file.close()
        return None
    return file


def _lock(file: IO[bytes]) -> None:
    if sys.platform == "win32":
        import msvcrt

        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextlib.contextmanager
def _said_as_unwritable(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StagingError(f"cannot write {path}: {error.strerror or error}") from error
