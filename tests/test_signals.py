"""Signals and kills: what they leave behind."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import sample_archive
from cm_home import ROOT, TAGS, WINDOWS, CmHome, clean_env
from command import read_data, run_command, start_command
from server import Reply, Server, slow_reply

# On Windows, a process cannot handle being terminated.
KILLS = ["SIGTERM"] if WINDOWS else ["SIGKILL", "SIGTERM", "SIGINT", "SIGHUP"]
HEARD = [] if WINDOWS else ["SIGTERM", "SIGINT", "SIGHUP"]


@pytest.mark.parametrize("kill", KILLS)
def test_after_a_kill_while_it_fetches_the_old_set_stands_and_the_next_run_works(
    kill: str, tmp_path: Path, server: Server, sample_files: dict[str, bytes], old_files: dict[str, bytes]
) -> None:
    number = signal.Signals[kill]
    if signal.getsignal(number) == signal.SIG_IGN:  # under nohup, or in the background; callers would inherit it
        signal.signal(number, signal.SIG_DFL)
    archive = sample_archive.pack_files(sample_files)
    server.serve("old", sample_archive.pack_files(old_files))
    run_command(tmp_path, "fetch", f"{server.url}/old")
    url = server.serve("new", archive, slow_reply(archive, 3.0))
    dice = random.Random(1)
    for has_asked in (False, True) * 4:
        asked = len(server.requests)
        process = start_command(tmp_path, "fetch", url)
        while has_asked and len(server.requests) == asked:
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(dice.uniform(0.05, 0.8))
        process.send_signal(number)
        process.communicate()
        assert read_data(tmp_path) == old_files
        if kill in HEARD and (has_asked or process.returncode > 0):
            by_python = [] if has_asked else [1]  # before our handler was set
            assert process.returncode in [128 + number, *by_python]
            assert os.listdir(tmp_path) == ["data"]
    server.serve("new", archive)
    assert run_command(tmp_path, "fetch", url).returncode == 0
    assert read_data(tmp_path) == sample_files
    assert os.listdir(tmp_path) == ["data"]


@pytest.mark.skipif(WINDOWS, reason="nothing is suspended there")
def test_what_was_suspended_for_longer_than_it_is_patient_goes_on(
    tmp_path: Path, server: Server, archive: bytes, sample_files: dict[str, bytes]
) -> None:
    url = server.serve(
        "a.tar.gz", archive, Reply(stop_at=len(archive) // 2, then="reset", chunk_size=4096, pause=0.1), Reply()
    )
    process = start_command(tmp_path, "fetch", url)
    while not server.requests:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGSTOP)
    time.sleep(21)
    process.send_signal(signal.SIGCONT)
    _, said = process.communicate()
    assert process.returncode == 0, said
    assert read_data(tmp_path) == sample_files


def test_a_kill_under_the_engine_leaves_a_cache_that_works(
    home: CmHome, server: Server, archive: bytes, sample_files: dict[str, bytes]
) -> None:
    url = server.serve("a.tar.gz", archive, slow_reply(archive, 3.0), Reply())
    engine = subprocess.Popen(
        home.resolve_command("cm", "run", "script", f"--tags={TAGS}", f"--url={url}"),
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
    home.export_keys(f"--url={url}")
    assert len(home.cache_entries()) == 1
    assert {path.name: path.read_bytes() for path in (home.cache_entries()[0] / "data").iterdir()} == sample_files
    assert home.leftovers() == []


@pytest.mark.skipif(WINDOWS, reason="nothing in a process hears of its end there")
def test_a_signal_in_the_middle_of_publishing_leaves_the_old_set(
    tmp_path: Path, server: Server, archive: bytes, old_files: dict[str, bytes]
) -> None:
    run_command(tmp_path, "fetch", server.serve("old", sample_archive.pack_files(old_files)))
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
    result = subprocess.run(call, cwd=tmp_path, env=clean_env(PYTHONPATH=str(ROOT)), stderr=subprocess.PIPE)
    assert result.returncode == 143 and result.stderr.endswith(b"error: stopped by signal 15\n")
    assert read_data(tmp_path) == old_files
    assert os.readlink(tmp_path / "data" / "det_synset_words.txt") == os.path.join("..", "mine.txt")
    assert sorted(os.listdir(tmp_path)) == ["data", "mine.txt"]
