"""Staging and publishing: full and read-only disks, files in the way, readers, concurrent callers."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Iterator

import pytest
import sample_archive
from cm_home import ROOT, WINDOWS, CmHome, clean_env
from command import read_data, run_command, start_command
from server import Server, slow_reply

LINUX_ROOT = sys.platform == "linux" and os.geteuid() == 0


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if not LINUX_ROOT or subprocess.run(mount, stderr=subprocess.DEVNULL).returncode:
        pytest.skip("a small disk can only be mounted by root, on Linux")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


# The disk


def test_a_file_that_cannot_be_replaced_is_named_and_all_others_stay_the_old_ones(
    tmp_path: Path, server: Server, archive: bytes, old_files: dict[str, bytes]
) -> None:
    run_command(tmp_path, "fetch", server.serve("old", sample_archive.pack_files(old_files)))
    path = tmp_path / "data" / "val.txt"
    mount = ["mount", "--bind", str(path), str(path)]
    if not LINUX_ROOT or subprocess.run(mount, stderr=subprocess.DEVNULL).returncode:
        pytest.skip("a file can only be made irreplaceable by root, on Linux")
    try:
        result = run_command(tmp_path, "fetch", server.serve("new", archive))
        assert result.returncode == 1 and f"cannot write {path}: Device or resource busy" in result.stderr
        assert read_data(tmp_path) == old_files
    finally:
        subprocess.run(["umount", str(path)], check=True)
    assert os.listdir(tmp_path) == ["data"]


def test_a_folder_that_is_a_disk_of_its_own_is_filled(tiny_disk: Path, server: Server, published_folder: Path) -> None:
    few = sample_archive.pack_files({"synsets.txt": (published_folder / "synsets.txt").read_bytes()})
    assert run_command(tiny_disk.parent, "fetch", server.serve("a.tar.gz", few), "--into", tiny_disk).returncode == 0
    assert os.listdir(tiny_disk) == ["synsets.txt"] and os.listdir(tiny_disk.parent) == [tiny_disk.name]


def test_a_folder_that_is_mounted_from_the_same_disk_is_filled(
    tmp_path: Path, tiny_disk: Path, server: Server, published_folder: Path
) -> None:
    del tiny_disk  # it only tells whether anything can be mounted here
    (tmp_path / "data").mkdir()
    subprocess.run(["mount", "--bind", str(tmp_path / "data"), str(tmp_path / "data")], check=True)
    few = sample_archive.pack_files({"synsets.txt": (published_folder / "synsets.txt").read_bytes()})
    try:
        assert run_command(tmp_path, "fetch", server.serve("a.tar.gz", few)).returncode == 0
        assert os.listdir(tmp_path / "data") == ["synsets.txt"]
    finally:
        subprocess.run(["umount", str(tmp_path / "data")], check=True)


def test_the_folders_above_the_folder_are_made(tmp_path: Path, server: Server, archive: bytes) -> None:
    assert run_command(tmp_path, "fetch", server.serve("a.tar.gz", archive), "--into", "new/one/data").returncode == 0
    assert os.listdir(tmp_path / "new" / "one") == ["data"]


def test_a_full_disk_is_said_to_be_full_and_the_space_given_back(
    tiny_disk: Path, server: Server, archive: bytes
) -> None:
    result = run_command(tiny_disk, "fetch", server.serve("a.tar.gz", archive))
    assert result.returncode == 1
    assert "cannot write" in result.stderr and "No space left on device" in result.stderr
    assert os.listdir(tiny_disk) == []


def test_a_folder_that_cannot_be_written_to_is_said_to_be_one(tiny_disk: Path, server: Server, archive: bytes) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(tiny_disk)], check=True)
    result = run_command(tiny_disk, "fetch", server.serve("a.tar.gz", archive))
    assert result.returncode == 1
    assert f"cannot write {tiny_disk}: Read-only file system" in result.stderr


def test_a_file_in_the_place_of_the_folder_is_not_touched(tmp_path: Path, server: Server, archive: bytes) -> None:
    (tmp_path / "data").write_text("mine")
    result = run_command(tmp_path, "fetch", server.serve("a.tar.gz", archive))
    assert result.returncode == 1 and "cannot write" in result.stderr
    assert (tmp_path / "data").read_text() == "mine" and os.listdir(tmp_path) == ["data"]


def test_a_folder_under_the_name_of_a_file_is_not_touched_nor_is_any_file(
    tmp_path: Path, server: Server, archive: bytes
) -> None:
    in_the_way = tmp_path / "data" / "val.txt"
    in_the_way.mkdir(parents=True)
    (tmp_path / "data" / "synsets.txt").write_text("old")
    result = run_command(tmp_path, "fetch", server.serve("a.tar.gz", archive))
    assert result.returncode == 1 and f"{in_the_way}: there is a folder of that name" in result.stderr
    assert (tmp_path / "data" / "synsets.txt").read_text() == "old"
    assert sorted(os.listdir(tmp_path / "data")) == ["synsets.txt", "val.txt"]


def test_a_folder_that_is_a_link_to_another_disk_is_filled_there(
    tmp_path: Path, tiny_disk: Path, server: Server, published_folder: Path
) -> None:
    (tiny_disk / "set").mkdir()
    (tmp_path / "data").symlink_to(tiny_disk / "set")
    few = sample_archive.pack_files({"synsets.txt": (published_folder / "synsets.txt").read_bytes()})
    assert run_command(tmp_path, "fetch", server.serve("a.tar.gz", few)).returncode == 0
    assert os.listdir(tiny_disk / "set") == ["synsets.txt"] and os.listdir(tiny_disk) == ["set"]


def test_what_else_stands_in_the_folder_is_not_touched(tmp_path: Path, server: Server, archive: bytes) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "notes").write_text("mine")
    run_command(tmp_path, "fetch", server.serve("a.tar.gz", archive))
    assert (tmp_path / "data" / "notes").read_text() == "mine"


def test_a_folder_of_a_like_name_is_not_taken_for_what_a_killed_call_left(
    tmp_path: Path, server: Server, archive: bytes
) -> None:
    theirs = tmp_path / "data.mine.imagenet-aux"
    theirs.mkdir()
    (theirs / "lock").write_text("mine")
    run_command(tmp_path, "fetch", server.serve("a.tar.gz", archive))
    assert (theirs / "lock").read_text() == "mine"


@pytest.mark.skipif(WINDOWS, reason="Windows has locks everywhere")
def test_where_nothing_can_be_locked_the_set_is_put_in_its_place_and_nothing_is_cleared_away(
    tmp_path: Path, server: Server, archive: bytes, sample_files: dict[str, bytes]
) -> None:
    left = tmp_path / "data.01234567.imagenet-aux"
    left.mkdir()
    (left / "lock").touch()
    program = """if True:
        import fcntl, sys
        from imagenet_aux.__main__ import main
        def flock(file, operation):
            raise PermissionError(13, "Permission denied")
        fcntl.flock = flock
        sys.exit(main(sys.argv[1:]))
    """
    call = [sys.executable, "-c", program, "fetch", server.serve("a.tar.gz", archive)]
    subprocess.run(call, cwd=tmp_path, env=clean_env(PYTHONPATH=str(ROOT)), timeout=60, check=True)
    assert read_data(tmp_path) == sample_files
    assert sorted(os.listdir(tmp_path)) == ["data", left.name]


# Readers and callers at the same time


def test_a_reader_is_neither_disturbed_nor_in_the_way(
    tmp_path: Path, server: Server, archive: bytes, sample_files: dict[str, bytes], old_files: dict[str, bytes]
) -> None:
    run_command(tmp_path, "fetch", server.serve("old", sample_archive.pack_files(old_files)))
    with (tmp_path / "data" / "val.txt").open("rb") as reader:
        caller = start_command(tmp_path, "fetch", server.serve("new", archive))
        time.sleep(2)
        assert reader.read() == old_files["val.txt"]
    caller.communicate()
    assert caller.returncode == 0
    assert read_data(tmp_path) == sample_files
    assert os.listdir(tmp_path) == ["data"]


@pytest.mark.skipif(not WINDOWS, reason="only Windows lets a reader bar a renewal")
def test_a_reader_who_stays_bars_the_whole_renewal(
    tmp_path: Path, server: Server, archive: bytes, old_files: dict[str, bytes]
) -> None:
    run_command(tmp_path, "fetch", server.serve("old", sample_archive.pack_files(old_files)))
    with (tmp_path / "data" / "val.txt").open("rb"):
        result = run_command(tmp_path, "fetch", server.serve("new", archive))
    assert result.returncode == 1 and f"cannot write {tmp_path / 'data' / 'val.txt'}: " in result.stderr
    assert read_data(tmp_path) == old_files
    assert os.listdir(tmp_path) == ["data"]


def test_eight_callers_at_once_all_get_one_whole_set(
    tmp_path: Path, server: Server, archive: bytes, sample_files: dict[str, bytes]
) -> None:
    url = server.serve("a.tar.gz", archive, slow_reply(archive, 0.5))
    callers = [start_command(tmp_path, "fetch", url) for _ in range(8)]
    said = [caller.communicate()[1] for caller in callers]
    assert [caller.returncode for caller in callers] == [0] * 8, "\n".join(said)
    assert read_data(tmp_path) == sample_files
    assert os.listdir(tmp_path) == ["data"]


@pytest.mark.skipif(WINDOWS, reason="Windows locks no folders")
def test_two_callers_with_other_sources_leave_the_set_of_one(
    tmp_path: Path, server: Server, archive: bytes, sample_files: dict[str, bytes], old_files: dict[str, bytes]
) -> None:
    program = """if True:
        import os, sys, time
        from imagenet_aux.__main__ import main
        rename = os.replace
        def replace(source, target):
            time.sleep(0.05)
            rename(source, target)
        os.replace = replace
        sys.exit(main(sys.argv[1:]))
    """
    urls = [server.serve("a", archive), server.serve("b", sample_archive.pack_files(old_files))]
    env = clean_env(PYTHONPATH=str(ROOT))
    callers = [
        subprocess.Popen(
            [sys.executable, "-c", program, "fetch", url], cwd=tmp_path, env=env, stderr=subprocess.DEVNULL
        )
        for url in urls
    ]
    assert [caller.wait() for caller in callers] == [0, 0]
    assert read_data(tmp_path) in (sample_files, old_files)


# The cache


def test_a_renewal_that_fails_leaves_the_old_set(
    home: CmHome, server: Server, archive: bytes, sample_files: dict[str, bytes]
) -> None:
    home.export_keys(f"--url={server.serve('a.tar.gz', archive)}")
    broken = server.serve("b.tar.gz", archive[:-4])
    assert home.run_script(f"--url={broken}", "--renew").returncode != 0
    assert {path.name: path.read_bytes() for path in (home.cache_entries()[0] / "data").iterdir()} == sample_files
    assert home.leftovers() == []
