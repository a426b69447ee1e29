"""Test what signals and kills leave behind."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Callable

import pytest
from cm_home import ROOT, WINDOWS, CmHome, clean_env
from command import (
    WAITING,
    make_manifest,
    read_data,
    run_at_start,
    run_command,
    start_command,
    write_files,
)
from server import Reply, Server, slow_reply

from imagenet_aux.manifest import Source

# On Windows, a process cannot handle its termination.
STOP_SIGNALS = [] if WINDOWS else ["SIGTERM", "SIGINT", "SIGHUP"]
KILLS = ["SIGTERM"] if WINDOWS else ["SIGKILL", *STOP_SIGNALS]

needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has /proc")

pytestmark = pytest.mark.usefixtures("default_signals", "no_coverage")


@pytest.fixture
def work(tmp_path: Path, old_files: dict[str, bytes]) -> Path:
    """Return a folder with the old files."""
    write_files(tmp_path / "work" / "data", old_files)
    return tmp_path / "work"


def read_published(work: Path) -> dict[str, bytes]:
    """Read the files in the target, except the staging folder and lock file that a killed process leaves."""
    return {path.name: path.read_bytes() for path in (work / "data").glob("[!.]*")}


# During the fetch


@pytest.mark.parametrize("stop_at", [0, 100_000], ids=["before the response", "in the body"])
@pytest.mark.parametrize("kill", KILLS)
def test_kill_during_download_keeps_the_old_files(
    kill: str,
    stop_at: int,
    work: Path,
    server: Server,
    archive: bytes,
    sample_files: dict[str, bytes],
    old_files: dict[str, bytes],
) -> None:
    first = (
        Reply(stop_at=stop_at, chunk_size=4096, pause=0.01, then="stall") if stop_at else Reply(raw=b"", then="stall")
    )
    url = server.serve("a.tar.gz", archive, first, Reply())
    process = start_command(work, "fetch", url, "--replace")
    server.wait_for_requests(process)
    if stop_at:
        while not any(path.stat().st_size for path in work.glob("data/.imagenet-aux.*/*.txt")):
            assert process.poll() is None
            time.sleep(0.01)
    process.send_signal(signal.Signals[kill])
    _, stderr = process.communicate(timeout=60)
    assert read_published(work) == old_files
    if kill in STOP_SIGNALS:
        assert process.returncode == 128 + signal.Signals[kill]
        assert stderr.endswith(f"error: interrupted by {kill}\n")
        assert read_data(work) == old_files
    assert run_command(work, "fetch", url, "--replace").returncode == 0
    assert read_data(work) == sample_files
    assert os.listdir(work) == ["data"]


@pytest.mark.skipif(WINDOWS, reason="Windows processes cannot handle SIGTERM")
@pytest.mark.parametrize("is_staged", [False, True], ids=["before staging", "before publishing"])
def test_signal_ends_the_wait_for_the_lock(
    is_staged: bool, work: Path, server: Server, archive: bytes, old_files: dict[str, bytes]
) -> None:
    import fcntl

    url = server.serve("a.tar.gz", archive, slow_reply(archive, 2.0))
    with contextlib.ExitStack() as stack:
        process = None
        if is_staged:
            process = start_command(work, "fetch", url, "--replace")
            server.wait_for_requests(process)
        lock = stack.enter_context(open(work / "data" / ".imagenet-aux.lock", "wb"))
        fcntl.flock(lock, fcntl.LOCK_EX)
        process = process or start_command(work, "fetch", url, "--replace")
        assert process.stderr
        while not process.stderr.readline().startswith(WAITING.format("another process", 3)):
            assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        _, stderr = process.communicate(timeout=20)
    assert (process.returncode, stderr) == (143, "error: interrupted by SIGTERM\n")
    assert read_data(work) == {**old_files, ".imagenet-aux.lock": b""}


@pytest.mark.skipif(WINDOWS, reason="Windows processes cannot handle SIGTERM")
def test_result_file_reports_the_interruption(work: Path, server: Server, archive: bytes) -> None:
    url = server.serve("a.tar.gz", archive, Reply(stop_at=1000, then="stall"))
    process = start_command(work, "fetch", url, "--result=result.json")
    server.wait_for_requests(process)
    process.terminate()
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 0 and "interrupted" not in stderr
    assert json.loads((work / "result.json").read_text()) == {
        "requested": url,
        "folder": str(work / "data"),
        "error": "interrupted by SIGTERM",
    }


@pytest.mark.skipif(WINDOWS, reason="Windows processes cannot handle SIGTERM")
def test_signal_ends_a_pause_between_attempts(work: Path, server: Server, archive: bytes) -> None:
    url = server.serve("a.tar.gz", archive, Reply(status=503, headers={"Retry-After": "15"}))
    process = start_command(work, "fetch", url)
    server.wait_for_requests(process)
    process.terminate()
    assert process.communicate(timeout=60)[1].endswith("error: interrupted by SIGTERM\n")
    assert process.returncode == 143 and len(server.requests) == 1


@pytest.mark.parametrize("name", STOP_SIGNALS)
def test_ignored_signal_stays_ignored(
    name: str, work: Path, server: Server, archive: bytes, sample_files: dict[str, bytes]
) -> None:
    """The nohup command ignores SIGHUP; shells ignore SIGINT for background processes."""
    gate = threading.Event()
    url = server.serve("a.tar.gz", archive, Reply(headers={"X-Gate": lambda: str(gate.wait(60))}))
    number = signal.Signals[name]
    signal.signal(number, signal.SIG_IGN)
    try:
        process = start_command(work, "fetch", url, "--replace")
    finally:
        signal.signal(number, signal.SIG_DFL)
    server.wait_for_requests(process)
    process.send_signal(number)
    gate.set()
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr
    assert read_data(work) == sample_files


@pytest.mark.skipif(WINDOWS, reason="Windows has no SIGSTOP")
@pytest.mark.parametrize("suspended", [True, False], ids=["suspended", "silent"])
@pytest.mark.parametrize("stop_at", [0, 100_000], ids=["before the response", "in the body"])
def test_suspension_does_not_count_as_waiting(
    stop_at: int,
    suspended: bool,
    tmp_path: Path,
    work: Path,
    server: Server,
    archive: bytes,
    sample_files: dict[str, bytes],
    old_files: dict[str, bytes],
) -> None:
    """Five seconds without data exceed the four-second limit, unless the process is suspended for that time."""
    gate = threading.Event()
    gate_header: dict[str, str | Callable[[], str]] = {"X-Gate": lambda: str(gate.wait(60))}
    replies = [Reply(headers=gate_header), Reply(status=404)]
    if stop_at:
        replies = [Reply(stop_at=stop_at), Reply(headers=gate_header), Reply(status=404)]
    url = server.serve("a.tar.gz", archive, *replies)
    limits = "from imagenet_aux import download; download.STALL_SECONDS = download.MAX_IDLE_SECONDS = 4.0"
    process = start_command(work, "fetch", url, "--replace", **run_at_start(tmp_path / "limits", limits))
    server.wait_for_requests(process, 2 if stop_at else 1)
    if suspended:
        process.send_signal(signal.SIGSTOP)
        time.sleep(5)
        gate.set()
        process.send_signal(signal.SIGCONT)
    _, stderr = process.communicate(timeout=60)
    gate.set()
    assert process.returncode == (0 if suspended else 1), stderr
    assert ("nothing received in 4 s" in stderr) != suspended
    assert read_data(work) == (sample_files if suspended else old_files)


@pytest.mark.measured
@pytest.mark.skipif(WINDOWS, reason="Windows ends the process")
def test_interrupted_show_is_reported(work: Path, tmp_path: Path) -> None:
    send = (
        "import os, signal, sys\n"
        "def hook(event, args):\n"
        "    if event == 'open' and str(args[0]).endswith('val.txt'):\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.addaudithook(hook)\n"
    )
    result = run_command(work, "show", "data", **run_at_start(tmp_path / "send", send))
    assert (result.returncode, result.stdout) == (130, "")
    assert result.stderr == "error: interrupted by SIGINT\n"


# At each step


class Runner:
    """Run a fetch that replaces the old files in a folder, with a signal at a step."""

    def __init__(self, work: Path, source: Path, old_files: dict[str, bytes]) -> None:
        self._work = work
        self._old_files = old_files
        self._process = subprocess.Popen(
            [sys.executable, str(ROOT / "tests" / "signal_at_step.py"), "fetch", str(source), "--replace"],
            cwd=work,
            env=clean_env(PYTHONPATH=str(ROOT)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="utf-8",
        )

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate(timeout=60)

    def run(self, number: str, step: int, mode: str = "once") -> tuple[int, str]:
        """Restore the old files and run; return the exit code and the step's name (empty if there is no such step)."""
        shutil.rmtree(self._work / "data")
        write_files(self._work / "data", self._old_files)
        return self.repeat(number, step, mode)

    def repeat(self, number: str = "SIGTERM", step: int = 0, mode: str = "once") -> tuple[int, str]:
        """Run without restoring the old files; by default, send no signal."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(f"{number} {step} {mode}\n")
        self._process.stdin.flush()
        code, _, name = self._process.stdout.readline().strip().partition(" ")
        return int(code), name


@pytest.fixture
def source(tmp_path: Path, sample_files: dict[str, bytes]) -> Path:
    return write_files(tmp_path / "source", sample_files)


@pytest.mark.skipif(WINDOWS, reason="Windows has no fork")
@pytest.mark.parametrize(("number", "mode"), [("SIGTERM", "once"), ("SIGINT", "repeat")])
def test_stop_signal_at_each_step_leaves_old_or_new_files(
    number: str,
    mode: str,
    work: Path,
    source: Path,
    sample_files: dict[str, bytes],
    old_files: dict[str, bytes],
) -> None:
    """Expect the old files and "interrupted", or, once files have been moved, the new files and success."""
    codes, names = [], []
    with Runner(work, source, old_files) as runner:
        for step in range(1, 1000):
            code, name = runner.run(number, step, mode)
            assert read_data(work) == (sample_files if code == 0 else old_files), (step, name)
            assert os.listdir(work) == ["data"], (step, name)
            if not name:
                break
            codes.append(code)
            names.append(name)
    interrupted = 128 + signal.Signals[number]
    assert codes == [interrupted] * codes.count(interrupted) + [0] * codes.count(0)
    assert codes.count(interrupted) > len(sample_files)
    moves = [code for code, name in zip(codes, names) if name == "os.rename"][-len(sample_files) :]
    assert moves == [0] * len(sample_files)


@pytest.mark.skipif(WINDOWS, reason="Windows has no fork")
@pytest.mark.parametrize("mode", ["once", "repeat"])
def test_stop_signal_at_each_step_of_a_failing_fetch(
    mode: str, work: Path, source: Path, old_files: dict[str, bytes]
) -> None:
    (source / "val.txt").write_bytes(b"<!DOCTYPE html>")
    codes = []
    with Runner(work, source, old_files) as runner:
        for step in range(1, 1000):
            code, name = runner.run("SIGTERM", step, mode)
            assert read_data(work) == old_files and os.listdir(work) == ["data"], (step, name)
            if not name:
                break
            codes.append(code)
    assert codes == [143] * codes.count(143) + [1] * codes.count(1)
    assert codes.count(143) > 10 and codes.count(1) > 10


@pytest.mark.skipif(WINDOWS, reason="Windows has no fork")
def test_next_fetch_succeeds_after_a_kill_at_each_step(
    work: Path, source: Path, sample_files: dict[str, bytes], old_files: dict[str, bytes]
) -> None:
    with Runner(work, source, old_files) as runner:
        for step in range(1, 1000):
            code, name = runner.run("SIGKILL", step)
            if not name:
                break
            assert code == -signal.SIGKILL
            published = read_published(work)
            assert set(published) == set(old_files), (step, name)
            for file, data in published.items():
                assert data in (old_files[file], sample_files[file]), (step, name)
            assert runner.repeat() == (0, ""), (step, name)
            assert read_data(work) == sample_files, (step, name)
            assert os.listdir(work) == ["data"], (step, name)
    assert step > 50


@pytest.mark.skipif(WINDOWS, reason="Windows has no SIGKILL")
def test_next_fetch_without_a_source_removes_the_old_files(
    tmp_path: Path, work: Path, server: Server, archive: bytes, sample_files: dict[str, bytes]
) -> None:
    """A kill after the last rename leaves a complete target, and the old files in the staging folder."""
    manifest = make_manifest(sample_files, Source(server.serve("a.tar.gz", archive)))
    kill = (
        "import os, signal, sys; moved = []\n"
        "def kill(event, args):\n"
        "    if event == 'os.rename' and os.path.basename(os.path.dirname(args[1])) == 'data':\n"
        "        moved.append(args[1])\n"
        f"    if event == 'os.remove' and len(moved) == {len(sample_files)}:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "sys.addaudithook(kill)"
    )
    killed = run_command(work, "fetch", "--replace", manifest=manifest, **run_at_start(tmp_path / "kill", kill))
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert read_published(work) == sample_files and len(os.listdir(work / "data")) == len(sample_files) + 2
    assert run_command(work, "fetch", manifest=manifest).returncode == 0
    assert read_data(work) == sample_files
    assert len(server.requests) == 1


# Under the engine


@pytest.mark.skipif(WINDOWS, reason="--pid has no effect on Windows")
@pytest.mark.parametrize("is_waited_for", [True, pytest.param(False, marks=needs_proc)], ids=["ended", "zombie"])
def test_fetch_ends_if_only_the_engine_is_killed(
    is_waited_for: bool, home: CmHome, server: Server, archive: bytes
) -> None:
    """The shell and the fetcher live on; later, the fetcher could replace the files of another call."""
    url = server.serve("a.tar.gz", archive, Reply(stop_at=1000, then="stall"))
    engine = home.start_script(f"--url={url}")
    server.wait_for_requests(engine)
    engine.kill()
    if is_waited_for:
        engine.wait()
    engine.communicate()  # until the fetcher has ended
    assert len(server.requests) == 1
    assert home.leftovers() == []


def test_killed_engine_leaves_a_usable_cache(
    home: CmHome, server: Server, archive: bytes, sample_files: dict[str, bytes]
) -> None:
    url = server.serve("a.tar.gz", archive, Reply(stop_at=1000, then="stall"), Reply())
    engine = home.start_script(f"--url={url}")
    server.wait_for_requests(engine)
    if sys.platform == "win32":
        subprocess.run(["taskkill", "/F", "/T", "/PID", str(engine.pid)], stdout=subprocess.DEVNULL, check=True)
    else:
        os.killpg(engine.pid, signal.SIGKILL)
    engine.communicate()
    home.export_keys(f"--url={url}")
    (entry,) = home.cache_entries()
    assert read_data(entry) == sample_files
    assert home.leftovers() == []
