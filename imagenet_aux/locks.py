"""Lock files, and retries while another process uses or removes a file."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from typing import IO, Callable, Iterator, TypeVar

from .errors import FetchError

REMOVAL_SECONDS = 1.0  # limit for retries while another process removes a file or folder
_LOCK_SECONDS = 60.0  # publishing takes less than a second, except when readers delay it on Windows
_RETRY_SECONDS = 0.02
# Raised on Windows while another program has the file open, or is removing it.
IN_USE_ERRORS: tuple[type[OSError], ...] = (PermissionError,) if sys.platform == "win32" else ()
# Raised while another process is removing the lock file, or a folder that it created.
_REMOVAL_ERRORS: tuple[type[OSError], ...] = (FileNotFoundError, FileExistsError, *IN_USE_ERRORS)

T = TypeVar("T")
OnWait = Callable[[float], None]  # receives the duration of a wait in seconds; an exception from it ends the wait


@contextlib.contextmanager
def hold_lock_file(path: str, on_wait: OnWait) -> Iterator[bool]:
    """Create a file and its folder if needed, lock it, and remove it on exit; yield False if locks are not supported.

    Raise `FetchError` if another process holds the lock for a minute.
    """
    while True:
        with retry(lambda: _open_lock_file(path), _REMOVAL_ERRORS, REMOVAL_SECONDS) as file:
            can_lock = _wait_for_lock(file, on_wait)
            if can_lock and not _is_same_file(file, path):
                continue  # its holder removed it after it was opened here: lock the new one
            try:
                yield can_lock
            finally:
                if sys.platform == "win32":
                    file.close()  # Windows cannot remove an open file
                with contextlib.suppress(OSError):
                    os.remove(path)
            return


def try_lock(file: IO[bytes]) -> None:
    """Lock an open file without waiting; raise BlockingIOError if it is already locked."""
    if sys.platform == "win32":
        import msvcrt

        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:  # EACCES; under wine, no error number
            raise BlockingIOError from None
    else:
        import fcntl

        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)


def retry(
    action: Callable[[], T],
    errors: tuple[type[OSError], ...],
    seconds: float,
    on_wait: OnWait = lambda seconds: None,
) -> T:
    """Return the result of *action*; repeat it for *seconds* while it raises one of the errors."""
    give_up = time.monotonic() + seconds
    while True:
        try:
            return action()
        except errors:
            if time.monotonic() > give_up:
                raise
        started = time.monotonic()
        time.sleep(_RETRY_SECONDS)
        on_wait(time.monotonic() - started)


def _open_lock_file(path: str) -> IO[bytes]:
    """Open the lock file for writing, as NFS locks require; create it and its parent folders if needed."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    try:
        file = open(path, "xb")  # noqa: SIM115 - the caller closes it
    except FileExistsError:
        return open(path, "r+b")
    if sys.platform != "win32":
        with contextlib.suppress(OSError):  # some file systems have no permissions
            os.fchmod(file.fileno(), 0o666)  # so that other users can lock it
    return file


def _wait_for_lock(file: IO[bytes], on_wait: OnWait) -> bool:
    """Wait for the lock on an open file; return False if the file system does not support locks."""
    try:
        retry(lambda: try_lock(file), (BlockingIOError,), _LOCK_SECONDS, on_wait)
    except BlockingIOError:
        text = f"cannot lock {file.name}: another process has held the lock for {_LOCK_SECONDS:.0f} s. Try again later"
        raise FetchError(text) from None
    except OSError:
        return False
    return True


def _is_same_file(file: IO[bytes], path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except (FileNotFoundError, PermissionError):  # the latter on Windows, while it is being removed
        return False
