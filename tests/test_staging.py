"""Test staging and publishing: users' files, full and read-only disks, leftovers, concurrent callers."""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import os
import re
import socket
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO, Any, Callable, Collection, Iterator

import pytest
import sample_archive
from cm_home import WINDOWS, CmHome
from command import (
    NO_COVERAGE,
    make_manifest,
    read_data,
    read_files,
    run_at_start,
    run_command,
    start_command,
    without_privileges,
    write_files,
)
from server import Reply, Server

from imagenet_aux import FetchError, fetch, locks, staging
from imagenet_aux.fetcher import Result
from imagenet_aux.manifest import MANIFEST, Manifest, Source

LINUX_ROOT = sys.platform == "linux" and os.geteuid() == 0
NAMES = list(MANIFEST.files)
DAY = 24 * 3600


def fetch_into(target: Path, source: Path, replace: bool = False, watch: Any = lambda stream: None) -> Result:
    """Fetch a local source into a folder."""
    return fetch(str(source), str(target), replace=replace, watch=watch)


def mount(*args: object) -> None:
    """Mount a file system, or skip the test if that is not possible."""
    if not LINUX_ROOT or subprocess.run(["mount", *map(str, args)], stderr=subprocess.DEVNULL).returncode:
        pytest.skip("mounting requires root on Linux")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of 256 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount("-t", "tmpfs", "-o", "size=256k", "tmpfs", folder)
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def staging_folder(target: Path) -> Path:
    """Return the path of the only staging folder in a target."""
    (folder,) = target.glob(".imagenet-aux.*.*")
    return folder


# Users' files


@pytest.mark.parametrize("names", [["val.txt"], NAMES], ids=["one", "all"])
def test_refuses_to_replace_other_files(names: list[str], work: Path, source: Path) -> None:
    files = dict.fromkeys(names, b"mine")
    data = write_files(work / "data", files)
    with pytest.raises(FetchError) as caught:
        fetch_into(data, source)
    assert str(caught.value) == (
        f"{data} contains other files named {', '.join(names)}. "
        "Choose another folder, move the files away, or, without CM, pass --replace"
    )
    assert read_data(work) == files
    assert os.listdir(work) == ["data"]


def test_compares_the_content_of_files(
    work: Path, source: Path, sample_files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files have the same size and modification time."""
    data = write_files(work / "data", {"val.txt": sample_files["val.txt"][::-1]})
    publish = staging.Staging.publish

    def publish_with_equal_times(self: staging.Staging, names: Collection[str], *args: Any) -> None:
        for path in (data / "val.txt", self.path("val.txt")):
            os.utime(path, (1, 1))
        publish(self, names, *args)

    monkeypatch.setattr(staging.Staging, "publish", publish_with_equal_times)
    with pytest.raises(FetchError, match=r"contains other files named val\.txt\."):
        fetch_into(data, source)


def test_refuses_to_remove_other_files(work: Path, source: Path) -> None:
    (source / "train.txt").unlink()
    files = {"train.txt": b"mine"}
    with pytest.raises(FetchError, match=r"contains other files named train\.txt\."):
        fetch_into(write_files(work / "data", files), source)
    assert read_data(work) == files


def test_replace_replaces_and_removes_other_files(work: Path, source: Path, sample_files: dict[str, bytes]) -> None:
    (source / "train.txt").unlink()
    data = write_files(work / "data", {"train.txt": b"mine", "val.txt": b"mine", "notes": b"mine"})
    fetch_into(data, source, replace=True)
    assert read_data(work) == {
        "notes": b"mine",
        **{name: content for name, content in sample_files.items() if name != "train.txt"},
    }
    assert os.listdir(work) == ["data"]


def test_second_fetch_accepts_the_result_of_the_first(work: Path, source: Path, sample_files: dict[str, bytes]) -> None:
    for _ in range(2):
        fetch_into(work / "data", source)
    assert read_data(work) == sample_files


@pytest.mark.parametrize("content", [b"other\n", None], ids=["other", "missing"])
def test_published_file_is_not_a_conflict(content: bytes | None, work: Path, source: Path) -> None:
    published = sample_archive.make_test_txt()
    data = write_files(work / "data", {"test.txt": published})
    (source / "test.txt").unlink()
    if content:
        (source / "test.txt").write_bytes(content)
    fetch_into(data, source)
    assert read_data(work)["test.txt"] == (content or published)


def test_keeps_files_with_other_names(work: Path, source: Path) -> None:
    data = write_files(work / "data", {"notes": b"mine"})
    fetch_into(data, source)
    fetch_into(data, source, replace=True)
    assert (data / "notes").read_bytes() == b"mine"


@pytest.mark.skipif(WINDOWS, reason="Windows restricts symbolic links")
@pytest.mark.parametrize("content", ["same", "other", "nothing", "/dev/zero"])
def test_replaces_a_link_but_not_what_it_points_to(
    content: str, work: Path, source: Path, sample_files: dict[str, bytes]
) -> None:
    mine = work / "mine.txt"
    contents = {"same": sample_files["val.txt"], "other": b"other"}
    if content in contents:
        mine.write_bytes(contents[content])
    (work / "link").symlink_to("/dev/zero" if content == "/dev/zero" else mine)
    (work / "data").mkdir()
    (work / "data" / "val.txt").symlink_to(Path("..", "link"))
    if content == "same":
        fetch_into(work / "data", source)
    else:
        with pytest.raises(FetchError, match=r"contains other files named val\.txt\."):
            fetch_into(work / "data", source)
        assert os.listdir(work / "data") == ["val.txt"] and os.readlink(work / "data" / "val.txt") == "../link"
        fetch_into(work / "data", source, replace=True)
    assert not (work / "data" / "val.txt").is_symlink()
    assert read_data(work) == sample_files
    assert (mine.read_bytes() if mine.exists() else None) == contents.get(content)


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_device(path: Path) -> None:
    if not LINUX_ROOT:
        pytest.skip("only root can create a device")
    os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 5))  # reads as endless zeros


IRREGULAR: dict[str, tuple[Callable[[Path], Any], str]] = {
    "folder": (Path.mkdir, "a folder"),
    **({} if WINDOWS else {"FIFO": (make_fifo, "a device"), "device": (make_device, "a device")}),
}


@pytest.mark.parametrize("replace", [False, True], ids=["", "replace"])
@pytest.mark.parametrize("kind", IRREGULAR)
def test_replaces_only_regular_files_and_links(kind: str, replace: bool, work: Path, source: Path) -> None:
    path = write_files(work / "data", {"synsets.txt": b"mine"}) / "val.txt"
    make, description = IRREGULAR[kind]
    make(path)
    with pytest.raises(FetchError) as caught:
        fetch_into(work / "data", source, replace)
    assert str(caught.value) == f"cannot replace {path}: expected a regular file, got {description}. Move it away"
    assert sorted(os.listdir(work / "data")) == ["synsets.txt", "val.txt"]
    assert (work / "data" / "synsets.txt").read_bytes() == b"mine"


@pytest.mark.skipif(WINDOWS, reason="Windows has no sparse files by default")
def test_does_not_read_or_copy_a_huge_file(tmp_path: Path, work: Path, source: Path) -> None:
    """Use a sparse file that would take an hour to read."""
    path = write_files(work / "data", {"val.txt": b""}) / "val.txt"
    try:
        os.truncate(path, 1 << 42)
    except OSError:
        pytest.skip("the file system does not support files of this size")
    assert "contains other files named val.txt" in run_command(work, "fetch", source, **NO_COVERAGE).stderr
    assert run_command(work, "fetch", source, "--replace", **NO_COVERAGE).returncode == 0
    assert path.stat().st_size == (source / "val.txt").stat().st_size


@pytest.mark.skipif(WINDOWS, reason="Windows has no POSIX permissions")
def test_refuses_to_replace_a_file_that_it_cannot_read(
    work: Path, source: Path, sample_files: dict[str, bytes]
) -> None:
    path = write_files(work / "data", {"val.txt": sample_files["val.txt"]}) / "val.txt"
    path.chmod(0)
    result = run_command(work, "fetch", source, prefix=without_privileges())
    assert result.returncode == 1 and "contains other files named val.txt" in result.stderr
    assert run_command(work, "fetch", source, "--replace", prefix=without_privileges()).returncode == 0
    assert read_data(work) == sample_files


@pytest.mark.skipif(WINDOWS, reason="Windows has no POSIX permissions")
def test_replaces_read_only_files(work: Path, source: Path, sample_files: dict[str, bytes]) -> None:
    fetch_into(work / "data", source)
    for name in NAMES:
        (work / "data" / name).chmod(0o400)
    assert run_command(work, "fetch", source, prefix=without_privileges()).returncode == 0
    assert {stat.S_IMODE((work / "data" / name).stat().st_mode) for name in NAMES} == {0o666 & ~read_umask()}


def read_umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


def call_before_moves(monkeypatch: pytest.MonkeyPatch, function: Callable[[], object]) -> None:
    """Call a function before each file is moved to the target."""
    move = os.replace

    def replace(source: str, target: str) -> None:
        function()
        move(source, target)

    monkeypatch.setattr(os, "replace", replace)


# Rollback


def fail_at(call: int, function: Callable[..., None], error: int) -> Callable[..., None]:
    """Wrap a function so that one call raises OSError."""
    calls = iter(range(1, 10_000))

    def wrapper(*args: Any, **kwargs: Any) -> None:
        if next(calls) == call:
            raise OSError(error, os.strerror(error))
        function(*args, **kwargs)

    return wrapper


@pytest.mark.parametrize("has_links", [True, False], ids=["", "no hard links"])
@pytest.mark.parametrize("call", range(1, 2 * len(NAMES), 3))
def test_failed_publication_restores_everything(
    call: int,
    has_links: bool,
    work: Path,
    source: Path,
    old_files: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    missing, linked, *_ = NAMES
    old = {name: data for name, data in old_files.items() if name != missing}
    data = write_files(work / "data", old)
    if not WINDOWS:
        (data / linked).rename(work / "mine.txt")
        (data / linked).symlink_to(Path("..", "mine.txt"))
    if not has_links:
        monkeypatch.setattr(os, "link", fail_always)
    moves = len(NAMES) + (0 if has_links else len(NAMES) - 1)
    monkeypatch.setattr(os, "replace", fail_at(call, os.replace, errno.EBUSY))
    if call > moves:  # no move fails
        fetch_into(data, source, replace=True)
        assert read_data(work) == read_files(source)
        return
    with pytest.raises(FetchError, match=f"cannot write {re.escape(str(data))}.*: {os.strerror(errno.EBUSY)}"):
        fetch_into(data, source, replace=True)
    assert read_data(work) == old
    assert WINDOWS or os.readlink(data / linked) == os.path.join("..", "mine.txt")
    assert set(os.listdir(work)) <= {"data", "mine.txt"}


def fail_always(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("fails", ["always", "once"])
@pytest.mark.parametrize("is_staged", [True, False])
def test_file_that_cannot_be_backed_up_is_kept(
    is_staged: bool,
    fails: str,
    work: Path,
    source: Path,
    old_files: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A full disk may have no room for another directory entry."""
    data = write_files(work / "data", old_files)
    if not is_staged:
        (source / NAMES[0]).unlink()
    monkeypatch.setattr(os, "link", fail_always)
    monkeypatch.setattr(os, "replace", fail_always if fails == "always" else fail_at(1, os.replace, errno.ENOSPC))
    with pytest.raises(FetchError, match="No space left on device"):
        fetch_into(data, source, replace=True)
    assert read_data(work) == old_files


@pytest.mark.skipif(WINDOWS, reason="Windows restricts symbolic links")
def test_failed_publication_restores_a_dangling_link(work: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = write_files(work / "data", {}) / NAMES[0]
    link.symlink_to("nowhere")
    monkeypatch.setattr(os, "replace", fail_at(2, os.replace, errno.EIO))
    with pytest.raises(FetchError, match=os.strerror(errno.EIO)):
        fetch_into(work / "data", source, replace=True)
    assert os.listdir(work / "data") == [link.name] and os.readlink(link) == "nowhere"


def test_failed_publication_removes_a_new_target(work: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "replace", fail_at(3, os.replace, errno.EIO))
    with pytest.raises(FetchError, match=os.strerror(errno.EIO)):
        fetch_into(work / "new" / "data", source)
    assert os.listdir(work) == []


def test_reports_a_file_that_cannot_be_replaced(work: Path, source: Path, old_files: dict[str, bytes]) -> None:
    path = write_files(work / "data", old_files) / "val.txt"
    mount("--bind", path, path)
    try:
        with pytest.raises(FetchError) as caught:
            fetch_into(work / "data", source, replace=True)
        assert read_data(work) == old_files
    finally:
        subprocess.run(["umount", str(path)], check=True)
    assert str(caught.value) == f"cannot write {path}: Device or resource busy"
    assert os.listdir(work) == ["data"]


# The disk


def test_creates_missing_parent_folders(work: Path, source: Path, sample_files: dict[str, bytes]) -> None:
    fetch_into(work / "new" / "one" / "data", source)
    assert read_data(work / "new" / "one") == sample_files
    assert os.listdir(work / "new" / "one") == ["data"]


@pytest.mark.parametrize("existing", [[], ["new"], ["new", "one"]], ids="/".join)
def test_failed_fetch_removes_the_folders_it_created(existing: list[str], work: Path, tmp_path: Path) -> None:
    kept = work.joinpath(*existing)
    kept.mkdir(parents=True, exist_ok=True)
    (tmp_path / "bad").write_bytes(b"bad")
    with pytest.raises(FetchError, match="not gzip"):
        fetch_into(work / "new" / "one" / "data", tmp_path / "bad")
    assert os.listdir(kept) == []


def test_failed_fetch_keeps_a_target_that_becomes_empty(work: Path, source: Path) -> None:
    """The folder is the user's, because it contained another file at first."""
    notes = write_files(work / "data", {"notes": b"mine"}) / "notes"

    def watch(stream: object) -> None:
        notes.unlink()
        raise ValueError

    with pytest.raises(ValueError):
        fetch_into(work / "data", source, watch=watch)
    assert os.listdir(work) == ["data"]


def test_failed_fetch_keeps_an_empty_target(work: Path, tmp_path: Path) -> None:
    (work / "data").mkdir()
    (tmp_path / "bad").write_bytes(b"bad")
    with pytest.raises(FetchError):
        fetch_into(work / "data", tmp_path / "bad")
    assert os.listdir(work) == ["data"]


@pytest.mark.skipif(WINDOWS, reason="Windows has no POSIX permissions")
def test_staging_is_private_and_files_follow_the_umask(work: Path, source: Path) -> None:
    modes = []

    def watch(stream: object) -> None:
        modes.append(staging_folder(work / "data").stat().st_mode)

    before = os.umask(0o027)
    try:
        fetch_into(work / "data", source, watch=watch)
    finally:
        os.umask(before)
    assert {stat.S_IMODE(mode) for mode in modes} == {0o700}
    assert stat.S_IMODE((work / "data").stat().st_mode) == 0o750
    assert {stat.S_IMODE((work / "data" / name).stat().st_mode) for name in NAMES} == {0o640}


def test_removes_staging_when_its_setup_fails(work: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lock(file: IO[bytes]) -> None:
        if os.path.basename(file.name) == "lock":
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(staging, "try_lock", lock)
    with pytest.raises(
        FetchError, match=f"cannot write {re.escape(str(work / 'new' / 'data'))}: {os.strerror(errno.EIO)}"
    ):
        fetch_into(work / "new" / "data", source)
    assert os.listdir(work) == []


def test_writes_to_a_mounted_file_system(small_disk: Path, source: Path) -> None:
    (source / "imagenet.bet.pickle").unlink()
    (source / "train.txt").unlink()
    fetch_into(small_disk, source)
    assert sorted(os.listdir(small_disk)) == sorted(os.listdir(source))
    assert os.listdir(small_disk.parent).count("disk") == 1


def test_writes_to_a_bind_mount(work: Path, source: Path, sample_files: dict[str, bytes]) -> None:
    (work / "data").mkdir()
    mount("--bind", work / "data", work / "data")
    try:
        fetch_into(work / "data", source)
        assert read_data(work) == sample_files
    finally:
        subprocess.run(["umount", str(work / "data")], check=True)
    assert os.listdir(work) == ["data"]


def test_writes_to_the_target_of_a_link_to_another_disk(small_disk: Path, work: Path, source: Path) -> None:
    (source / "imagenet.bet.pickle").unlink()
    (source / "train.txt").unlink()
    (small_disk / "target").mkdir()
    (work / "data").symlink_to(small_disk / "target")
    fetch_into(work / "data", source)
    assert sorted(os.listdir(small_disk / "target")) == sorted(os.listdir(source))
    assert os.listdir(small_disk) == ["target"] and (work / "data").is_symlink()


@pytest.mark.skipif(WINDOWS, reason="Windows restricts symbolic links")
def test_creates_the_target_of_a_dangling_link(work: Path, source: Path, sample_files: dict[str, bytes]) -> None:
    (work / "data").symlink_to("missing/target")
    fetch_into(work / "data", source)
    assert read_files(work / "missing" / "target") == sample_files
    assert (work / "data").is_symlink()


@pytest.mark.skipif(WINDOWS, reason="Windows has no POSIX permissions")
def test_writes_to_a_target_with_a_read_only_parent(work: Path, source: Path, sample_files: dict[str, bytes]) -> None:
    (work / "data").mkdir()
    work.chmod(0o555)
    try:
        result = run_command(source.parent, "fetch", source, "--into", work / "data", prefix=without_privileges())
    finally:
        work.chmod(0o755)
    assert result.returncode == 0, result.stderr
    assert read_data(work) == sample_files


@pytest.mark.skipif(WINDOWS, reason="Windows has no POSIX permissions")
@pytest.mark.parametrize("kind", ["folder", "parent", "file"])
def test_unwritable_target_fails_before_the_download(kind: str, work: Path, server: Server, archive: bytes) -> None:
    (work / "data").touch() if kind == "file" else (work / "data").mkdir(0o555)
    target = work / "data" / "new" if kind == "parent" else work / "data"
    manifest = serve_mirrors(server, archive)
    result = run_command(work, "fetch", "--into", target, manifest=manifest, prefix=without_privileges())
    assert result.returncode == 1
    reason = "expected a folder, got a file" if kind == "file" else "Permission denied"
    assert result.stderr.splitlines()[-1] == f"error: cannot write {target}: {reason}"
    assert server.requests == []


def serve_mirrors(server: Server, archive: bytes) -> Manifest:
    """Serve the archive on two mirrors."""
    digest = hashlib.sha256(archive).hexdigest()
    mirrors = tuple(Source(server.serve(name, archive), digest) for name in ("a.tar.gz", "b.tar.gz"))
    return Manifest(MANIFEST.files, mirrors)


@pytest.mark.skipif(WINDOWS, reason="Windows has no resource limits")
def test_write_error_is_not_retried_on_other_mirrors(
    tmp_path: Path, work: Path, server: Server, archive: bytes
) -> None:
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))"
    env = {**run_at_start(tmp_path / "limit", limit), "PYTHONDONTWRITEBYTECODE": "1", **NO_COVERAGE}
    result = run_command(work, "fetch", manifest=serve_mirrors(server, archive), **env)
    assert result.returncode == 1
    assert re.search(r"^error: cannot write .*/data: File too large$", result.stderr, re.MULTILINE)
    assert [path for _, path, _ in server.requests] == ["/a.tar.gz"]
    assert os.listdir(work) == []


def test_full_disk_is_not_retried_on_other_mirrors(small_disk: Path, server: Server, archive: bytes) -> None:
    with pytest.raises(FetchError, match=r"cannot write .*/data: No space left on device") as caught:
        fetch(into=str(small_disk / "data"), manifest=serve_mirrors(server, archive))
    # The unpacker's thread has ended, although the exception still references the unpacker.
    assert not [thread for thread in threading.enumerate() if "decompress" in thread.name], caught
    assert [path for _, path, _ in server.requests] == ["/a.tar.gz"]
    assert os.listdir(small_disk) == []


def test_read_only_file_system_is_reported(small_disk: Path, source: Path) -> None:
    (small_disk / "data").mkdir()
    mount("-o", "remount,ro", small_disk)
    for target in ("data", "new"):
        with pytest.raises(
            FetchError, match=f"cannot write {re.escape(str(small_disk / target))}: Read-only file system"
        ):
            fetch_into(small_disk / target, source)


@pytest.mark.skipif(sys.platform != "linux", reason="there is no /proc")
def test_folder_that_cannot_be_created_is_reported(source: Path) -> None:
    for target in ("/proc/data", "/proc/new/data"):
        with pytest.raises(FetchError, match=f"^cannot write {target}: No such file or directory$"):
            fetch_into(Path(target), source)


@pytest.mark.skipif(WINDOWS, reason="Windows has no group IDs")
def test_files_inherit_the_group_of_the_target(work: Path, source: Path) -> None:
    if not LINUX_ROOT:
        pytest.skip("only root can choose any group")
    (work / "data").mkdir()
    os.chown(work / "data", 0, 1234)
    (work / "data").chmod(0o2775)
    fetch_into(work / "data", source)
    assert {(work / "data" / name).stat().st_gid for name in NAMES} == {1234}


@pytest.mark.skipif(not WINDOWS, reason="only Windows has drives")
def test_missing_drive_is_reported(source: Path) -> None:
    with pytest.raises(FetchError, match=r"^cannot write Q:"):
        fetch_into(Path("Q:/new/data"), source)


# Leftovers from killed processes

HOST = re.sub(r"[^\w-]", "-", socket.gethostname())[:40]


def make_leftover(parent: Path, host: str = HOST, age: float = 0, has_lock: bool = True) -> Path:
    """Make a staging folder like one that a killed process leaves behind."""
    folder = write_files(parent / "data" / f".imagenet-aux.{host}.01234567", {"val.txt": b"part"})
    if has_lock:
        (folder / "lock").touch()
    os.utime(folder, (time.time() - age,) * 2)
    return folder


@pytest.mark.parametrize(
    ("host", "age", "has_lock", "is_removed"),
    [
        (HOST, 0, True, True),
        (HOST, 0, False, True),
        ("elsewhere", 0, True, False),
        ("elsewhere", 0, False, False),
        ("elsewhere", DAY - 600, True, False),
        ("elsewhere", DAY + 600, True, True),
    ],
    ids=["this host", "this host, no lock", "another host", "another host, no lock", "under a day", "over a day"],
)
def test_removes_leftovers(host: str, age: float, has_lock: bool, is_removed: bool, work: Path, source: Path) -> None:
    folder = make_leftover(work, host, age, has_lock)
    fetch_into(work / "data", source)
    assert sorted(os.listdir(work / "data")) == sorted([*NAMES, *[folder.name] * (not is_removed)])


def test_keeps_the_staging_folder_of_a_live_process(work: Path, source: Path, sample_files: dict[str, bytes]) -> None:
    """A staging folder in use is kept even if it is older than a day."""
    fetched = []

    def watch(stream: object) -> None:
        if not fetched:
            folder = staging_folder(work / "data")
            os.utime(folder, (time.time() - 2 * DAY,) * 2)
            fetched.append(fetch_into(work / "data", source))
            assert staging_folder(work / "data") == folder

    fetch_into(work / "data", source, watch=watch)
    assert read_data(work) == sample_files
    assert os.listdir(work) == ["data"]


@pytest.mark.skipif(WINDOWS, reason="Windows supports locks on all file systems")
@pytest.mark.parametrize("age", [0, DAY + 600], ids=["new", "old"])
def test_removes_only_old_leftovers_without_locks(
    age: float, work: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    def flock(file: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    folder = make_leftover(work, age=age)
    monkeypatch.setattr(fcntl, "flock", flock)
    fetch_into(work / "data", source)
    assert sorted(os.listdir(work / "data")) == sorted([*NAMES, *[folder.name] * (not age)])


@pytest.mark.skipif(WINDOWS, reason="Windows supports locks on all file systems")
def test_keeps_the_staging_folder_of_another_node(
    tmp_path: Path, work: Path, server: Server, archive: bytes, source: Path, sample_files: dict[str, bytes]
) -> None:
    """On some shared file systems, locks are local to a node, so every node can lock the same file.

    On Linux, a host name has at most 64 characters.
    """
    gate = threading.Event()
    url = server.serve("a.tar.gz", archive, Reply(headers={"X-Gate": lambda: str(gate.wait(60))}))
    node = "import fcntl, socket; fcntl.flock = lambda *_: None; socket.gethostname = lambda: {!r}"
    one, two = (run_at_start(tmp_path / name, node.format(name)) for name in (f"{'node':-<63}1", f"{'node':-<63}2"))
    first = start_command(work, "fetch", url, **one)
    try:
        server.wait_for_requests(first)
        assert run_command(work, "fetch", source, **two).returncode == 0
    finally:
        gate.set()
        _, stderr = first.communicate(timeout=60)
    assert first.returncode == 0, stderr
    assert read_data(work) == sample_files
    assert os.listdir(work) == ["data"]


def test_keeps_folders_with_similar_names(work: Path, source: Path) -> None:
    names = [".imagenet-aux.mine", f"imagenet-aux.{HOST}.01234567", f".imagenet-aux.{HOST}.01234567.old"]
    for name in names:
        write_files(work / "data" / name, {"lock": b"mine"})
    fetch_into(work / "data", source)
    assert sorted(os.listdir(work / "data")) == sorted([*NAMES, *names])


@pytest.mark.skipif(WINDOWS, reason="Windows restricts symbolic links")
def test_does_not_follow_a_link_named_like_a_leftover(
    work: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging, "REMOVAL_SECONDS", 30.0)
    mine = write_files(work / "mine", {"lock": b"", "notes": b"mine"})
    (work / "data").mkdir()
    (work / "data" / f".imagenet-aux.{HOST}.01234567").symlink_to(mine)
    began = time.monotonic()
    fetch_into(work / "data", source)
    assert time.monotonic() - began < 15, "retries to remove the link"
    assert sorted(os.listdir(mine)) == ["lock", "notes"]


def touch_lock_file(work: Path) -> Path:
    """Create the lock file in a target."""
    (work / "data").mkdir()
    path = work / "data" / ".imagenet-aux.lock"
    path.touch()
    return path


def test_takes_over_the_lock_file_of_a_killed_process(work: Path, source: Path, sample_files: dict[str, bytes]) -> None:
    touch_lock_file(work)
    fetch_into(work / "data", source)
    assert read_data(work) == sample_files


def test_failed_fetch_removes_a_target_with_only_leftovers(work: Path, tmp_path: Path) -> None:
    """A killed process created the target."""
    make_leftover(work)
    (work / "data" / ".imagenet-aux.lock").touch()
    (tmp_path / "bad").write_bytes(b"bad")
    with pytest.raises(FetchError, match="not gzip"):
        fetch_into(work / "data", tmp_path / "bad")
    assert os.listdir(work) == []


def write_complete(work: Path, files: dict[str, bytes]) -> Manifest:
    """Write all files into the target, and return a manifest with their digests and without mirrors."""
    write_files(work / "data", files)
    return make_manifest(files)


@pytest.mark.parametrize("has_lock_file", [True, False], ids=["lock file", "no lock file"])
def test_complete_target_loses_leftovers(has_lock_file: bool, work: Path, sample_files: dict[str, bytes]) -> None:
    manifest = write_complete(work, sample_files)
    make_leftover(work)
    if has_lock_file:
        (work / "data" / ".imagenet-aux.lock").touch()
    assert fetch(into=work / "data", manifest=manifest).verified
    assert read_data(work) == sample_files


@pytest.mark.skipif(WINDOWS, reason="Windows supports locks on all file systems")
@pytest.mark.parametrize("age", [0, DAY + 600], ids=["new", "old"])
def test_complete_target_loses_only_old_leftovers_without_locks(
    age: float, work: Path, sample_files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    manifest = write_complete(work, sample_files)
    folder = make_leftover(work, age=age)
    monkeypatch.setattr(fcntl, "flock", fail_always)
    assert fetch(into=work / "data", manifest=manifest).verified
    assert folder.exists() == (not age)


def test_complete_target_keeps_the_lock_file_of_another_node(work: Path, sample_files: dict[str, bytes]) -> None:
    """Locks can be local to a node, so a call there cannot see that the lock is held."""
    manifest = write_complete(work, sample_files)
    make_leftover(work, "elsewhere", DAY + 600)
    (work / "data" / ".imagenet-aux.lock").touch()
    before = os.listdir(work / "data")
    assert fetch(into=work / "data", manifest=manifest).verified
    assert os.listdir(work / "data") == before


def test_complete_target_keeps_the_staging_folder_of_a_live_process(
    work: Path, sample_files: dict[str, bytes], old_files: dict[str, bytes], tmp_path: Path
) -> None:
    manifest = write_complete(work, sample_files)
    results = []

    def watch(stream: object) -> None:
        if not results:
            folder = staging_folder(work / "data")
            results.append(fetch(into=work / "data", manifest=manifest))
            assert staging_folder(work / "data") == folder

    fetch_into(work / "data", write_files(tmp_path / "old", old_files), True, watch)
    assert results[0].verified
    assert read_data(work) == old_files


@pytest.mark.skipif(WINDOWS, reason="the test uses POSIX locks")
def test_complete_target_does_not_wait_for_the_lock(work: Path, sample_files: dict[str, bytes]) -> None:
    import fcntl

    manifest = write_complete(work, sample_files)
    folder = make_leftover(work)
    path = work / "data" / ".imagenet-aux.lock"
    with path.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        began = time.monotonic()
        assert fetch(into=work / "data", manifest=manifest).verified
    assert time.monotonic() - began < 2
    assert folder.is_dir() and path.exists()


@pytest.mark.skipif(WINDOWS, reason="Windows has no POSIX permissions")
@pytest.mark.parametrize("has_lock_file", [True, False], ids=["lock file", "no lock file"])
def test_complete_target_may_be_read_only(has_lock_file: bool, work: Path, sample_files: dict[str, bytes]) -> None:
    manifest = write_complete(work, sample_files)
    folder = make_leftover(work)
    if has_lock_file:
        (work / "data" / ".imagenet-aux.lock").touch()
    (work / "data").chmod(0o555)
    result = run_command(work, "fetch", manifest=manifest, prefix=without_privileges())
    (work / "data").chmod(0o755)
    assert result.returncode == 0, result.stderr
    assert folder.exists()


def test_complete_target_is_not_written_without_need(work: Path, sample_files: dict[str, bytes]) -> None:
    manifest = write_complete(work, sample_files)
    os.utime(work / "data", (1, 1))
    assert fetch(into=work / "data", manifest=manifest).verified
    assert (work / "data").stat().st_mtime == 1


@pytest.mark.skipif(WINDOWS, reason="Windows has no POSIX permissions")
def test_lock_file_can_be_locked_by_other_users(work: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modes = []
    call_before_moves(monkeypatch, lambda: modes.append((work / "data" / ".imagenet-aux.lock").stat().st_mode))
    before = os.umask(0o077)
    try:
        fetch_into(work / "data", source)
    finally:
        os.umask(before)
    assert {stat.S_IMODE(mode) for mode in modes} == {0o666}


def test_lock_file_works_without_permissions(
    work: Path, source: Path, sample_files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On some file systems, only the owner of the mount can change permissions."""
    monkeypatch.setattr(os, "fchmod", fail_always, raising=False)
    fetch_into(work / "data", source)
    assert read_data(work) == sample_files


def test_opens_an_existing_lock_file_without_o_creat(work: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a sticky folder such as /tmp, Linux refuses to open another user's file with O_CREAT."""

    def protected_open(path: str, mode: str) -> IO[bytes]:
        if os.path.exists(path) and mode[0] in "aw":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return open(path, mode)

    touch_lock_file(work)
    monkeypatch.setattr(locks, "open", protected_open, raising=False)
    fetch_into(work / "data", source)
    assert sorted(os.listdir(work / "data")) == sorted(NAMES)


def test_uses_the_lock_file_of_another_user(work: Path, source: Path, sample_files: dict[str, bytes]) -> None:
    """In a sticky folder, the lock file cannot be removed."""
    if not LINUX_ROOT:
        pytest.skip("only root can create a file for another user")
    lock = touch_lock_file(work)
    lock.chmod(0o666)
    for path in (lock, lock.parent):
        os.chown(path, 65534, 65534)
    lock.parent.chmod(0o1777)
    result = run_command(work, "fetch", source, prefix=without_privileges())
    assert result.returncode == 0, result.stderr
    assert read_data(work) == {**sample_files, lock.name: b""}


# Readers and concurrent callers


def test_reader_of_an_old_file_can_continue(
    work: Path,
    source: Path,
    sample_files: dict[str, bytes],
    old_files: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On Windows, an open file cannot be replaced, so publishing waits until it is closed."""
    data = write_files(work / "data", old_files)
    read: list[bytes] = []
    file = (data / "val.txt").open("rb")

    def read_and_close() -> None:
        read.append(file.read())
        file.close()

    timer = threading.Timer(1.0, read_and_close)
    call_before_moves(monkeypatch, lambda: timer.ident or timer.start())
    fetch_into(data, source, replace=True)
    timer.join()
    assert read == [old_files["val.txt"]]
    assert read_data(work) == sample_files
    assert os.listdir(work) == ["data"]


@pytest.mark.parametrize("error", [errno.ENOENT, errno.EEXIST])
def test_retries_if_a_folder_is_removed_while_it_is_created(
    error: int, work: Path, source: Path, sample_files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A concurrent fetch that fails removes the folders it created; os.makedirs can then raise either error here."""
    monkeypatch.setattr(os, "makedirs", fail_at(1, os.makedirs, error))
    fetch_into(work / "new" / "data", source)
    assert read_data(work / "new") == sample_files


def test_readers_always_find_every_file(
    work: Path, source: Path, old_files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_files(work / "data", old_files)
    listings = []
    call_before_moves(monkeypatch, lambda: listings.append(set(os.listdir(data))))
    fetch_into(data, source, replace=True)
    assert len(listings) == len(NAMES) and all(listing.issuperset(NAMES) for listing in listings)


@pytest.mark.skipif(not WINDOWS, reason="only Windows refuses to replace an open file")
def test_reports_a_file_that_stays_open(work: Path, source: Path, old_files: dict[str, bytes]) -> None:
    path = write_files(work / "data", old_files) / "val.txt"
    with path.open("rb"), pytest.raises(FetchError, match=f"cannot write {re.escape(str(path))}: "):
        fetch_into(work / "data", source, replace=True)
    assert read_data(work) == old_files
    assert os.listdir(work) == ["data"]


@pytest.mark.skipif(not WINDOWS, reason="only Windows refuses to replace a read-only file")
def test_reports_a_read_only_file(work: Path, source: Path, old_files: dict[str, bytes]) -> None:
    path = write_files(work / "data", old_files) / "val.txt"
    path.chmod(stat.S_IREAD)
    with pytest.raises(FetchError) as caught:
        fetch_into(work / "data", source, replace=True)
    path.chmod(stat.S_IWRITE)
    assert str(caught.value) == f"cannot write {path}: Access is denied (the file is read-only)"
    assert read_data(work) == old_files


@pytest.mark.skipif(not WINDOWS, reason="only Windows refuses to remove an open file")
def test_waits_until_the_lock_of_its_staging_folder_is_closed(work: Path) -> None:
    """Another call opens it for a moment, to see whether the folder is abandoned."""
    with staging.staging_folder(str(work / "data"), lambda seconds: None) as opened:
        file = open(opened.path("lock"), "rb")  # noqa: SIM115 - the timer closes it
        threading.Timer(0.3, file.close).start()
    assert os.listdir(work) == []


def run_in_threads(*functions: Callable[[], object]) -> list[object]:
    """Call the functions in parallel and return their results or errors."""
    results: list[object] = [None] * len(functions)

    def call(index: int) -> None:
        try:
            results[index] = functions[index]()
        except Exception as error:
            results[index] = error

    threads = [threading.Thread(target=call, args=(index,)) for index in range(len(functions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return results


def test_only_one_process_publishes_at_a_time(
    tmp_path: Path,
    work: Path,
    source: Path,
    sample_files: dict[str, bytes],
    old_files: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    staged, moving = threading.Barrier(2), threading.Barrier(2)

    def watch(stream: Any) -> None:
        if stream.label == NAMES[-1]:
            staged.wait(60)

    def meet() -> None:
        """Record a failure if the other process moves files at the same time."""
        with contextlib.suppress(threading.BrokenBarrierError):
            moving.wait(2)
            met.append(True)

    met: list[bool] = []
    call_before_moves(monkeypatch, meet)
    results = run_in_threads(
        *(
            functools.partial(fetch_into, work / "data", folder, True, watch=watch)
            for folder in (source, write_files(tmp_path / "old", old_files))
        )
    )
    assert [type(result) for result in results] == [Result, Result], results
    assert not met
    assert read_data(work) in (sample_files, old_files)
    assert os.listdir(work) == ["data"]


@pytest.mark.skipif(WINDOWS, reason="the test uses POSIX locks")
def test_locks_only_files_that_are_open_for_writing(work: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS cannot lock files that are open for reading only."""
    import fcntl

    modes = []
    flock = fcntl.flock

    def record_mode(file: int, operation: int) -> None:
        modes.append(fcntl.fcntl(file, fcntl.F_GETFL) & os.O_ACCMODE)
        flock(file, operation)

    touch_lock_file(work)
    make_leftover(work)
    monkeypatch.setattr(fcntl, "flock", record_mode)
    fetch_into(work / "data", source)
    assert len(modes) == 4 and os.O_RDONLY not in modes


@pytest.mark.skipif(WINDOWS, reason="the test uses POSIX locks")
def test_lock_that_is_never_released_is_reported(work: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    monkeypatch.setattr(locks, "_LOCK_SECONDS", 0.2)
    path = touch_lock_file(work)
    with path.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(FetchError, match=f"^cannot lock {re.escape(str(path))}: another process has held the lock"):
            fetch_into(work / "data", source)
    assert os.listdir(work / "data") == [path.name]


@pytest.mark.skipif(WINDOWS, reason="Windows cannot remove an open file")
def test_does_not_use_the_lock_of_a_removed_file(
    work: Path, source: Path, sample_files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The previous holder removes the lock file, and the next one creates a new file."""
    import fcntl

    waits = threading.Event()
    lock = locks.try_lock

    def report_wait(file: IO[bytes]) -> None:
        try:
            lock(file)
        except BlockingIOError:
            waits.set()
            raise

    monkeypatch.setattr(locks, "try_lock", report_wait)
    path = touch_lock_file(work)
    with contextlib.ExitStack() as second:
        with path.open("r+b") as first:
            fcntl.flock(first, fcntl.LOCK_EX)
            caller = threading.Thread(target=fetch_into, args=(work / "data", source))
            caller.start()
            assert waits.wait(60)
            path.unlink()
            fcntl.flock(second.enter_context(path.open("xb")), fcntl.LOCK_EX)
        caller.join(0.5)
        assert caller.is_alive()
    caller.join(60)
    assert read_data(work) == sample_files


def gated(count: int) -> Reply:
    """Make a reply that is sent once this number of requests has arrived."""
    barrier = threading.Barrier(count)
    return Reply(headers={"X-Gate": lambda: str(barrier.wait(100))})


def test_eight_concurrent_callers_succeed(
    work: Path, server: Server, archive: bytes, sample_files: dict[str, bytes]
) -> None:
    url = server.serve("a.tar.gz", archive, gated(8))
    callers = [start_command(work, "fetch", url, **NO_COVERAGE) for _ in range(8)]
    errors = [caller.communicate(timeout=200)[1] for caller in callers]
    assert [caller.returncode for caller in callers] == [0] * 8, "\n".join(errors)
    assert read_data(work) == sample_files
    assert os.listdir(work) == ["data"]


@pytest.mark.parametrize("good", [0, 1, 4])
def test_failing_callers_do_not_affect_others(
    good: int, tmp_path: Path, work: Path, source: Path, sample_files: dict[str, bytes]
) -> None:
    """A failing caller removes the folders that it created, while other callers write there.

    If all fail, the last one may find an empty target, and cannot know whether the user created it.
    """
    (tmp_path / "bad").write_bytes(b"bad")
    for attempt in range(10):
        parent = work / str(attempt) / "new"
        sources = [source] * good + [tmp_path / "bad"] * (8 - good)
        results = run_in_threads(*(functools.partial(fetch_into, parent / "data", path) for path in sources))
        errors = [str(result) for result in results if isinstance(result, FetchError)]
        assert len(errors) == 8 - good and all("not gzip" in error for error in errors), results
        assert read_data(parent) == (sample_files if good else {})
        assert set(os.listdir(parent) if parent.exists() else []) <= {"data"}


# The cache


def test_failed_renewal_keeps_the_old_files(
    home: CmHome, server: Server, archive: bytes, sample_files: dict[str, bytes]
) -> None:
    home.export_keys(f"--url={server.serve('a.tar.gz', archive)}")
    broken = server.serve("b.tar.gz", archive[:-4])
    assert home.run_script(f"--url={broken}", "--renew").returncode != 0
    assert read_data(home.cache_entries()[0]) == sample_files
    assert home.leftovers() == []
