"""What is left behind: after a kill, on a full disk, where nothing may be written, with eight callers at once."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Iterator

import pytest
import standin
from command import delivered, run, start
from home import ROOT, TAGS, Home, environment
from server import Reply, Server

WINDOWS = sys.platform == "win32"
LINUX_ROOT = sys.platform == "linux" and os.geteuid() == 0
# Windows has one way to end a process from outside, and nothing in the process hears of it.
KILLS = ["SIGTERM"] if WINDOWS else ["SIGKILL", "SIGTERM", "SIGINT", "SIGHUP"]
HEARD = [] if WINDOWS else ["SIGTERM", "SIGINT", "SIGHUP"]


def slowly(archive: bytes, seconds: float) -> Reply:
    return Reply(pause=seconds * 65536 / len(archive))


@pytest.fixture
def old(small: dict[str, bytes]) -> dict[str, bytes]:
    """A set of which no file is that of the stand-in."""
    return {name: data[::-1] for name, data in small.items()}


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


# Signals


@pytest.mark.parametrize("kill", KILLS)
def test_after_a_kill_while_it_fetches_the_old_set_stands_and_the_next_run_works(
    kill: str, tmp_path: Path, server: Server, small: dict[str, bytes], old: dict[str, bytes]
) -> None:
    number = signal.Signals[kill]
    if signal.getsignal(number) == signal.SIG_IGN:  # under nohup, or in the background; callers would inherit it
        signal.signal(number, signal.SIG_DFL)
    archive = standin.pack(standin.members(small))
    server.serve("old", standin.pack(standin.members(old)))
    run(tmp_path, "fetch", f"{server.url}/old")
    url = server.serve("new", archive, slowly(archive, 3.0))
    dice = random.Random(1)
    for has_asked in (False, True) * 4:
        asked = len(server.requests)
        process = start(tmp_path, "fetch", url)
        while has_asked and len(server.requests) == asked:
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(dice.uniform(0.05, 0.8))
        process.send_signal(number)
        process.communicate()
        assert delivered(tmp_path) == old
        if kill in HEARD and (has_asked or process.returncode > 0):
            by_python = [] if has_asked else [1]  # before our handler was set
            assert process.returncode in [128 + number, *by_python]
            assert os.listdir(tmp_path) == ["data"]
    server.serve("new", archive)
    assert run(tmp_path, "fetch", url).returncode == 0
    assert delivered(tmp_path) == small
    assert os.listdir(tmp_path) == ["data"]


@pytest.mark.skipif(WINDOWS, reason="nothing is suspended there")
def test_what_was_suspended_for_longer_than_it_is_patient_goes_on(
    tmp_path: Path, server: Server, archive: bytes, small: dict[str, bytes]
) -> None:
    url = server.serve(
        "a.tar.gz", archive, Reply(stop_at=len(archive) // 2, then="reset", piece=4096, pause=0.1), Reply()
    )
    process = start(tmp_path, "fetch", url)
    while not server.requests:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGSTOP)
    time.sleep(21)
    process.send_signal(signal.SIGCONT)
    _, said = process.communicate()
    assert process.returncode == 0, said
    assert delivered(tmp_path) == small


def test_a_kill_under_the_engine_leaves_a_cache_that_works(
    home: Home, server: Server, archive: bytes, small: dict[str, bytes]
) -> None:
    url = server.serve("a.tar.gz", archive, slowly(archive, 3.0), Reply())
    engine = subprocess.Popen(
        home.words("cm", "run", "script", f"--tags={TAGS}", f"--url={url}"),
        cwd=home.path, env=home.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    while not server.requests:
        assert engine.poll() is None
        time.sleep(0.05)
    time.sleep(0.5)
    if sys.platform == "win32":
        subprocess.run(["taskkill", "/F", "/T", "/PID", str(engine.pid)], stdout=subprocess.DEVNULL, check=True)
    else:
        os.killpg(engine.pid, signal.SIGKILL)
    engine.wait()
    home.exported(f"--url={url}")
    assert len(home.entries()) == 1
    assert {path.name: path.read_bytes() for path in (home.entries()[0] / "data").iterdir()} == small
    assert home.litter() == []


def test_a_renewal_that_fails_leaves_the_old_set(
    home: Home, server: Server, archive: bytes, small: dict[str, bytes]
) -> None:
    home.exported(f"--url={server.serve('a.tar.gz', archive)}")
    broken = server.serve("b.tar.gz", archive[:-4])
    assert home.run(f"--url={broken}", "--renew").returncode != 0
    assert {path.name: path.read_bytes() for path in (home.entries()[0] / "data").iterdir()} == small
    assert home.litter() == []


@pytest.mark.skipif(WINDOWS, reason="nothing in a process hears of its end there")
def test_a_signal_in_the_middle_of_publishing_leaves_the_old_set(
    tmp_path: Path, server: Server, archive: bytes, old: dict[str, bytes]
) -> None:
    run(tmp_path, "fetch", server.serve("old", standin.pack(standin.members(old))))
    (tmp_path / "data" / "det_synset_words.txt").rename(tmp_path / "mine.txt")
    (tmp_path / "data" / "det_synset_words.txt").symlink_to(Path("..", "mine.txt"))
    program = """if True:
        import os, signal, sys
        from imagenet_aux.__main__ import main
        rename, renamed = os.replace, []
        def replace(source, target):
            rename(source, target)
            renamed.append(target)
            if len(renamed) == 3:
                os.kill(os.getpid(), signal.SIGTERM)
        os.replace = replace
        sys.exit(main(sys.argv[1:]))
    """
    call = [sys.executable, "-c", program, "fetch", server.serve("new", archive)]
    result = subprocess.run(call, cwd=tmp_path, env=environment(PYTHONPATH=str(ROOT)), stderr=subprocess.PIPE)
    assert result.returncode == 143 and result.stderr.endswith(b"error: stopped by signal 15\n")
    assert delivered(tmp_path) == old
    assert os.readlink(tmp_path / "data" / "det_synset_words.txt") == os.path.join("..", "mine.txt")
    assert sorted(os.listdir(tmp_path)) == ["data", "mine.txt"]


# The disk


def test_a_file_that_cannot_be_replaced_is_named_and_all_others_stay_the_old_ones(
    tmp_path: Path, server: Server, archive: bytes, old: dict[str, bytes]
) -> None:
    run(tmp_path, "fetch", server.serve("old", standin.pack(standin.members(old))))
    path = tmp_path / "data" / "val.txt"
    mount = ["mount", "--bind", str(path), str(path)]
    if not LINUX_ROOT or subprocess.run(mount, stderr=subprocess.DEVNULL).returncode:
        pytest.skip("a file can only be made irreplaceable by root, on Linux")
    try:
        result = run(tmp_path, "fetch", server.serve("new", archive))
        assert result.returncode == 1 and f"cannot write {path}: Device or resource busy" in result.stderr
        assert delivered(tmp_path) == old
    finally:
        subprocess.run(["umount", str(path)], check=True)
    assert os.listdir(tmp_path) == ["data"]


def test_a_folder_that_is_a_disk_of_its_own_is_filled(tiny_disk: Path, server: Server, real: Path) -> None:
    few = standin.pack(standin.members({"synsets.txt": (real / "synsets.txt").read_bytes()}))
    assert run(tiny_disk.parent, "fetch", server.serve("a.tar.gz", few), "--into", tiny_disk).returncode == 0
    assert os.listdir(tiny_disk) == ["synsets.txt"] and os.listdir(tiny_disk.parent) == [tiny_disk.name]


def test_a_folder_that_is_mounted_from_the_same_disk_is_filled(
    tmp_path: Path, tiny_disk: Path, server: Server, real: Path
) -> None:
    del tiny_disk  # it only tells whether anything can be mounted here
    (tmp_path / "data").mkdir()
    subprocess.run(["mount", "--bind", str(tmp_path / "data"), str(tmp_path / "data")], check=True)
    few = standin.pack(standin.members({"synsets.txt": (real / "synsets.txt").read_bytes()}))
    try:
        assert run(tmp_path, "fetch", server.serve("a.tar.gz", few)).returncode == 0
        assert os.listdir(tmp_path / "data") == ["synsets.txt"]
    finally:
        subprocess.run(["umount", str(tmp_path / "data")], check=True)


def test_the_folders_above_the_folder_are_made(tmp_path: Path, server: Server, archive: bytes) -> None:
    assert run(tmp_path, "fetch", server.serve("a.tar.gz", archive), "--into", "new/one/data").returncode == 0
    assert os.listdir(tmp_path / "new" / "one") == ["data"]


def test_a_full_disk_is_said_to_be_full_and_the_space_given_back(
    tiny_disk: Path, server: Server, archive: bytes
) -> None:
    result = run(tiny_disk, "fetch", server.serve("a.tar.gz", archive))
    assert result.returncode == 1
    assert "cannot write" in result.stderr and "No space left on device" in result.stderr
    assert os.listdir(tiny_disk) == []


def test_a_folder_that_cannot_be_written_to_is_said_to_be_one(tiny_disk: Path, server: Server, archive: bytes) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(tiny_disk)], check=True)
    result = run(tiny_disk, "fetch", server.serve("a.tar.gz", archive))
    assert result.returncode == 1
    assert f"cannot write {tiny_disk}: Read-only file system" in result.stderr


def test_a_file_in_the_place_of_the_folder_is_not_touched(tmp_path: Path, server: Server, archive: bytes) -> None:
    (tmp_path / "data").write_text("mine")
    result = run(tmp_path, "fetch", server.serve("a.tar.gz", archive))
    assert result.returncode == 1 and "cannot write" in result.stderr
    assert (tmp_path / "data").read_text() == "mine" and os.listdir(tmp_path) == ["data"]


def test_a_folder_under_the_name_of_a_file_is_not_touched_nor_is_any_file(
    tmp_path: Path, server: Server, archive: bytes
) -> None:
    in_the_way = tmp_path / "data" / "val.txt"
    in_the_way.mkdir(parents=True)
    (tmp_path / "data" / "synsets.txt").write_text("old")
    result = run(tmp_path, "fetch", server.serve("a.tar.gz", archive))
    assert result.returncode == 1 and f"{in_the_way}: there is a folder of that name" in result.stderr
    assert (tmp_path / "data" / "synsets.txt").read_text() == "old"
    assert sorted(os.listdir(tmp_path / "data")) == ["synsets.txt", "val.txt"]


def test_a_folder_that_is_a_link_to_another_disk_is_filled_there(
    tmp_path: Path, tiny_disk: Path, server: Server, real: Path
) -> None:
    (tiny_disk / "set").mkdir()
    (tmp_path / "data").symlink_to(tiny_disk / "set")
    few = standin.pack(standin.members({"synsets.txt": (real / "synsets.txt").read_bytes()}))
    assert run(tmp_path, "fetch", server.serve("a.tar.gz", few)).returncode == 0
    assert os.listdir(tiny_disk / "set") == ["synsets.txt"] and os.listdir(tiny_disk) == ["set"]


def test_what_else_stands_in_the_folder_is_not_touched(tmp_path: Path, server: Server, archive: bytes) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "notes").write_text("mine")
    run(tmp_path, "fetch", server.serve("a.tar.gz", archive))
    assert (tmp_path / "data" / "notes").read_text() == "mine"


def test_a_folder_of_a_like_name_is_not_taken_for_what_a_killed_call_left(
    tmp_path: Path, server: Server, archive: bytes
) -> None:
    theirs = tmp_path / "data.mine.imagenet-aux"
    theirs.mkdir()
    (theirs / "lock").write_text("mine")
    run(tmp_path, "fetch", server.serve("a.tar.gz", archive))
    assert (theirs / "lock").read_text() == "mine"


@pytest.mark.skipif(WINDOWS, reason="Windows has locks everywhere")
def test_where_nothing_can_be_locked_the_set_is_put_in_its_place_and_nothing_is_cleared_away(
    tmp_path: Path, server: Server, archive: bytes, small: dict[str, bytes]
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
    subprocess.run(call, cwd=tmp_path, env=environment(PYTHONPATH=str(ROOT)), timeout=60, check=True)
    assert delivered(tmp_path) == small
    assert sorted(os.listdir(tmp_path)) == ["data", left.name]


# Readers and callers at the same time


def test_a_reader_is_neither_disturbed_nor_in_the_way(
    tmp_path: Path, server: Server, archive: bytes, small: dict[str, bytes], old: dict[str, bytes]
) -> None:
    run(tmp_path, "fetch", server.serve("old", standin.pack(standin.members(old))))
    with (tmp_path / "data" / "val.txt").open("rb") as reader:
        caller = start(tmp_path, "fetch", server.serve("new", archive))
        time.sleep(2)
        assert reader.read() == old["val.txt"]
    caller.communicate()
    assert caller.returncode == 0
    assert delivered(tmp_path) == small
    assert os.listdir(tmp_path) == ["data"]


@pytest.mark.skipif(not WINDOWS, reason="only Windows lets a reader bar a renewal")
def test_a_reader_who_stays_bars_the_whole_renewal(
    tmp_path: Path, server: Server, archive: bytes, old: dict[str, bytes]
) -> None:
    run(tmp_path, "fetch", server.serve("old", standin.pack(standin.members(old))))
    with (tmp_path / "data" / "val.txt").open("rb"):
        result = run(tmp_path, "fetch", server.serve("new", archive))
    assert result.returncode == 1 and f"cannot write {tmp_path / 'data' / 'val.txt'}: " in result.stderr
    assert delivered(tmp_path) == old
    assert os.listdir(tmp_path) == ["data"]


def test_eight_callers_at_once_all_get_one_whole_set(
    tmp_path: Path, server: Server, archive: bytes, small: dict[str, bytes]
) -> None:
    url = server.serve("a.tar.gz", archive, slowly(archive, 0.5))
    callers = [start(tmp_path, "fetch", url) for _ in range(8)]
    said = [caller.communicate()[1] for caller in callers]
    assert [caller.returncode for caller in callers] == [0] * 8, "\n".join(said)
    assert delivered(tmp_path) == small
    assert os.listdir(tmp_path) == ["data"]


@pytest.mark.skipif(WINDOWS, reason="Windows locks no folders")
def test_two_callers_with_other_sources_leave_the_set_of_one(
    tmp_path: Path, server: Server, archive: bytes, small: dict[str, bytes], old: dict[str, bytes]
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
    urls = [server.serve("a", archive), server.serve("b", standin.pack(standin.members(old)))]
    env = environment(PYTHONPATH=str(ROOT))
    callers = [
        subprocess.Popen(
            [sys.executable, "-c", program, "fetch", url], cwd=tmp_path, env=env, stderr=subprocess.DEVNULL
        )
        for url in urls
    ]
    assert [caller.wait() for caller in callers] == [0, 0]
    assert delivered(tmp_path) in (small, old)
