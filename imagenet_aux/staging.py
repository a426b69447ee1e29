"""Stage files in a hidden folder, then publish them with atomic renames.

The folder is inside the target, so that the files get its file system, group and access control list.
"""

from __future__ import annotations

import contextlib
import filecmp
import os
import re
import shutil
import socket
import stat
import sys
import time
from typing import IO, Collection, Iterator, NamedTuple

from .errors import FetchError
from .locks import IN_USE_ERRORS, REMOVAL_SECONDS, OnWait, hold_lock_file, retry, try_lock
from .manifest import Manifest
from .verify import inspect_file

_PREFIX = ".imagenet-aux."
_STAGING_LOCK = "lock"  # in each staging folder, held while its process runs
_TARGET_LOCK = _PREFIX + "lock"  # in the target, held while staging folders or published files change
_OLD_SUFFIX = ".old"
_HOST_PREFIX = _PREFIX + re.sub(r"[^\w-]", "-", socket.gethostname())[:64] + "."  # of this host's staging folders
_ABANDONED_SECONDS = 24 * 3600.0
_BUSY_SECONDS = 5.0
# On Windows, files inherit the folder's permissions and a rename keeps them, so 0o700 would hide them from other users.
_MODE = 0o777 if sys.platform == "win32" else 0o700


@contextlib.contextmanager
def staging_folder(target: str, on_wait: OnWait) -> Iterator[Staging]:
    """Create a staging folder inside the target, and remove it on exit. Call *on_wait* while waiting for the lock.

    Also remove the staging folders of killed processes: on this host if their lock is free, and on other hosts after a
    day, because some network file systems keep locks local to each host.
    """
    with contextlib.ExitStack() as stack:  # on exit: unlock and remove the staging folder, then the created folders
        with _wrap_os_errors(target):
            target = os.path.realpath(target)
            if os.path.isfile(target):
                raise FetchError(f"cannot write {target}: expected a folder, got a file")
            for folder in _folders_to_remove(target):
                stack.callback(_remove_if_empty, folder)
            name = _HOST_PREFIX + os.urandom(4).hex()
            staging = Staging(target, os.path.join(target, name), on_wait)
            stack.callback(_remove_folder, staging.folder)
            with hold_lock_file(os.path.join(target, _TARGET_LOCK), on_wait) as can_lock:  # also creates the target
                _remove_abandoned(target, can_lock)
                os.mkdir(staging.folder, _MODE)
                lock = stack.enter_context(open(staging.path(_STAGING_LOCK), "wb"))
                if can_lock:
                    try_lock(lock)
        yield staging


class Staging(NamedTuple):
    """A staging folder inside a target folder."""

    target: str
    folder: str
    on_wait: OnWait

    def path(self, name: str) -> str:
        """Return the path of a staged file."""
        return os.path.join(self.folder, name)

    @contextlib.contextmanager
    def create(self, name: str) -> Iterator[IO[bytes]]:
        """Open a staged file for writing; raise `FetchError` if it cannot be written."""
        with _wrap_os_errors(self.target), open(self.path(name), "wb") as file:
            yield file

    def publish(self, names: Collection[str], manifest: Manifest, replace: bool) -> None:
        """Rename each staged file into the target; on failure, restore the target's previous files.

        If *replace* is true, replace files that differ from the published ones, and remove files of the dataset that
        are not staged.
        """
        with _wrap_os_errors(self.target), hold_lock_file(os.path.join(self.target, _TARGET_LOCK), self.on_wait):
            self._require_replaceable(names, manifest, replace)
            with contextlib.ExitStack() as rollback:
                for name in manifest.files if replace else names:
                    rollback.callback(self._restore, name, name in names)
                    self._replace_file(name, name in names)
                rollback.pop_all()  # success: discard the rollback

    def _require_replaceable(self, names: Collection[str], manifest: Manifest, replace: bool) -> None:
        """Raise `FetchError` if the target contains files that must not be replaced."""
        foreign = []
        for name in manifest.files:
            path = os.path.join(self.target, name)
            if not os.path.lexists(path):
                continue
            mode = os.lstat(path).st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISLNK(mode)):
                kind = "a folder" if stat.S_ISDIR(mode) else "a device"
                raise FetchError(f"cannot replace {path}: expected a regular file, got {kind}. Move it away")
            if sys.platform == "win32" and not mode & stat.S_IWRITE:
                raise FetchError(f"cannot write {path}: Access is denied (the file is read-only)")
            if not replace and not self._is_replaceable(name, name in names, manifest):
                foreign.append(name)
        if foreign:
            raise FetchError(
                f"{self.target} contains other files named {', '.join(foreign)}. "
                "Choose another folder, move the files away, or, without CM, pass --replace"
            )

    def _is_replaceable(self, name: str, is_staged: bool, manifest: Manifest) -> bool:
        """Return whether a file in the target matches its published digest or the staged file."""
        path = os.path.join(self.target, name)
        try:
            if not os.path.isfile(path):
                return False
            if is_staged and filecmp.cmp(path, self.path(name), shallow=False):
                return True
            return inspect_file(path, manifest).verified
        except PermissionError:
            return False

    def _replace_file(self, name: str, is_staged: bool) -> None:
        """Move the old file, if any, into the staging folder, and the staged file, if any, into the target."""
        path, old = os.path.join(self.target, name), self.path(name + _OLD_SUFFIX)
        with _wrap_os_errors(path):
            if os.path.lexists(path) and not (is_staged and _back_up_by_link(path, old)):
                _rename(path, old)
            if is_staged:
                _rename(self.path(name), path)

    def _restore(self, name: str, is_staged: bool) -> None:
        """Undo the completed steps of `_replace_file`."""
        path, old = os.path.join(self.target, name), self.path(name + _OLD_SUFFIX)
        with _wrap_os_errors(path):
            if os.path.lexists(old):
                _rename(old, path)
            elif is_staged and not os.path.lexists(self.path(name)):  # nothing was replaced
                _rename(path, self.path(name))


def remove_leftovers(target: str) -> None:
    """Remove the staging folders of this host's killed processes, unless the target is read-only or in use."""

    def do_not_wait(_seconds: float) -> None:
        raise FetchError

    with contextlib.suppress(OSError, FetchError):
        if any(name.startswith(_HOST_PREFIX) for name in _list_folder(target)):
            with hold_lock_file(os.path.join(target, _TARGET_LOCK), do_not_wait) as can_lock:
                _remove_abandoned(target, can_lock)


def _back_up_by_link(path: str, link: str) -> bool:
    """Create a hard link, so that the path exists at all times; return False if links are not supported."""
    try:
        if sys.platform == "win32":
            # Windows can link an open file, but not remove the link. Until it is closed, renaming it to itself fails.
            retry(lambda: os.rename(path, path), IN_USE_ERRORS, _BUSY_SECONDS)
            os.link(path, link)
        else:
            os.link(path, link, follow_symlinks=False)
    except OSError:
        return False
    return True


def _rename(source: str, target: str) -> None:
    retry(lambda: os.replace(source, target), IN_USE_ERRORS, _BUSY_SECONDS)


def _remove_abandoned(target: str, can_lock: bool) -> None:
    """Remove the staging folders of killed processes; the caller must hold the target's lock."""
    pattern = re.compile(rf"{re.escape(_PREFIX)}.*\.[0-9a-f]{{8}}")
    for name in _list_folder(target):
        path = os.path.join(target, name)
        can_test_lock = can_lock and name.startswith(_HOST_PREFIX)
        if pattern.fullmatch(name) and _is_abandoned(path, can_test_lock):
            shutil.rmtree(path, ignore_errors=True)


def _is_abandoned(folder: str, can_test_lock: bool) -> bool:
    """Return whether a staging folder is abandoned: its lock is free or, if untestable, it is a day old."""
    try:
        if not can_test_lock:
            return time.time() - os.stat(folder).st_mtime > _ABANDONED_SECONDS
        with open(os.path.join(folder, _STAGING_LOCK), "r+b") as file:
            try_lock(file)
            return True
    except FileNotFoundError:
        return True  # the process was killed before it created the lock file
    except OSError:
        return False


def _folders_to_remove(target: str) -> list[str]:
    """Return the folders to remove if nothing is published, parents first: those that do not exist yet.

    If the target contains only other calls' staging folders, one of those calls probably created it, so it is included.
    """
    with contextlib.suppress(FileNotFoundError):
        names = _list_folder(target)
        return [target] if names and all(name.startswith(_PREFIX) for name in names) else []
    folders: list[str] = []
    while not os.path.lexists(target) and target != os.path.dirname(target):
        folders.insert(0, target)
        target = os.path.dirname(target)
    return folders


def _list_folder(folder: str) -> list[str]:
    """List a folder; on Windows, retry while another process is trying to remove it."""
    return retry(lambda: os.listdir(folder), IN_USE_ERRORS, REMOVAL_SECONDS)


def _remove_folder(folder: str) -> None:
    """Remove this call's staging folder; retry, since on Windows another process may be checking its lock."""

    def remove() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        if os.path.lexists(folder):
            raise FileExistsError

    with contextlib.suppress(FileExistsError):
        retry(remove, (FileExistsError,), REMOVAL_SECONDS)


def _remove_if_empty(folder: str) -> None:
    with contextlib.suppress(OSError):  # not empty: published, or in use by another process
        os.rmdir(folder)


@contextlib.contextmanager
def _wrap_os_errors(path: str) -> Iterator[None]:
    """Convert an OSError to a `FetchError` that names the path."""
    try:
        yield
    except OSError as error:
        raise FetchError(f"cannot write {path}: {error.strerror or error}") from error
