"""A folder beside the target in which a set is put together, and from which it is published once it is proved."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import stat
import sys
import time
from types import TracebackType
from typing import IO, Callable, Collection, Iterable, Iterator

from .contents import FILES, is_text
from .errors import FetchError

_SUFFIX = ".imagenet-aux"
_LOCK = "lock"
_OLD = ".old"
_READER_SECONDS = 5.0
# On Windows 0o700 would give the files, wherever they are renamed to, to their maker alone.
_PRIVATE = 0o777 if sys.platform == "win32" else 0o700


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
        with _said_as_unwritable(target):
            self.target = os.path.realpath(target)  # beside a link's own end, which may be on another disk
            self._parent = self.target if _stands_apart(self.target) else os.path.dirname(self.target)
        self.path = ""
        self._lock: IO[bytes] | None = None

    def __enter__(self) -> Staging:
        prefix = os.path.basename(self.target) + "."
        with _said_as_unwritable(self._parent), self._gone_on_error():
            os.makedirs(self._parent, exist_ok=True)
            _clear_abandoned(self._parent, prefix)
            while self._lock is None:
                self.path = os.path.join(self._parent, prefix + os.urandom(4).hex() + _SUFFIX)
                os.mkdir(self.path, _PRIVATE)
                self._lock = _own_lock(os.path.join(self.path, _LOCK))
        return self

    @contextlib.contextmanager
    def _gone_on_error(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lock:
            self._lock.close()  # first: Windows removes no open file
        shutil.rmtree(self.path, ignore_errors=True)

    def write(self, name: str, chunks: Iterable[bytes]) -> int | None:
        """Write a file.

        Parameters
        ----------
        name : str
            One of `FILES`.
        chunks : iterable of bytes
            What it holds.

        Returns
        -------
        int or None
            The number of its line feeds; None where it is not text.

        Raises
        ------
        StagingError
            If there is no room, or no right to write.
        """
        lines = 0
        count_lines = is_text(name)
        path = self.file(name)
        with _said_as_unwritable(path), open(path, "wb") as file:
            for chunk in chunks:
                file.write(chunk)
                if count_lines:
                    lines += chunk.count(b"\n")
        return lines if count_lines else None

    def file(self, name: str) -> str:
        """The path of a staged file."""
        return os.path.join(self.path, name)

    def publish(self, names: Collection[str]) -> None:
        """Make the target hold these of the staged files, and none of the other of the eight; or leave it as it is.

        Each file is put in its place by one rename: whoever looks finds the old one whole or the new one whole.

        Parameters
        ----------
        names : collection of str
            Names of files that were written.

        Raises
        ------
        StagingError
            If one of the files cannot be put there. Those before it are put back.
        """
        with _said_as_unwritable(self.target):
            os.makedirs(self.target, exist_ok=True)
        with _one_at_a_time(self.target):
            self._replace(names)

    def _replace(self, names: Collection[str]) -> None:
        for name in FILES:
            self._keep_old(name)
        touched: list[str] = []
        try:
            for name in FILES:
                touched.append(name)
                self._put(self.file(name) if name in names else None, name)
        except BaseException as error:
            if isinstance(error, StagingError):
                touched.pop()  # it could not be replaced, so it is the old one still
            for name in touched:
                with contextlib.suppress(StagingError):
                    old = self.file(name + _OLD)
                    self._put(old if os.path.lexists(old) else None, name)
            raise

    def _keep_old(self, name: str) -> None:
        """Copy what the target holds under that name: a hard link costs less, but not every file system has them."""
        path, old = os.path.join(self.target, name), self.file(name + _OLD)
        if os.path.isdir(path):
            raise StagingError(f"cannot write {path}: there is a folder of that name")
        with _said_as_unwritable(path), contextlib.suppress(FileNotFoundError):
            _patiently(lambda: shutil.copy2(path, old, follow_symlinks=False))
            if not os.path.islink(old):
                os.chmod(old, os.stat(old).st_mode | stat.S_IWRITE)  # Windows removes nothing that is read-only

    def _put(self, source: str | None, name: str) -> None:
        """Have the target hold *source* under that name, or nothing."""
        path = os.path.join(self.target, name)
        with _said_as_unwritable(path):
            if source:
                _patiently(lambda: os.replace(source, path))
            else:
                with contextlib.suppress(FileNotFoundError):
                    _patiently(lambda: os.remove(path))


def _patiently(change: Callable[[], object]) -> None:
    """Make a change that Windows refuses while anybody has the file open: a reader is waited for."""
    until = time.monotonic() + _READER_SECONDS
    while True:
        try:
            change()
            return
        except PermissionError:
            if sys.platform != "win32" or time.monotonic() > until:
                raise
        time.sleep(0.05)


def _stands_apart(target: str) -> bool:
    """Whether nothing beside the target can be renamed into it: it is a disk of its own, or what holds it is barred."""
    if not os.path.isdir(target):
        return False
    parent = os.path.dirname(target)
    if os.path.ismount(target) or not os.access(parent, os.R_OK | os.W_OK | os.X_OK):
        return True
    try:  # Linux refuses a way between two mounts, even of the same disk, before it looks for the file
        nobodys = os.urandom(8).hex()
        os.rename(os.path.join(target, nobodys), os.path.join(parent, nobodys))
    except OSError as error:
        return error.errno == errno.EXDEV
    return False


@contextlib.contextmanager
def _one_at_a_time(folder: str) -> Iterator[None]:
    """Hold off others that publish to the folder, where the system locks folders: a set is then of one source."""
    descriptor = None
    with contextlib.suppress(OSError):  # Windows opens no folder, and not every file system has locks
        descriptor = os.open(folder, os.O_RDONLY)
        _lock(descriptor, wait=True)
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _clear_abandoned(parent: str, prefix: str) -> None:
    """Remove the staging folders of processes that live no more."""
    made_by_us = re.compile(re.escape(prefix) + "[0-9a-f]{8}" + re.escape(_SUFFIX))
    with os.scandir(parent) as entries:
        left = [entry.path for entry in entries if made_by_us.fullmatch(entry.name)]
    for path in left:
        with contextlib.suppress(OSError):
            os.rmdir(path)  # its process was killed before it had a lock
        with contextlib.suppress(OSError):  # it lives, or nobody can tell, where there are no locks
            with open(os.path.join(path, _LOCK), "r+b") as lock:
                _lock(lock.fileno())
                shutil.rmtree(path, ignore_errors=True)  # a maker that comes to its lock only now waits, and finds out
            shutil.rmtree(path, ignore_errors=True)  # Windows removes no open file


def _own_lock(path: str) -> IO[bytes] | None:
    """A new file, open, and locked where the file system has locks; None if its folder has just been cleared away."""
    try:
        file = open(path, "xb")  # noqa: SIM115 - its lock lives as long as it is open
    except FileNotFoundError:
        return None
    with contextlib.suppress(OSError):
        _lock(file.fileno(), wait=True)  # who came before us is clearing the folder away
    if os.path.exists(path):
        return file
    file.close()
    return None


def _lock(descriptor: int, wait: bool = False) -> None:
    if sys.platform == "win32":
        import msvcrt

        msvcrt.locking(descriptor, msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))


@contextlib.contextmanager
def _said_as_unwritable(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StagingError(f"cannot write {path}: {error.strerror or error}") from error
