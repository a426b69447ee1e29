"""Test the output of `Progress`, on terminals and elsewhere."""

from __future__ import annotations

import io
import os
import re
from pathlib import Path

import pytest
from command import PROGRESS, PROGRESS_WITHOUT_SIZE, WAITING, line_pattern, run_command
from server import Reply, Server

from imagenet_aux import progress
from imagenet_aux.progress import Progress, describe
from imagenet_aux.streams import Stream


class Terminal(io.StringIO):
    """A text stream that claims to be a terminal, and counts flushes."""

    flushes = 0

    def isatty(self) -> bool:
        return True

    def flush(self) -> None:
        self.flushes += 1
        super().flush()

    def fileno(self) -> int:
        return 9


class Clock:
    """A clock that a test can set."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(progress, "time", made)
    return made


@pytest.fixture
def columns(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list whose only item sets the number of terminal columns."""
    made = [100]
    monkeypatch.setattr(os, "get_terminal_size", lambda fd: os.terminal_size((made[0], 24)))
    return made


class Waiting(Stream):
    """A stream with a settable waiting time."""

    waited = 0.0


def stream(
    received: int, size: int | None = None, waited: float = 0.0, label: str = "host", before_restart: int = 0
) -> Stream:
    made = Waiting(label, lambda stream: None)
    made.received, made.size, made.waited = received, size, waited
    made.total = before_restart + received
    return made


MB = 1_000_000


@pytest.mark.parametrize(
    ("shown", "seconds", "expected"),
    [
        (stream(5 * MB, 20 * MB), 10, PROGRESS.format("5.0", "20.0", "0.5", "0:30")),
        (stream(1 * MB, 151 * MB), 2, PROGRESS.format("1.0", "151.0", "0.5", "5:00")),
        (stream(1 * MB, 100 * MB), 1, PROGRESS.format("1.0", "100.0", "1.0", "1:39")),
        (stream(1 * MB, 8 * MB), 1, PROGRESS.format("1.0", "8.0", "1.0", "0:07")),
        (stream(20 * MB, 20 * MB), 10, PROGRESS.format("20.0", "20.0", "2.0", "0:00")),
        (stream(40 * MB, 20 * MB), 10, PROGRESS.format("40.0", "20.0", "4.0", "0:00")),
        (stream(1 * MB, 20 * MB, before_restart=15 * MB), 16, PROGRESS.format("1.0", "20.0", "1.0", "0:19")),
        (stream(5 * MB), 10, PROGRESS_WITHOUT_SIZE.format("5.0", "0.5")),
        (stream(1000, 2000), 0, PROGRESS.format("0.0", "0.0", "1.0", "0:00")),
        (stream(0, 2000, 3.4), 10, WAITING.format("host", 3)),
        (stream(0, None, 7.6), 10, WAITING.format("host", 8)),
        (stream(0, None, 1, "a\x1b[2Jb\r"), 10, WAITING.format(r"a\x1b[2Jb\r", 1)),
    ],
    ids=[
        "rate and time",
        "minutes",
        "two digits",
        "seconds",
        "complete",
        "growing file",
        "restarted",
        "unknown size",
        "zero seconds",
        "nothing received",
        "nothing received, unknown size",
        "control characters",
    ],
)
def test_describes_a_stream(shown: Stream, seconds: float, expected: str) -> None:
    assert describe(shown, seconds) == expected


def test_writes_lines_without_a_terminal(clock: Clock) -> None:
    out = io.StringIO()
    show = Progress(out)
    shown = stream(0, 20 * MB)
    for second in range(8):
        shown.received = shown.total = second * MB
        clock.now = 1000 + second
        show(shown)
    show.clear()
    show.write("done\n")
    lines = [PROGRESS.format("3.0", "20.0", "1.0", "0:17"), PROGRESS.format("6.0", "20.0", "1.0", "0:14"), "done"]
    assert out.getvalue() == "".join(f"{line}\n" for line in lines)


def test_measures_each_stream_separately(clock: Clock) -> None:
    out = io.StringIO()
    show = Progress(out)
    show(stream(0))
    clock.now += 3
    other = stream(3 * MB)
    show(other)
    assert out.getvalue() == ""
    clock.now += 3
    show(other)
    assert out.getvalue() == PROGRESS_WITHOUT_SIZE.format("3.0", "1.0") + "\n"


@pytest.mark.parametrize(
    ("space", "bar"),
    [
        (60, "[##########..............................]  "),
        (40, "[##########..............................]  "),
        (20, "[#####...............]  "),
        (8, "[##......]  "),
        (7, ""),
        (-25, ""),
    ],
)
def test_bar_fits_the_terminal(space: int, bar: str, clock: Clock, columns: list[int]) -> None:
    """The terminal's width leaves *space* columns between the brackets, next to the text."""
    text = PROGRESS.format("5.0", "20.0", "0.5", "0:30")
    width = len(f"[]  {text}") + space
    columns[0] = width + 1
    out = Terminal()
    show = Progress(out)
    shown = stream(5 * MB, 20 * MB)
    show(shown)
    clock.now += 10
    show(shown)
    assert out.getvalue() == "\r" + f"{bar}{text}"[:width].ljust(width)


@pytest.mark.parametrize(
    ("shown", "bar"),
    [
        (stream(0, 20 * MB), "[" + "." * 40 + "]  "),
        (stream(5 * MB), ""),
        (stream(1, 20 * MB), "[" + "." * 40 + "]  "),
        (stream(20 * MB, 20 * MB), "[" + "#" * 40 + "]  "),
        (stream(25 * MB, 20 * MB), "[" + "#" * 40 + "]  "),
    ],
    ids=["nothing received", "unknown size", "one byte", "complete", "growing file"],
)
def test_bar_shows_the_received_fraction(shown: Stream, bar: str, clock: Clock, columns: list[int]) -> None:
    out = Terminal()
    show = Progress(out)
    show(shown)
    clock.now += 10
    show(shown)
    assert out.getvalue() == ("\r" + bar + describe(shown, 10)).ljust(100)


def test_bar_is_drawn_ten_times_a_second(clock: Clock, columns: list[int]) -> None:
    out = Terminal()
    show = Progress(out)
    shown = stream(1, 100)
    for _ in range(100):
        clock.now += 0.015625
        show(shown)
    assert out.getvalue().count("\r") == 14  # every seventh call
    assert out.flushes == 14


def test_text_replaces_the_bar(clock: Clock, columns: list[int]) -> None:
    out = Terminal()
    show = Progress(out)
    shown = stream(1, 100)
    show(shown)
    clock.now += 1
    show(shown)
    bar = out.getvalue()
    show.write("warning: x\n")
    show.write("warning: y\n")
    assert out.getvalue() == bar + "\r" + " " * 99 + "\rwarning: x\nwarning: y\n"
    assert out.flushes == 4
    show.flush()
    assert out.flushes == 4


def test_clears_the_bar_once(clock: Clock, columns: list[int]) -> None:
    out = Terminal()
    show = Progress(out)
    show.clear()
    assert out.getvalue() == ""
    shown = stream(1, 100)
    show(shown)
    clock.now += 1
    show(shown)
    bar = out.getvalue()
    show.clear()
    show.clear()
    assert out.getvalue() == bar + "\r" + " " * 99 + "\r"


@pytest.mark.parametrize("problem", ["unknown size", "zero columns"])
def test_assumes_80_columns(problem: str, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    def get_size(fd: int) -> os.terminal_size:
        if problem == "unknown size":
            raise OSError
        return os.terminal_size((0, 0))

    monkeypatch.setattr(os, "get_terminal_size", get_size)
    out = Terminal()
    show = Progress(out)
    shown = stream(5 * MB)
    show(shown)
    clock.now += 1
    show(shown)
    assert out.getvalue() == "\r" + PROGRESS_WITHOUT_SIZE.format("5.0", "5.0").ljust(79)


def test_escapes_control_characters_in_text() -> None:
    out = io.StringIO()
    Progress(out).write("error: \x1b[2J\u202e é\n")
    assert out.getvalue() == "error: \\x1b[2J\\u202e é\n"


def test_a_pipe_gets_no_bar(server: Server, tmp_path: Path, archive: bytes) -> None:
    result = run_command(tmp_path, "fetch", server.serve("a", archive, Reply(chunk_size=20_000, pause=0.5)))
    assert result.returncode == 0
    assert "\r" not in result.stderr and "#" not in result.stderr
    line = line_pattern(PROGRESS, r"0\.[12]", r"0\.2", r"0\.[01]", r"0:\d\d")
    assert re.search(f"^{line}$", result.stderr, re.MULTILINE)


def test_shows_that_it_waits_for_a_host(server: Server, tmp_path: Path, archive: bytes) -> None:
    """The host accepts the connection and responds after four seconds."""
    late = Reply(headers={"X": lambda: str(server.released.wait(4))})
    result = run_command(tmp_path, "fetch", server.serve("a", archive, late))
    assert result.returncode == 0
    line = line_pattern(WAITING, r"127\.0\.0\.1", "[34]")
    assert re.search(f"^{line}$", result.stderr, re.MULTILINE)
